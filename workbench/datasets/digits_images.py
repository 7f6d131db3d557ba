"""Turn the stored 8x8 handwritten digits into the images the digit models read.

One function on numpy arrays, shared by the training scripts and the data sets, so that both see the same pixels.
Knows nothing of files, labels, splits or models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError

STORED_SIZE = 8
IMAGE_SIZE = 32
LARGEST_PIXEL = 16

# Mean and standard deviation of pixel / 16 over the training split, as data/training/make_digits.py measures them
# (it refuses to write data/digits.npz when they differ in the fourth decimal).
PIXEL_MEAN = 0.3037
PIXEL_STD = 0.3755


def upsample_digits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Upsample stored digits to 32x32 and normalise them.

    Bilinear with half-pixel centres and clamped edges (torch's `interpolate(mode="bilinear", align_corners=False)`).
    Weights are multiples of 1/8 and pixels are small integers, so the interpolation is exact in float32 and
    independent of the order of summation: every machine gets the same values.

    Args:
        images: (N, 8, 8) uint8, pixels 0..16 with 0 the background.

    Returns:
        (N, 1, 32, 32) float32, `(pixel / 16 - PIXEL_MEAN) / PIXEL_STD`.

    Raises:
        DataError: if the shape is not (N, 8, 8) or a pixel is above 16.
    """
    if images.ndim != 3 or images.shape[1:] != (STORED_SIZE, STORED_SIZE):
        raise DataError(
            f"Digits must have shape (N, {STORED_SIZE}, {STORED_SIZE}), got {images.shape}. "
            "Pass the `images` array of data/digits.npz or a slice images[i:j] of it."
        )
    if images.size and (int(images.min()) < 0 or int(images.max()) > LARGEST_PIXEL):
        raise DataError(
            f"Digit pixels run from 0 to {LARGEST_PIXEL}, got {images.min()}..{images.max()}. "
            "Rescale the images to that range first."
        )
    weights = _bilinear_weights(STORED_SIZE, IMAGE_SIZE)
    upsampled = weights @ images.astype(np.float32) @ weights.T
    normalised = (upsampled / np.float32(LARGEST_PIXEL) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    return normalised[:, np.newaxis]


def _bilinear_weights(source_size: int, target_size: int) -> NDArray[np.float32]:
    """Return the (target, source) matrix whose rows mix the two nearest source pixels."""
    centres = (np.arange(target_size) + 0.5) * source_size / target_size - 0.5
    centres = np.clip(centres, 0, source_size - 1)
    below = np.minimum(centres.astype(int), source_size - 2)
    fraction = centres - below
    weights = np.zeros((target_size, source_size), np.float32)
    rows = np.arange(target_size)
    weights[rows, below] = 1 - fraction
    weights[rows, below + 1] = fraction
    return weights
