"""Images from a folder with one sub-folder a class, preprocessed in one stated way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.datasets.image_bounds import FORMATS, check_pixels
from workbench.datasets.metrics import top1
from workbench.datasets.split import Array, Dataset, Split
from workbench.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = tuple(FORMATS)
_SHOWN_PIXELS = 64


@dataclass(frozen=True)
class ImagePreprocessing:
    """What is done to an image, in this order: convert, resize, scale, normalise, put channels first.

    Attributes:
        height, width: of the result, in pixels.
        channels: `RGB`, `BGR` (OpenCV's order) or `L` (one grey channel).
        resize: `stretch` to the size, or `crop` (shorter side first, then the centre), bilinear with antialiasing.
        scale: factor on the 0..255 pixels.
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
    name: str | None = None,
) -> Dataset:
    """Read images from a folder that has one sub-folder for each class.

    Args:
        path: sub-folders in sorted order are the classes 0, 1, ...
        preprocessing: stated in the dataset's notes; None takes the defaults (ImageNet's, 224x224 RGB).
        samples: that many images chosen at random; None takes all.

    Returns:
        A dataset without calibration data (see `split_off`): one float32 input (N, C, H, W), metric top-1.

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
    labels = np.array([label for _, label in files], np.int64)
    listed = ", ".join(f"{label} = {class_name}" for label, class_name in enumerate(classes[:20]))
    return Dataset(
        name or root.name,
        "user",
        Split({"": images}, labels),
        metric=top1(),
        show=lambda index: _show(files[index][0], classes[files[index][1]]),
        notes=(f"Images: {steps}.", f"Classes: {listed}{', ...' if len(classes) > 20 else ''}."),
    )


def _read(file: Path, steps: ImagePreprocessing) -> Array:
    image = _resize(_open(file, "L" if steps.channels == "L" else "RGB"), steps, file)
    pixels = np.asarray(image, np.float32).reshape(steps.height, steps.width, len(steps.channels))
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
                return image.convert(mode)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"Will not unpack the image {file}: {error} Remove the file, or shrink it.") from error
    except Exception as error:  # Pillow's parsers raise whatever a damaged file makes them stumble over
        raise DataError(
            f"Cannot read the image {file}: {type(error).__name__}: {error}. Remove the file, or repair it."
        ) from error


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
    image = _open(file, "L")
    image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    return {"kind": "image", "value": np.asarray(image, np.uint8).tolist(), "label": label}
