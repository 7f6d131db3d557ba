"""New weights for a finished engine, where only weights changed: seconds instead of a build."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from workbench.engines.tensorrt import layers, log, parsing, plan
from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.errors import EngineError
from workbench.records import Engine, Variant


def structure_sha256(graph: onnx.ModelProto) -> str:
    """Return the sha256 of a graph without the values of its initializers: names, types and shapes count."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    for tensor in bare.graph.initializer:
        kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims))
        tensor.CopyFrom(kept)
    bare.ClearField("metadata_props")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def refit(
    caps: Capabilities, device: Device, engine: Engine, variant: Variant, *, folder: Path, sink: Callable[[str], None]
) -> Engine:
    """Return an engine with the weights of another variant of the same structure.

    Args:
        engine: built with the option refit=True.
        folder: an existing, empty folder for the new engine's files.
        sink: called with each line that TensorRT says.

    Raises:
        EngineError: the engine is not refittable, the graphs differ in more than weights, or TensorRT lacks weights.
    """
    started = time.perf_counter()
    source = Path(variant.path)
    data, sidecar = plan.read(Path(engine.path), caps, device)
    if not sidecar.refittable:
        raise EngineError(f"The engine of {engine.variant!r} was built without refit=True. Build it again with it.")
    if structure_sha256(parsing.load_graph(source)) != sidecar.structure_sha256:
        raise EngineError(
            f"The variant {variant.name!r} differs from {engine.variant!r} in more than its weights. Build it instead."
        )
    journal = log.Journal(folder / "build.log", sink)
    logger = log.logger(caps.trt, journal)
    try:
        runtime, opened = plan.deserialize(
            caps, logger, data, version_compatible=sidecar.version_compatible, libraries=sidecar.plugins
        )
        _exchange(caps, opened, logger, source, journal)
        fresh = bytes(memoryview(opened.serialize()))
        del opened, runtime
    finally:
        journal.close()
    told = Path(engine.folder or "") / layers.FILE_NAME
    if engine.folder and told.is_file():
        shutil.copy(told, folder / layers.FILE_NAME)  # other weights change no layer
    kept = {name: value for name, value in vars(sidecar).items() if name != "sha256"}
    written = plan.write(folder / plan.PLAN_NAME, fresh, **kept)
    return replace(
        engine,
        variant=variant.name,
        variant_sha256=variant.sha256,
        path=str(folder / plan.PLAN_NAME),
        build_seconds=time.perf_counter() - started,
        size_bytes=len(fresh),
        log=journal.text(),
        notes=(
            *engine.notes,
            f"Refitted with the weights of {variant.name!r}; tactics are those of {engine.variant!r}.",
        ),
        folder=str(folder),
        sha256=written.sha256,
    )


def _exchange(caps: Capabilities, engine: Any, logger: Any, source: Path, journal: log.Journal) -> None:
    refitter = caps.trt.Refitter(engine, logger)
    if caps.parser_refitter:
        done = caps.trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(source))
        kept: list[np.ndarray] = []
    else:
        kept = _set_by_name(caps, refitter, source)  # TensorRT reads these arrays in refit_cuda_engine
        done = True
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineError(
            f"TensorRT still wants {len(missing)} weights that the ONNX file does not hold under their names, such as "
            f"{missing[0]!r}: it had folded them. Build the variant instead."
        )
    if not done or not refitter.refit_cuda_engine():
        raise EngineError(
            f"TensorRT refused the new weights: {'; '.join(journal.errors[-3:])}. Build the variant instead."
        )
    del kept


def _set_by_name(caps: Capabilities, refitter: Any, source: Path) -> list[np.ndarray]:
    """Set the weights that the engine knows by the names of ONNX initializers."""
    graph = onnx.load(str(source))
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    kept: list[np.ndarray] = []
    for name in refitter.get_all_weights():
        if name not in stored:
            continue
        array = np.ascontiguousarray(numpy_helper.to_array(stored[name]))
        if array.dtype == np.int64:  # 8.6 has no INT64
            array = array.astype(np.int32)
        if not refitter.set_named_weights(name, caps.trt.Weights(array)):
            raise EngineError(f"TensorRT refused the new values of {name!r}. Build the variant instead.")
        kept.append(array)
    return kept
