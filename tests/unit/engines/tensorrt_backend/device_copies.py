"""What decoders use of CUDA beside the stand-in: copies on the device, in rectangles, and clearing."""

from __future__ import annotations

import ctypes
import enum

import numpy as np
import pytest
from cuda_stand_in import OK


def teach_device_copies(machine, monkeypatch: pytest.MonkeyPatch):
    """Teach the stand-in of CUDA what only decoders use; returns the machine."""
    kinds = {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2, "cudaMemcpyDeviceToDevice": 3}
    monkeypatch.setattr(machine.cuda, "cudaMemcpyKind", enum.IntEnum("cudaMemcpyKind", kinds))
    plain_copy = machine.cuda.cudaMemcpyAsync

    def rectangle(dst, dpitch, src, spitch, width, height, kind, stream):
        assert kind == machine.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        assert width <= min(dpitch, spitch)
        for address, pitch in ((dst, dpitch), (src, spitch)):
            machine.cuda.device_bytes(address, (height - 1) * pitch + width)

        def copy():
            for row in range(height):
                ctypes.memmove(dst + row * dpitch, src + row * spitch, width)

        machine.cuda.enqueue(int(stream), copy)
        return (OK,)

    def clear(address, value, count, stream):
        machine.cuda.device_bytes(address, count)
        machine.cuda.enqueue(int(stream), lambda: ctypes.memset(address, value, count))
        return (OK,)

    def copy(dst, src, count, kind, stream):
        if kind != machine.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            return plain_copy(dst, src, count, kind, stream)

        def work():
            ctypes.memmove(machine.cuda.device_bytes(dst, count), machine.cuda.device_bytes(src, count), count)
            machine.cuda.clock_ms += 1.0

        machine.cuda.enqueue(int(stream), work)
        return (OK,)

    def clear_rectangle(address, pitch, value, width, height, stream):
        machine.cuda.device_bytes(address, (height - 1) * pitch + width)

        def work():
            for row in range(height):
                ctypes.memset(address + row * pitch, value, width)

        machine.cuda.enqueue(int(stream), work)
        return (OK,)

    taught = {
        "cudaMemcpy2DAsync": rectangle,
        "cudaMemsetAsync": clear,
        "cudaMemset2DAsync": clear_rectangle,
        "cudaMemcpyAsync": copy,
    }
    for name, function in taught.items():
        monkeypatch.setattr(machine.cuda, name, function, raising=False)
    # The stand-in's arrays cannot be empty, and a prefill's past is.
    filled = machine.world._array
    monkeypatch.setattr(
        machine.world,
        "_array",
        lambda address, shape, dtype: filled(address, shape, dtype) if np.prod(shape) else np.zeros(shape, dtype),
    )
    return machine
