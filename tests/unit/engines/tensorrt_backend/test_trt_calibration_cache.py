from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.engines.tensorrt import calibration_cache as cache
from workbench.errors import CalibrationError

# Two lines as TensorRT writes them: 3c010a14 is the big-endian float32 of 1/127 (0.007874...).
WRITTEN = b"TRT-8600-EntropyCalibration2\nimage: 3c010204\n(Unnamed Layer* 1) [Shuffle]_output: 0\n"


def test_a_cache_of_tensorrt_is_read() -> None:
    found = cache.parse(WRITTEN)
    assert (found.version, found.algorithm) == (8600, "EntropyCalibration2")
    assert found.scales["image"] == pytest.approx(1 / 127, rel=1e-6)  # float32 has 24 bits
    assert found.thresholds == {"image": pytest.approx(1.0, rel=1e-6)}  # a scale of 0 means: none


def test_what_is_rendered_is_read_again() -> None:
    found = cache.parse(WRITTEN)
    assert cache.parse(cache.render(found)) == found


NAMES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1).filter(lambda name: name.strip())


@given(st.dictionaries(NAMES, st.floats(0, 2.0**100, width=32)))
def test_any_names_and_scales_survive_the_file(scales: dict[str, float]) -> None:
    made = cache.CalibrationCache(100300, "MinMaxCalibration", scales)
    assert cache.parse(cache.render(made)) == made


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begins with ''"),
        (b"\xff\xfe", "is not text"),
        (b"PK\x03\x04", "begins with"),
        (b"TRT-8600-EntropyCalibration2\nimage 3c010204\n", "line 2"),
        (b"TRT-8600-EntropyCalibration2\nimage: 3c01020400\n", "line 2"),
        (b"TRT-8600-EntropyCalibration2\nimage: 7fc00000\n", "is nan"),
        (b"TRT-8600-EntropyCalibration2\nimage: 7f800000\n", "is inf"),
        (b"TRT-8600-EntropyCalibration2\nimage: bf800000\n", r"is -1\.0"),
        (b"TRT-8600-EntropyCalibration2\na: 0\na: 0\n", "comes twice"),
        (b"TRT-8600-EntropyCalibration2\n" + b"a" * 5000 + b": 0\n", "line 2"),
    ],
)
def test_a_damaged_cache_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        cache.parse(data)


def test_a_file_that_is_far_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(2**30)  # sparse: takes no space
    with pytest.raises(CalibrationError, match="1,073,741,824 bytes"):
        cache.read(tmp_path / "huge")
    with pytest.raises(CalibrationError, match="Cannot read"):
        cache.read(tmp_path / "absent")


def test_a_cache_is_made_from_thresholds_of_our_own() -> None:
    made = cache.from_thresholds({"image": 2.0}, "8.6.1", "minmax")
    assert cache.render(made).startswith(b"TRT-8601-MinMaxCalibration\nimage: ")
    assert made.thresholds["image"] == pytest.approx(2.0)


@pytest.mark.parametrize(("name", "threshold"), [("", 1.0), ("a\nb", 1.0), ("a", math.nan), ("a", -1.0)])
def test_thresholds_that_no_cache_can_hold_are_refused(name: str, threshold: float) -> None:
    with pytest.raises(CalibrationError):
        cache.from_thresholds({name: threshold}, "8.6.0")


@pytest.mark.parametrize(
    ("version", "number"), [("8.6.0", 8600), ("8.6.1.6", 8601), ("10.3.0", 100300), ("10.16.1.11", 101601)]
)
def test_versions_are_written_as_tensorrt_does(version: str, number: int) -> None:
    assert cache.version_number(version) == number
