"""Explanations from recorded profiles: made-up ones with the reason in them, and layer tables of a real GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import DataError, StoreError
from workbench.explaining.evidence import Layer
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.profiles import explain_profiles
from workbench.judging.roofline import Ceilings
from workbench.records import LayerProfile, LayerTime, TensorSpec

H200 = Path(__file__).parents[3] / "benchmarks" / "results" / "h200" / "resnet50-b32-layers.json"
MACHINE = Ceilings(
    "tensorrt", "8.6", "a made-up GPU", None, {"fp32": 1e12, "fp16": 4e12, "int8": 8e12}, (1 << 20, 1 << 30),
    (1e12, 1e12), 1e-5, 1e-6, 0.0,
)  # fmt: skip
_NUMPY = {"fp16": "float16", "fp32": "float32", "int8": "int8"}


def layer(name: str, operator: str, seconds: float, types: str = "int8 int8", *links: str) -> LayerTime:
    """Links are what is read, then what is written."""
    first, last = types.split()
    reads = tuple(TensorSpec(link, _NUMPY[first], (8, 64, 56, 56)) for link in links[:-1] or (f"{name} in",))
    writes = (TensorSpec(links[-1] if links else f"{name} out", _NUMPY[last], (8, 64, 56, 56)),)
    return LayerTime(name, operator, seconds, (name,) if operator != "reformat" else (), reads=reads, writes=writes)


def kinds(before: list[LayerTime], after: list[LayerTime], **options: object) -> list[str]:
    found = explain_profiles(
        LayerProfile(tuple(before)), LayerProfile(tuple(after)), "int8", backend="tensorrt", **options
    )
    return [reason.kind for reason in found.reasons]


FP16 = [
    layer("conv0", "convolution", 4e-3, "fp16 fp16", "x", "a"),
    layer("conv1", "convolution", 4e-3, "fp16 fp16", "a", "y"),
]
INT8 = [
    layer("conv0", "convolution", 1e-3, "int8 int8", "x", "a"),
    layer("conv1", "convolution", 1e-3, "int8 int8", "a", "y"),
]


def test_a_good_profile_has_nothing_against_it() -> None:
    assert kinds(FP16, INT8) == []


def test_reformats_that_only_change_the_layout_are_named_first() -> None:
    moved = [INT8[0], layer("turn", "reformat", 2e-3, "int8 int8", "a", "b"), INT8[1]]
    assert kinds(FP16, moved)[0] == "layout"


def test_reformats_that_change_the_type_are_conversions() -> None:
    moved = [INT8[0], layer("turn", "reformat", 2e-3, "int8 fp16", "a", "b"), INT8[1]]
    assert kinds(FP16, moved)[0] == "conversions"


def test_a_layer_in_fp16_between_int8_layers_is_an_island_with_its_conversions() -> None:
    island = [
        INT8[0],
        layer("down", "reformat", 1e-3, "int8 fp16", "a", "b"),
        layer("soft", "softmax", 1e-3, "fp16 fp16", "b", "c"),
        layer("up", "reformat", 1e-3, "fp16 int8", "c", "d"),
        layer("conv1", "convolution", 1e-3, "int8 int8", "d", "y"),
    ]
    found = explain_profiles(LayerProfile(tuple(FP16)), LayerProfile(tuple(island)), "int8", backend="tensorrt")
    assert found.main.kind == "float_island"
    assert found.main.share == pytest.approx(3 / 5), "the layer, and both conversions"
    assert "conversions" not in [reason.kind for reason in found.reasons], "no second is counted twice"


def test_a_layer_that_stays_in_fp16_is_left_in_float() -> None:
    kept = [INT8[0], layer("conv1", "convolution", 4e-3, "fp16 fp16", "a", "y")]
    assert kinds(FP16, kept)[0] == "left_in_float"


def test_a_slower_kernel_is_named_with_both_times() -> None:
    slow = [INT8[0], layer("conv1", "convolution", 6e-3, "int8 int8", "a", "y")]
    found = explain_profiles(LayerProfile(tuple(FP16)), LayerProfile(tuple(slow)), "int8", backend="tensorrt")
    assert found.main.kind == "slow_kernel"
    assert "conv1: 6 ms in INT8 against 4 ms in the baseline" in found.main.sentence


def test_a_product_that_is_slower_in_the_same_type_is_a_slow_kernel() -> None:
    slow = [layer("conv0", "convolution", 9e-3, "fp16 fp16", "x", "a"), FP16[1]]
    found = explain_profiles(LayerProfile(tuple(FP16)), LayerProfile(tuple(slow)), "fp32", backend="tensorrt")
    assert found.main.kind == "slow_kernel"
    assert "2.25 times as long (9 ms against 4 ms)" in found.main.sentence


def test_what_the_baseline_runs_within_a_product_and_the_variant_apart_is_unfused() -> None:
    fused = LayerTime("conv+relu", "convolution", 4e-3, ("conv", "relu"))
    apart = (LayerTime("conv", "convolution", 4e-3, ("conv",)), LayerTime("relu", "pointwise", 3e-3, ("relu",)))
    found = explain_profiles(LayerProfile((fused,)), LayerProfile(apart), "fp32", backend="tensorrt")
    assert [reason.kind for reason in found.reasons] == ["unfused"]
    assert found.main.share == pytest.approx(3 / 7)


def test_integer_operators_that_quantize_their_input_compute_in_int8_and_are_counted() -> None:
    specs = (TensorSpec("x", "float32", (1, 512)), TensorSpec("w", "int8", (512, 256)))
    told = LayerTime("m", "DynamicQuantizeMatMul", 1e-5, ("m",), reads=specs, constants=("w",),
                     writes=(TensorSpec("y", "float32", (1, 256)),))  # fmt: skip
    found = explain_profiles(LayerProfile((told,)), LayerProfile((told,)), "int8", backend="onnxruntime-cpu")
    (only,) = found.evidence.variant.layers
    assert (only.precision, only.flops) == ("int8", 2 * 512 * 256)


def test_a_machine_that_is_hardly_faster_is_named_where_nothing_else_is() -> None:
    even = Ceilings(**{**vars(MACHINE), "rates": {"fp32": 1e12, "int8": 1.2e12}})
    assert kinds(FP16, [layer("conv0", "convolution", 3e-3), layer("conv1", "convolution", 3e-3)], ceilings=even) == [
        "machine_rate"
    ]
    assert "machine_rate" not in kinds(FP16, INT8, ceilings=MACHINE)


@pytest.mark.parametrize(("seconds", "expected"), [(1.5e-6, True), (4e-5, False)])
def test_a_call_that_is_mostly_its_launches_is_named_so_first(seconds: float, expected: bool) -> None:
    """The made-up GPU launches a call in 10 us and each layer in 1 us: 29 us for 20 layers that compute nothing."""
    before, after = (
        [LayerTime(f"m{index}", "matmul", each, (f"m{index}",)) for index in range(20)]
        for each in (seconds / 2, seconds)  # INT8 kernels of this size are slower, which is not what to mend
    )
    assert (kinds(before, after, ceilings=MACHINE)[:1] == ["launch_bound"]) is expected


def test_launches_are_no_reason_where_the_study_replays_a_graph_and_a_graph_is_the_advice_where_not() -> None:
    layers = LayerProfile(tuple(LayerTime(f"m{index}", "matmul", 1.5e-6, (f"m{index}",)) for index in range(20)))
    launched = explain_profiles(layers, layers, "int8", backend="tensorrt", ceilings=MACHINE)
    assert launched.main.kind == "launch_bound" and "cuda_graph=True" in launched.main.advice[0].words
    variant = replace(launched.evidence.variant, measured_seconds=12e-6, replayed=True)
    replayed = explanation("recorded", replace(launched.evidence, variant=variant))
    assert "launch_bound" not in [reason.kind for reason in replayed.reasons]
    assert any("replays a CUDA graph, which takes 0.012 ms" in sentence for sentence in replayed.sentences)


def test_a_fused_layer_is_called_by_its_nodes_where_its_name_strings_all_of_them_together() -> None:
    long = "conv1.weight + conv1.weight_QuantizeLinear + /layer1/layer1.0/conv1/Conv + /layer1/layer1.0/relu/Relu"
    assert (
        Layer(long, "convolution", "compute", "int8", 1.0, ("/conv1/Conv", "/relu/Relu")).title
        == "/conv1/Conv + /relu/Relu"
    )
    assert Layer(long, "convolution", "compute", "int8", 1.0).title == long
    assert Layer("/conv1/Conv", "convolution", "compute", "int8", 1.0, ("a", "b")).title == "/conv1/Conv"


def test_an_explanation_is_kept_as_a_file_and_read_elsewhere(tmp_path: Path) -> None:
    found = explain_profiles(
        LayerProfile(tuple(FP16)), LayerProfile(tuple(INT8)), "int8", backend="tensorrt", ceilings=MACHINE
    )
    for name in ("why.json", "why.json.gz"):
        again = Explanation.open(found.save(tmp_path / name))
        assert again == found and again.sentences == found.sentences
    (tmp_path / "why.json").write_text("{}")
    with pytest.raises(StoreError):
        Explanation.open(tmp_path / "why.json")
    with pytest.raises(StoreError, match="Cannot read"):
        Explanation.open(tmp_path / "none.json")


def test_sixteen_bits_that_are_computed_in_32_are_emulated() -> None:
    after = LayerProfile(
        (layer("cast", "Cast", 1e-3, "fp16 fp32", "x", "b"), layer("conv", "Conv", 5e-3, "fp32 fp32", "b", "y"))
    )
    found = explain_profiles(LayerProfile(tuple(FP16)), after, "fp16", backend="onnxruntime-cpu")
    assert found.main.kind == "emulated"
    real = explain_profiles(after, LayerProfile(tuple(FP16)), "fp16", backend="tensorrt")
    assert "emulated" not in [reason.kind for reason in real.reasons]


def test_without_ceilings_there_is_no_roofline_and_no_limit() -> None:
    found = explain_profiles(LayerProfile(tuple(FP16)), LayerProfile(tuple(INT8)), "int8", backend="tensorrt")
    with pytest.raises(DataError, match="no ceilings"):
        found.figure()
    assert found.sentences[0].startswith("after while profiled")
    assert "img" not in found._repr_html_()
    assert found.flips().empty and found.tensors().empty


@pytest.fixture(scope="module")
def tables() -> dict[str, LayerProfile]:
    """TensorRT's own tables of ResNet-50 at batch 32, recorded on an NVIDIA H200."""
    stored = json.loads(H200.read_text(encoding="utf-8"))
    return {
        name: LayerProfile(tuple(_recorded(place, row) for place, row in enumerate(table["layers"])))
        for name, table in stored.items()
    }


