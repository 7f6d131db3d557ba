"""The data that come with the workbench, ready for the shipped models."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from workbench import zoo
from workbench.datasets.digits_images import LARGEST_PIXEL, upsample_digits
from workbench.datasets.from_arrays import read_npz
from workbench.datasets.metrics import perplexity, top1
from workbench.datasets.split import Dataset, Split
from workbench.datasets.texts import read_tokenizer


def digits() -> Dataset:
    """Return handwritten digits for `digits_resnet` and `digits_vit`: 539 to evaluate, 259 to calibrate.

    The only input is float32 (N, 1, 32, 32), labels are int64 (N,), the metric is top-1. The 999 training images are
    not in it.

    Raises:
        LoadError: the data folder is missing or damaged.
    """
    stored = read_npz(zoo.data_file("digits.npz"))
    evaluation = stored["evaluation_index"]
    images, labels = stored["images"][evaluation], stored["labels"][evaluation]

    def show(index: int) -> dict[str, Any]:
        # Ink is dark on paper, as it was written.
        value = (255 - images[index].astype(np.int64) * 255 // LARGEST_PIXEL).tolist()
        return {"kind": "image", "value": value, "label": str(labels[index])}

    calibration = stored["calibration_index"]
    return Dataset(
        "digits",
        "shipped",
        Split({"": upsample_digits(images)}, labels),
        Split({"": upsample_digits(stored["images"][calibration])}, stored["labels"][calibration]),
        top1(),
        show,
    )


def stdlib_text() -> Dataset:
    """Return Python source for `stdlib_llama`: windows of 128 token ids, 320 to evaluate, 128 to calibrate.

    The only input and the labels are the int64 ids (N, 128); the metric is perplexity. No file is in both splits, and
    none was trained on.

    Raises:
        LoadError: the data folder is missing or damaged.
    """
    stored = read_npz(zoo.data_file("stdlib_text.npz"))
    evaluation, calibration = (stored[part].astype(np.int64) for part in ("evaluation", "calibration"))

    @cache
    def tokenizer() -> Any:
        return read_tokenizer(zoo.data_file("models/stdlib_llama/tokenizer.json"))

    def show(index: int) -> dict[str, Any]:
        return {"kind": "text", "value": tokenizer().decode(evaluation[index].tolist()), "label": None}

    return Dataset(
        "stdlib_text",
        "shipped",
        Split({"": evaluation}, evaluation),
        Split({"": calibration}, calibration),
        perplexity(),
        show,
    )
