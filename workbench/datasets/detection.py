"""Metrics of boxes with a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from workbench.datasets.metric import Metric, Outputs, refuse, scores_output
from workbench.datasets.outputs import Answers
from workbench.errors import DataError

PADDING = -1  # the class of rows that hold no box


def average_precision(
    iou: float = 0.5,
    *,
    boxes: str = "boxes",
    scores: str | None = "scores",
    classes: str | None = None,
    form: Literal["xyxy", "xywh", "cxcywh"] = "xyxy",
) -> Metric:
    """Return the average precision of boxes at one IoU, the mean over the classes that have labels (mAP).

    The area under the precision-recall curve, precision made non-increasing and recall taken at every box (Pascal VOC
    from 2010 on, not COCO's 101 points). A box is right if its IoU with a labelled box of its class and image is at
    least `iou`; each labelled box counts once, for the right box of the highest score. It has no value an image.

    Labels are (N, M, 5): class and box (x1, y1, x2, y2) in the model's units; rows of class -1 hold no box. Outputs are
    (N, K, 4) boxes and (N, K) scores, or rows of any number from a model that is fed one image a call. Padding among them
    has a score of 0 or below.

    Args:
        boxes, scores, classes: names of the outputs. With `scores` None, `boxes` holds (..., 6): box, score, class. With
            `classes` None beside `scores`, all boxes are of class 0.
        form: of the model's boxes: two corners, corner and size, or centre and size.
    """
    if not 0 < iou <= 1 or form not in ("xyxy", "xywh", "cxcywh"):
        raise ValueError(f"iou is {iou}, form {form!r}; allowed: above 0 to 1, and xyxy, xywh or cxcywh")
    names = (boxes, scores, classes)

    def function(outputs: Outputs, labels: np.ndarray) -> float:
        if labels.ndim != 3 or labels.shape[-1] != 5:
            raise refuse("average-precision", "labels (N, M, 5)", f"labels {labels.shape}")
        found = [_corners(part, form) for part in _by_image(outputs, names, len(labels))]
        wanted = [rows[rows[:, 0] != PADDING].astype(np.float64) for rows in labels]
        kinds = np.unique(np.concatenate([rows[:, 0] for rows in wanted]))
        if not kinds.size:
            raise DataError("No label holds a box, so there is no precision to speak of.")
        return float(np.mean([_of_class(kind, found, wanted, iou) for kind in kinds]))

    return Metric(f"AP at IoU {iou:g}", function, unit="share", key=f"average precision {iou} {names} {form}",
                  samples_first=True, whole=True, classes=False)  # fmt: skip


def _by_image(outputs: Outputs, names: tuple[str, str | None, str | None], images: int) -> list[np.ndarray]:
    """Return for each image its boxes (K, 6): four numbers, score, class; padding left out."""
    parts = {name: _images(outputs, name, images) for name in names if name is not None}
    found = []
    for index in range(images):
        box = np.asarray(parts[names[0]][index], np.float64)
        if names[1] is None:
            if box.ndim != 2 or box.shape[-1] != 6:
                raise refuse(
                    "average-precision", f"output {names[0]!r} (..., 6) without scores=", f"{box.shape} an image"
                )
        else:
            score = np.asarray(parts[names[1]][index], np.float64).reshape(-1, 1)
            kind = (
                np.zeros_like(score)
                if names[2] is None
                else np.asarray(parts[names[2]][index], np.float64).reshape(-1, 1)
            )
            if box.ndim != 2 or box.shape[-1] != 4 or not len(box) == len(score) == len(kind):
                raise refuse("average-precision", "as many boxes (K, 4) as scores and classes",
                             f"{box.shape}, {len(score)} and {len(kind)} an image")  # fmt: skip
            box = np.concatenate([box, score, kind], axis=1)
        found.append(box[box[:, 4] > 0])
    return found


def _images(outputs: Outputs, name: str, images: int) -> list[np.ndarray]:
    values = scores_output(outputs, name)
    if isinstance(outputs, Answers) and outputs.axes[name] is None:
        if outputs.calls != images:
            raise DataError(
                f"Output {name!r} has no axis of images, and {outputs.calls} calls gave the rows of {images} images: which "
                f"rows are of which image is not known. Load the model with a batch of 1."
            )
        counts = outputs.counts.get(name)
        if counts is None:
            return list(values) if outputs.calls > 1 else [values]
        return np.split(values, np.cumsum(counts)[:-1])
    if len(values) != images:
        raise refuse("average-precision", f"{images} images on axis 0 of output {name!r}", f"shape {values.shape}")
    return list(values)


def _corners(boxes: np.ndarray, form: str) -> np.ndarray:
    if form == "xyxy":
        return boxes
    made = boxes.copy()
    if form == "cxcywh":
        made[:, :2] -= made[:, 2:4] / 2
    made[:, 2:4] += made[:, :2]
    return made


def _of_class(kind: float, found: list[np.ndarray], wanted: list[np.ndarray], iou: float) -> float:
    labelled = [rows[rows[:, 0] == kind][:, 1:] for rows in wanted]
    given = [(index, row) for index, rows in enumerate(found) for row in rows[rows[:, 5] == kind]]
    given.sort(key=lambda item: -item[1][4])
    used: Mapping[int, set[int]] = {index: set() for index in range(len(labelled))}
    right = np.zeros(len(given))
    for place, (index, row) in enumerate(given):
        overlaps = _overlaps(row[:4], labelled[index])
        best = int(overlaps.argmax()) if overlaps.size else -1
        if best >= 0 and overlaps[best] >= iou and best not in used[index]:
            used[index].add(best)
            right[place] = 1
    recall = np.cumsum(right) / sum(map(len, labelled))
    precision = np.cumsum(right) / np.arange(1, len(given) + 1)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best_after).sum())


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of a box and each of others (M, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.prod(box[2:4] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(areas, 1e-12))
