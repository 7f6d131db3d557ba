"""Task metrics: how right a model's outputs are, by what the labels mean. Knows numpy arrays only.

Each metric says what it assumes and refuses anything else. `chosen` takes one where labels and outputs allow a single
reading, and refuses with the choice where they allow two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.datasets.classification import IGNORED_TOKEN, binary, multi_label, perplexity, token_top1, top1
from workbench.datasets.detection import average_precision
from workbench.datasets.metric import CHOICES, Metric, Outputs, check_range, identity, scores_output
from workbench.datasets.segmentation import class_axes, mean_iou, pixel_accuracy
from workbench.datasets.values import cosine, mae, mse, r2, recall_at_1
from workbench.errors import DataError, nearest
from workbench.records import TensorSpec

__all__ = [
    "IGNORED_TOKEN",
    "NAMED",
    "Metric",
    "Outputs",
    "average_precision",
    "binary",
    "chosen",
    "cosine",
    "guess",
    "identity",
    "mae",
    "mean_iou",
    "mse",
    "multi_label",
    "named",
    "perplexity",
    "pixel_accuracy",
    "r2",
    "recall_at_1",
    "scores_output",
    "token_top1",
    "top1",
]

NAMED: dict[str, Callable[[], Metric]] = {
    "top-1": top1,
    "binary": binary,
    "multi-label": multi_label,
    "token-top-1": token_top1,
    "perplexity": perplexity,
    "pixel-accuracy": pixel_accuracy,
    "mean-iou": mean_iou,
    "mse": mse,
    "mae": mae,
    "r2": r2,
    "average-precision": average_precision,
    "recall@1": recall_at_1,
    "cosine": cosine,
}
# Said of labels that tell nothing by themselves, until the outputs are known.
UNDECIDED = (
    "Labels of type {labels.dtype} and shape {labels.shape} have no default metric before a model's outputs are known."
)
_SAME_TOKENS = 0.5  # share of labels equal to the fed ids above which they may be meant as such


def named(metric: Any, output: str | None = None) -> tuple[Metric, tuple[str, ...]]:
    """Return a metric of a name, a Metric, or a function of (outputs, labels); and notes.

    Args:
        output: the output that is scored; a function is then given this one alone.

    Raises:
        DataError: no such name, or something that is no metric.
    """
    notes: tuple[str, ...] = ()
    if isinstance(metric, str):
        if metric not in NAMED:
            raise DataError(f"There is no metric {metric!r}. {nearest(metric, NAMED)} Or pass a function.")
        made = NAMED[metric]()
    elif isinstance(metric, Metric):
        made = metric
    elif callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        made = Metric("your function" if name == "<lambda>" else name, metric)
        notes = (f"Higher is taken to be better for the metric {made.name!r}; else pass Metric(..., False).",)
    else:
        raise DataError(
            f"metric is a {type(metric).__name__}, expected a name, a Metric, a function or None. {CHOICES}"
        )
    return (made if output is None else replace(made, output=output)), notes


def guess(labels: np.ndarray | None, inputs: Mapping[str, np.ndarray]) -> Metric | None:
    """Return what labels mean as far as they and the inputs tell; `chosen` decides once a model's outputs are known."""
    if labels is None or labels.dtype.kind not in "iub":
        return None
    if labels.ndim == 1:
        return replace(top1(), by_default=True)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return replace(perplexity() if _share_fed(labels, inputs) == 1 else token_top1(), by_default=True)
    return None


def chosen(
    labels: np.ndarray, inputs: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], output: str | None = None
) -> tuple[Metric | None, tuple[str, ...]]:
    """Choose the metric of labelled data for a model, where there is one reading only.

    Args:
        outputs: as the model states them.
        output: the one to score; None takes the only one that labels fit, or the one called `logits`.

    Returns:
        The metric, marked as chosen by default, and a note; None and a note where numbers fit no output.

    Raises:
        DataError: integer labels that fit no output, or more than one reading.
    """
    specs = [spec for spec in outputs if output in (None, spec.name)]
    if not specs:
        assert output is not None
        raise DataError(
            f"The model has no output {output!r} to score. {nearest(output, [spec.name for spec in outputs])}"
        )
    fitting = [(spec, readings) for spec in specs if (readings := _readings(labels, inputs, spec))]
    of_logits = [one for one in fitting if one[0].name == "logits"]
    fitting = of_logits or fitting
    shown = f"labels {labels.dtype} {labels.shape}"
    stated = ", ".join(f"{spec.name} {spec.dtype} {_shown(spec.shape)}" for spec in specs)
    if not fitting:
        if labels.dtype.kind in "iub":
            raise DataError(f"The {shown} fit none of the model's outputs ({stated}). {CHOICES}")
        return None, (f"Labels of type {labels.dtype} and shape {labels.shape} have no default metric. {CHOICES}",)
    ways = [(spec, metric) for spec, metrics in fitting for metric in metrics]
    if len(ways) > 1:
        listed = ", ".join(f"{metric.name} of {spec.name!r}" for spec, metric in ways)
        raise DataError(f"The {shown} and the outputs ({stated}) can be read in more than one way: {listed}. {CHOICES}")
    spec, metric = ways[0]
    several = f" of output {spec.name!r}" if len(outputs) > 1 else ""
    note = f"No metric was named; {metric.name}{several} was chosen because the labels and outputs fit no other."
    return replace(metric, output=spec.name if len(outputs) > 1 else None, by_default=True), (note,)


