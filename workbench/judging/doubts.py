"""Doubt a score of the parent that something else than the model explains: other labels, one answer, another metric.

A model that its user trusts and that scores no better than guessing is far more often asked the wrong question.
"""

from __future__ import annotations

import numpy as np

from workbench.datasets.metric import CHOICES, Metric
from workbench.datasets.values import nearest_neighbour
from workbench.errors import DataError

# Fewer samples say too little: by chance alone some other reading fits them.
_FEWEST = 30
# Another reading explains a score if it is right this often where the metric is near guessing.
_EXPLAINS = 0.8
_STANDARD_ERRORS = 4.0


def doubts(metric: Metric, predictions: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[str]:
    """Return sentences about what is odd in the parent's answers; empty where nothing is.

    Args:
        predictions: the parent's classes, in the order of `labels` flattened.
        labels: of all samples; below 0 where none is given.
        scores: the parent's class scores (samples, classes) of the first samples; may be empty.

    Raises:
        DataError: nobody asked for the metric, and another reading explains the answers far better.
    """
    if len(predictions) != labels.size or labels.size < _FEWEST or metric.key is None:
        return []
    predictions = predictions.reshape(labels.shape)
    if metric.key == "perplexity":
        right, count = _shares(predictions[:, :-1], labels[:, 1:])
    else:
        right, count = _shares(predictions, labels)
    wanted = labels[labels >= 0]
    if count < _FEWEST:
        return []
    found = []
    answers = np.unique(predictions)
    if len(answers) == 1 and len(np.unique(wanted)) > 1:
        found.append(f"The parent answers class {answers[0]} for all {len(wanted)} labels, whatever it is fed.")
    if len(np.unique(wanted)) == 1:
        found.append(f"All labels are {wanted[0]}: a model that always answers so would be right each time.")
    chance = float((np.bincount(wanted) / len(wanted)).max())
    if right > chance + _STANDARD_ERRORS * np.sqrt(chance * (1 - chance) / count):
        return found
    other = _explained(metric, predictions, labels, scores)
    if other is None:
        if right < chance:
            found.append(
                f"The parent is right in {right:.1%} of the answers; always answering the most frequent label would be right "
                f"in {chance:.1%}. Do the labels belong to this model, and is the input prepared as it was trained?"
            )
        return found
    sentence = f"The parent is right in {right:.1%} of the answers by {metric.name}, as by guessing; but {other}."
    if metric.by_default:
        raise DataError(f"{sentence} No metric was named, so nothing is claimed. {CHOICES}")
    return [*found, sentence]


def _explained(metric: Metric, predictions: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> str | None:
    own, _ = _shares(predictions, labels)
    if metric.key == "perplexity":
        return (
            f"{own:.1%} of the tokens get their own label, which is what 'token-top-1' judges"
            if own > _EXPLAINS
            else None
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        moved, _ = _shares(predictions[:, :-1], labels[:, 1:])
        if moved > _EXPLAINS:
            return f"{moved:.1%} are right for the next token's label, which is what 'perplexity' judges"
    for step in (1, -1):
        moved, _ = _shares(predictions - step, labels)
        if moved > _EXPLAINS:
            return f"{moved:.1%} are right if {'1 is added to' if step > 0 else '1 is taken from'} every label"
    kept = labels >= 0
    renamed = _renamed(predictions[kept], labels[kept])
    if renamed > _EXPLAINS:
        return f"{renamed:.1%} are right if the classes are numbered in another order"
    if labels.ndim == 1 and len(scores):
        return _embedded(scores, labels[: len(scores)])
    return None


def _shares(predictions: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Return which share of the answers is the label, and of how many; labels below 0 are left out."""
    kept = labels >= 0
    return (float(np.mean((predictions == labels)[kept])) if kept.any() else 0.0), int(kept.sum())


def _renamed(predictions: np.ndarray, wanted: np.ndarray) -> float:
    """Return how often answers are right under the best new number for each label, each number used once."""
    names = np.unique(wanted)
    if len(names) < 2 or len(wanted) < 10 * len(names):
        return 0.0  # so few of each would fit some numbering by chance
    predictions = np.maximum(predictions, 0)  # -1 where scores were NaN
    given = {name: np.bincount(predictions[wanted == name]) for name in names}
    best = {name: int(counts.argmax()) for name, counts in given.items()}
    if len(set(best.values())) < len(names):
        return 0.0
    return sum(float(counts.max()) for counts in given.values()) / len(wanted)


def _embedded(scores: np.ndarray, labels: np.ndarray) -> str | None:
    """Say that the scores look like embeddings: far more numbers than labels, and near to others of their label."""
    names, counts = np.unique(labels, return_counts=True)
    if scores.shape[1] < 2 * len(names) or not (counts > 1).any() or len(names) < 2:
        return None
    near = float(np.mean(nearest_neighbour({"y": np.asarray(scores, np.float32)}, labels)))
    if near <= _EXPLAINS:
        return None
    return f"{near:.1%} of the samples are nearest to one of their own label, which is what 'recall@1' judges"
