"""ONNX files in another process: hostile ones are errors here, and the process is lent again where it can be."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.engines import isolated, onnxruntime
from workbench.errors import BuildError, Cancelled, ChildKilled, OutOfMemory, RunError
from workbench.machine.handle import Handle


def graph(nodes, output, initializers=(), element=TensorProto.FLOAT) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info(output, element, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def relu() -> bytes:
    return graph([helper.make_node("Relu", ["x"], ["y"])], "y")


def endless() -> bytes:
    """A Loop of as many turns as an int64 can count."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    return graph(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)],
        "y",
        [("turns", np.array(2**62)), ("yes", np.array(True))],
    )


def greedy(elements: int) -> bytes:
    """A file of a few bytes that asks for gigabytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("Exp", ["large"], ["larger"]),
        helper.make_node("ReduceSum", ["larger"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return graph(nodes, "y", [("shape", np.array([elements]))])


X = np.array([[-1.0, 2.0]], np.float32)


def test_it_answers_what_a_session_here_answers(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(relu())
    with isolated.open_file(tmp_path / "m.onnx") as there, onnxruntime.open_file(relu()) as here:
        assert (there.inputs, there.outputs) == (here.inputs, here.outputs)
        for rows in (1, 3, 0):
            feeds = {"x": np.tile(X, (rows, 1))}
            np.testing.assert_array_equal(there.infer(feeds)["y"], here.infer(feeds)["y"])


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.STRING])
def test_every_kind_of_element_comes_back(element: int) -> None:
    model = graph([helper.make_node("Cast", ["x"], ["y"], to=element)], "y", element=element)
    with isolated.open_file(model) as there, onnxruntime.open_file(model) as here:
        ours, theirs = there.infer({"x": X})["y"], here.infer({"x": X})["y"]
    assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()


def test_errors_come_back_as_themselves_and_the_process_is_lent_again() -> None:
    with pytest.raises(BuildError, match="refuses the model"):
        isolated.open_file(b"no model")
    with isolated.open_file(relu()) as runner:
        with pytest.raises(RunError, match="takes the inputs"):
            runner.infer({"z": X})
        first = runner._lent._process.pid
        assert runner.infer({"x": X})["y"].tolist() == [[0.0, 2.0]]
    with pytest.raises(RunError, match="closed"):
        runner.infer({"x": X})
    with isolated.open_file(relu()) as runner:
        assert runner._lent._process.pid == first


def test_a_file_that_never_ends_is_stopped_by_its_caller_and_by_time() -> None:
    asked = []
    with isolated.open_file(
        endless(), handle=Handle(cancelled=lambda: len(asked) > 3 or bool(asked.append(1)))
    ) as runner:
        pid = runner._lent._process.pid
        with pytest.raises(Cancelled):
            runner.infer({"x": X})
    assert not psutil.pid_exists(pid)
    with pytest.raises(ChildKilled, match=r"more than 3 s"), isolated.open_file(endless(), seconds=3) as runner:
        runner.infer({"x": X})


def test_a_file_that_takes_more_memory_than_there_may_be_is_ended(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CHILD_MEMORY_BYTES", str(600 << 20))
    model = greedy(400_000_000)
    assert len(model) < 400
    before = psutil.Process().memory_info().rss
    with isolated.open_file(model, "off") as runner, pytest.raises((OutOfMemory, RunError)):
        runner.infer({"x": X})
    assert psutil.Process().memory_info().rss - before < 100 << 20


def test_an_answer_that_would_fill_our_own_memory_is_not_taken_over(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CHILD_MEMORY_BYTES", str(1 << 30))
    isolated._end_all()  # the limit of the process is the one it was started with
    model = graph([helper.make_node("ConstantOfShape", ["s"], ["y"])], "y", [("s", np.array([80_000_000]))])
    with (
        isolated.open_file(model, "off") as runner,
        pytest.raises(OutOfMemory, match=r"returns 0\.30 GiB \(1 tensors\)"),
    ):
        runner.infer({"x": X})
    isolated._end_all()


def test_a_crash_is_told_with_its_signal_and_the_next_file_gets_another_process() -> None:
    with isolated.open_file(endless()) as runner:
        pid = runner._lent._process.pid
        threading.Timer(0.3, lambda: os.kill(pid, signal.SIGSEGV)).start()
        with pytest.raises(ChildKilled, match="SIGSEGV"):
            runner.infer({"x": X})
    with isolated.open_file(relu()) as runner:
        assert runner.infer({"x": X})["y"].tolist() == [[0.0, 2.0]]


def test_an_idle_process_that_ended_is_not_missed() -> None:
    with isolated.open_file(relu()) as runner:
        process = runner._lent._process
    process.terminate()
    process.wait()
    with isolated.open_file(relu()) as runner:
        assert runner._lent._process.pid != process.pid


def test_only_a_few_processes_are_kept_idle() -> None:
    runners = [isolated.open_file(relu()) for _ in range(isolated._MOST_IDLE + 1)]
    lent = [runner._lent._process for runner in runners]
    for runner in runners:
        runner.__exit__()
    assert sum(process.poll() is None for process in lent) == isolated._MOST_IDLE


def test_an_idle_process_ends_by_itself() -> None:
    with isolated.open_file(relu()) as runner:
        process = runner._lent._process
    assert process.wait(4 * isolated._IDLE_SECONDS) == 0