def _recorded(place: int, row: dict) -> LayerTime:
    specs = [
        tuple(
            TensorSpec(f"{side} {place}.{index}", _NUMPY.get(kind, "float32"), ())
            for index, kind in enumerate(row[side])
        )
        for side in ("in", "out")
    ]
    operator = "reformat" if row["reformat"] else row["kind"]
    return LayerTime(row["name"], operator, row["us"] * 1e-6, (row["name"],), reads=specs[0], writes=specs[1])


def test_tables_of_a_real_gpu_are_taken_apart_without_losing_time(tables: dict[str, LayerProfile]) -> None:
    found = explain_profiles(tables["fp16"], tables["int8-kl-fp16"], "int8", backend="tensorrt")
    stored = json.loads(H200.read_text(encoding="utf-8"))["int8-kl-fp16"]["layers"]
    assert found.evidence.variant.layer_seconds == pytest.approx(sum(row["us"] for row in stored) * 1e-6)
    reformats = sum(row["us"] for row in stored if row["reformat"]) * 1e-6
    moved = found.evidence.variant.of_kind("convert") + found.evidence.variant.of_kind("layout")
    assert moved >= reformats * (1 - 1e-9)
    in_int8 = sum(row["us"] for row in stored if row["in"][:1] == ["int8"])
    shares = found.coverage().set_index("type")["time %"]
    assert shares["int8"] == pytest.approx(100 * in_int8 / sum(row["us"] for row in stored))
