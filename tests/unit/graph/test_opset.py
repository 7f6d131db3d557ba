from __future__ import annotations

import numpy as np
import onnx
import pytest
from bodies_nets import CASES, bodied
from small_nets import copied, net, relative_error, run, shipped, values

from workbench.errors import TransformError
from workbench.graph import opset
from workbench.graph.editing import graphs
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe, named

CONV = """(float[N,8,9,9] x) => (float[N,C] y) {
    c = Conv <pads: ints = [1,1,1,1]> (x, w)
    r = Relu (c)
    m = ReduceMean <axes: ints = [2,3], keepdims: int = 0> (r)
    y = Softmax (m)
}"""


def version(model: onnx.ModelProto) -> int:
    return model.opset_import[0].version


def with_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"module.{index}")
    model.metadata_props.add(key="author", value="test")
    model.producer_name = "somebody"
    return model


@pytest.mark.parametrize("target", [18, 19, 21, 22])
def test_raising_keeps_results_names_weights_and_metadata(target: int) -> None:
    model = with_metadata(net(CONV, w=values((40, 8, 3, 3))))
    before = copied(model)
    feeds = {"x": values((2, 8, 9, 9), 5)}
    want = run(model, feeds)["y"]

    notes = opset.raise_to(model, target)

    onnx.checker.check_model(model, full_check=True)
    assert version(model) == target and notes == (f"The graph was converted from opset 17 to {target}.",)
    np.testing.assert_array_equal(run(model, feeds)["y"], want)
    names = {node.name: node.metadata_props[0].value for node in model.graph.node if node.metadata_props}
    assert names == {f"node {index}": f"module.{index}" for index in range(4)}
    assert before.graph.initializer[0] in model.graph.initializer
    assert model.metadata_props == before.metadata_props and model.producer_name == "somebody"
    assert (model.graph.input, model.graph.output) == (before.graph.input, before.graph.output)


def test_raising_then_lowering_comes_back_to_the_same_results() -> None:
    model = net(CONV, w=values((40, 8, 3, 3)))
    feeds = {"x": values((2, 8, 9, 9), 5)}
    want = run(model, feeds)["y"]
    opset.raise_to(model, 22)
    opset.lower_to(model, 18)
    assert version(model) == 18
    np.testing.assert_array_equal(run(model, feeds)["y"], want)


def test_attributes_that_did_not_exist_then_are_dropped_where_they_hold_their_default() -> None:
    text = "(float[N,4] x) => (float[N,1] y) { y = ReduceMean <noop_with_empty_axes: int = %d> (x, axes) }"
    model = net(text % 0, opset=18, axes=np.array([1]))
    want = run(model, {"x": values((2, 4))})["y"]
    opset.lower_to(model, 17)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, {"x": values((2, 4))})["y"], want)
    with pytest.raises(TransformError, match=r"no valid model.*noop_with_empty_axes"):
        opset.lower_to(net(text % 1, opset=18, axes=np.array([1])), 17)


def test_nothing_happens_where_the_opset_suffices() -> None:
    model = net(CONV, w=values((4, 8, 3, 3)))
    before = copied(model)
    assert opset.raise_to(model, 13) == () and opset.lower_to(model, 17) == ()
    assert model == before


def test_an_operator_that_did_not_exist_then_is_refused_with_what_to_do() -> None:
    model = net("(float[N,4] x) => (float[N,4] y) { y = Gelu (x) }", opset=20)
    with pytest.raises(TransformError, match=r"from opset 20 to 17.*[Ee]xport it with opset 17"):
        opset.lower_to(model, 17)


MEANS = """(bool c, float[2,4] x) => (float[2,1] y) {
    y = If (c) <
        then_branch = one () => (float[2,1] t) { t = ReduceMean <axes: ints = [1]> (x) },
        else_branch = other () => (float[2,1] e) { h = ReduceMean <axes: ints = [1]> (x) e = Neg (h) }
    >
}"""


@pytest.mark.parametrize("case", CASES)
def test_bodies_are_converted_with_the_graph(case: str) -> None:
    text, feeds = CASES[case]
    model = bodied(text, 13)
    opset.raise_to(model, 21)
    onnx.checker.check_model(model, full_check=True)
    want = run(bodied(text, 13), feeds)
    for name, found in run(model, feeds).items():
        np.testing.assert_array_equal(found, want[name])


@pytest.mark.parametrize("yes", [True, False])
def test_an_operator_in_a_body_gets_the_form_of_the_new_opset(yes: bool) -> None:
    feeds = {"c": np.array(yes), "x": values((2, 4))}
    model = net(MEANS)
    opset.raise_to(model, 18)
    axes = [
        len(node.input)
        for graph in list(graphs(model.graph))[1:]
        for node in graph.node
        if node.op_type == "ReduceMean"
    ]
    assert axes == [2, 2]
    written = [name for graph in graphs(model.graph) for node in graph.node for name in node.output]
    written += [tensor.name for graph in graphs(model.graph) for tensor in graph.initializer]
    assert len(written) == len(set(written)), "no name inside hides one outside"
    np.testing.assert_array_equal(run(model, feeds)["y"], run(net(MEANS), feeds)["y"])


