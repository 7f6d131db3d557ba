"""TensorRT's own INT8 calibrators (before 11), fed from a file of samples; kept to compare ours with.

Their methods are called from inside the builder: an exception there is kept and raised after the build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines.tensorrt import calibration_cache
from workbench.engines.tensorrt.cuda import Cuda, DeviceMemory, HostMemory, Stream
from workbench.errors import CalibrationError

BASES = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


def samples(path: Path, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, np.ndarray]:
    """Read calibration feeds: input name -> samples on axis 0, in the types the network wants.

    Raises:
        CalibrationError: the file is damaged, an input is missing, or the counts differ or are zero.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"Cannot read the calibration feeds {path}: {error}.") from error
    missing = sorted(set(dtypes) - set(arrays))
    if missing:
        raise CalibrationError(
            f"The calibration feeds {path} lack the inputs {', '.join(missing)}; they hold {', '.join(sorted(arrays))}."
        )
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in dtypes}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise CalibrationError(
            f"The calibration feeds {path} hold {counts} samples; all inputs need the same number > 0."
        )
    return {name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, dtype in dtypes.items()}


class Feeder:
    """Batches on the device, one after the other; knows nothing of TensorRT.

    A last batch that is not full is left out: the calibration profile has one shape.
    """

    def __init__(self, cuda: Cuda, feeds: Mapping[str, np.ndarray], batch: int) -> None:
        self.count = len(next(iter(feeds.values())))
        self.batches = self.count // batch
        self.left_out = self.count % batch
        self._batch = batch
        self._feeds = feeds
        self._host = {name: HostMemory(cuda, array[:batch].nbytes) for name, array in feeds.items()}
        self._device = {name: DeviceMemory(cuda, array[:batch].nbytes) for name, array in feeds.items()}
        self._cuda = cuda
        self._stream = Stream(cuda)
        self._next: Iterator[int] = iter(range(self.batches))

    def addresses(self, names: list[str]) -> list[int] | None:
        """Upload the next batch and return the addresses of its inputs, or None after the last."""
        index = next(self._next, None)
        if index is None:
            return None
        for name in names:
            part = self._feeds[name][index * self._batch : (index + 1) * self._batch]
            self._host[name].view(part.shape, part.dtype)[...] = part
            self._cuda.upload(self._device[name].address, self._host[name].address, part.nbytes, self._stream)
        self._stream.synchronize()
        return [self._device[name].address for name in names]

    def free(self) -> None:
        """Give all memory back."""
        for pinned in self._host.values():
            pinned.free()
        for memory in self._device.values():
            memory.free()
        self._stream.free()


def create(trt: Any, kind: str, feeder: Feeder | None, cache: bytes | None) -> Any:
    """Return a calibrator with the attributes `error` and `written`.

    Args:
        kind: a key of `BASES`.
        feeder: gives the batches; None where the cache is to hold every scale.
        cache: what an earlier calibration wrote, or None to calibrate.
    """
    base = getattr(trt, BASES[kind])

    class Calibrator(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)  # without this call of the base, TensorRT crashes on the first use
            self.error: Exception | None = None
            self.written: bytes | None = None

        def get_batch_size(self) -> int:
            return 1  # what trtexec says for explicit batches: their size is in the calibration profile

        def get_batch(self, names: list[str]) -> list[int] | None:
            try:
                return feeder.addresses(list(names)) if feeder is not None else None
            except Exception as error:  # noqa: BLE001 - must not pass through the builder; raised after the build
                self.error = error
                return None

        def read_calibration_cache(self) -> bytes | None:
            return cache

        def write_calibration_cache(self, cache: Any) -> None:
            try:
                self.written = bytes(memoryview(cache))
            except Exception as error:  # noqa: BLE001 - as above
                self.error = error

    return Calibrator()


def finish(calibrator: Any, path: Path) -> None:
    """Write what the calibrator found beside the engine, checked to be readable.

    Raises:
        CalibrationError: a batch could not be fed, or TensorRT wrote something that is no cache.
    """
    if calibrator.error is not None:
        raise CalibrationError(f"TensorRT's calibrator could not be fed: {calibrator.error}.") from calibrator.error
    if calibrator.written is not None:
        calibration_cache.parse(calibrator.written, "what TensorRT's calibrator wrote")
        path.write_bytes(calibrator.written)
