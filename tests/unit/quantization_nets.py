"""Nets small enough to reason about where Q/DQ pairs go, with tables of what their activations hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from small_nets import copied, net, run, values

from workbench.calibration.table import CalibrationTable, Provenance
from workbench.graph import quantization
from workbench.graph.dialects import of_this_cpu
from workbench.graph.editing import Context
from workbench.recipes import Quantize
from workbench.records import StepReport
from workbench.transformation.observing import Observation, calibrate_proto

ORIGIN = Provenance("model", "data", "noise")
IMAGES = {"x": values((64, 4, 8, 8), 5)}


def bottleneck(**extra: np.ndarray) -> onnx.ModelProto:
    """A residual block with an identity shortcut, 20 channels, and a classifier."""
    weights = {
        "w0": values((20, 4, 3, 3), 1, 0.2), "b0": values((20,), 2, 0.1),
        "w1": values((20, 20, 3, 3), 3, 0.1), "b1": values((20,), 4, 0.1),
        "w2": values((20, 20, 3, 3), 5, 0.1), "b2": values((20,), 6, 0.1),
        "wg": values((5, 20), 7, 0.3), "bg": values((5,), 8, 0.1),
    }  # fmt: skip
    return net(
        """(float[N,4,8,8] x) => (float[N,5] y) {
            [stem] c0 = Conv<pads = [1,1,1,1]>(x, w0, b0)
            [stem_relu] r0 = Relu(c0)
            [first] c1 = Conv<pads = [1,1,1,1]>(r0, w1, b1)
            [first_relu] r1 = Relu(c1)
            [second] c2 = Conv<pads = [1,1,1,1]>(r1, w2, b2)
            [add] a = Add(c2, r0)
            [last_relu] r2 = Relu(a)
            [pool] p = GlobalAveragePool(r2)
            [flat] f = Flatten(p)
            [head] y = Gemm<transB = 1>(f, wg, bg)
        }""",
        **{**weights, **extra},
    )


def attention() -> onnx.ModelProto:
    """One head of attention between MatMuls, with a normalisation before and a residual addition after."""
    weights = {name: values((16, 16), seed, 0.3) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    return net(
        """(float[N,6,16] x) => (float[N,6,16] y) {
            [norm] n = LayerNormalization(x, scale, shift)
            [query] q = MatMul(n, wq)
            [key] k = MatMul(n, wk)
            [value] v = MatMul(n, wv)
            [turn] kt = Transpose<perm = [0,2,1]>(k)
            [scores] s = MatMul(q, kt)
            [softmax] p = Softmax(s)
            [mix] m = MatMul(p, v)
            [out] o = MatMul(m, wo)
            [add] y = Add(o, x)
        }""",
        scale=np.ones(16, np.float32),
        shift=np.zeros(16, np.float32),
        **weights,
    )


def table_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: object) -> CalibrationTable:
    return calibrate_proto(model, feeds, ORIGIN, Observation(threads=1), **options)  # type: ignore[arg-type]


def quantized(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], dialect: str | None = None, **options: object
) -> tuple[onnx.ModelProto, StepReport]:
    """A quantized and checked copy for this CPU, with its report; the calibrator is `max` unless named."""
    step = Quantize(**{"calibrator": "max", **options})  # type: ignore[arg-type]
    result = copied(model)
    report = quantization.apply(result, step, Context(dialect=dialect or of_this_cpu(), table=table_of(model, feeds)))
    onnx.checker.check_model(result, full_check=True)
    return result, report


def sqnr_db(
    model: onnx.ModelProto, parent: onnx.ModelProto, feeds: dict[str, np.ndarray], fusion: str = "all"
) -> float:
    """Signal to noise ratio of the first output."""
    want = next(iter(run(parent, feeds).values())).astype(np.float64)
    have = next(iter(run(model, feeds, fusion).values()))
    return float(10 * np.log10((want**2).sum() / ((have - want) ** 2).sum()))


def behind_pairs(model: onnx.ModelProto, node: str) -> list[str]:
    """The float tensors that a node reads through a Q/DQ pair, in the order of its inputs."""
    producer = {name: item for item in model.graph.node for name in item.output}
    reader = next(item for item in model.graph.node if item.name == node)
    found = []
    for name in reader.input:
        restored = producer.get(name)
        if restored is not None and restored.op_type == "DequantizeLinear":
            coded = producer.get(restored.input[0])
            found.append(coded.input[0] if coded is not None else restored.input[0])
    return found


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    tensors: Iterable[onnx.TensorProto] = model.graph.initializer
    return np.asarray(onnx.numpy_helper.to_array(next(tensor for tensor in tensors if tensor.name == name)))


def scale_of(model: onnx.ModelProto, tensor: str) -> tuple[float, int]:
    """Scale and zero point of the QuantizeLinear that reads a tensor."""
    node = next(item for item in model.graph.node if item.op_type == "QuantizeLinear" and item.input[0] == tensor)
    return float(constant(model, node.input[1])), int(constant(model, node.input[2]))
