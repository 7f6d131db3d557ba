"""Evaluation and calibration data: shipped, from arrays, from files, from a loader, or random.

Every function returns a `Dataset`; `Dataset.bound_to(model)` fits it to a model's input names and types. A dataset
without calibration samples can take some from its evaluation samples with `Dataset.split_off`.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from workbench.datasets.from_arrays import arrays, loader, npz, random
from workbench.datasets.images import ImagePreprocessing, image_folder
from workbench.datasets.metrics import Metric, perplexity, top1
from workbench.datasets.shipped import digits, stdlib_text
from workbench.datasets.split import Dataset, Split, check_disjoint
from workbench.datasets.texts import text
from workbench.errors import DataError, expect


def as_dataset(data: object, verb: str) -> Dataset:
    """Return a dataset where one is wanted: an array, or a dict of arrays by input name, becomes one without labels.

    Args:
        verb: what wants it.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, (np.ndarray, dict)):
        return arrays(data, metric=None)
    remedy = "Wrap arrays with workbench.datasets.arrays(x, labels)."
    expect(data, Dataset, verb, remedy, DataError)
    return cast(Dataset, data)


__all__ = [
    "Dataset",
    "ImagePreprocessing",
    "Metric",
    "Split",
    "arrays",
    "as_dataset",
    "check_disjoint",
    "digits",
    "image_folder",
    "loader",
    "npz",
    "perplexity",
    "random",
    "stdlib_text",
    "text",
    "top1",
]
