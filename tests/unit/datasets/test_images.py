"""Image folders: the preprocessing is what it says, and bad files are named."""

import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from workbench import datasets
from workbench.datasets import ImagePreprocessing
from workbench.errors import DataError

PLAIN = ImagePreprocessing(height=4, width=4, scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def folder(tmp_path):
    for label, class_name in enumerate(("cat", "dog")):
        (tmp_path / class_name).mkdir()
        for index in range(3):
            pixels = np.full((6, 8, 3), (10 * label + index, 100, 200), np.uint8)
            Image.fromarray(pixels).save(tmp_path / class_name / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_classes_are_the_sorted_sub_folders(folder):
    data = datasets.image_folder(folder, PLAIN)
    assert data.evaluation.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.evaluation.inputs[""].shape == (6, 3, 4, 4)
    assert data.evaluation.inputs[""][:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert data.notes[1] == "Classes: 0 = cat, 1 = dog."
    assert "RGB, 4x4 (crop)" in data.notes[0]


def test_channel_order_scale_mean_and_deviation_are_applied(folder):
    steps = ImagePreprocessing(4, 4, "BGR", "stretch", 0.5, mean=(100.0, 50.0, 0.0), std=(1.0, 2.0, 0.5))
    first = datasets.image_folder(folder, steps).evaluation.inputs[""][0]
    # pixels (R, G, B) = (0, 100, 200) -> BGR * 0.5 = (100, 50, 0)
    assert first[:, 0, 0].tolist() == [0.0, 0.0, 0.0]
    grey = ImagePreprocessing(4, 4, "L", "stretch", 1.0, (0.0,), (1.0,))
    assert datasets.image_folder(folder, grey).evaluation.inputs[""].shape == (6, 1, 4, 4)


def test_crop_keeps_the_middle_and_stretch_keeps_all(tmp_path):
    (tmp_path / "only").mkdir()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(tmp_path / "only" / "wide.png")
    cropped = datasets.image_folder(tmp_path, PLAIN).evaluation.inputs[""]
    assert cropped.min() == 255
    stretched = datasets.image_folder(
        tmp_path, ImagePreprocessing(4, 4, resize="stretch", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    )
    assert stretched.evaluation.inputs[""].min() < 255


def test_a_random_part_of_the_images_is_the_same_for_the_same_seed(folder):
    first, again = (datasets.image_folder(folder, PLAIN, samples=4, seed=5) for _ in range(2))
    assert len(first.evaluation) == 4
    assert first.sha256 == again.sha256


def test_a_sample_can_be_shown(folder):
    shown = datasets.image_folder(folder, PLAIN).show(4)
    assert (shown["kind"], shown["label"]) == ("image", "dog")
    assert np.array(shown["value"]).shape == (6, 8)


def test_a_damaged_image_is_named(folder):
    whole = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[:45])
    with pytest.raises(DataError, match=r"Cannot read the image .*1\.png"):
        datasets.image_folder(folder, PLAIN)
    (folder / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot read the image .*1\.png"):
        datasets.image_folder(folder, PLAIN)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_an_image_that_unpacks_to_an_absurd_size_is_refused(folder, side):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "cat" / "bomb.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"Will not unpack the image .*bomb\.png"):
        datasets.image_folder(folder, PLAIN)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        datasets.image_folder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one sub-folder a class"):
        datasets.image_folder(tmp_path)


def test_without_pillow_the_message_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="pip install pillow"):
        datasets.image_folder(folder, PLAIN)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": "HSV"}, "channels is 'HSV'"),
        ({"resize": "pad"}, "resize is 'pad'"),
        ({"height": 0}, "0x224"),
        ({"mean": (0.5,)}, "need 3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "none that is 0"),
    ],
)
def test_preprocessing_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ImagePreprocessing(**options)


GREY = ImagePreprocessing(8, 8, "L", mean=(0.0,), std=(1.0,))


def graded(root, suffix, make):
    """One image a class, of the brightness 0.2 and 0.8, through the reader."""
    for kind, level in (("dark", 0.2), ("light", 0.8)):
        (root / kind).mkdir()
        Image.fromarray(make(level)).save(root / kind / f"a.{suffix}")
    return root


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_brightness(tmp_path, suffix):
    data = datasets.image_folder(
        graded(tmp_path, suffix, lambda level: np.full((8, 8), level * 65535, np.uint16)), GREY
    )
    assert data.evaluation.inputs[""].mean(axis=(1, 2, 3)) == pytest.approx([0.2, 0.8], abs=1e-5)
    assert "2 of 2 images are grey with more than 8 bits" in data.notes[2]
    assert np.mean(data.show(1)["value"]) == pytest.approx(0.8 * 255, abs=1)


def test_grey_of_floats_keeps_its_brightness_in_three_channels(tmp_path):
    steps = ImagePreprocessing(4, 4, "BGR", mean=(0, 0, 0), std=(1, 1, 1))
    data = datasets.image_folder(graded(tmp_path, "tiff", lambda level: np.full((8, 8), level, np.float32)), steps)
    assert data.evaluation.inputs[""].shape == (2, 3, 4, 4)
    assert data.evaluation.inputs[""].mean(axis=(2, 3)) == pytest.approx(np.repeat([[0.2], [0.8]], 3, 1), abs=1e-5)


def test_colour_of_16_bits_and_grey_of_8_bits_need_no_note(tmp_path):
    data = datasets.image_folder(graded(tmp_path, "png", lambda level: np.full((8, 8), level * 255, np.uint8)), GREY)
    assert len(data.notes) == 2 and data.evaluation.inputs[""].mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda level: np.full((8, 8), level * 255, np.float32), "float32 values from 51.0 to 51.0.*read as 0 to 1"),
        (lambda level: np.full((8, 8), np.nan, np.float32), "values from nan to nan"),
        (lambda level: np.full((8, 8), -1, np.int32), "32 bits or with a sign, from -1 to -1"),
        (lambda level: np.full((8, 8), level * 255, np.int32), "32 bits or with a sign"),
    ],
)
def test_grey_of_an_unknown_range_is_refused(tmp_path, make, words):
    with pytest.raises(DataError, match=words):
        datasets.image_folder(graded(tmp_path, "tiff", make), GREY)


def test_an_image_that_is_a_program_for_another_one_is_not_opened(tmp_path, monkeypatch):
    """Pillow opens by content: an EPS file named .png would run Ghostscript from PATH."""
    ran, tools = tmp_path / "ran", tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    folder = tmp_path / "data" / "cat"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%Page: 1 1\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match=r"Cannot read the image .*x\.png"):
        datasets.image_folder(tmp_path / "data", PLAIN)
    assert not ran.exists()


@pytest.mark.parametrize("length", [15_000, 20_000_000])
def test_a_long_thin_image_is_refused_before_it_is_blown_up(tmp_path, length):
    (tmp_path / "only").mkdir()
    Image.new("L", (1, length)).save(tmp_path / "only" / "line.png")
    with pytest.raises(DataError, match=rf"1 x {length} and would be resized to 224 x"):
        datasets.image_folder(tmp_path)


def test_an_image_of_too_many_pixels_is_not_unpacked(tmp_path):
    (tmp_path / "only").mkdir()
    Image.new("1", (1 << 14, (1 << 12) + 1)).save(tmp_path / "only" / "wide.png")
    with pytest.raises(DataError, match=r"has 16384 x 4097 pixels; at most 67108864"):
        datasets.image_folder(tmp_path, PLAIN)
