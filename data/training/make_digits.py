"""Write data/digits.npz: scikit-learn's handwritten digits with a fixed, stratified split.

Identical images (same bytes) always land in the same part. Run: python data/training/make_digits.py
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from training import DATA_DIR, savez_reproducible

from workbench.datasets.digits_images import LARGEST_PIXEL, PIXEL_MEAN, PIXEL_STD

SEED = 20
# Fractions of each digit class that go to evaluation and calibration; training gets the rest.
EVALUATION_FRACTION = 540 / 1797
CALIBRATION_FRACTION = 260 / 1797


def image_hashes(images: NDArray[np.uint8]) -> list[str]:
    """Return the sha256 of each image's bytes."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def split_indices(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Split class by class, moving identical images together.

    Args:
        images: (N, 8, 8) uint8.
        labels: (N,) int64.

    Returns:
        Sorted, disjoint index arrays `train_index`, `calibration_index` and `evaluation_index` that cover all N.
    """
    generator = np.random.default_rng(SEED)
    hashes = np.array(image_hashes(images))
    parts: dict[str, list[int]] = {"evaluation_index": [], "calibration_index": [], "train_index": []}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        distinct = generator.permutation(np.unique(hashes[members]))
        first = round(len(distinct) * EVALUATION_FRACTION)
        second = first + round(len(distinct) * CALIBRATION_FRACTION)
        for name, chosen in zip(parts, np.split(distinct, [first, second]), strict=True):
            parts[name].extend(members[np.isin(hashes[members], chosen)])
    return {name: np.sort(np.array(part, np.int64)) for name, part in parts.items()}


def check_split(images: NDArray[np.uint8], parts: dict[str, NDArray[np.int64]]) -> None:
    """Stop if an image, by index or by content, is in two parts or in none."""
    hashes = np.array(image_hashes(images))
    seen = [set(hashes[part]) for part in parts.values()]
    if len(set().union(*seen)) != sum(map(len, seen)):
        raise SystemExit("Identical images lie in two parts of the split (same label class only is handled).")
    if not np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(images))):
        raise SystemExit("The split does not cover every image exactly once.")


def check_normalisation(train_images: NDArray[np.uint8]) -> None:
    """Stop if the normalisation constants of workbench.datasets.digits_images are not those of this training split."""
    pixels = train_images / LARGEST_PIXEL
    measured = (round(float(pixels.mean()), 4), round(float(pixels.std()), 4))
    if measured != (PIXEL_MEAN, PIXEL_STD):
        raise SystemExit(
            f"Training pixels have mean, std {measured}, workbench.datasets.digits_images says {(PIXEL_MEAN, PIXEL_STD)}. "
            "Correct the constants there and train again."
        )


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int64)
    parts = split_indices(images, labels)
    check_split(images, parts)
    check_normalisation(images[parts["train_index"]])
    savez_reproducible(DATA_DIR / "digits.npz", {"images": images, "labels": labels, **parts})
    print({name: len(part) for name, part in parts.items()}, "distinct images:", len(set(image_hashes(images))))


if __name__ == "__main__":
    main()
