"""Plugins in Python, called as TensorRT calls them; what they compute with is host memory here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from releases import from_10, only_8
from tiny_variants import feeds, variant

from workbench.engines import tensorrt as backend
from workbench.errors import EngineError

SNAKE = """
import ctypes
import numpy as np

def array(one):
    told = one.__cuda_array_interface__
    size = int(np.prod(told["shape"])) * np.dtype(told["typestr"]).itemsize
    memory = (ctypes.c_uint8 * size).from_address(told["data"][0])
    return np.frombuffer(memory, told["typestr"]).reshape(told["shape"])

class Snake:
    attributes = {"alpha": 1.0, "powers": [2, 3], "times": 1}

    def __init__(self, alpha, powers, times):
        self.alpha, self.power, self.times = alpha, powers[0], times

    def run(self, inputs, outputs, stream):
        x = array(inputs[0]).astype(np.float32)
        array(outputs[0])[...] = self.times * (x + np.sin(self.alpha * x) ** self.power / self.alpha)

class Pair(Snake):
    outputs = 2

    def shapes(self, inputs, expressions):
        return [inputs[0], expressions.half(inputs[0])]

PLUGINS = [Snake, Pair]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "snake.py"
    made.write_text(SNAKE)
    return made


@pytest.fixture
def creator(machine, tmp_path: Path, file: Path):
    """What TensorRT has of the class Snake after a build with the file."""
    machine.build(variant(tmp_path), extra={"plugins": [str(file)]})
    return next(one for one in machine.world.creators if one.name == "Snake")


def field(name: str, *values: float, dtype: type = np.float32) -> SimpleNamespace:
    return SimpleNamespace(name=name, data=np.array(values, dtype))


def tensor(trt, dtype: str = "FLOAT", format: str = "LINEAR", shape: tuple[int, ...] = (2, 3)) -> SimpleNamespace:
    one = SimpleNamespace(type=getattr(trt.DataType, dtype), format=getattr(trt.TensorFormat, format), dims=shape)
    return SimpleNamespace(desc=one, **vars(one))


@from_10
def test_a_file_is_registered_before_parsing_and_where_a_plan_is_opened(machine, tmp_path: Path, file: Path) -> None:
    engine = machine.build(variant(tmp_path), extra={"plugins": [str(file)]})
    names = [name for name, _ in machine.trt.calls]
    assert names.index("IPluginRegistry.register_creator") < names.index("OnnxParser.parse_from_file")
    assert [one.name for one in machine.world.creators] == ["Snake", "Pair"]
    with backend.open_runner(engine, None) as runner:
        assert runner.infer(feeds(1))["y"].shape == (1, 3)
    file.write_text(SNAKE + "\n")
    with pytest.raises(EngineError, match=r"snake\.py changed"):
        backend.open_runner(engine, None)


@from_10
@pytest.mark.parametrize(("dtype", "tolerance"), [("FLOAT", 1e-6), ("HALF", 1e-3)])  # one rounding of values up to 4
def test_a_plugin_computes_with_a_nodes_attributes(machine, creator, dtype: str, tolerance: float) -> None:
    fields = [field("alpha", 0.5), field("powers", 2, 5, dtype=np.int32)]
    plugin = creator.create_plugin("/act/Snake", fields, machine.trt.TensorRTPhase.BUILD)
    plugin = plugin.attach_to_context(None)
    x = np.arange(6).reshape(2, 3).astype(machine.trt.nptype(getattr(machine.trt.DataType, dtype)))
    y = np.zeros_like(x)
    here = [tensor(machine.trt, dtype)]
    plugin.on_shape_change(here, here)
    plugin.set_tactic(0)
    plugin.enqueue(here, here, [x.ctypes.data], [y.ctypes.data], 0, 7)
    wide = x.astype(np.float32)
    np.testing.assert_allclose(y, wide + np.sin(0.5 * wide) ** 2 / 0.5, rtol=tolerance)


@from_10
def test_a_plugin_is_kept_in_the_plan_by_its_attributes(machine, creator) -> None:
    plugin = creator.create_plugin("/act/Snake", [field("alpha", 0.5)], machine.trt.TensorRTPhase.BUILD)
    kept = plugin.get_fields_to_serialize().state.fields
    assert {one.name: (one.state.data.tolist(), one.type.name) for one in kept} == {
        "alpha": ([0.5], "FLOAT32"), "powers": ([2, 3], "INT32"), "times": ([1], "INT32"),
    }  # fmt: skip
    again = creator.create_plugin("/act/Snake", [SimpleNamespace(**vars(one.state)) for one in kept],
                                  machine.trt.TensorRTPhase.RUNTIME)  # fmt: skip
    assert (again._operator.alpha, again._operator.power, again._operator.times) == (0.5, 2, 1)


@from_10
def test_a_plugin_takes_row_major_tensors_of_one_floating_type(machine, creator) -> None:
    trt = machine.trt
    plugin = creator.create_plugin("/act/Snake", [], trt.TensorRTPhase.BUILD)
    takes = plugin.supports_format_combination
    assert takes(0, [tensor(trt), tensor(trt)], 1) and takes(1, [tensor(trt, "HALF"), tensor(trt, "HALF")], 1)
    assert not takes(1, [tensor(trt), tensor(trt, "HALF")], 1)
    assert not takes(0, [tensor(trt, "INT8")], 1)
    assert not takes(0, [tensor(trt, format="HWC8")], 1)


@from_10
def test_what_tensorrt_asks_while_it_builds(machine, creator) -> None:
    trt = machine.trt
    plugin = creator.create_plugin("/act/Snake", [], trt.TensorRTPhase.BUILD)
    assert plugin.get_capability_interface(None) is plugin
    assert plugin.get_output_data_types([trt.DataType.HALF]) == [trt.DataType.HALF]
    assert plugin.get_output_shapes(["n x 3"], [], None) == ["n x 3"]
    assert plugin.configure_plugin([], []) is None and plugin.get_valid_tactics() == []
    (pair,) = [one for one in machine.world.creators if one.name == "Pair"]
    plugin = pair.create_plugin("/pair", [], trt.TensorRTPhase.BUILD)
    halves = SimpleNamespace(half=lambda shape: f"half of {shape}")
    assert plugin.get_output_shapes(["n x 3"], [], halves) == ["n x 3", "half of n x 3"]
    assert len(plugin.get_output_data_types([trt.DataType.FLOAT])) == 2


@from_10
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('no luck')", "cannot be run: RuntimeError: no luck"),
        ("def f(:", "cannot be run: SyntaxError"),
        ("", "no list PLUGINS of classes; it is None"),
        ("PLUGINS = []", "no list PLUGINS"),
        ("PLUGINS = [3]", "no list PLUGINS"),
        ("class A: attributes = {}\nPLUGINS = [A]", "A in .* needs a method run"),
        ("class A:\n def run(self): pass\nPLUGINS = [A]", "A in .* needs a method run"),
        (
            "class Gelu_TRT:\n attributes = {}\n def run(self): pass\nPLUGINS = [Gelu_TRT]",
            "refuses the plugin Gelu_TRT",
        ),
    ],
)
def test_a_file_that_gives_no_plugins_is_refused(machine, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(EngineError, match=said):
        machine.build(variant(tmp_path), extra={"plugins": [str(tmp_path / "wrong.py")]})


@only_8
def test_8_6_takes_no_plugin_in_python_and_says_what_it_takes(machine, tmp_path: Path, file: Path) -> None:
    with pytest.raises(EngineError, match=r"takes no plugin in Python.*IPluginV2DynamicExt"):
        machine.build(variant(tmp_path), extra={"plugins": [str(file)]})
