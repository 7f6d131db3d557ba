"""Products in bodies are lowered too, and compute what the file does within what the format rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from bodies_nets import BRANCHES, CASES, LOOP, NESTED, TURNS, WEIGHTS, YES, X, bodied, inner_operators, with_own_weights
from onnx import TensorProto, helper
from small_nets import batchnorm, copied, net, operators, relative_error, run, values

from workbench.graph import dynamic, fusion, precision, weights
from workbench.graph.bodies import captured, in_a_loop, in_every_graph, opened
from workbench.graph.editing import Context, Graph, graphs, subgraphs
from workbench.graph.weights import dequantize, quantize
from workbench.recipes import Fuse, Precision, Quantize, QuantizeWeights
from workbench.records import StepReport

PRODUCTS = {"then_product", "else_one", "else_two", "after", "recurrent", "driven", "inner_then", "inner_else"}


def weight_only(model: onnx.ModelProto, to: str = "int8", **options: object) -> StepReport:
    return weights.apply(model, QuantizeWeights(to, head=True, **options), Context())  # type: ignore[arg-type]


def int8_dynamic(model: onnx.ModelProto) -> StepReport:
    return dynamic.apply(model, Quantize(activations="dynamic"), Context())


def products(model: onnx.ModelProto) -> set[str]:
    return {node.name for level in graphs(model.graph) for node in level.node} & PRODUCTS


@pytest.mark.parametrize("own", [False, True], ids=["weights outside", "weights inside"])
@pytest.mark.parametrize("case", CASES)
# 8 bits round a weight by half of 1/127 of the largest in its block or column; fused kernels and dynamic codes do that to
# activations too, and five turns of a carried state add up.
@pytest.mark.parametrize(("lower", "bound"), [(weight_only, 0.04), (int8_dynamic, 0.06)])
def test_every_product_in_a_body_is_lowered_and_answers_stay(
    case: str, own: bool, lower: Callable[[onnx.ModelProto], StepReport], bound: float
) -> None:
    text, feeds = CASES[case]
    parent = with_own_weights(bodied(text)) if own else bodied(text)
    model = copied(parent)
    report = lower(model)
    onnx.checker.check_model(model, full_check=True)
    assert set(report.changed) == products(parent) and not report.skipped
    wanted = run(parent, feeds)
    for level in ("off", "all"):
        found = run(model, feeds, level)
        assert found.keys() == wanted.keys()
        for name, want in wanted.items():
            assert found[name].shape == want.shape
            if want.size:
                assert relative_error(found[name], want) < bound, (name, level)
    kinds = [tensor.data_type for level in graphs(model.graph) for tensor in level.initializer if len(tensor.dims) == 2]
    assert TensorProto.INT8 in kinds


def test_a_body_computes_what_its_codes_stand_for() -> None:
    model = bodied(LOOP)
    weight_only(model, "int4")
    feeds = CASES["loop"][1]
    w, v = (dequantize(quantize(WEIGHTS[name], "int4", 32)) for name in ("w", "v"))
    state = feeds["x"]
    for _ in range(5):
        state = np.tanh(state @ w + feeds["x"] @ v)
    # The same sums in another order, through five turns.
    assert relative_error(run(model, feeds)["y"], np.maximum(state, 0)) < 1e-5


def test_onnx_runtime_fuses_codes_that_lie_in_the_body(tmp_path) -> None:
    for lower, fused in ((weight_only, "MatMulNBits"), (int8_dynamic, "MatMulIntegerToFloat")):
        model = bodied(LOOP)
        lower(model)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = inner_operators(onnx.load(options.optimized_model_filepath))
        assert any(kind in (fused, "DynamicQuantizeMatMul") for kind in kinds), kinds


def test_a_weight_that_body_and_graph_share_goes_from_both_and_one_that_stays_is_kept() -> None:
    model = bodied(BRANCHES)
    report = weight_only(model)
    floats = {tensor.name for level in graphs(model.graph) for tensor in level.initializer
              if tensor.data_type == TensorProto.FLOAT and not tensor.name.endswith("_scale")}  # fmt: skip
    assert not {name for name in floats if name in ("w", "v")}
    assert report.details["bytes_before"] == 2 * 64 * 64 * 4, "each of the two weights counts once"
    model = bodied(BRANCHES)
    report = weight_only(model, exclude=("then_product",))
    assert "w" in {tensor.name for tensor in model.graph.initializer}
    assert {item.name for item in report.skipped} == {"then_product"} and "after" in report.changed
    assert relative_error(run(model, CASES["then"][1])["y"], run(bodied(BRANCHES), CASES["then"][1])["y"]) < 0.02


def test_no_name_inside_hides_one_outside() -> None:
    for text in (BRANCHES, NESTED):
        model = bodied(text)
        weight_only(model)
        written = [name for level in graphs(model.graph) for node in level.node for name in node.output if name]
        written += [tensor.name for level in graphs(model.graph) for tensor in level.initializer]
        assert len(written) == len(set(written))


def test_a_body_before_the_output_of_the_model_is_its_head_and_another_is_not() -> None:
    last = """(float[N,64] x, bool c) => (float[N,64] y) {
        z = If (c) <then_branch = one () => (float[N,64] t) { [p] t = MatMul (x, w) },
                    else_branch = two () => (float[N,64] e) { e = Neg (x) }>
        y = Add (z, b)
    }"""
    report = weights.apply(bodied(last), QuantizeWeights("int8"), Context())
    assert report.changed == () and "before the output 'y'" in report.skipped[0].reason
    report = weights.apply(bodied(BRANCHES), QuantizeWeights("int8"), Context())
    assert set(report.changed) == {"then_product", "else_one", "else_two", "after"}


def test_an_embedding_outside_is_not_stored_twice_by_a_body() -> None:
    text = """(int64[N] i, bool c) => (float[N,64] y) {
        x = Gather (w, i)
        z = If (c) <then_branch = one () => (float[N,64] t) { [tied] t = MatMul (x, w) },
                    else_branch = two () => (float[N,64] e) { e = Neg (x) }>
        y = Relu (z)
    }"""
    report = weight_only(bodied(text))
    assert any(item.name == "tied" and "is an embedding too" in item.reason for item in report.skipped)


def test_a_model_whose_only_products_lie_in_bodies_is_quantized_dynamically() -> None:
    model = bodied(NESTED)
    assert set(int8_dynamic(model).changed) == {"inner_then", "inner_else"}
    assert "MatMul" not in inner_operators(model)


def test_constant_nodes_that_bodies_read_become_weights() -> None:
    model = net(
        """(float[N,64] x, bool c) => (float[N,64] y) {
            y = If (c) <then_branch = one () => (float[N,64] t) { [p] m = MatMul (x, k)  t = Relu (m) },
                        else_branch = two () => (float[N,64] e) { e = Neg (x) }>
        }""".replace("x, k", "x, x"),
        opset=21,
    )
    then = next(body for body in subgraphs(model.graph.node[0]) if body.name == "one")
    then.node[0].input[1] = "k"
    tensor = onnx.numpy_helper.from_array(values((64, 64)))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=tensor))
    graph = Graph(model)
    assert graph.lift_constants() and "k" in graph.initializers
    graph.finish()
    assert weight_only(model).changed == ("p",)


def unknown_type() -> onnx.ModelProto:
    """An If that reads what an operator of unknown type gives."""
    text = """(float[N,64] x, bool c) => (float[N,64] y) {
        h = com.microsoft.Gelu (x)
        y = If (c) <then_branch = one () => (float[N,64] t) { [p] t = MatMul (h, w) },
                    else_branch = two () => (float[N,64] e) { e = Neg (h) }>
    }"""
    return bodied(text)


def test_a_body_that_cannot_be_opened_is_left_with_the_reason() -> None:
    model = unknown_type()
    report = weight_only(model)
    assert report.changed == () and operators(model) == ["Gelu", "If"]
    assert any("its body is left as it is: the type of 'h'" in item.reason for item in report.skipped)
    loop = bodied(LOOP)
    loop.graph.node[0].attribute[0].g.input[2].ClearField("type")
    assert any("its input 'state' is" in item.reason for item in weight_only(loop).skipped)
    loop = bodied(LOOP)
    loop.graph.node[0].attribute[0].g.initializer.append(onnx.numpy_helper.from_array(values((7, 64)), "state"))
    assert any("'state' is a constant too" in item.reason for item in weight_only(loop).skipped)


def test_what_a_body_reads_and_where_it_runs_is_known() -> None:
    model = bodied(NESTED)
    loop = model.graph.node[0].attribute[0].g
    assert set(captured(loop)) == {"c", "w", "v"}
    seen = in_every_graph(Graph(model), lambda graph: (graph.proto.name, in_a_loop(graph)))[0]
    assert set(seen) == {("there", True), ("here", True), ("turn", True), ("net", False)} and seen[-1][0] == "net"
    branches = [inner for _, _, inner in opened(Graph(bodied(BRANCHES)))]
    assert all(isinstance(inner, Graph) and not in_a_loop(inner) for inner in branches)


@pytest.mark.parametrize("own", [False, True], ids=["weights outside", "weights inside"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    # Values are rounded to 11 or 8 bits before and behind each product; five turns add that up.
    ("to", "dialect", "bound"),
    [("fp16", "ort-cpu", 0.004), ("fp16", "strong", 0.004), ("bf16", "ort-cpu", 0.03)],
)
def test_products_in_bodies_go_to_a_lower_type_and_borders_stay(
    case: str, own: bool, to: str, dialect: str, bound: float
) -> None:
    text, feeds = CASES[case]
    parent = with_own_weights(bodied(text)) if own else bodied(text)
    model = copied(parent)
    report = precision.apply(model, Precision(to), Context(dialect))
    onnx.checker.check_model(model, full_check=True)
    assert products(parent) <= set(report.changed)
    assert [value.type for body in bodies(model) for value in (*body.input, *body.output)] == [
        value.type for body in bodies(parent) for value in (*body.input, *body.output)
    ]
    wanted = run(parent, feeds)
    for level in ("off", "all"):
        found = run(model, feeds, level)
        for name, want in wanted.items():
            assert found[name].shape == want.shape and found[name].dtype == want.dtype
            if want.size:
                assert relative_error(found[name], want) < bound, (name, level)
    assert any("nodes are " + to.upper() in note for note in report.notes)


def bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return list(graphs(model.graph))[1:]


def test_in_a_loop_only_products_are_fp16_and_a_long_sum_stays_exact() -> None:
    text = """(float[N,64] x, int64 turns, bool go) => (float[N,64] y) {
        y = Loop (turns, go, x) <
            body = turn (int64 i, bool on, float[N,64] state) => (bool more, float[N,64] next) {
                more = Identity (on)
                [driven] d = MatMul (x, v)
                [sum] s = Add (state, d)
                [half] next = Add (s, b)
            }>
    }"""
    parent, model = bodied(text), bodied(text)
    report = precision.apply(model, Precision("fp16"), Context())
    assert report.changed == ("driven",)
    reasons = {item.name: item.reason for item in report.skipped}
    assert "adds up from turn to turn" in reasons["sum"] and "adds up from turn to turn" in reasons["half"]
    # A sum of 5000 in FP16 would stop growing near 2048 times a term; here only each term is rounded.
    feeds = {"x": X, "turns": np.array(5000), "go": YES}
    assert relative_error(run(model, feeds)["y"], run(parent, feeds)["y"]) < 2e-3
    everything = bodied(text)
    assert {"sum", "half"} <= set(precision.apply(everything, Precision("fp16", auto_exclude=False), Context()).changed)


def test_a_body_that_multiplies_nothing_stays_in_fp32() -> None:
    text = """(float[N,64] x, bool c) => (float[N,64] y) {
        h = MatMul (x, w)
        y = If (c) <then_branch = one () => (float[N,64] t) { [neg] n = Neg (h) t = Relu (n) },
                    else_branch = two () => (float[N,64] e) { [inside] e = MatMul (h, v) }>
    }"""
    report = precision.apply(bodied(text), Precision("fp16"), Context())
    reasons = {item.name: item.reason for item in report.skipped}
    assert "multiplies nothing" in reasons["neg"] and "inside" in report.changed
    assert "keep their type" in reasons["If_1"]


def test_the_builder_of_tensorrt_8_chooses_types_in_bodies_and_the_report_says_so() -> None:
    report = precision.apply(bodied(BRANCHES, 17), Precision("fp16"), Context("trt-8.6"))
    reasons = {item.name: item.reason for item in report.skipped}
    assert "builder chooses" in reasons["else_two"] and "after" in report.changed


@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("case", ["else", "loop", "nested then"])
def test_products_with_coded_weights_in_bodies_stay_fp32_where_onnx_runtime_would_err(case: str, to: str) -> None:
    text, feeds = CASES[case]
    coded = bodied(text)
    weight_only(coded, to)
    model = copied(coded)
    report = precision.apply(model, Precision("fp16"), Context())
    onnx.checker.check_model(model, full_check=True)
    inside = products(bodied(text)) - {"after"}
    reasons = {item.name: item.reason for item in report.skipped}
    assert all("wrong answers from FP16 scales" in reasons[name] for name in inside)
    for level in ("off", "all"):
        # The codes are the same; FP16 rounds what is left of it.
        assert relative_error(run(model, feeds, level)["y"], run(coded, feeds, level)["y"]) < 0.02, level


@pytest.mark.parametrize("case", ["else", "loop"])
def test_weights_of_8_bits_and_fp16_go_together_in_bodies_for_tensorrt(case: str) -> None:
    text, feeds = CASES[case]
    model = bodied(text)
    weights.apply(model, QuantizeWeights("int8", head=True), Context("strong"))
    report = precision.apply(model, Precision("fp16"), Context("strong"))
    onnx.checker.check_model(model, full_check=True)
    assert products(bodied(text)) <= set(report.changed)
    # A product reads what its DequantizeLinear gives, with no cast in between that engines could not fuse.
    for body in bodies(model):
        made = {name: node.op_type for node in body.node for name in node.output}
        assert {made[node.input[1]] for node in body.node if node.op_type == "MatMul"} <= {"DequantizeLinear"}
    assert relative_error(run(model, feeds)["y"], run(bodied(text), feeds)["y"]) < 0.04


TURNED = """(float[N,64] x, bool c, int64 turns, bool go) => (float[N,64] y) {
    u = Transpose <perm = [1, 0]> (v)
    z = If (c) <
        then_branch = one () => (float[N,64] t) { k = Transpose <perm = [1, 0]> (w)  [folded] p = MatMul (x, k)  t = Tanh (p) },
        else_branch = two () => (float[N,64] e) { [outside] q = MatMul (x, u)  e = Tanh (q) }>
    y = Loop (turns, go, z) <
        body = turn (int64 i, bool on, float[N,64] state) => (bool more, float[N,64] next) {
            more = Identity (on)
            d = MatMul (state, w)
            n = Identity (d)
            next = Tanh (n)
        }>
}"""


@pytest.mark.parametrize("yes", [True, False])
def test_constants_in_bodies_are_folded_and_those_outside_left_alone(yes: bool) -> None:
    feeds = {"x": X, "c": np.array(yes), "turns": TURNS, "go": YES}
    model = bodied(TURNED)
    report = fusion.apply(model, Fuse("all"), Context())
    onnx.checker.check_model(model, full_check=True)
    assert "Transpose" not in [*operators(model), *inner_operators(model)]
    assert inner_operators(model).count("Identity") == 1, "a condition is handed on by a node"
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(held["w"], WEIGHTS["w"])
    want = run(bodied(TURNED), feeds)["y"]
    assert relative_error(run(model, feeds)["y"], want) < 1e-6
    assert report.details["constants_folded"] == 2
    assert {"folded", "outside"} <= set(weight_only(model).changed)
    assert relative_error(run(model, feeds)["y"], want) < 0.04


def test_a_large_weight_that_others_read_is_not_stored_twice_by_a_body() -> None:
    text = """(float[N,300] x, bool c) => (float[N,300] y) {
        h = MatMul (x, w)
        y = If (c) <
            then_branch = one () => (float[N,300] t) { k = Transpose <perm = [1, 0]> (w)  t = MatMul (h, k) },
            else_branch = two () => (float[N,300] e) { e = Tanh (h) }>
    }"""
    model = net(text, 21, w=values((300, 300)))
    report = fusion.apply(model, Fuse("all"), Context())
    assert any("would store it twice" in item.reason for item in report.skipped)


def test_a_batchnorm_in_a_body_is_folded_without_a_change_to_who_else_reads_the_weight() -> None:
    text = """(float[1,4,5,5] x, bool c) => (float[1,4,5,5] y) {
        z = If (c) <
            then_branch = one () => (float[1,4,5,5] t) {
                h = Conv (x, k)  b = BatchNormalization (h, scale, shift, mean, variance)  t = Relu (b) },
            else_branch = two () => (float[1,4,5,5] e) { q = Conv (x, k)  e = Neg (q) }>
        y = Relu (z)
    }"""
    parameters = {"k": values((4, 4, 1, 1)), **batchnorm(4)}
    model = net(text, 21, **parameters)
    report = fusion.apply(model, Fuse("all"), Context())
    assert report.details["batchnorms_folded"] == 1 and "BatchNormalization" not in inner_operators(model)
    for yes in (True, False):
        feeds = {"x": values((1, 4, 5, 5), 7), "c": np.array(yes)}
        assert relative_error(run(model, feeds)["y"], run(net(text, 21, **parameters), feeds)["y"]) < 1e-5


def test_functions_called_in_bodies_are_written_out_and_lowered() -> None:
    text = BRANCHES.replace("q = MatMul (h, w)", "q = own.project (h, w)")
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "own" : 1]> net {text}
        <opset_import: ["" : 21], domain: "own"> project (a, k) => (b) {{ b = MatMul (a, k) }}"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    fusion.apply(model, Fuse("all"), Context())
    assert "project" not in inner_operators(model) and not model.functions
    assert len(int8_dynamic(model).changed) == 4
    feeds = CASES["else"][1]
    assert relative_error(run(model, feeds)["y"], run(bodied(BRANCHES), feeds)["y"]) < 0.06


@pytest.mark.parametrize("case", ["loop", "nested else"])
def test_a_weight_that_a_body_reads_through_an_identity_is_a_weight(case: str) -> None:
    text, feeds = CASES[case]
    head, rest = text.split("{", 1)
    model = bodied(head + "{ again = Identity (v) " + rest.replace(", v)", ", again)"))
    fusion.apply(model, Fuse("all"), Context())
    assert "again" not in {name for level in graphs(model.graph) for node in level.node for name in node.input}
    assert set(weight_only(model).changed) == products(bodied(text))
    assert relative_error(run(model, feeds)["y"], run(bodied(text), feeds)["y"]) < 0.04
