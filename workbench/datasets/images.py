"""Images from a folder with one sub-folder a class, preprocessed in one stated way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.datasets.from_arrays import MetricChoice, scored
from workbench.datasets.image_bounds import FORMATS, check_pixels
from workbench.datasets.split import Array, Dataset, Split
from workbench.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = tuple(FORMATS)
_SHOWN_PIXELS = 64
_DEEP_NOTE = (
    "{deep} of {images} images are grey with more than 8 bits: 0 to 65535 (integers) or 0 to 1 (floats) was taken as the "
    "whole range and brought to 0 to 255."
)
# Pillow's modes for one channel of 16 or 32 bits. 16-bit colour it reads as 8-bit colour, rightly scaled.
_DEEP_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ImagePreprocessing:
    """What is done to an image, in this order: convert, resize, scale, normalise, put channels first.

    Attributes:
        height, width: of the result, in pixels.
        channels: `RGB`, `BGR` (OpenCV's order) or `L` (one grey channel).
        resize: `stretch` to the size, or `crop` (shorter side first, then the centre), bilinear with antialiasing.
        scale: factor on the 0..255 pixels. Grey images of 16 bits (0..65535) and of floats (0..1) are brought to 0..255
            first, without rounding.
        mean, std: a channel each, in the order of `channels`, after scaling; ImageNet's by default.
    """

    height: int = 224
    width: int = 224
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Literal["stretch", "crop"] = "crop"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.channels not in ("RGB", "BGR", "L"):
            raise ValueError(f"ImagePreprocessing.channels is {self.channels!r}; allowed: RGB, BGR, L")
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"ImagePreprocessing.resize is {self.resize!r}; allowed: stretch, crop")
        if min(self.height, self.width) < 1:
            raise ValueError(f"ImagePreprocessing size is {self.height}x{self.width}; both must be at least 1")
        if not len(self.mean) == len(self.std) == len(self.channels) or 0 in self.std:
            raise ValueError(
                f"ImagePreprocessing.mean is {self.mean}, std {self.std}; both need {len(self.channels)} values for "
                f"channels {self.channels}, and std none that is 0"
            )

    def __str__(self) -> str:
        return (
            f"{self.channels}, {self.height}x{self.width} ({self.resize}), pixels * {self.scale:.6g}, minus mean "
            f"{self.mean}, over std {self.std}"
        )


def image_folder(
    path: Path | str,
    preprocessing: ImagePreprocessing | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    metric: MetricChoice = "auto",
    output: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Read images from a folder that has one sub-folder for each class.

    Args:
        path: sub-folders in sorted order are the classes 0, 1, ...
        preprocessing: stated in the dataset's notes; None takes the defaults (ImageNet's, 224x224 RGB).
        samples: that many images chosen at random; None takes all.
        metric, output: as for `arrays`.

    Returns:
        A dataset without calibration data (see `split_off`): one float32 input (N, C, H, W), labels (N,).

    Raises:
        DataError: Pillow is missing, no images, or a file that is no image or a damaged one.
    """
    steps = preprocessing or ImagePreprocessing()
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"There is no folder {root} (looked in {root.absolute().parent}). Check the path.")
    classes = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    files = [
        (file, label)
        for label, class_name in enumerate(classes)
        for file in sorted((root / class_name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{root} has no images in sub-folders. Make one sub-folder a class, with {', '.join(SUFFIXES)} files in it."
        )
    if samples is not None and samples < len(files):
        chosen = np.sort(np.random.default_rng(seed).choice(len(files), max(1, samples), replace=False))
        files = [files[index] for index in chosen]
    images = np.stack([_read(file, steps) for file, _ in files])
    deep = sum(_is_deep(file) for file, _ in files)
    labels = np.array([label for _, label in files], np.int64)
    listed = ", ".join(f"{label} = {class_name}" for label, class_name in enumerate(classes[:20]))
    dataset = Dataset(
        name or root.name,
        "user",
        Split({"": images}, labels),
        show=lambda index: _show(files[index][0], classes[files[index][1]]),
        notes=(
            f"Images: {steps}.",
            f"Classes: {listed}{', ...' if len(classes) > 20 else ''}.",
            *((_DEEP_NOTE.format(deep=deep, images=len(files)),) if deep else ()),
        ),
    )
    return scored(dataset, metric, output)


def _is_deep(file: Path) -> bool:
    from PIL import Image

    with Image.open(file) as image:
        return image.mode in _DEEP_GREY


def _read(file: Path, steps: ImagePreprocessing) -> Array:
    image = _resize(_open(file, "L" if steps.channels == "L" else "RGB"), steps, file)
    pixels = np.asarray(image, np.float32).reshape(steps.height, steps.width, -1)
    pixels = np.broadcast_to(pixels, (steps.height, steps.width, len(steps.channels)))  # deep grey as RGB
    if steps.channels == "BGR":
        pixels = pixels[..., ::-1]
    normalised = (pixels * np.float32(steps.scale) - np.asarray(steps.mean, np.float32)) / np.asarray(
        steps.std, np.float32
    )
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _open(file: Path, mode: str) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("Reading images needs Pillow, which is not installed. Run: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            # Pillow only warns of images that unpack to an absurd size; data from outside must not get that far.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=tuple(set(FORMATS.values()))) as image:
                check_pixels(image.width, image.height, file, "has")
                return _from_deep_grey(image, file) if image.mode in _DEEP_GREY else image.convert(mode)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"Will not unpack the image {file}: {error} Remove the file, or shrink it.") from error
    except Exception as error:  # Pillow's parsers raise whatever a damaged file makes them stumble over
        raise DataError(
            f"Cannot read the image {file}: {type(error).__name__}: {error}. Remove the file, or repair it."
        ) from error


def _from_deep_grey(image: Image, file: Path) -> Image:
    """Return grey of more than 8 bits as floats from 0 to 255; Pillow's own conversion cuts off above 255.

    The factor depends on the type alone and never on the image, so that a dark image stays darker than a light one.

    Raises:
        DataError: values outside 0..65535 (integers) or 0..1 (floats), whose scale is not known.
    """
    from PIL import Image

    pixels = np.asarray(image)
    highest = 1 if pixels.dtype.kind == "f" else 65535
    low, high = pixels.min(), pixels.max()
    # Older versions of Pillow call a 16-bit PNG "I"; in a TIFF that is 32 bits, or signed, of any range.
    if image.mode == "I" and image.format != "PNG":
        raise DataError(
            f"The image {file} holds integers of 32 bits or with a sign, from {low} to {high}, and says nothing of their "
            f"range. Save the images with unsigned 16 bits, or pass your own arrays with arrays()."
        )
    if not (low >= 0 and high <= highest):  # also true for NaN
        raise DataError(
            f"The image {file} holds {pixels.dtype} values from {low} to {high}; grey images of this type are read as 0 "
            f"to {highest}. Rescale the images to that range, or pass your own arrays with arrays()."
        )
    return Image.fromarray(pixels.astype(np.float32) * np.float32(255 / highest))


def _resize(image: Image, steps: ImagePreprocessing, file: Path) -> Image:
    from PIL.Image import Resampling

    target = (steps.width, steps.height)
    if steps.resize == "stretch":
        return image.resize(target, Resampling.BILINEAR)
    ratio = max(steps.width / image.width, steps.height / image.height)
    wide, high = (max(want, round(have * ratio)) for want, have in zip(target, image.size, strict=True))
    left, top = (wide - steps.width) // 2, (high - steps.height) // 2
    check_pixels(wide, high, file, f"is {image.width} x {image.height} and would be resized to")
    resized = image.resize((wide, high), Resampling.BILINEAR)
    return resized.crop((left, top, left + steps.width, top + steps.height))


def _show(file: Path, label: str) -> dict[str, Any]:
    image = _open(file, "L").convert("L")
    image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    return {"kind": "image", "value": np.asarray(image, np.uint8).tolist(), "label": label}
