"""Counting operations from shapes, on nodes whose count is known from paper and on a shipped model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench import zoo
from workbench.graph.cost import cost


def one_node(
    operator: str, shapes: list[tuple[int | str, ...]], weight: tuple[int, ...] | None = None, **attributes: object
) -> onnx.ModelProto:
    inputs = [f"x{place}" for place in range(len(shapes))]
    weights = [] if weight is None else [numpy_helper.from_array(np.zeros(weight, np.float32), "w")]
    node = helper.make_node(operator, [*inputs, *("w" for _ in weights)], ["y"], name="the_node", **attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(inputs, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", values, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_convolution_counts_two_for_each_product() -> None:
    model = one_node("Conv", [("N", 3, 8, 8)], (16, 3, 3, 3), pads=[1, 1, 1, 1])
    assert cost(model).flops == 2 * (16 * 8 * 8) * (3 * 3 * 3)


def test_a_grouped_convolution_counts_its_own_channels_only() -> None:
    model = one_node("Conv", [("N", 4, 6, 6)], (4, 1, 3, 3), group=4)
    assert cost(model).flops == 2 * (4 * 4 * 4) * 9


def test_a_transposed_convolution_counts_each_input_element_with_every_kernel_value() -> None:
    model = one_node("ConvTranspose", [("N", 4, 5, 5)], (4, 2, 3, 3))
    assert cost(model).flops == 2 * (4 * 5 * 5) * (2 * 9)


def test_a_matrix_product_with_leading_axes_counts_each_of_them() -> None:
    model = one_node("MatMul", [("N", 6, 7, 8), ("N", 6, 8, 9)])
    assert cost(model, {"x0": (2, 6, 7, 8), "x1": (2, 6, 8, 9)}).flops == 2 * (2 * 6 * 7 * 9) * 8


def test_a_transposed_gemm_takes_its_inner_axis_from_the_front() -> None:
    model = one_node("Gemm", [(5, 3)], (5, 4), transA=1)
    assert cost(model).flops == 2 * (3 * 4) * 5


def test_a_dynamic_axis_is_taken_as_one_sample_and_said() -> None:
    model = one_node("Conv", [("N", 3, 8, 8)], (16, 3, 3, 3))
    assert cost(model).assumed == {"x0": (1, 3, 8, 8)}


def test_a_node_without_known_shapes_is_named_and_no_sum_is_claimed() -> None:
    model = one_node("MatMul", [("N", 4)], (4, 4))
    model.graph.node[0].input[0] = "somewhere_else"
    found = cost(model)
    assert (found.flops, found.unknown) == (None, ("the_node",))


def test_operators_that_are_not_counted_cost_nothing_here() -> None:
    assert cost(one_node("Relu", [("N", 4)])).flops == 0


def test_a_recurrent_layer_counts_as_it_does_in_the_shares_of_a_report() -> None:
    model = one_node("LSTM", [(20, "N", 32)], hidden_size=64)
    weights = {"w": (1, 4 * 64, 32), "r": (1, 4 * 64, 64)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()
    )
    model.graph.node[0].input.extend(weights)
    assert cost(model, {"x0": (20, 3, 32)}).flops == 2 * 20 * 3 * (4 * 64) * (32 + 64)


def test_what_multiplies_and_cannot_be_counted_is_named_and_no_sum_is_claimed() -> None:
    model = one_node("Einsum", [("N", 4, 5)], (5, 6), equation="nij,jk->nik")
    model.graph.node.append(helper.make_node("MatMul", ["x0", "v"], ["z"], name="counted"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((5, 2), np.float32), "v"))
    found = cost(model)
    assert (found.flops, found.unknown, found.by_operator) == (None, ("the_node",), {"MatMul": 2 * 4 * 5 * 2})


def test_the_shipped_resnet_costs_what_its_layers_add_up_to() -> None:
    proto = onnx.load(str(zoo.path("digits_resnet")))
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    found = cost(proto)
    assert found.unknown == ()
    assert found.flops == sum(found.by_operator.values())
    # The stem alone: 3x3 over one channel at 32x32, and no layer is free.
    convolutions = [weights[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"]
    stem = 2 * 32 * 32 * int(np.prod(convolutions[0]))
    assert stem < (found.flops or 0) <= 2 * 32 * 32 * sum(int(np.prod(shape)) for shape in weights.values())
    twice = cost(proto, {proto.graph.input[0].name: (2, 1, 32, 32)}).flops
    assert twice == pytest.approx(2 * (found.flops or 0))
