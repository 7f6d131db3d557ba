"""Small nets written as text, and the few lines that run and compare them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from workbench.engines import onnxruntime

MODELS = Path(__file__).parents[2] / "data" / "models"


def net(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """A checked model from ONNX text `(float[N,4] x) => (float[N,4] y) { ... }` and its weights by name."""
    domains = f'"" : {opset}, "com.microsoft" : 1'
    model = onnx.parser.parse_model(f"<ir_version: {8 if opset < 21 else 10}, opset_import: [{domains}]> net {text}")
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], fusion: str = "off") -> dict[str, np.ndarray]:
    """Outputs by name, from ONNX Runtime with its own optimizations off unless asked."""
    with onnxruntime.open_file(model.SerializeToString(), fusion, 1) as runner:
        return runner.infer(feeds)


def relative_error(have: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value wanted."""
    return float(np.abs(have.astype(np.float64) - want).max() / np.abs(want).max())


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def values(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def batchnorm(channels: int, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    drawn = {name: generator.normal(size=channels).astype(np.float32) for name in ("scale", "shift", "mean")}
    return {**drawn, "variance": generator.uniform(0.2, 3.0, channels).astype(np.float32)}


def shipped(name: str) -> onnx.ModelProto:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} has not been made")
    return onnx.load(path)
