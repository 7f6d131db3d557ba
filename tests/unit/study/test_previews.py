"""What TensorRT makes of models, with NVIDIA's real parser and builder: what kernels compute is what steps report."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_nets import attention
from bodies_nets import BRANCHES, LOOP, WEIGHTS
from small_nets import net

import workbench as wb
from workbench import zoo
from workbench.__main__ import main
from workbench.engines.tensorrt import kernels
from workbench.errors import BackendMissing, BuildError, DataError, RecipeError, TransformError
from workbench.graph.cost import node_flops
from workbench.machine.store import Store
from workbench.recipes import NAMED, Fuse, Quantize, Recipe
from workbench.study.previews import CANNOT_KNOW, Preview, disagreements

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX has wheels for x86-64 alone (extra rtx)")

# Recipe -> the types that its lowered products may multiply. Others lower nothing.
INT8, FP8 = {"int8 x int8"}, {"fp8 x fp8"}
OPERANDS = {
    **{name: INT8 for name in NAMED if name.startswith(("int8", "sparse-2:4-int8"))},
    "fp8": FP8,
    "fp8-fp16": FP8,
    "int8-weights": {"fp32 x int8"},
    "int8-weights-fp16": {"fp16 x int8"},
    "int4-weights": {"fp32 x int4"},
    "int4-weights-fp16": {"fp16 x int4"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("previews"))


def agrees(found: Preview) -> None:
    """What is reported as quantized is in a kernel of those types, and nothing else is in one."""
    assert (found.missed, found.unreported) == ((), ())
    lowered = [layer for layer in found.layers if kernels.quantized(layer)]
    assert bool(lowered) == bool(found.lowered)
    assert {kernels.operands(layer) for layer in lowered} <= OPERANDS.get(found.recipe.name, set())
    inside = {node for layer in lowered for node in layer.nodes}
    assert set(found.lowered) <= inside


# What each pair computes, counted by hand from the architectures: 21 convolutions and a head; 24 products with weights,
# a convolution, a head and two products an attention, fused to one.
@pytest.mark.parametrize(
    ("model", "recipe", "computed", "fused"),
    [
        ("digits_resnet", "fp32", {"fp32 x fp32": 22}, 0),
        ("digits_resnet", "int8-max", {"int8 x int8": 22}, 0),
        ("digits_resnet", "fp8", {"fp8 x fp8": 22}, 0),
        ("digits_resnet", "int8-weights", {"fp32 x fp32": 22}, 0),  # only the head could be lowered, and is left out
        ("digits_vit", "fp16", {"fp16 x fp16": 18}, 4),
        ("digits_vit", "int8-max", {"int8 x int8": 18}, 4),
        ("digits_vit", "int8-smooth", {"int8 x int8": 18}, 4),
        ("digits_vit", "fp8-fp16", {"fp8 x fp8": 18}, 4),
        ("digits_vit", "int4-weights-fp16", {"fp16 x int4": 24, "fp16 x fp16": 2}, 4),
        ("digits_captions/image_tower", "int8-kl-fp16", {"int8 x int8": 10}, 0),
    ],
)
def test_kernels_compute_what_the_steps_report(
    store: Store, model: str, recipe: str, computed: dict[str, int], fused: int
) -> None:
    found = wb.preview(model, recipe, store=store)
    agrees(found)
    assert found.computed == computed
    assert found.fused_attentions == fused


@pytest.mark.parametrize(("recipe", "operands"), [("fp32", "fp32 x fp32"), ("fp16", "fp16 x fp16")])
@pytest.mark.parametrize("text", [BRANCHES, LOOP], ids=["if", "loop"])
def test_products_in_bodies_are_built_in_the_type_that_is_reported(
    tmp_path: Path, store: Store, text: str, recipe: str, operands: str
) -> None:
    # Scalar inputs cannot be fed sample by sample: the branch follows from the samples, the number of turns is fixed.
    text = text.replace(", bool c)", ")").replace(", int64 turns, bool go)", ")")
    if "If (c)" in text:
        text = text.replace("{", "{ total = ReduceSum <keepdims = 0> (x)  c = Greater (total, zero) ", 1)
    constants = {"zero": np.array(0, np.float32), "turns": np.array(5), "go": np.array(True)}
    onnx.save(net(text, **WEIGHTS, **constants), str(tmp_path / "bodied.onnx"))
    found = wb.preview(wb.load(tmp_path / "bodied.onnx"), recipe, store=store)
    assert found.computed == {operands: 4 if "If (c)" in text else 2}


@pytest.mark.rtx_all
@pytest.mark.parametrize("recipe", [name for name in NAMED if name != "int8-dynamic"])
@pytest.mark.parametrize("model", zoo.models())
def test_every_model_builds_under_every_recipe_and_computes_what_the_steps_report(
    store: Store, model: str, recipe: str
) -> None:
    agrees(wb.preview(model, recipe, store=store))


def test_coverage_is_told_by_operations_not_by_kernels(store: Store, resnet: Preview) -> None:
    assert resnet.coverage == {"int8 x int8": 1.0}
    kept = Recipe("int8-but-first", (Fuse("all"), Quantize(calibrator="max", exclude=("layer1",))))
    found = wb.preview("digits_resnet", kept, store=store)
    graph = onnx.load(wb.transform("digits_resnet", "fp32", dialect="strong", store=store).path)
    flops = node_flops(graph)
    modules = wb.load("digits_resnet").modules
    share = sum(count for name, count in flops.items() if "layer1" in modules.get(name, name)) / sum(flops.values())
    assert 0 < share < 1
    assert found.coverage["int8 x int8"] == pytest.approx(1 - share)
    assert f"{1 - share:.0%} in int8 x int8" in found.summary and "by operations" in found.summary
    assert dataclasses.replace(found, operations={"gone": 3}).coverage == {"unknown": 1.0}
    assert dataclasses.replace(found, operations={}).coverage == {}


def test_scales_at_run_time_are_refused_with_the_way_out(store: Store) -> None:
    with pytest.raises(TransformError, match=r"no INT8 with scales found at run time\. Take static quantization"):
        wb.preview("digits_resnet", "int8-dynamic", store=store)


@pytest.fixture(scope="module")
def resnet(store: Store) -> Preview:
    return wb.preview("digits_resnet", "int8-max", store=store)


def test_the_result_is_for_people(resnet: Preview) -> None:
    assert resnet.target == "sm89" and resnet.version.startswith("1.")
    assert resnet.summary == (
        f"int8-max of digits_resnet for sm89: convolutions and matrix products 22 in int8 x int8; "
        f"{len(resnet.layers) - 22} other kernels, {resnet.reformats} of them only move data; weights 284 kB."
    )
    table = resnet.table()
    assert list(table.columns) == [
        "kernel", "kind", "inputs", "weights", "outputs", "weight bytes", "nodes", "modules"
    ]  # fmt: skip
    convolutions = table[table["kind"] == "convolution"]
    assert len(convolutions) == 21 and set(convolutions["weights"]) == {"int8"}
    assert "layer1.0.conv1" in " ".join(table["modules"])
    page = resnet._repr_html_()
    assert "<table" in page and "22 in int8 x int8" in page and "tells neither speed" in page
    assert repr(resnet) == f"Preview({resnet.summary})"
    with pytest.raises(dataclasses.FrozenInstanceError):
        resnet.target = "sm86"  # type: ignore[misc]


def test_a_report_that_the_kernels_contradict_is_told(store: Store, resnet: Preview) -> None:
    model = wb.load("digits_resnet")
    calibrated = wb.calibrate(model, wb.datasets.random(model), "int8-max", dialect="strong")
    variant = wb.transform(model, "int8-max", dialect="strong", table=calibrated, store=store)
    assert disagreements(variant, resnet.layers) == ((), ())
    (quantize,) = [report for report in variant.reports if report.kind == "quantize"]
    first, *others = quantize.changed
    lying = dataclasses.replace(quantize, changed=("/never/there", *others))
    told = disagreements(dataclasses.replace(variant, reports=(lying,)), resnet.layers)
    assert told == (("/never/there",), (first,))
    doubted = dataclasses.replace(resnet, missed=told[0], unreported=told[1])
    assert "1 node is reported as quantized and computed in floating point: /never/there." in doubted.summary
    assert f"1 node is computed in 8 or 4 bits and not reported as quantized: {first}." in doubted.summary


def loaded(folder: Path, name: str, model: onnx.ModelProto):
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return wb.load(path)


def test_a_comparison_says_which_fusion_was_lost_and_why(store: Store, tmp_path: Path) -> None:
    plain, broken, open_, floating = (
        wb.preview(loaded(tmp_path, name, attention(**options)), "fp32", store=store)
        for name, options in {
            "plain": {},
            "broken": {"smooth_mul": True},
            "open": {"softmax_pair": False},
            "floating": {"quantized": False},
        }.items()
    )
    assert [one.fused_attentions for one in (plain, broken, open_, floating)] == [1, 0, 0, 0]
    lost = "fp32 against fp32: 1 fused attention lost, because "
    assert broken.against(plain).startswith(
        f"{lost}a Mul (smooth) stands between it and the quantization of its result;"
    )
    assert open_.against(plain).startswith(f"{lost}input 0 of its second product (context) is not quantized;")
    assert floating.against(plain).startswith(f"{lost}it is computed in FP32")
    assert plain.against(broken).startswith(
        "fp32 against fp32: 1 more fused attention; convolutions and matrix products"
    )
    assert plain.against(plain) == "fp32 against fp32: the same kernels in the same types."


def test_a_lost_fusion_that_the_graph_does_not_explain_is_said_so(store: Store, tmp_path: Path) -> None:
    narrow = wb.preview(loaded(tmp_path, "narrow", attention(width=12)), "fp32", store=store)
    plain = wb.preview(loaded(tmp_path, "plain", attention()), "fp32", store=store)
    assert "1 fused attention lost, for which the graph shows no reason" in narrow.against(plain)


def test_int4_in_one_block_a_column_is_avoided_because_it_would_be_dequantized_apart(
    store: Store, tmp_path: Path
) -> None:
    from small_nets import net, values

    text = "(float[N,128] x) => (float[N,128] y) { m = MatMul (x, w)  y = Relu (m) }"
    model = loaded(tmp_path, "wide", net(text, w=values((128, 128))))
    recipe = wb.Recipe("blocks of 128", (wb.Fuse(), wb.QuantizeWeights("int4", block_size=128), wb.Precision("fp16")))
    found = wb.preview(model, recipe, store=store)
    assert found.computed == {"fp16 x int4": 1} and any("INT4 blocks of 64" in note for note in found.notes)


def test_int4_in_one_block_a_column_that_cannot_be_avoided_is_told_by_report_and_kernels(
    store: Store, tmp_path: Path
) -> None:
    from small_nets import net, values

    text = "(float[N,64] x) => (float[N,64] y) { m = MatMul (x, w)  y = Relu (m) }"
    found = wb.preview(loaded(tmp_path, "narrow", net(text, w=values((64, 64)))), "int4-weights-fp16", store=store)
    assert found.computed == {"fp16 x fp16": 1} and found.missed == found.lowered == ("MatMul_0",)
    assert "1 node is reported as quantized and computed in floating point: MatMul_0." in found.summary
    assert any("dequantizes them apart from their product" in note for note in found.notes)


def test_samples_of_the_user_are_calibrated_with(store: Store) -> None:
    data = wb.datasets.digits()
    with_data = wb.preview("digits_resnet", "int8-max", data=data, target="sm86,sm120", store=store)
    assert with_data.target == "sm86, sm120" and not any("random" in note for note in with_data.notes)
    assert any("random" in note for note in wb.preview("digits_resnet", "int8-max", store=store).notes)
    array = np.zeros((8, 1, 32, 32), np.float32) + np.linspace(0, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    assert wb.preview("digits_resnet", "int8-max", data=array, store=store).computed == with_data.computed


def test_nothing_is_chosen_on_random_samples(store: Store) -> None:
    found = wb.preview("digits_vit", "int8-smooth", store=store)
    assert found.recipe.step("smooth_quant") == wb.SmoothQuant(alpha=0.5)
    assert "SmoothQuant has strength 0.5 here" in " ".join(found.notes) and "held-back" not in " ".join(found.notes)
    chosen = wb.preview("digits_resnet", "int8-auto", store=store)
    assert chosen.recipe.step("quantize") == wb.Quantize(calibrator="max")
    assert chosen.recipe.name == "int8-auto" and "`auto` is max" in " ".join(chosen.notes)


def test_dynamic_axes_are_given_a_length_and_a_note_says_so(store: Store, tmp_path: Path) -> None:
    from small_nets import net, values

    text = "(float[N,T,64] x) => (float[N,T,32] y) { m = MatMul (x, w)  y = Relu (m) }"
    model = loaded(tmp_path, "sequence", net(text, w=values((64, 32))))
    assert "Dynamic axes were given the lengths of the samples" in wb.preview(model, "fp32", store=store).notes[0]
    shapes = wb.ShapeProfile((1, 4, 64), (2, 8, 64), (4, 16, 64))
    options = wb.BuildOptions(profiles=({"x": shapes},), target="sm75")  # the target of the call counts
    found = wb.preview(model, "fp32", options=options, store=store)
    assert found.target == "sm89" and not any("Dynamic" in note for note in found.notes)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"target": "sm90"}, BuildError, "does not compile for 'sm90'"),
        ({"recipe": "fp8", "target": "sm86"}, BuildError, r"FP8 needs compute capability 8\.9"),
        ({"recipe": "fp32", "target": "sm75"}, BuildError, "no FP32 matrix products on sm75"),
        ({"recipe": "int9"}, RecipeError, "no recipe 'int9'"),
        ({"options": {"target": "sm89"}}, BuildError, r"workbench\.BuildOptions"),
        ({"data": "digits"}, DataError, r"workbench\.datasets\.arrays"),
    ],
)
def test_what_cannot_be_is_refused(store: Store, arguments: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        wb.preview("digits_resnet", **{"recipe": "fp16", **arguments}, store=store)


def test_the_command_line_compares_recipes_with_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    assert main(["preview", "digits_resnet", "--recipes", "fp16,int8-max", "--target", "sm86", "--kernels"]) == 0
    output = capsys.readouterr().out
    assert "fp16 of digits_resnet for sm86" in output and "int8-max against fp16: convolutions" in output
    assert "correlation" not in output and "convolution" in output and CANNOT_KNOW in output
    assert main(["preview", "digits_resnet", "--recipes", "fp8", "fp16", "--target", "sm86"]) == 1
    told = capsys.readouterr()
    assert "fp8: The recipe 'fp8' cannot be built: FP8 needs" in told.err and "fp16 of digits_resnet" in told.out


def test_without_the_library_the_line_that_installs_it_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissing, match=r'pip install "trt-workbench\[rtx\]"'):
        wb.preview("there is no such model")
