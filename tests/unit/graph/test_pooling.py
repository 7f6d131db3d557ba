from __future__ import annotations

import numpy as np
import onnx
import pytest
from quantization_nets import IMAGES, behind_pairs, bottleneck, quantized, sqnr_db
from small_nets import net, values

TENSORRT = ("trt-8.6", "strong")
WEIGHTS = {"w0": values((24, 4, 3, 3), 1, 0.2), "w1": values((8, 24, 1, 1), 2, 0.2)}


def pooled(between: str) -> onnx.ModelProto:
    """Two convolutions with something between them, from `r` to `q`."""
    return net(
        f"""(float[N,4,8,8] x) => (float[N,8,H,W] y) {{
            [first] c = Conv<pads = [1,1,1,1]>(x, w0)
            [relu] r = Relu(c)
            {between}
            [second] y = Conv(q, w1)
        }}""",
        **WEIGHTS,
    )


AVERAGE = "[pool] q = AveragePool<kernel_shape = [2,2], strides = [2,2]>(r)"


@pytest.mark.parametrize("dialect", TENSORRT)
def test_the_pool_at_the_end_of_a_residual_net_reads_codes(dialect: str) -> None:
    model, report = quantized(bottleneck(), IMAGES, dialect)
    assert behind_pairs(model, "pool") == ["r2"]
    assert behind_pairs(model, "last_relu") == behind_pairs(model, "flat") == []
    assert behind_pairs(model, "head")[0] == "f"
    assert {"add", "pool"} <= set(report.details["also_reading_codes"]) and "r2" in report.details["thresholds"]
    assert sqnr_db(model, bottleneck(), IMAGES, "off") > 25


def test_an_average_pool_between_convolutions_reads_codes_and_gives_some() -> None:
    model, _ = quantized(pooled(AVERAGE), IMAGES, "trt-8.6")
    assert behind_pairs(model, "pool") == ["r"] and behind_pairs(model, "second")[0] == "q"


def test_copies_between_pool_and_reader_do_not_matter() -> None:
    turned = f"{AVERAGE.replace(' q =', ' p =')} [turn] q = Transpose<perm = [0,1,3,2]>(p)"
    model, _ = quantized(pooled(turned), IMAGES, "trt-8.6")
    assert behind_pairs(model, "pool") == ["r"] and behind_pairs(model, "second")[0] == "q"


@pytest.mark.parametrize(
    "between",
    [
        # TensorRT moves quantization over the largest value by itself.
        "[pool] q = MaxPool<kernel_shape = [2,2]>(r)",
        # What is read in floating point anyhow gains nothing from codes.
        "[pool] p = AveragePool<kernel_shape = [2,2]>(r) [tanh] q = Tanh(p)",
        # Nor is a pool an integer kernel for another one.
        "[pool] p = AveragePool<kernel_shape = [2,2]>(r) [again] q = AveragePool<kernel_shape = [2,2]>(p)",
        # No integer kernel gives what it reads, so quantizing it would be a kernel more.
        "[tanh] h = Tanh(r) [pool] q = AveragePool<kernel_shape = [2,2]>(h)",
    ],
)
def test_other_pools_stay_as_they_are(between: str) -> None:
    model, _ = quantized(pooled(between), IMAGES, "trt-8.6")
    assert behind_pairs(model, "pool") == []


def test_a_pool_that_is_excluded_or_gives_an_output_stays_as_it_is() -> None:
    model, _ = quantized(bottleneck(), IMAGES, "trt-8.6", exclude=("^pool$",))
    assert behind_pairs(model, "pool") == [] and behind_pairs(model, "add") == ["r0"]
    shown = bottleneck()
    shown.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["N", 20, 1, 1]))
    assert behind_pairs(quantized(shown, IMAGES, "trt-8.6")[0], "pool") == []


def test_float8_has_no_pools() -> None:
    model, _ = quantized(onnx.version_converter.convert_version(bottleneck(), 19), IMAGES, "strong", to="fp8")
    assert behind_pairs(model, "pool") == []


def test_a_pool_whose_source_two_read_takes_codes_beside_the_other() -> None:
    both = pooled("[pool] q = AveragePool<kernel_shape = [1,1]>(r)")
    both.graph.node.append(onnx.helper.make_node("Conv", ["r", "w1"], ["z"], "third"))
    both.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 8, 8, 8]))
    model, _ = quantized(both, {"x": IMAGES["x"].astype(np.float32)}, "trt-8.6")
    assert behind_pairs(model, "pool") == ["r"] == behind_pairs(model, "third")[:1]
