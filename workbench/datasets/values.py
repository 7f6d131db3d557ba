"""Metrics of numbers: regression, and embeddings that are near to what they should be near to."""

from __future__ import annotations

import numpy as np

from workbench.datasets.metric import Metric, Outputs, refuse, sample_scores
from workbench.errors import DataError

_ROWS = 512  # of the similarities of all pairs that are held at once


def mse(output: str | None = None) -> Metric:
    """Return the mean squared error; outputs and labels of one shape, an axis of length 1 behind them or not."""
    return _regression("mean squared error", _squared, output)


def mae(output: str | None = None) -> Metric:
    """Return the mean absolute error; shapes as for `mse`."""
    return _regression("mean absolute error", _absolute, output)


def r2(output: str | None = None) -> Metric:
    """Return the coefficient of determination over all samples, the mean over outputs (scikit-learn's `r2_score`)."""
    return Metric("R2", _r2, key="R2", output=output, samples_first=True, whole=True, classes=False)


def cosine(output: str | None = None) -> Metric:
    """Return the cosine similarity of embeddings (N, D) and the embeddings wanted as labels (N, D)."""
    return Metric("cosine similarity", _cosine, key="cosine", output=output, samples_first=True, classes=False)


def recall_at_1(output: str | None = None) -> Metric:
    """Return the share of samples whose nearest other sample, by the cosine of embeddings (N, D), has the same label.

    Labels are integers (N,). Samples whose label no other sample has are left out; then there is one float for all.
    """
    return Metric("recall@1", nearest_neighbour, unit="share", key="recall@1", output=output, samples_first=True,
                  whole=True, classes=False)  # fmt: skip


def _regression(name: str, function: object, output: str | None) -> Metric:
    return Metric(name, function, False, key=name, output=output, samples_first=True, classes=False)  # type: ignore[arg-type]


def _squared(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    difference = np.subtract(*_pair("mse", outputs, labels))
    return np.asarray(np.square(difference).mean(axis=1))


def _absolute(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(np.subtract(*_pair("mae", outputs, labels))).mean(axis=1))


def _r2(outputs: Outputs, labels: np.ndarray) -> float:
    values, wanted = _pair("r2", outputs, labels)
    spread = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
    if not spread.all():
        raise DataError("R2 compares with the spread of the labels, and some labels do not differ at all. Take 'mse'.")
    return float(np.mean(1 - np.square(values - wanted).sum(axis=0) / spread))


def _pair(metric: str, outputs: Outputs, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs and labels (N, values) in float64; shapes that only broadcasting would fit are refused."""
    values = sample_scores(outputs)
    if _bare(values.shape) != _bare(labels.shape) or labels.dtype.kind not in "biuf":
        raise refuse(metric, "outputs and labels of one shape", f"outputs {values.shape}, labels {labels.shape}")
    if not np.isfinite(labels).all():
        raise DataError(f"Some labels are NaN or infinite, so {metric!r} has no value. Leave these samples out.")
    return tuple(np.asarray(side, np.float64).reshape(len(labels), -1) for side in (values, labels))  # type: ignore[return-value]


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape


def _cosine(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    values = sample_scores(outputs)
    if values.ndim != 2 or values.shape != labels.shape:
        raise refuse("cosine", "embeddings and labels (N, D)", f"outputs {values.shape}, labels {labels.shape}")
    return np.asarray((_unit(values) * _unit(labels)).sum(axis=1), np.float64)


def nearest_neighbour(outputs: Outputs, labels: np.ndarray) -> np.ndarray | float:
    """Be the function of `recall_at_1`."""
    values = sample_scores(outputs)
    if values.ndim != 2 or labels.shape != (len(values),) or labels.dtype.kind not in "iu":
        raise refuse("recall@1", "embeddings (N, D), labels (N,)", f"outputs {values.shape}, labels {labels.shape}")
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    judged = counts[inverse] > 1
    if not judged.any():
        raise DataError(f"All {len(labels)} labels differ, so that no sample has another one to be near to.")
    units, right = _unit(values), np.zeros(len(values))
    for start in range(0, len(units), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(units)))
        near = units[rows] @ units.T
        near[np.arange(len(rows)), rows] = -np.inf
        right[rows] = labels[near.argmax(axis=1)] == labels[rows]
    right[np.isnan(units).any(axis=1)] = 0
    return right if judged.all() else float(right[judged].mean())


def _unit(values: np.ndarray) -> np.ndarray:
    wide = np.asarray(values, np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
