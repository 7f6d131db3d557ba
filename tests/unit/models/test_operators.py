"""Operators of a file's own, defined by those that ONNX knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.engines import onnxruntime
from workbench.errors import LoadError
from workbench.machine.store import Store

SNAKE = """
<opset_import: ["": 17], domain: "made.here">
Snake <alpha: float = 1.0> (x) => (y) {
  a = Constant <value_float: float = @alpha> ()
  angle = Mul (a, x)
  sine = Sin (angle)
  square = Mul (sine, sine)
  part = Div (square, a)
  y = Add (x, part)
}
"""


def network(ir_version: int = 8, domains: tuple[str, ...] = ("", "made.here")) -> onnx.ModelProto:
    """y = Snake(x @ w), which no engine can run as it is."""
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Snake", ["h"], ["y"], name="act", domain="made.here", alpha=0.5),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])] for name in "xy"]
    graph = helper.make_graph(nodes, "snake", *ends, [weights])
    imports = [helper.make_opsetid(domain, 1 if domain else 17) for domain in domains]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def right(x: np.ndarray) -> np.ndarray:
    h = x @ numpy_helper.to_array(network().graph.initializer[0])
    return h + np.sin(0.5 * h) ** 2 / 0.5


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("keep", [(), ("Snake",)])
def test_a_model_with_its_operators_defined_runs_everywhere(tmp_path: Path, as_text: bool, keep: tuple) -> None:
    path, store = tmp_path / "custom.onnx", Store(tmp_path / "store")
    onnx.save(network(), path)
    model = wb.load(wb.define(path, SNAKE if as_text else onnx.parser.parse_function(SNAKE)), store=store)
    made = wb.transform(model, wb.Recipe("mine", (wb.Fuse(keep=keep),)), store=store)
    operators = {node.op_type for node in onnx.load(made.path).graph.node}
    assert ("Snake" in operators) == bool(keep)
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    for file in (model.path, made.path):
        with onnxruntime.open_file(Path(file)) as runner:
            np.testing.assert_allclose(runner.infer({"x": x})["y"], right(x), rtol=1e-5, atol=1e-6)  # FP32, four sums


def test_weights_beside_the_file_come_along(tmp_path: Path) -> None:
    path = tmp_path / "custom.onnx"
    onnx.save(network(), path, save_as_external_data=True, size_threshold=0, location="custom.bin")
    made = wb.define(str(path), SNAKE)
    assert made.graph.initializer[0].raw_data == network().graph.initializer[0].raw_data


def test_an_old_file_and_one_that_does_not_import_the_domain_are_mended() -> None:
    source = network(ir_version=7, domains=("",))
    made = wb.define(source, SNAKE)
    assert made.ir_version == 8 and {item.domain for item in made.opset_import} == {"", "made.here"}
    assert source.ir_version == 7 and not source.functions, "what was passed is left alone"


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("y = x", "is no ONNX function"),
        (3, "is no ONNX function"),
        (SNAKE.replace("Snake", "Snail"), r"No node of the model is a made\.here::Snail; .*\['made\.here::Snake'\]"),
        (SNAKE.replace("17", "18"), "is of opset 18, the model of 17"),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(definition: object, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        wb.define(network(), definition)  # type: ignore[arg-type]


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="got a list"):
        wb.define([], SNAKE)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="There is no file"):
        wb.define(tmp_path / "none.onnx", SNAKE)
