from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from quantization_nets import IMAGES, bottleneck
from small_nets import copied, net, run, values

from workbench.graph.exact import exact_form


def integer_product(signed: bool) -> onnx.ModelProto:
    weight = np.random.default_rng(1).integers(-127, 128, (16, 5))
    kind, shift = (np.int8, 0) if signed else (np.uint8, 128)
    return net(
        """(float[N,16] x) => (float[N,5] y) {
            q, s, z = DynamicQuantizeLinear(x)
            i = MatMulInteger(q, w, z, wz)
            f = Cast<to = 1>(i)
            y = Mul(f, s)
        }""",
        w=(weight + shift).astype(kind),
        wz=np.full(5, shift, kind),
    )


@pytest.mark.parametrize("signed", [True, False])
def test_integer_products_are_those_of_onnx_reference(signed: bool) -> None:
    model, feeds = integer_product(signed), {"x": values((64, 16))}
    exact = exact_form(model)
    assert exact is not None
    onnx.checker.check_model(exact, full_check=True)
    want = ReferenceEvaluator(model).run(None, feeds)[0]
    np.testing.assert_allclose(run(exact, feeds)["y"], want, rtol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_qlinear_operators_are_those_of_a_kernel_that_cannot_saturate(tmp_path, per_channel: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([IMAGES])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    source, place = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    parent = copied(bottleneck())
    parent.graph.node[-1].op_type = "MatMul"
    del parent.graph.node[-1].attribute[:]
    del parent.graph.node[-1].input[2:]
    weight = next(tensor for tensor in parent.graph.initializer if tensor.name == "wg")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), "wg"))
    onnx.save(parent, source)
    quantize_static(
        source, place, Samples(), quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, reduce_range=True, per_channel=per_channel,
    )  # fmt: skip
    model = onnx.load(place)
    assert {"QLinearConv", "QLinearMatMul"} <= {node.op_type for node in model.graph.node}
    exact = exact_form(model)
    assert exact is not None and not {"QLinearConv", "QLinearMatMul"} & {node.op_type for node in exact.graph.node}
    want, have = (run(one, IMAGES)["y"].astype(np.float64) for one in (model, exact))
    # A half may be rounded the other way.
    assert 10 * np.log10((want**2).sum() / max(((have - want) ** 2).sum(), 1e-30)) > 35


def test_integer_operators_without_such_a_form_give_none() -> None:
    model = net(
        "(float[N,16] x) => (float[N,5] y) { y = com.microsoft.DynamicQuantizeMatMul(x, w, s) }",
        w=np.ones((16, 5), np.int8),
        s=np.ones(5, np.float32),
    )
    assert exact_form(model) is None


def test_a_graph_without_integers_is_left_as_it_is() -> None:
    exact = exact_form(bottleneck())
    assert exact is not None
    np.testing.assert_array_equal(run(exact, IMAGES)["y"], run(bottleneck(), IMAGES)["y"])
