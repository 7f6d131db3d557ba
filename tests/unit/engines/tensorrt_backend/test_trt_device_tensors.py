from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_variants import feeds, variant

from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import cuda, dlpack
from workbench.errors import RunError


class Foreign:
    """A tensor of another library on the device: what torch's CUDA tensors look like from outside."""

    def __init__(self, array: np.ndarray, device: str = "cuda:0", contiguous: bool = True) -> None:
        self.memory = cuda.DeviceMemory(cuda.load(), array.nbytes)
        ctypes.memmove(self.memory.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.shape, self.dtype, self.device, self._contiguous = array.shape, f"torch.{array.dtype}", device, contiguous

    def data_ptr(self) -> int:
        return self.memory.address

    def is_contiguous(self) -> bool:
        return self._contiguous


class ThroughDlpack:
    """A tensor that can only be had through DLPack."""

    def __init__(self, foreign: Foreign, dtype: str = "float32", place: int = dlpack.CUDA) -> None:
        self.foreign, self.dtype, self.place = foreign, dtype, place
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place, 0

    def __dlpack__(self, stream: int | None = None):
        self.streams.append(stream)
        return dlpack.export(self, self.foreign.data_ptr(), self.foreign.shape, self.dtype, (self.place, 0))


def answer(path: str, given: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(path).run(None, given)[0]


def test_device_tensors_go_in_and_come_out_without_a_copy(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    given = Foreign(feeds(4)["x"])
    with backend.open_runner(machine.build(made), None) as runner:
        copies = machine.cuda.clock_ms
        got = runner.infer_device({"x": given})["y"]
        runner.stream.synchronize()
        assert machine.cuda.clock_ms - copies == machine.cuda.kernel_ms  # the kernel alone
        assert ("x", given.data_ptr()) in machine.trt.called("IExecutionContext.set_tensor_address")
        assert (got.shape, got.dtype) == ((4, 3), "float32")
        np.testing.assert_array_equal(got.numpy(), answer(made.path, feeds(4)))
        del got
    given.memory.free()


def test_dlpack_producers_are_told_our_stream_and_get_their_memory_back(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    given = ThroughDlpack(Foreign(feeds(4)["x"]))
    with backend.open_runner(machine.build(made), None) as runner:
        held = len(dlpack._exported)
        got = runner.infer_device({"x": given})["y"]
        assert given.streams == [runner.stream.handle]
        np.testing.assert_array_equal(got.numpy(), answer(made.path, feeds(4)))
        gc.collect()
        assert len(dlpack._exported) == held
        del got
    given.foreign.memory.free()


def test_output_memory_comes_back_when_dropped_and_outlives_the_runner_when_not(machine, tmp_path: Path) -> None:
    given = Foreign(feeds(4)["x"])
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        first = runner.infer_device({"x": given})["y"]
        address = first.data_ptr()
        second = runner.infer_device({"x": given})["y"]
        assert second.data_ptr() != address
        del first
        third = runner.infer_device({"x": given})["y"]
        assert third.data_ptr() == address
        capsule = third.__dlpack__(stream=1)
        del third
        gc.collect()
        assert runner.infer_device({"x": given})["y"].data_ptr() != address  # the capsule still holds it
        del capsule
    assert machine.cuda.live()["device memory"] == 2  # `second` and the input
    del second
    given.memory.free()


def test_both_streams_wait_for_each_other(machine, tmp_path: Path, monkeypatch) -> None:
    given = Foreign(feeds(2)["x"])
    _, theirs = machine.cuda.cudaStreamCreateWithFlags(1)
    order: list[str] = []
    record, wait = machine.cuda.cudaEventRecord, machine.cuda.cudaStreamWaitEvent
    monkeypatch.setattr(
        machine.cuda,
        "cudaEventRecord",
        lambda event, stream: (order.append(f"record {int(stream)}"), record(event, stream))[1],
    )
    monkeypatch.setattr(
        machine.cuda,
        "cudaStreamWaitEvent",
        lambda stream, event, flags: (order.append(f"wait {int(stream)}"), wait(stream, event, flags))[1],
    )
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        ours = runner.stream.handle
        got = runner.infer_device({"x": given}, stream=int(theirs))
        assert order == [f"record {int(theirs)}", f"wait {ours}", f"record {ours}", f"wait {int(theirs)}"]
        del got
    machine.cuda.cudaStreamDestroy(theirs)
    given.memory.free()


def test_a_stopwatch_binds_its_own_inputs_again_after_device_tensors(machine, tmp_path: Path) -> None:
    given = Foreign(feeds(4)["x"])
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        watch = runner.stopwatch(feeds(4), "compute", cuda_graph=True)
        runner.infer_device({"x": given})
        given.memory.free()  # a launch that still pointed there would fail in the stand-in
        assert watch() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: setattr(tensor, "device", "cpu"), "not on the device"),
        (lambda tensor: setattr(tensor, "device", "cuda:1"), "is on device 1, the engine is on 0"),
        (lambda tensor: setattr(tensor, "dtype", "torch.float16"), "is float16, the engine wants float32"),
        (lambda tensor: setattr(tensor, "_contiguous", False), "not contiguous"),
        (lambda tensor: setattr(tensor, "shape", (40, 4)), "outside what the engine was built for"),
    ],
)
def test_device_tensors_that_do_not_fit_are_refused(machine, tmp_path: Path, change, said: str) -> None:
    given = Foreign(feeds(4)["x"])
    change(given)
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner, pytest.raises(RunError, match=said):
        runner.infer_device({"x": given})
    given.memory.free()


def test_a_host_array_is_refused_with_the_call_to_make(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        with pytest.raises(RunError, match="not on the device"):
            runner.infer_device(feeds(2))  # numpy arrays speak DLPack, from the host
        with pytest.raises(RunError, match=r"is a list; infer_device takes"):
            runner.infer_device({"x": [1.0]})


def test_outputs_whose_shape_depends_on_data_are_refused(machine, tmp_path: Path) -> None:
    given = Foreign(feeds(2)["x"])
    engine = machine.build(variant(tmp_path))
    machine.world.data_dependent = {"y"}
    with backend.open_runner(engine, None) as runner, pytest.raises(RunError, match="depends on data"):
        runner.infer_device({"x": given})
    given.memory.free()


# DLPack itself, against numpy as the other side


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int8", "uint8"])
def test_numpy_reads_what_we_export(dtype: str) -> None:
    source = np.arange(12).reshape(3, 4).astype(dtype)

    class Ours:
        def __dlpack_device__(self):
            return dlpack.CPU, 0

        def __dlpack__(self, **newer):
            return dlpack.export(source, source.ctypes.data, source.shape, dtype, (dlpack.CPU, 0))

    held = len(dlpack._exported)
    taken = np.from_dlpack(Ours())
    np.testing.assert_array_equal(taken, source)
    assert len(dlpack._exported) == held + 1
    del taken
    gc.collect()
    assert len(dlpack._exported) == held


def test_torch_reads_what_we_export_bfloat16_included() -> None:
    torch = pytest.importorskip("torch")
    source = np.array([1.0, -2.0], np.float32).view(np.uint16)[1::2].copy()  # the upper halves are bfloat16
    capsule = dlpack.export(source, source.ctypes.data, source.shape, "bfloat16", (dlpack.CPU, 0))
    assert torch.from_dlpack(capsule).tolist() == [1.0, -2.0]


def test_we_read_what_numpy_exports_and_see_strides() -> None:
    source = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = dlpack.peek(source.__dlpack__())
    assert (view.address, view.shape, view.dtype, view.contiguous) == (source.ctypes.data, (3, 4), "float32", True)
    assert not dlpack.peek(source[:, ::2].__dlpack__()).contiguous


def test_a_type_without_a_name_here_is_refused(machine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type code 5"):
        dlpack.peek(np.zeros(2, np.complex64).__dlpack__())
    with pytest.raises(BufferError, match="float8_e4m3fn"):
        dlpack.export(None, 0, (1,), "float8_e4m3fn", (dlpack.CUDA, 0))


def test_a_capsule_that_is_none_is_a_run_error(machine, tmp_path: Path) -> None:
    class Liar:
        def __dlpack_device__(self):
            return dlpack.CUDA, 0

        def __dlpack__(self, stream=None):
            return object()

    with (
        backend.open_runner(machine.build(variant(tmp_path)), None) as runner,
        pytest.raises(RunError, match="cannot be taken through DLPack"),
    ):
        runner.infer_device({"x": Liar()})
