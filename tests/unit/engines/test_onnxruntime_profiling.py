"""What ONNX Runtime's profiler tells: the layers it executes, what they read and write, and the time of whole calls."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_nets import net, values

from workbench.engines import jobs
from workbench.engines.onnxruntime_profiling import profile
from workbench.records import Engine, TensorSpec

X = values((4, 8), 3)


def engine_of(proto: onnx.ModelProto, tmp_path, fusion: str = "all") -> Engine:
    path = tmp_path / "net.onnx"
    onnx.save(proto, str(path))
    spec = (TensorSpec("x", "float32", (None, 8)),)
    return Engine("fp32", "v", fusion, "onnxruntime-cpu", "1", "cpu", str(path), spec, (), 0.0, 1)


@pytest.fixture
def two_layers() -> onnx.ModelProto:
    return net(
        "(float[N,8] x) => (float[N,3] y) { [first] h = MatMul(x, w1) [last] y = MatMul(h, w2) }",
        w1=values((8, 16), 1),
        w2=values((16, 3), 2),
    )


def test_layers_tell_what_they_read_and_write(two_layers, tmp_path) -> None:
    first, last = profile(engine_of(two_layers, tmp_path), {"x": X}, 3).layers
    assert [one.nodes for one in (first, last)] == [("first",), ("last",)]
    assert first.reads == (TensorSpec("x", "float32", (4, 8)), TensorSpec("w1", "float32", (8, 16)))
    assert first.constants == ("w1",)
    assert [one.shape for one in last.writes] == [(4, 3)]
    assert last.reads[0] == first.writes[0], "the first layer's output is what the second reads"
    assert first.precision == "float32"


def test_a_whole_call_takes_at_least_as_long_as_its_layers(two_layers, tmp_path) -> None:
    found = jobs.layer_profile(engine_of(two_layers, tmp_path), {"x": X}, runs=5)
    assert found.call_seconds is not None
    # Each time is a median over calls, in whole microseconds.
    assert found.call_seconds >= sum(one.seconds for one in found.layers) - 2e-6 * len(found.layers)


def test_the_body_of_a_loop_is_part_of_the_loops_own_time(tmp_path) -> None:
    body = onnx.parser.parse_graph(
        "body (int64 i, bool go, float[N,8] a) => (bool on, float[N,8] b) { on = Identity(go) b = Sin(a) }"
    )
    proto = net("(float[N,8] x) => (float[N,8] y) { [cos] y = Cos(x) }")
    loop = onnx.helper.make_node("Loop", ["count", "", "x"], ["looped"], name="loop", body=body)
    proto.graph.node[0].input[0] = "looped"
    proto.graph.node.insert(0, loop)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(5, np.int64), "count"))
    found = profile(engine_of(proto, tmp_path), {"x": X}, 3)
    assert [one.operator for one in found.layers] == ["Loop", "Cos"]
