"""NVIDIA's own parser and builder, TensorRT for RTX: they need neither GPU nor driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_variants import network, variant

from workbench import engines
from workbench.doctor import examine
from workbench.engines import jobs
from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import kernels, plan, switches, targets
from workbench.engines.tensorrt.capabilities import Capabilities, Device, library
from workbench.errors import BackendMissing, BuildError, EngineError, UnsupportedOperator
from workbench.machine import child
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.recipes import NAMED, Fuse, Precision, Quantize, Recipe
from workbench.records import BuildOptions, Engine, Variant

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX has wheels for x86-64 alone (extra rtx)")
ADA = Device("an RTX 4090", (8, 9))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA, whatever this machine has."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)


def built(made: Variant, folder: Path, target: str | None = "sm89", **options: object) -> Engine:
    return engines.build(
        made,
        "tensorrt-rtx",
        BuildOptions(target=target, **options),
        store=Store(folder / "store"),  # type: ignore[arg-type]
    )


def in_type(kind: int, array: np.ndarray) -> onnx.ModelProto:
    """y = x @ w in one type."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="/fc/MatMul")],
        "typed",
        [helper.make_tensor_value_info("x", kind, ["N", 64])],
        [helper.make_tensor_value_info("y", kind, ["N", 32])],
        [numpy_helper.from_array(array, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_dialect_is_asked_of_the_library_and_not_of_its_number() -> None:
    caps = Capabilities(library("tensorrt-rtx"))
    assert caps.release < (2, 0) and caps.dialect == "strong" and caps.native_fp8 and caps.ahead_of_time
    assert caps.name.startswith("TensorRT for RTX 1.") and backend.dialect("tensorrt-rtx") == "strong"
    assert [caps.refuses(name, ADA) for name in ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "int4")] == [None] * 7


def test_it_builds_where_it_cannot_run_and_says_exactly_that(tmp_path: Path) -> None:
    absent = engines.backends()["tensorrt-rtx"]
    assert absent is not None and "installed and builds here (workbench.preview" in absent.reason
    assert "compute capability 7.5, 8.6, 8.9, 12.0, 12.1 and cuda-python" in absent.reason
    assert engines.missing_to_build("tensorrt-rtx") is None
    engine = built(variant(tmp_path), tmp_path)
    assert engine.device == "sm89" and engine.size_bytes > 10_000 and engine.notes == ()
    with pytest.raises(BackendMissing, match="'tensorrt-rtx' cannot be used here"):
        engines.open_runner(engine)
    with pytest.raises(BackendMissing):
        engines.choose("tensorrt-rtx")


def test_no_driver_is_told_apart_from_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda_stand_in import Runtime, cudaError_t

    cuda = Runtime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (cudaError_t.cudaErrorInsufficientDriver, None))
    words = str(backend.missing("tensorrt-rtx"))
    assert "installed and builds here" in words and "cudaErrorInsufficientDriver" in words
    assert "restart the kernel" not in words and "without one, use the backend onnxruntime-cpu" in words
    assert [finding.state for finding in examine() if finding.topic == "tensorrt-rtx"] == ["note"]


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_without_the_library_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    if name == "tensorrt_rtx":  # the thin package is absent, which is how the extra installs it
        assert backend.missing_to_build("tensorrt-rtx") is None
        return
    monkeypatch.setitem(sys.modules, name, None)
    for absent in (backend.missing("tensorrt-rtx"), backend.missing_to_build("tensorrt-rtx")):
        assert absent is not None and 'pip install "trt-workbench[rtx]"' in absent.remedy
    with pytest.raises(BackendMissing, match=r"TensorRT for RTX is not installed.*trt-workbench\[rtx\]"):
        built(variant(tmp_path), tmp_path)


def test_the_sidecar_names_version_and_targets(tmp_path: Path) -> None:
    one = plan.read_sidecar(Path(built(variant(tmp_path), tmp_path, "SM86, sm89").path))
    assert (one.device, one.compute_capability, one.hardware_compatibility) == ("sm86, sm89", "8.6, 8.9", "listed")
    assert one.tensorrt == backend.version("tensorrt-rtx")
    portable = built(variant(tmp_path), tmp_path, "portable")
    assert "8.0 or later" in portable.device
    assert plan.read_sidecar(Path(portable.path)).hardware_compatibility == "ampere+"


def test_without_target_and_gpu_the_engine_is_portable_and_a_note_says_so(tmp_path: Path) -> None:
    assert "portable; name one, such as 'sm89'" in built(variant(tmp_path), tmp_path, None).notes[0]


