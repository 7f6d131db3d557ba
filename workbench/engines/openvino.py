"""OpenVINO as a backend for CPUs. The only user of `openvino`.

Reads symmetric signed Q/DQ (the dialect `strong`), for which its CPU kernels are at least as fast as for unsigned
activations. BF16 is real arithmetic where the processor has it; FP16 is not: the hint `f16` means BF16 there, so it is
never given. Fusion cannot be turned down. Weight-only recipes leave activations alone. `compute` is the bare call with
inputs and outputs bound.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines import feeding
from workbench.engines.base import BuildRequest, Feeds, Missing
from workbench.engines.cpu import fit_notes
from workbench.errors import BuildError, EngineError, RunError, UnsupportedOperator
from workbench.graph.dialects import of_this_cpu
from workbench.machine import device as hardware
from workbench.recipes import Precision
from workbench.records import Boundary, BuildOptions, Engine, LayerTime, TensorSpec

_SIDECAR = "openvino.json"
# OpenVINO's names of element types -> numpy's.
_NUMPY = {
    "f64": "float64", "f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8", "u4": "uint4", "i4": "int4",
    "i32": "int32", "i64": "int64", "bf16": "bfloat16", "boolean": "bool",
}  # fmt: skip
_UNKNOWN_OPERATORS = re.compile(r"No conversion rule found for operations: ([^\n]+)")


def missing(name: str) -> Missing | None:
    """Return why OpenVINO cannot be used here, or None."""
    if importlib.util.find_spec("openvino") is None:
        return Missing("openvino is not installed.", 'Run: pip install "trt-workbench[openvino]"')
    return None


def version(name: str) -> str:
    """Return the version of the installed openvino."""
    return hardware.version("openvino") or "unknown"


def device(name: str) -> str:
    """Return the CPU in words."""
    return hardware.cpu_device()


def dialect(name: str) -> str:
    """Return the Q/DQ dialect: symmetric signed, with the types in the graph, and weights as this CPU multiplies them."""
    return of_this_cpu("strong")


def refuses(name: str, target: str | None = None) -> dict[str, str]:
    """Return what OpenVINO does not do, or does the same way whatever is asked -> the reason."""
    fused = "OpenVINO always fuses all it can"
    return {
        "tf32": "TF32 exists on NVIDIA GPUs only",
        "int8-dynamic": "OpenVINO takes static scales here; the backend onnxruntime-cpu finds scales at run time",
        "fusion-off": fused,
        "fusion-basic": fused,
    }


def lacks(name: str, onnx_path: Path) -> dict[str, str]:
    """Return the operator types of the file that OpenVINO cannot convert -> the reason.

    Raises:
        BuildError: it cannot read the file at all.
    """
    try:
        _core().read_model(str(onnx_path))
    except RuntimeError as error:
        found = _UNKNOWN_OPERATORS.search(str(error))
        if found is None:
            raise _build_error(error) from error
        operators = (re.sub(r"-\d+$", "", item.strip()) for item in found[1].split(","))
        return {item: f"OpenVINO {version(name)} has no conversion for it" for item in operators}
    return {}


def build(request: BuildRequest, log: Callable[[str], None]) -> Engine:
    """Compile the model once, so that every error shows now; OpenVINO compiles again whenever it is opened.

    Raises:
        UnsupportedOperator: OpenVINO has no conversion for an operator.
        BuildError: anything else that it refuses.
    """
    variant = request.variant
    precision = variant.recipe.step("precision")
    hint = "bf16" if isinstance(precision, Precision) and precision.to == "bf16" else "f32"
    started = time.perf_counter()
    log(f"compiling {Path(variant.path).name} with the precision hint {hint}")
    try:
        compiled = _compiled(variant.path, hint, request.options.threads)
    except RuntimeError as error:
        raise _build_error(error) from error
    seconds = time.perf_counter() - started
    # What a runner needs to know, and neither the engine nor the compiled model tells.
    sidecar = {"hint": hint, "axes": _named_axes(Path(variant.path))}
    (Path(request.folder) / _SIDECAR).write_text(json.dumps(sidecar), encoding="utf-8")
    log(f"ready after {seconds:.2f} s")
    return Engine(
        variant=variant.name,
        variant_sha256=variant.sha256,
        fusion="all",
        backend=request.backend,
        backend_version=version(request.backend),
        device=device(request.backend),
        path=variant.path,
        inputs=variant.inputs,
        outputs=variant.outputs,
        build_seconds=seconds,
        size_bytes=variant.size_bytes,
        options=request.options,
        notes=_notes(request, _given_type(compiled)),
        folder=request.folder,
    )


def open_runner(engine: Engine, threads: int | None) -> OpenVinoRunner:
    """Open a built engine.

    Raises:
        EngineError: the file is gone, damaged, or refused now.
    """
    if not Path(engine.path).exists():
        raise EngineError(f"The engine file {engine.path} is gone. Build the variant {engine.variant!r} again.")
    try:
        sidecar = json.loads((Path(engine.folder or "") / _SIDECAR).read_text(encoding="utf-8"))
        return OpenVinoRunner(engine, _compiled(engine.path, sidecar["hint"], threads), sidecar["axes"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(
            f"The engine of {engine.variant!r} cannot be opened: {_short(error)} Build it again."
        ) from error


def layer_times(engine: Engine, feeds: Feeds, runs: int) -> list[LayerTime]:
    """Return the layers that OpenVINO executes, from its performance counters.

    Raises:
        EngineError: the engine is gone, damaged, or refuses the feeds.
    """
    try:
        sidecar = json.loads((Path(engine.folder or "") / _SIDECAR).read_text(encoding="utf-8"))
        compiled = _compiled(engine.path, sidecar["hint"], engine.options.threads, profiled=True)
        request = compiled.create_infer_request()
        taken: dict[str, list[float]] = {}
        for index in range(min(runs, 5) + runs):
            request.infer(dict(feeds))
            for item in request.get_profiling_info() if index >= min(runs, 5) else ():
                taken.setdefault(item.node_name, []).append(item.real_time.total_seconds())
        executed = compiled.get_runtime_model().get_ordered_ops()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(
            f"The engine of {engine.variant!r} cannot be profiled: {_short(error)} Build it again."
        ) from error
    sources = _nodes_by_output(Path(engine.path))
    found = []
    for operation in executed:
        about = {key: str(value.value) for key, value in operation.get_rt_info().items()}
        if operation.get_friendly_name() in taken and about.get("layerType") not in ("Input", "Output", "Const"):
            names = [name for name in about.get("originalLayersNames", "").split(",") if name]
            found.append(
                LayerTime(
                    name=operation.get_friendly_name(),
                    operator=about.get("layerType", ""),
                    seconds=float(np.median(taken[operation.get_friendly_name()])),
                    nodes=tuple(dict.fromkeys(sources[name] for name in names if name in sources)),
                    precision=about.get("runtimePrecision", ""),
                    **_tensors(operation),
                )
            )
    return found


def _tensors(operation: Any) -> dict[str, Any]:
    """Return what an executed operation reads and writes, as every backend tells it; tensors have their producer's name."""
    sources = [(port.get_source_output(), port.get_source_output().get_node()) for port in operation.inputs()]
    return {
        "reads": tuple(_spec(node.get_friendly_name(), port) for port, node in sources),
        "writes": tuple(_spec(operation.get_friendly_name(), port) for port in operation.outputs()),
        "constants": tuple(
            node.get_friendly_name()
            for _, node in sources
            if "layerType" in node.get_rt_info() and str(node.get_rt_info()["layerType"].value) == "Const"
        ),
    }


