from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_variants import feeds, network, variant

from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import device_tensors
from workbench.errors import RunError
from workbench.records import ShapeProfile

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def shared(machine, monkeypatch: pytest.MonkeyPatch):
    """A machine whose GPU shares the host's memory, so that torch's CPU tensors lie on the device."""
    machine.cuda.shares_memory = True
    monkeypatch.setattr(device_tensors, "DEVICE", "cpu")
    return machine


def answer(path: str, given: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(path).run(None, given)[0]


def on_device(batch: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feeds(batch).items()}


def ran(runner, given: dict[str, torch.Tensor], output: str = "y") -> torch.Tensor:
    """Run and wait: torch's memory on a CPU knows nothing of streams, so all tensors must live until the run is done."""
    outputs = runner.infer_device(given)
    runner.stream.synchronize()
    return outputs[output]


def test_device_tensors_go_in_and_come_out_without_a_copy(shared, tmp_path: Path) -> None:
    made = variant(tmp_path)
    given = on_device(4)
    with backend.open_runner(shared.build(made), None) as runner:
        before = shared.cuda.clock_ms
        got = runner.infer_device(given)["y"]
        runner.stream.synchronize()
        assert shared.cuda.clock_ms - before == shared.cuda.kernel_ms  # the kernel alone
        addresses = shared.trt.called("IExecutionContext.set_tensor_address")
        assert ("x", given["x"].data_ptr()) in addresses and ("y", got.data_ptr()) in addresses
    assert isinstance(got, torch.Tensor) and got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), answer(made.path, feeds(4)))


def test_outputs_are_the_callers_own_and_outlive_the_runner(shared, tmp_path: Path) -> None:
    made = variant(tmp_path)
    with backend.open_runner(shared.build(made), None) as runner:
        first, second = (ran(runner, on_device(batch)) for batch in (4, 3))
    for got, batch in ((first, 4), (second, 3)):
        np.testing.assert_array_equal(got.numpy(), answer(made.path, feeds(batch)))


def test_both_streams_wait_for_each_other(shared, tmp_path: Path, monkeypatch) -> None:
    _, theirs = shared.cuda.cudaStreamCreateWithFlags(1)
    order: list[str] = []
    record, wait = shared.cuda.cudaEventRecord, shared.cuda.cudaStreamWaitEvent
    launch = shared.world.do_IExecutionContext_execute_async_v3
    monkeypatch.setattr(
        shared.cuda,
        "cudaEventRecord",
        lambda event, stream: (order.append(f"record {int(stream)}"), record(event, stream))[1],
    )
    monkeypatch.setattr(
        shared.cuda,
        "cudaStreamWaitEvent",
        lambda stream, event, flags: (order.append(f"wait {int(stream)}"), wait(stream, event, flags))[1],
    )
    monkeypatch.setattr(
        shared.world,
        "do_IExecutionContext_execute_async_v3",
        lambda context, stream: (order.append(f"launch {stream}"), launch(context, stream))[1],
    )
    with backend.open_runner(shared.build(variant(tmp_path)), None) as runner:
        ours = runner.stream.handle
        theirs_number = int(theirs)
        given = on_device(2)
        got = runner.infer_device(given, stream=theirs_number)
        assert order == [
            f"record {theirs_number}", f"wait {ours}", f"launch {ours}", f"record {ours}", f"wait {theirs_number}",
        ]  # fmt: skip
        runner.stream.synchronize()
        del given, got
    shared.cuda.cudaStreamDestroy(theirs)


def test_a_stopwatch_binds_its_own_inputs_again_after_device_tensors(shared, tmp_path: Path) -> None:
    with backend.open_runner(shared.build(variant(tmp_path)), None) as runner:
        watch = runner.stopwatch(feeds(4), "compute", cuda_graph=True)
        ran(runner, on_device(4))
        shared.cuda.shares_memory = False  # a launch that still pointed to the tensors would fail now
        assert watch() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to("meta"), "is on meta, the engine is on cpu"),
        (lambda tensor: tensor.half(), "is float16, the engine wants float32"),
        (lambda tensor: tensor.T.contiguous().T, "not contiguous"),
        (lambda tensor: tensor.repeat(10, 1), "outside what the engine was built for"),
        (lambda tensor: tensor.numpy(), "is a ndarray; infer_device takes torch CUDA tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(shared, tmp_path: Path, change, said: str) -> None:
    given = {"x": change(on_device(4)["x"])}
    with backend.open_runner(shared.build(variant(tmp_path)), None) as runner, pytest.raises(RunError, match=said):
        runner.infer_device(given)


def test_a_tensor_on_the_host_is_refused(machine, tmp_path: Path) -> None:
    with (
        backend.open_runner(machine.build(variant(tmp_path)), None) as runner,
        pytest.raises(RunError, match="is on cpu, the engine is on cuda:0"),
    ):
        runner.infer_device(on_device(4))


def test_an_empty_batch_gives_an_empty_tensor(shared, tmp_path: Path) -> None:
    engine = shared.build(variant(tmp_path), profiles=({"x": ShapeProfile((0, 4), (4, 4), (8, 4))},))
    with backend.open_runner(engine, None) as runner:
        ran(runner, on_device(4))
        got = ran(runner, {"x": on_device(4)["x"][:0]})
    assert got.shape == (0, 3)


def test_outputs_whose_shape_depends_on_data_are_refused(shared, tmp_path: Path) -> None:
    engine = shared.build(variant(tmp_path))
    shared.world.data_dependent = {"y"}
    with backend.open_runner(engine, None) as runner:
        for _ in range(2):  # found out while binding, and known from then on
            with pytest.raises(RunError, match=r"depends on data|values decide shapes"):
                runner.infer_device(on_device(2))


def test_an_int64_input_is_int32_inside_8_6(shared, tmp_path: Path) -> None:
    engine = shared.build(variant(tmp_path, model=network(integer_input=True)))
    inside = torch.int32 if shared.trt.__version__.startswith("8.") else torch.int64
    ids = torch.tensor([[1, 2], [3, 4]], dtype=inside)
    with backend.open_runner(engine, None) as runner:
        got = ran(runner, {**on_device(2), "ids": ids}, "k")
    assert got.dtype == inside and got.tolist() == [[2, 3], [4, 5]]