def test_a_plan_of_another_version_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    path = Path(built(variant(tmp_path), tmp_path).path)
    caps = Capabilities(library("tensorrt-rtx"))
    assert plan.read(path, caps, ADA)[1].device == "sm89"
    sidecar = plan.sidecar_path(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "tensorrt": "1.3.0.35"}))
    with pytest.raises(EngineError, match=r"built by TensorRT 1\.3\.0\.35, this is TensorRT for RTX 1\.7"):
        plan.read(path, caps, ADA)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sm90", r"does not compile for 'sm90'; it knows sm75, sm80, sm86, sm89, sm120, sm121"),
        ("sm86,", r"does not compile for ''"),
        ("sm86,portable", r"'portable' alone"),
        ("", "must be text such as 'sm89'"),
        (89, "must be text such as 'sm89'"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(tmp_path: Path, target: object, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        built(variant(tmp_path), tmp_path, target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "target", "said"),
    [
        ("fp8", "sm86", r"FP8 needs compute capability 8\.9; sm86 has 8\.6"),
        ("fp8", "sm89,sm80", r"FP8 needs compute capability 8\.9; sm80 has 8\.0"),
        ("bf16", "sm75", r"BF16 needs compute capability 8\.0; sm75 has 7\.5"),
        ("int4-weights", "sm75", r"INT4 needs compute capability 8\.0; sm75 has 7\.5"),
    ],
)
def test_what_a_target_lacks_is_refused_by_name(tmp_path: Path, recipe: str, target: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        built(variant(tmp_path, recipe, dialect="strong", model=network(quantized=True)), tmp_path, target)


def test_weights_alone_of_which_none_could_be_quantized_are_built_as_they_are(tmp_path: Path) -> None:
    assert built(variant(tmp_path, "int8-weights", dialect="strong"), tmp_path).size_bytes > 10_000


def test_fp32_matrix_products_on_turing_are_refused_by_the_builder_and_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no FP32 matrix products on sm75.*'MatMul|/fc/MatMul.*'fp16'.*target"):
        built(variant(tmp_path), tmp_path, "sm75")
    half = variant(
        tmp_path, "fp16", dialect="strong", model=in_type(TensorProto.FLOAT16, np.ones((64, 32), np.float16))
    )
    assert built(half, tmp_path, "sm75").device == "sm75"


def test_a_type_in_the_file_that_a_target_lacks_is_named(tmp_path: Path) -> None:
    # The recipe says FP32, as it does for a file that was lowered elsewhere; only the builder sees what is inside.
    import ml_dtypes

    made = variant(tmp_path, model=in_type(TensorProto.BFLOAT16, np.ones((64, 32), ml_dtypes.bfloat16)))
    with pytest.raises(BuildError, match=r"sm75.*has no arithmetic in.*b16"):
        built(made, tmp_path, "sm75")


def test_a_file_for_another_engine_is_refused_with_the_dialect_that_helps(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"written in the dialect 'ort-cpu'.*dialect='strong'"):
        built(variant(tmp_path, "int8-max", dialect="ort-cpu"), tmp_path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"refit": True}, "refit=True: a build without a GPU fails"),
        ({"version_compatible": True}, "version_compatible=True: its wheels lack"),
        ({"hardware_compatibility": "ampere+"}, "name them in BuildOptions.target"),
        ({"native_calibrator": "entropy"}, "no calibrators of its own"),
    ],
)
def test_switches_that_cannot_be_had_are_refused(tmp_path: Path, extra: dict, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        built(variant(tmp_path), tmp_path, extra=extra)


def test_switches_without_a_meaning_are_noted_and_no_timings_are_kept(tmp_path: Path) -> None:
    engine = built(variant(tmp_path), tmp_path, extra={"timing_iterations": 3, "timing_cache": True})
    assert [note.partition(":")[0] for note in engine.notes] == [
        f"TensorRT for RTX ignores the option {name!r}" for name in ("timing_cache", "timing_iterations")
    ]
    assert list((tmp_path / "store").rglob("*.cache")) == []
    assert switches.read(BuildOptions(), ahead_of_time=True)[0].timing_cache is False


def test_an_operator_that_the_parser_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    model = network()
    model.graph.node[2].op_type = "StringNormalizer"
    model.graph.node[2].name = "/odd/Normalizer"
    made = variant(tmp_path, model=model)
    with pytest.raises(UnsupportedOperator, match=r"cannot run StringNormalizer \(node '/odd/Normalizer'"):
        built(made, tmp_path)
    assert list(backend.lacks("tensorrt-rtx", Path(made.path))) == ["StringNormalizer"]


def test_the_kernels_tell_types_nodes_and_weights_without_a_gpu(tmp_path: Path) -> None:
    made = variant(tmp_path, model=in_type(TensorProto.FLOAT, np.ones((64, 32), np.float32)))
    found, memory = backend.layer_table(built(made, tmp_path), modules={"/fc/MatMul": "fc"})
    matmul = next(layer for layer in found if layer.kind == "matmul")
    weight = kernels.weight(matmul)
    assert weight is not None and (weight.precision, sorted(weight.shape)) == ("fp32", [32, 64])
    assert "/fc/MatMul" in matmul.nodes and matmul.modules == ("fc",) and not kernels.quantized(matmul)
    assert memory.planned_bytes > 0


def test_quantized_kernels_are_told_apart(tmp_path: Path) -> None:
    made = variant(tmp_path, "int8-max", dialect="strong", model=quantized_matmul())
    found, memory = kernels.of_engine(built(made, tmp_path))
    assert [layer.nodes[0] for layer in found if kernels.quantized(layer)] == ["/fc/MatMul"]
    assert memory["weights"] >= 64 * 32


def quantized_matmul() -> onnx.ModelProto:
    model = in_type(TensorProto.FLOAT, np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32))
    graph = model.graph
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in {"s": np.float32(0.05), "z": np.int8(0), "t": np.float32(0.01)}.items()
    )
    pairs = []
    for name, scale in (("x", "s"), ("w", "t")):
        pairs += [
            helper.make_node("QuantizeLinear", [name, scale, "z"], [f"{name}_q"], name=f"{name}/Q"),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, "z"], [f"{name}_d"], name=f"{name}/DQ"),
        ]
    graph.node[0].input[:] = ["x_d", "w_d"]
    nodes = [*pairs, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def test_an_engine_that_tells_nothing_of_its_kernels_is_an_error(tmp_path: Path) -> None:
    quiet = built(variant(tmp_path), tmp_path, extra={"verbosity": "none"})
    with pytest.raises(EngineError, match=r"lists no kernels\. Build again with"):
        kernels.of_engine(quiet)


def test_builds_share_a_process_and_a_refused_one_does_not_spoil_it(tmp_path: Path) -> None:
    """With the real builder: loggers and errors of one build must not show in the next."""
    pids, store = set(), Store(tmp_path / "store")
    for recipe in ("fp32", "fp16"):
        made = variant(tmp_path, recipe, dialect="strong")
        lines: list[str] = []
        engine = jobs.build(
            made, "tensorrt-rtx", BuildOptions(target="sm89"), store=store, handle=Handle(on_line=lines.append)
        )
        assert Path(engine.path).is_file() and any("Parsed" in line or "Engine" in line for line in lines), lines
        pids |= {one.process.pid for one in child._idle if one.name == "tensorrt-rtx"}
        with pytest.raises(BuildError, match="sm1"):
            jobs.build(made, "tensorrt-rtx", BuildOptions(target="sm1"), store=store)
    child.end_idle()
    assert len(pids) == 1


def test_every_target_that_is_known_is_one_that_it_compiles_for(tmp_path: Path) -> None:
    half = in_type(TensorProto.FLOAT16, np.ones((64, 32), np.float16))
    for name in targets.known(Capabilities(library("tensorrt-rtx"))):
        assert built(variant(tmp_path, "fp16", dialect="strong", model=half), tmp_path, name).device == name


def test_tf32_is_on_for_the_recipe_that_asks_for_it_and_off_for_fp32(tmp_path: Path) -> None:
    plans = {name: Path(built(variant(tmp_path, name), tmp_path).path).read_bytes() for name in ("fp32", "tf32")}
    assert {name: b"tf32=1" in data for name, data in plans.items()} == {"fp32": False, "tf32": True}


def test_a_recipe_with_half_and_quantized_parts_can_be_made_of_names(tmp_path: Path) -> None:
    assert NAMED["fp8"].steps[1] == Quantize(to="fp8", calibrator="max")
    mixed = Recipe("mixed", (Fuse(), Precision("fp16")))
    half = in_type(TensorProto.FLOAT16, np.ones((64, 32), np.float16))
    found, _ = kernels.of_engine(built(variant(tmp_path, mixed, dialect="strong", model=half), tmp_path))
    assert [layer.inputs[0].precision for layer in found if layer.kind == "matmul"] == ["fp16"]


def quantized_by_onnxruntime(folder: Path, **options: object) -> onnx.ModelProto:
    """A Conv in the words of ONNX Runtime's own quantizer."""
    from onnxruntime import quantization

    weight = np.linspace(-1, 1, 8 * 3 * 9, dtype=np.float32).reshape(8, 3, 3, 3)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="/c/Conv", pads=[1] * 4)],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 8])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(8, np.float32), "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "c.onnx")

    samples = iter([{"x": np.random.default_rng(0).random((2, 3, 8, 8), np.float32) + 1}])
    reader = SimpleNamespace(get_next=lambda: next(samples, None))
    quantization.quantize_static(folder / "c.onnx", folder / "q.onnx", reader, extra_options=options)
    return onnx.load(folder / "q.onnx")


@pytest.mark.parametrize(
    ("options", "operator", "said"),
    [
        ({}, "DequantizeLinear", "its biases are INT32 codes"),
        ({"QuantizeBias": False}, "QuantizeLinear", "its activations have a zero point"),
    ],
)
def test_a_file_of_onnxruntimes_quantizer_is_refused_with_advice_that_helps(
    tmp_path: Path, options: dict, operator: str, said: str
) -> None:
    made = variant(tmp_path, dialect="strong", model=quantized_by_onnxruntime(tmp_path, **options))
    with pytest.raises(BuildError, match=said) as caught:
        built(made, tmp_path)
    words = str(caught.value)
    assert "Load the model before it was quantized" in words and "opset" not in words and "udaError" not in words
    found = backend.lacks("tensorrt-rtx", Path(made.path))
    assert list(found) == [operator] and "udaError" not in found[operator]
