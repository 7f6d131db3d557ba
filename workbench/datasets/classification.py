"""Metrics of class labels: one class a sample, two classes, several at once, one a token, and the next token."""

from __future__ import annotations

from typing import Literal

import numpy as np

from workbench.datasets.metric import Metric, Outputs, check_range, refuse, sample_scores
from workbench.errors import DataError

IGNORED_TOKEN = -100  # the label that PyTorch's and transformers' losses leave out
Reading = Literal["auto", "probability", "logit"]
_READINGS = ("auto", "probability", "logit")
# How far rounding may bring a probability beyond 0 or 1.
_SLACK = 1e-6


def top1(output: str | None = None) -> Metric:
    """Return the share of samples whose highest class score (last axis) is the label; NaN scores count as wrong.

    Assumes scores (N, C) of two classes at least, or class numbers (N,), with labels (N,) or (N, 1) from 0 to C - 1.
    """
    return Metric("top-1", _top1, unit="share", key="top-1", output=output, samples_first=True)


def token_top1(output: str | None = None) -> Metric:
    """Return the share of tokens whose highest class score is their label, sample by sample; labels of -100 are left out.

    Assumes scores (N, T, C), or class numbers (N, T), with labels (N, T): each token is judged by its own label.
    """
    return Metric("token top-1", _token_top1, unit="share", key="token top-1", output=output, samples_first=True)


def perplexity(output: str | None = None) -> Metric:
    """Return the exponential of the mean negative log-likelihood of the next token.

    Logits are (N, T, V); labels are the token ids that were fed (N, T): the logits at t are judged by the token at
    t + 1. Labels of -100 are left out. The value of a sample is the mean over its tokens, in nats.
    """
    return Metric(
        "perplexity", _next_token_nll, False, display="exp_mean", key="perplexity", output=output, samples_first=True
    )


def binary(output: str | None = None, *, scores: Reading = "auto") -> Metric:
    """Return the share of samples on the right side of the threshold, for a model of one score a sample.

    Assumes scores (N,) or (N, 1) and labels 0 and 1. NaN scores count as wrong.

    Args:
        scores: `probability` (threshold 0.5), `logit` (threshold 0), or `auto`: probabilities if all scores of the
            parent are from 0 to 1, else logits; which of them is told.
    """
    return _thresholded("binary", _binary_right, output, scores)


def multi_label(output: str | None = None, *, scores: Reading = "auto") -> Metric:
    """Return the F1 of each sample's labels, 2 TP / (2 TP + FP + FN), 1 where there are none and none were given.

    Assumes scores (N, K) and labels (N, K) of 0 and 1: several may hold at once. The mean is scikit-learn's `f1_score`
    with average="samples", zero_division=1.

    Args:
        scores: as for `binary`.
    """
    return _thresholded("multi-label F1", _sample_f1, output, scores)


def reading_of(scores: np.ndarray) -> Literal["probability", "logit"]:
    """Return what scores can be: probabilities only if all are from 0 to 1."""
    values = np.asarray(scores, np.float32)
    values = values[np.isfinite(values)]
    inside = values.min(initial=0.0) >= -_SLACK and values.max(initial=0.0) <= 1 + _SLACK
    return "probability" if inside else "logit"


def check_reading(scores: str) -> None:
    """Raise ValueError where `scores` is no reading."""
    if scores not in _READINGS:
        raise ValueError(f"scores is {scores!r}; allowed: {', '.join(_READINGS)}")