def _spec(name: str, port: Any) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    axes = port.get_partial_shape()
    shape = tuple(axis.get_length() if axis.is_static else None for axis in axes) if axes.rank.is_static else ()
    return TensorSpec(name, _NUMPY.get(kind, kind), shape)


def _nodes_by_output(path: Path) -> dict[str, str]:
    """Return what OpenVINO may call a layer (an ONNX node, or an output of it) -> the node's name."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return {
        **{output: node.name for node in nodes for output in node.output},
        **{node.name: node.name for node in nodes},
    }


class OpenVinoRunner:
    """An open model. Not for two threads at once."""

    def __init__(self, engine: Engine, compiled: Any, axes: dict[str, list[tuple[str, int]]]) -> None:
        self.inputs, self.outputs, self._axes = engine.inputs, engine.outputs, axes
        self._request = compiled.create_infer_request()

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._request = None

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, from host arrays to host arrays of the caller's own.

        Raises:
            RunError: names, dtypes or shapes do not fit, or OpenVINO reports an error.
        """
        self._check(feeds)
        try:
            self._request.infer(dict(feeds))
        except RuntimeError as error:
            raise RunError(
                f"OpenVINO failed while running: {_short(error)} Check the sizes of the dynamic axes that were fed."
            ) from error
        return {spec.name: np.array(self._request.get_tensor(spec.name).data) for spec in self.outputs}

    def stopwatch(self, feeds: Feeds, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        """Return a function that runs once and returns the seconds within the boundary.

        `compute` binds the inputs once and leaves the outputs where they are; the others go through `infer`.
        """
        self._check(feeds)
        if boundary != "compute":
            return lambda: _timed(lambda: self.infer(feeds))
        self.infer(feeds)  # so that an error shows here
        request, library = self._request, _library()
        kept = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in kept.items():
            request.set_tensor(name, library.Tensor(array, shared_memory=True))

        def launch() -> None:
            request.start_async()
            request.wait()

        return lambda kept=kept: _timed(launch)  # type: ignore[misc]  # the request reads these arrays

    def conditions(self) -> dict[str, Any]:
        """Return nothing: OpenVINO tells nothing of the CPU's state."""
        return {}

    def _check(self, feeds: Feeds) -> None:
        if self._request is None:
            raise RunError("This runner was closed. Open the engine again with workbench.open_runner(engine).")
        feeding.check(self.inputs, feeds)
        for label, places in self._axes.items():
            sizes = {f"axis {axis} of {name!r}": feeds[name].shape[axis] for name, axis in places}
            if len(set(sizes.values())) > 1:
                # OpenVINO 2026.4 on one thread returns empty outputs for such feeds, or crashes; on more it says so.
                raise RunError(
                    f"The model calls these axes {label!r}, so their sizes must agree: {sizes}. Feed equal sizes."
                )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _named_axes(path: Path) -> dict[str, list[tuple[str, int]]]:
    """Return the names that several axes of the inputs share -> where."""
    import onnx

    found: dict[str, list[tuple[str, int]]] = {}
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                found.setdefault(dim.dim_param, []).append((value.name, axis))
    return {label: places for label, places in found.items() if len(places) > 1}


def _library() -> Any:
    # Importing it reports to its makers, from a process forked out of a thread, which hangs for good where there is no
    # network: hundreds were left over. It takes a run of CI for one that must not report.
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def _core() -> Any:
    return _library().Core()


def _compiled(path: str, hint: str, threads: int | None, *, profiled: bool = False) -> Any:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": 1,
        "PERF_COUNT": profiled,
        # Otherwise weight-only quantization would quantize activations too, without being asked.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return _core().compile_model(path, "CPU", settings)


def _given_type(compiled: Any) -> str:
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())