def test_a_body_that_cannot_be_opened_is_refused_where_its_operators_changed() -> None:
    model = net(
        MEANS.replace("(x) }", "(h0) }")
        .replace("(x) e", "(h0) e")
        .replace("y = If", "h0 = com.microsoft.Gelu (x) y = If")
    )
    with pytest.raises(TransformError, match="ReduceMean inside a subgraph"):
        opset.raise_to(model, 18)


def test_a_converter_that_loses_an_output_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def renaming(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
        changed = copied(model)
        changed.opset_import[0].version = target
        changed.graph.node[-1].output[0] = changed.graph.output[0].name = "other"
        return changed

    monkeypatch.setattr(opset.version_converter, "convert_version", renaming)
    with pytest.raises(TransformError, match="lost 1 names that later steps need, such as 'y'"):
        opset.raise_to(net("(float[N,4] x) => (float[N,4] y) { y = Relu (x) }"), 18)


def test_custom_operators_pass_through() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { g = com.microsoft.Gelu (x)  y = Relu (g) }"
    model = net(text)
    want = run(model, {"x": values((2, 4))})["y"]
    opset.raise_to(model, 19)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 19), ("com.microsoft", 1)]
    np.testing.assert_array_equal(run(model, {"x": values((2, 4))})["y"], want)


INT8, WEIGHTS, FP16, BF16 = Quantize(), QuantizeWeights(), Precision("fp16"), Precision("bf16")
NEEDED = [
    ("ort-cpu", (), 11),
    ("ort-cpu", (INT8,), 13),
    ("ort-cpu", (INT8, FP16), 19),
    ("strong", (FP16,), 11),
    ("strong", (Quantize(to="fp8"),), 19),
    ("strong", (INT8, FP16), 19),
    ("strong", (BF16,), 22),
    ("strong", (WEIGHTS,), 21),
    ("ort-cpu", (BF16,), 13),
    ("trt-8.6", (INT8, FP16), 13),
    ("trt-8.6", (WEIGHTS,), 13),
]


@pytest.mark.parametrize(("dialect", "steps", "want"), NEEDED)
def test_the_opset_is_raised_to_what_the_steps_need_and_no_further(dialect: str, steps: tuple, want: int) -> None:
    model = net("(float[N,4] x) => (float[N,4] y) { y = Relu (x) }", opset=11)
    opset.fit(model, dialect, Recipe("r", steps))
    assert version(model) == want


def test_tensorrt_8_gets_at_most_opset_17_and_ir_8() -> None:
    model = net("(float[N,4] x) => (float[N,4] y) { y = Relu (x) }", opset=20)
    model.ir_version = 10
    notes = opset.fit(model, "trt-8.6", named("fp32"))
    assert (version(model), model.ir_version) == (17, 8) and "20 to 17" in notes[0]


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_the_shipped_nets_reach_opset_22(name: str) -> None:
    model = shipped(name)
    value = model.graph.input[0]
    shape = tuple(axis.dim_value or 4 for axis in value.type.tensor_type.shape.dim)
    feeds = {value.name: np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)}
    want = next(iter(run(model, feeds).values()))
    opset.raise_to(model, 22)
    # Another version of an operator may have another kernel, which sums in another order.
    assert relative_error(next(iter(run(model, feeds).values())), want) < 1e-5


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 2.5), (0.5, 0.75)])
def test_a_resize_of_opset_10_keeps_its_sampling_grid(mode: str, scales: tuple[float, float]) -> None:
    parent = net(
        f'(float[N,3,12,12] x) => (float[N,3,H,W] y) {{ y = Resize<mode = "{mode}">(x, s) }}',
        opset=10,
        s=np.array([1, 1, *scales], np.float32),
    )
    feeds = {"x": values((2, 3, 12, 12))}
    for target in (11, 13, 19):
        model = copied(parent)
        opset.raise_to(model, target)
        assert version(model) == target
        np.testing.assert_allclose(run(model, feeds)["y"], run(parent, feeds)["y"], atol=1e-6)


@pytest.mark.parametrize("scales", ["constant", "computed"])
def test_a_nearest_resize_that_no_later_opset_expresses_is_refused(scales: str) -> None:
    constant = {"s": np.array([1, 1, 0.5, 2], np.float32)} if scales == "constant" else {}
    given = "" if constant else ", float[4] s"
    model = net(
        f'(float[N,3,12,12] x{given}) => (float[N,3,H,W] y) {{ y = Resize<mode = "nearest">(x, s) }}',
        opset=10,
        **constant,
    )
    with pytest.raises(TransformError, match="nearest Resize"):
        opset.raise_to(model, 13)
