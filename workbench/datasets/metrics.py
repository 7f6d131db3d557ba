"""Task metrics: how right a model's outputs are, sample by sample. Knows numpy arrays only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.errors import DataError

Outputs = Mapping[str, np.ndarray]
IGNORED_TOKEN = -100  # the label that PyTorch's and transformers' losses leave out


@dataclass(frozen=True)
class Metric:
    """A task metric.

    Attributes:
        function: (outputs, labels) -> one value a sample, or one float for metrics that have no value a sample (F1,
            mAP); those see the whole set at once and get no interval.
        unit: written behind the score, such as `dB`; `share` is shown as a percentage.
        display: `mean`: the score is the mean of the values; `exp_mean`: its exponential (perplexity).
        key: identifies the arithmetic of a metric of this module, options included; None for a user's.
    """

    name: str
    function: Callable[[Outputs, np.ndarray], np.ndarray | float]
    higher_is_better: bool = True
    unit: str = ""
    display: Literal["mean", "exp_mean"] = "mean"
    key: str | None = None


def scores_output(outputs: Outputs) -> np.ndarray:
    """Return the output that holds scores over classes: the one named `logits`, or else the first.

    Raises:
        DataError: there is no output.
    """
    if not outputs:
        raise DataError("The model gave no outputs, so there are no class scores. Check the engine's outputs.")
    return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))


def identity(metric: Metric | None) -> str | None:
    """Return what a metric's results may be remembered under.

    None for a function of the user's: it can change under its name without our seeing it, so that what it gave is
    computed anew.
    """
    if metric is None:
        return "no metric"
    own = getattr(metric.function, "__module__", None) == __name__ and metric.key is not None
    return f"{metric.key}, {metric.display}" if own else None


def top1() -> Metric:
    """Return the share of samples whose highest class score (last axis) is the label; NaN scores count as wrong."""
    return Metric("top-1", _top1, higher_is_better=True, unit="share", key="top-1")


def perplexity() -> Metric:
    """Return the exponential of the mean negative log-likelihood of the next token.

    Logits are (N, T, V); labels are the token ids that were fed (N, T): the logits at t are judged by the token at
    t + 1. Labels of -100 are left out. The value of a sample is the mean over its tokens, in nats.
    """
    return Metric("perplexity", _next_token_nll, higher_is_better=False, display="exp_mean", key="perplexity")


def _top1(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    logits = scores_output(outputs)
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise DataError(
            f"top-1 needs scores (N, classes) with labels (N,); got scores {logits.shape} and labels {labels.shape}. "
            f"Pass another metric, or outputs whose last axis is the classes."
        )
    values = np.asarray(logits, dtype=np.float32)
    right = (values.argmax(-1) == labels) & ~np.isnan(values).any(-1)
    return right.reshape(len(right), -1).mean(-1, dtype=np.float64)


def _next_token_nll(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    logits = scores_output(outputs)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or labels.shape[1] < 2:
        raise DataError(
            f"perplexity needs logits (N, T, V) with token ids (N, T), T >= 2; got logits {logits.shape} and labels "
            f"{labels.shape}. Pass the fed token ids as labels."
        )
    # Sample by sample: the logits of a batch in float64 would need several times its memory.
    return np.array([_mean_nll(*pair) for pair in zip(logits[:, :-1], labels[:, 1:], strict=True)])


def _mean_nll(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean negative log-likelihood of tokens (T,) under logits (T, V); NaN where logits are not finite."""
    kept = wanted != IGNORED_TOKEN
    if not kept.any():
        raise DataError(f"A sample has no token to predict: all its labels are {IGNORED_TOKEN}. Leave it out.")
    values = np.asarray(logits, dtype=np.float64)[kept]
    highest = values.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        log_sum = np.log(np.exp(values - highest).sum(axis=-1)) + highest[:, 0]
        return float((log_sum - np.take_along_axis(values, wanted[kept, None].astype(np.int64), -1)[:, 0]).mean())
