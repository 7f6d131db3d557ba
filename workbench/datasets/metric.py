"""What a task metric is: a function of outputs and labels, and what must be known of it to use it rightly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.datasets.outputs import Answers
from workbench.errors import DataError, nearest

Outputs = Mapping[str, np.ndarray]

CHOICES = (
    "Choose with metric=: 'top-1' (one class a sample), 'binary' (one score a sample), 'multi-label', 'token-top-1', "
    "'perplexity' (next token), 'pixel-accuracy', 'mean-iou', 'mse', 'mae', 'r2', 'average-precision' (boxes), 'recall@1' "
    "(embeddings), 'cosine', or a function of (outputs, labels); and with output= the output that is scored."
)


@dataclass(frozen=True)
class Metric:
    """A task metric.

    Attributes:
        function: (outputs, labels) -> one value a sample, or one float for metrics that have no value a sample (F1,
            mAP); those see the whole set at once and get no interval. Outputs are laid out as the model gives them.
        unit: written behind the score, such as `dB`; `share` is shown as a percentage.
        display: `mean`: the score is the mean of the values; `exp_mean`: its exponential (perplexity).
        key: identifies the arithmetic of a metric of this package, options included; None for a user's.
        output: the only output that the function is given; None gives it all.
        samples_first: whether the function wants the samples on axis 0 of every output, wherever the model has them.
        whole: whether the function must see all samples at once.
        classes: whether the scored output can be scores over classes (last axis), of which the highest is an answer.
        by_default: whether nobody asked for it: it was chosen because labels and outputs allow no other reading.
        settled: (the parent's outputs of all samples, labels) -> the metric with what was open decided, and sentences
            about it; None where nothing is open.
    """

    name: str
    function: Callable[[Outputs, np.ndarray], np.ndarray | float]
    higher_is_better: bool = True
    unit: str = ""
    display: Literal["mean", "exp_mean"] = "mean"
    key: str | None = None
    output: str | None = None
    samples_first: bool = False
    whole: bool = False
    classes: bool = True
    by_default: bool = False
    settled: Callable[[Outputs, np.ndarray], tuple[Metric, tuple[str, ...]]] | None = None


def identity(metric: Metric | None) -> str | None:
    """Return what a metric's results may be remembered under.

    None for a function of the user's: it can change under its name without our seeing it, so that what it gave is
    computed anew.
    """
    if metric is None:
        return "no metric"
    module = getattr(metric.function, "__module__", None) or ""
    if metric.key is None or not module.startswith("workbench.datasets."):
        return None
    shown = (metric.name, metric.unit, metric.display, metric.higher_is_better)
    return f"{metric.key}, {shown}, output {metric.output}, {metric.samples_first}, by default {metric.by_default}"


def scores_output(outputs: Outputs, name: str | None = None) -> np.ndarray:
    """Return the output that holds scores: the one of this name, else the one named `logits`, or else the first.

    Raises:
        DataError: there is no output, or none of this name.
    """
    if not outputs:
        raise DataError("The model gave no outputs, so there are no class scores. Check the engine's outputs.")
    if name is not None:
        if name not in outputs:
            raise DataError(f"The model has no output {name!r} to score. {nearest(name, outputs)}")
        return outputs[name]
    return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))


def sample_scores(outputs: Outputs) -> np.ndarray:
    """Return the output that holds scores sample by sample.

    Raises:
        DataError: it has no axis that counts the samples, or there is no output.
    """
    scores = scores_output(outputs)
    if isinstance(outputs, Answers):
        name = next(name for name, values in outputs.items() if values is scores)
        if outputs.axes[name] is None:
            raise DataError(
                f"Output {name!r} has no axis that counts the samples (what all calls gave has the shape {scores.shape}), so "
                f"it cannot be scored sample by sample. Name another output with output=, its axis with sample_axes=, or "
                f"pass a function of (outputs, labels) that returns one float."
            )
    return scores


def refuse(metric: str, wanted: str, found: str) -> DataError:
    """Return the error of a metric that was given something else than it is made for."""
    return DataError(f"{metric} needs {wanted}; got {found}. {CHOICES}")


def check_range(metric: str, labels: np.ndarray, classes: int, ignored: tuple[int, ...] = ()) -> None:
    """Refuse labels that name no class.

    Raises:
        DataError: labels are no integers, or some are outside 0 to classes - 1 and not to be ignored.
    """
    if labels.dtype.kind not in "iub":
        raise refuse(metric, "integer labels", f"labels of type {labels.dtype}")
    used = labels[~np.isin(labels, ignored)] if ignored else labels
    if used.size and (used.min() < 0 or used.max() >= classes):
        bad = int(((used < 0) | (used >= classes)).sum())
        counted = " If they count from 1, pass labels - 1." if used.min() == 1 and used.max() == classes else ""
        raise DataError(
            f"{bad} of {used.size} labels name no class: the labels run from {used.min()} to {used.max()}, the "
            f"{classes} classes of the output from 0 to {classes - 1}, so {metric!r} would count them as wrong.{counted} "
            f"Give the labels the numbers that the model has for its classes. {CHOICES}"
        )