def _thresholded(name: str, right: object, output: str | None, scores: Reading) -> Metric:
    check_reading(scores)

    def function(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        values = np.asarray(sample_scores(outputs), np.float32)
        reading = reading_of(values) if scores == "auto" else scores
        return right(values, labels, 0.5 if reading == "probability" else 0.0)  # type: ignore[operator,no-any-return]

    def settled(outputs: Outputs, labels: np.ndarray) -> tuple[Metric, tuple[str, ...]]:
        reading = reading_of(sample_scores(outputs))
        made = _thresholded(name, right, output, reading)
        threshold = "probabilities, with the threshold 0.5" if reading == "probability" else "logits, with threshold 0"
        return made, (
            f"The scores were taken as {threshold} (their range says so; the metric's option scores= sets it).",
        )

    return Metric(
        name, function, unit="share", key=f"{name} {scores}", output=output, samples_first=True, whole=True, classes=False,
        settled=settled if scores == "auto" else None,
    )  # fmt: skip


def _binary_right(values: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    if values.size != len(values) or labels.size != len(values):
        raise refuse("binary", "one score and one label a sample", f"scores {values.shape}, labels {labels.shape}")
    _check_zeros_and_ones("binary", labels)
    values, labels = values.reshape(-1), labels.reshape(-1)
    return np.asarray(((values > threshold) == (labels > 0)) & ~np.isnan(values), np.float64)


def _sample_f1(values: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    if values.ndim != 2 or values.shape != labels.shape:
        raise refuse("multi-label", "scores and labels (N, K)", f"scores {values.shape}, labels {labels.shape}")
    _check_zeros_and_ones("multi-label", labels)
    given, wanted = values > threshold, labels > 0
    found = 2.0 * (given & wanted).sum(axis=1)
    both = given.sum(axis=1) + wanted.sum(axis=1)
    score = np.where(both == 0, 1.0, found / np.maximum(both, 1))
    return np.where(np.isnan(values).any(axis=1), 0.0, score)


def _check_zeros_and_ones(metric: str, labels: np.ndarray) -> None:
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        shown = ", ".join(str(value) for value in np.unique(labels)[:6])
        raise refuse(metric, "labels 0 and 1", f"labels {shown}")


def _top1(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    scores = sample_scores(outputs)
    if scores.dtype.kind in "iu" and scores.size == labels.size == len(scores):  # class numbers
        return np.asarray(scores.reshape(-1) == labels.reshape(-1), np.float64)
    if scores.ndim == 2 and labels.shape == (len(scores), 1):
        labels = labels[:, 0]
    if scores.ndim < 2 or scores.shape[:-1] != labels.shape:
        raise refuse(
            "top-1", "scores (N, classes) with labels (N,)", f"scores {scores.shape} and labels {labels.shape}"
        )
    if scores.shape[-1] < 2:
        raise refuse("top-1", "the scores of two classes at least", f"scores {scores.shape}, one score a sample")
    check_range("top-1", labels, scores.shape[-1])
    right = _right(scores, labels)
    return right.reshape(len(right), -1).mean(-1, dtype=np.float64)


def _token_top1(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    scores = sample_scores(outputs)
    numbers = scores.dtype.kind in "iu" and scores.shape == labels.shape
    if labels.ndim != 2 or not (numbers or (scores.ndim == 3 and scores.shape[:-1] == labels.shape)):
        raise refuse(
            "token-top-1", "scores (N, T, C) with labels (N, T)", f"scores {scores.shape} and labels {labels.shape}"
        )
    if not numbers:
        check_range("token-top-1", labels, scores.shape[-1], (IGNORED_TOKEN,))
    kept = labels != IGNORED_TOKEN
    if not kept.any(axis=1).all():
        raise DataError(f"A sample has no token to judge: all its labels are {IGNORED_TOKEN}. Leave it out.")
    right = ((scores == labels) if numbers else _right(scores, labels)) & kept
    return np.asarray(right.sum(axis=1) / kept.sum(axis=1), np.float64)


def _right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float32)
    return np.asarray((values.argmax(-1) == labels) & ~np.isnan(values).any(-1))


def _next_token_nll(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    logits = sample_scores(outputs)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape or labels.shape[1] < 2:
        raise refuse(
            "perplexity", "logits (N, T, V) with the fed token ids (N, T) as labels, T >= 2",
            f"logits {logits.shape} and labels {labels.shape}",
        )  # fmt: skip
    check_range("perplexity", labels, logits.shape[-1], (IGNORED_TOKEN,))
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
