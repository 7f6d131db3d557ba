"""A tiny network as a variant, for the contract tests of the TensorRT backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.machine.store import digest
from workbench.recipes import NAMED, Recipe
from workbench.records import TensorSpec, Variant


def network(quantized: bool = False, batch: object = "N", integer_input: bool = False) -> onnx.ModelProto:
    """y = relu(x @ w + b) for x of (N, 4), with Q/DQ on x where asked; with `ids`, also k = ids + 1."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
    nodes = []
    source = "x"
    if quantized:
        constants |= {"scale": np.float32(0.05), "zero": np.int8(0)}
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="/x/Quantize"))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="/x/Dequantize"))
        source = "d"
    nodes.append(helper.make_node("MatMul", [source, "w"], ["h"], name="/fc/MatMul"))
    nodes.append(helper.make_node("Add", ["h", "b"], ["s"], name="/fc/Add"))
    nodes.append(helper.make_node("Relu", ["s"], ["y"], name="/relu/Relu"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])]
    if integer_input:
        constants["one"] = np.int64(1)
        nodes.append(helper.make_node("Add", ["ids", "one"], ["k"], name="/ids/Add"))
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, 2]))
        outputs.append(helper.make_tensor_value_info("k", TensorProto.INT64, [batch, 2]))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


def variant(
    folder: Path,
    recipe: str | Recipe = "fp32",
    dialect: str = "trt-8.6",
    model: onnx.ModelProto | None = None,
    **more: object,
) -> Variant:
    """Write a network and describe it as a variant."""
    chosen = NAMED[recipe] if isinstance(recipe, str) else recipe
    model = model or network(quantized=chosen.step("quantize") is not None)
    path = folder / f"{chosen.name.replace(':', '-')}-{len(list(folder.iterdir()))}.onnx"
    onnx.save(model, path)
    return Variant(
        recipe=chosen,
        model_sha256="0" * 64,
        path=str(path),
        sha256=digest(path),
        size_bytes=path.stat().st_size,
        opset=17,
        inputs=tuple(_spec(value) for value in model.graph.input),
        outputs=tuple(_spec(value) for value in model.graph.output),
        dialect=dialect,
        **more,  # type: ignore[arg-type]
    )


def feeds(batch: int = 5) -> dict[str, np.ndarray]:
    """Return an input for `network`."""
    return {"x": np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)}