def _readings(labels: np.ndarray, inputs: Mapping[str, np.ndarray], spec: TensorSpec) -> list[Metric]:
    """Return every metric that labels can be meant for with this output.

    Raises:
        DataError: labels have one reading, and name classes that the output does not have.
    """
    shape, is_float = spec.shape, "float" in spec.dtype
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    zeros_and_ones = labels.dtype.kind in "biuf" and bool(np.isin(labels, (0, 1)).all())
    one_score = len(shape) == 1 or shape[1:] == (1,)
    if labels.dtype.kind == "f":
        return _of_numbers(labels, shape, zeros_and_ones, one_score) if is_float else []
    if labels.dtype.kind not in "iub" or not (is_float or "int" in spec.dtype or spec.dtype == "bool"):
        return []
    if labels.ndim == 1:
        return _of_classes(labels, shape, is_float, zeros_and_ones, one_score)
    if labels.ndim == 2 and len(shape) == 3:
        return _of_tokens(labels, inputs, shape) if is_float else []
    if labels.ndim == 2 and len(shape) == 2 and _fits(shape, labels.shape):
        if not is_float:
            return [token_top1()]
        return _of_several(labels) if zeros_and_ones else [mse(), mae()]
    if labels.ndim == 3 and (class_axes(shape, labels.shape) or (not is_float and _fits(shape, labels.shape))):
        return [mean_iou()]
    return []


def _of_classes(
    labels: np.ndarray, shape: tuple[int | None, ...], is_float: bool, zeros_and_ones: bool, one_score: bool
) -> list[Metric]:
    if one_score:
        if not is_float:
            return [top1()]
        # Counts, grades and ages are integers too.
        return [binary()] if zeros_and_ones else [mse(), mae()]
    if len(shape) == 2 and is_float:
        if shape[1] is not None:
            check_range("top-1", labels, shape[1])
        return [top1()]
    return []


def _of_tokens(labels: np.ndarray, inputs: Mapping[str, np.ndarray], shape: tuple[int | None, ...]) -> list[Metric]:
    if not _fits(shape[:2], labels.shape):
        return []
    fed = _share_fed(labels, inputs)
    if fed == 1 and labels.shape[1] > 1:
        return [perplexity()]
    if fed > _SAME_TOKENS or _share_fed(labels[:, :-1], {name: array[:, 1:] for name, array in inputs.items()
                                                        if array.ndim == 2}) == 1:  # fmt: skip
        return [perplexity(), token_top1()]
    if shape[2] is not None:
        check_range("token-top-1", labels, shape[2], (IGNORED_TOKEN,))
    return [token_top1()]


def _of_numbers(
    labels: np.ndarray, shape: tuple[int | None, ...], zeros_and_ones: bool, one_score: bool
) -> list[Metric]:
    if labels.ndim == 1 and one_score:
        return [binary()] if zeros_and_ones else [mse()]
    if len(shape) == labels.ndim and _fits(shape, labels.shape):
        return _of_several(labels) if zeros_and_ones and labels.ndim == 2 else [mse()]
    return []


def _of_several(labels: np.ndarray) -> list[Metric]:
    """Return what zeros and ones (N, K) can be meant for: one 1 a sample may be a class, written one-hot, as well."""
    return [multi_label(), mse()] if bool((labels.sum(axis=1) == 1).all()) else [multi_label()]


def _fits(shape: tuple[int | None, ...], labels: tuple[int, ...]) -> bool:
    return len(shape) == len(labels) and all(h in (None, w) for h, w in zip(shape[1:], labels[1:], strict=True))


def _share_fed(labels: np.ndarray, inputs: Mapping[str, np.ndarray]) -> float:
    """Return which share of the labels (those of -100 left out) equals an integer input of their shape, at most."""
    kept = labels != IGNORED_TOKEN
    fed = [array for array in inputs.values() if array.dtype.kind in "iu" and array.shape == labels.shape]
    return max((float((array == labels)[kept].mean()) for array in fed if kept.any()), default=0.0)


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