def _notes(request: BuildRequest, given: str) -> tuple[str, ...]:
    recipe, notes = request.variant.recipe, []
    precision = recipe.step("precision")
    to = precision.to if isinstance(precision, Precision) else "fp32"
    if to == "bf16" and given != "bf16":
        notes.append(f"BF16 was asked for, but OpenVINO computes in {given} on this CPU: it has no BF16 arithmetic.")
    if to == "fp16":
        notes.append("FP16 on a CPU is storage only: OpenVINO computes in FP32, so its speed says nothing about a GPU.")
    if to == "tf32":
        notes.append("TF32 exists on NVIDIA GPUs only; on this CPU the variant is FP32.")
    if recipe.fusion != "all":
        notes.append(f"The recipe asks for fusion {recipe.fusion!r}; OpenVINO always fuses all it can.")
    notes += fit_notes(Path(request.variant.path))
    defaults = BuildOptions()
    for name in ("profiles", "workspace_bytes", "optimization_level", "target", "extra"):
        if getattr(request.options, name) != getattr(defaults, name):
            notes.append(f"OpenVINO has no use for the build option {name!r}; it was ignored.")
    return tuple(notes)


def _build_error(error: RuntimeError) -> BuildError:
    text = str(error)
    if _UNKNOWN_OPERATORS.search(text):
        return UnsupportedOperator(
            f"OpenVINO {version('openvino')} cannot run an operator of this model: {_short(error)} Choose another backend "
            f"or opset.",
            log=text,
        )
    return BuildError(f"OpenVINO {version('openvino')} refuses the model: {_short(error)}", log=text)


def _short(error: BaseException) -> str:
    """Return what an error says without the places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:500] or str(error)[:500]
