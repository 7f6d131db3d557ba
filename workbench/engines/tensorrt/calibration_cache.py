"""TensorRT's calibration cache, a text file: read with every line checked, and written. Pure Python.

The first line names version and algorithm (`TRT-8600-EntropyCalibration2`), each other line a tensor and, as eight
hexadecimal digits, the big-endian IEEE 754 float32 of its scale: the clip threshold divided by 127. A scale of 0
stands for a tensor without one.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CalibrationError

ALGORITHMS = {"entropy": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
# A cache has one short line a tensor: anything larger is not a cache.
_LARGEST_BYTES = 64 * 2**20
_LONGEST_NAME = 4096
_HEADER = re.compile(r"^TRT-(\d{3,6})-([A-Za-z]+\d?)$")
_ENTRY = re.compile(r"^(.+): ([0-9a-fA-F]{1,8})$")
_LEVELS = 127


@dataclass(frozen=True)
class CalibrationCache:
    """Scales by tensor name, with the version and the algorithm that made them.

    Attributes:
        version: as TensorRT writes it, such as 8600 for 8.6.0.
        algorithm: such as `EntropyCalibration2`.
        scales: tensor name -> scale; 0.0 where the tensor has none.
    """

    version: int
    algorithm: str
    scales: dict[str, float]

    @property
    def thresholds(self) -> dict[str, float]:
        """Tensor name -> largest magnitude that is not clipped (scale x 127), without tensors that have no scale."""
        return {name: scale * _LEVELS for name, scale in self.scales.items() if scale > 0}


def parse(data: bytes, source: str = "the calibration cache") -> CalibrationCache:
    """Read a cache.

    Raises:
        CalibrationError: it is too large, not text, has a damaged line, a tensor twice, or a scale that is none.
    """
    _check_size(len(data), source)
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")  # names may hold what splitlines() splits at
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{source} is not text: {error}. Is it another file?") from error
    header = _HEADER.match(lines[0])
    if header is None:
        raise CalibrationError(
            f"{source} begins with {lines[0][:80]!r}, expected something like 'TRT-8600-EntropyCalibration2'. Calibrate again."
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, scale = _entry(line, number, source)
        if name in scales:
            raise CalibrationError(f"{source}, line {number}: the tensor {name!r} comes twice. Calibrate again.")
        scales[name] = scale
    return CalibrationCache(int(header[1]), header[2], scales)


def _check_size(size_bytes: int, source: str) -> None:
    if size_bytes > _LARGEST_BYTES:
        raise CalibrationError(f"{source} has {size_bytes:,} bytes; a cache has a line a tensor. Is it another file?")


def _entry(line: str, number: int, source: str) -> tuple[str, float]:
    found = _ENTRY.match(line)
    if found is None or len(found[1]) > _LONGEST_NAME:
        raise CalibrationError(
            f"{source}, line {number} is {line[:80]!r}, expected '<tensor>: <8 hexadecimal digits>'."
        )
    (scale,) = struct.unpack("!f", bytes.fromhex(found[2].zfill(8)))
    if not math.isfinite(scale) or scale < 0:
        raise CalibrationError(
            f"{source}, line {number}: the scale of {found[1]!r} is {scale}, expected a finite number >= 0."
        )
    return found[1], float(scale)


def read(path: Path) -> CalibrationCache:
    """Read a cache from a file.

    Raises:
        CalibrationError: the file is missing or damaged (see `parse`).
    """
    try:
        _check_size(path.stat().st_size, str(path))
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"Cannot read the calibration cache {path}: {error}.") from error
    return parse(data, str(path))


def render(cache: CalibrationCache) -> bytes:
    """Return the cache as TensorRT writes it."""
    lines = [f"TRT-{cache.version}-{cache.algorithm}"]
    lines += [f"{name}: {struct.pack('!f', scale).hex()}" for name, scale in cache.scales.items()]
    return ("\n".join(lines) + "\n").encode()


def from_thresholds(thresholds: Mapping[str, float], version: str, algorithm: str = "entropy") -> CalibrationCache:
    """Make a cache from clip thresholds found elsewhere, so that TensorRT takes them for its own.

    Args:
        thresholds: tensor name -> largest magnitude that is not clipped.
        version: TensorRT's, such as `8.6.0`.
        algorithm: `entropy` or `minmax`.

    Raises:
        CalibrationError: a name that the format cannot hold, or a threshold that is not finite and >= 0.
    """
    scales = {}
    for name, threshold in thresholds.items():
        if not name or "\n" in name or "\r" in name or len(name) > _LONGEST_NAME:
            raise CalibrationError(f"The tensor name {name[:80]!r} cannot stand in a calibration cache.")
        if not math.isfinite(threshold) or threshold < 0:
            raise CalibrationError(f"The threshold of {name!r} is {threshold}, expected a finite number >= 0.")
        scales[name] = threshold / _LEVELS
    return CalibrationCache(version_number(version), ALGORITHMS[algorithm], scales)


def version_number(version: str) -> int:
    """Return a version as the header writes it: 8.6.0 is 8600, 10.3.0 is 100300."""
    major, minor, patch = [*(int(number) for number in re.findall(r"\d+", version)), 0, 0, 0][:3]
    if major < 10:
        return major * 1000 + minor * 100 + patch
    return major * 10000 + minor * 100 + patch
