"""Metrics of a class for each pixel."""

from __future__ import annotations

import numpy as np

from workbench.datasets.classification import Reading
from workbench.datasets.metric import Metric, Outputs, check_range, refuse, sample_scores
from workbench.errors import DataError

IGNORED_PIXEL = 255  # the border of Pascal VOC and Cityscapes


def pixel_accuracy(
    output: str | None = None,
    *,
    class_axis: int | None = None,
    ignored: int | None = IGNORED_PIXEL,
    scores: Reading = "auto",
) -> Metric:
    """Return the share of pixels with the right class, image by image.

    Assumes labels (N, H, W) and scores (N, C, H, W), (N, H, W, C) or (N, 1, H, W), or class numbers (N, H, W).

    Args:
        class_axis: of the scores; None finds it by the labels' shape, and refuses where two fit.
        ignored: the label of pixels that are not judged.
        scores: for one score a pixel, `probability` or `logit`; these are not told apart by looks.
    """
    options = (class_axis, ignored, scores)

    def function(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        predicted, labels, kept, _ = _pixels("pixel-accuracy", outputs, labels, *options)
        return np.array([(p == w)[k].mean() for p, w, k in zip(predicted, labels, kept, strict=True)], np.float64)

    return Metric("pixel accuracy", function, unit="share", key=f"pixel accuracy {options}", output=output,
                  samples_first=True, classes=False)  # fmt: skip


def mean_iou(
    output: str | None = None,
    *,
    class_axis: int | None = None,
    ignored: int | None = IGNORED_PIXEL,
    scores: Reading = "auto",
) -> Metric:
    """Return the intersection over union of each class over all images, and of these the mean over the classes.

    Classes that are neither predicted nor labelled are left out. It has no value an image, and so no interval.

    Args:
        class_axis, ignored, scores: as for `pixel_accuracy`.
    """
    options = (class_axis, ignored, scores)

    def function(outputs: Outputs, labels: np.ndarray) -> float:
        predicted, labels, kept, classes = _pixels("mean-iou", outputs, labels, *options)
        answers = classes + 1  # none at all is one, and right nowhere
        pairs = np.bincount(labels[kept] * answers + predicted[kept], minlength=classes * answers)
        confusion = pairs.reshape(classes, answers)
        right = np.diag(confusion)
        union = confusion[:, :classes].sum(axis=0) + confusion.sum(axis=1) - right
        return float((right[union > 0] / union[union > 0]).mean())

    return Metric("mean IoU", function, unit="share", key=f"mean IoU {options}", output=output, samples_first=True,
                  whole=True, classes=False)  # fmt: skip


def class_axes(scores: tuple[int | None, ...], labels: tuple[int, ...]) -> list[int]:
    """Return the axes of scores that can be the classes' where labels are (N, ...); None is a length not known."""

    def fits(rest: tuple[int | None, ...]) -> bool:
        return all(have in (None, want) for have, want in zip(rest[1:], labels[1:], strict=True))

    if len(scores) != len(labels) + 1:
        return []
    return [axis for axis in (1, len(scores) - 1) if fits(scores[:axis] + scores[axis + 1 :])]


def _pixels(
    metric: str, outputs: Outputs, labels: np.ndarray, class_axis: int | None, ignored: int | None, scores: Reading
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return predicted classes, labels, which pixels are judged, (N, H, W) each, and the number of classes.

    A pixel whose scores hold NaN is predicted as the class behind the last one, which no label has.
    """
    values = sample_scores(outputs)
    found = f"scores {values.shape} and labels {labels.shape}"
    if labels.dtype.kind not in "iub" or labels.ndim < 2:
        raise refuse(metric, "integer labels (N, H, W)", f"labels {labels.dtype} {labels.shape}")
    kept = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    if not kept.reshape(len(kept), -1).any(axis=1).all():
        raise DataError(f"An image has no pixel to judge: all its labels are {ignored}. Leave it out.")
    if values.dtype.kind in "iub" and values.shape == labels.shape:
        classes = int(max(values.max(), labels[kept].max())) + 1
        check_range(metric, labels[kept], classes)
        return values.astype(np.int64), labels.astype(np.int64), kept, classes
    axes = class_axes(values.shape, labels.shape) if class_axis is None else [class_axis % values.ndim]
    if values.shape == labels.shape:
        values, axes = np.expand_dims(values, 1), [1]
    if not axes or np.delete(values.shape, axes[0]).tolist() != list(labels.shape):
        raise refuse(metric, "scores (N, C, H, W) with labels (N, H, W); resize one to the other", found)
    if len(axes) > 1:
        raise DataError(f"Axis 1 and the last one can both be the classes of {found}. Name one with class_axis=.")
    classes = values.shape[axes[0]]
    wide = np.moveaxis(np.asarray(values, np.float32), axes[0], -1)
    if classes == 1:
        if scores == "auto":
            raise DataError(f"One score a pixel ({found}) can be a probability or a logit. Name it with scores=.")
        check_range(metric, labels[kept], 2)
        classes = 2
        predicted = (wide[..., 0] > (0.5 if scores == "probability" else 0)).astype(np.int64)
    else:
        check_range(metric, labels[kept], classes)
        predicted = wide.argmax(axis=-1)
    return np.where(np.isnan(wide).any(axis=-1), classes, predicted), labels.astype(np.int64), kept, classes
