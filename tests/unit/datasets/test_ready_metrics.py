"""Each ready-made metric gives what an independent computation gives, and refuses what it is not made for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from workbench.datasets import metrics
from workbench.datasets.outputs import Answers
from workbench.errors import DataError

RANDOM = np.random.default_rng(0)


def value(metric: metrics.Metric, outputs: Any, labels: Any) -> np.ndarray:
    given = outputs if isinstance(outputs, dict) else {"y": np.asarray(outputs)}
    return np.asarray(metric.function(given, np.asarray(labels)))


@pytest.mark.parametrize("shape", [(200,), (200, 1)])
def test_binary_takes_probabilities_and_logits(shape: tuple[int, ...]) -> None:
    logits = RANDOM.normal(0, 3, shape)
    labels = (RANDOM.random(200) < 0.5).astype(int)
    expected = reference.accuracy_score(labels, logits.ravel() > 0)
    probabilities = 1 / (1 + np.exp(-logits))
    for metric, scores in (
        (metrics.binary(), logits),
        (metrics.binary(), probabilities),
        (metrics.binary(scores="logit"), logits),
        (metrics.binary(scores="probability"), probabilities),
    ):
        assert value(metric, scores, labels).mean() == pytest.approx(expected)
        assert value(metric, scores, labels[:, None].astype(float)).mean() == pytest.approx(expected)


def test_the_reading_of_scores_is_the_parents_and_is_told() -> None:
    metric = metrics.binary()
    assert metric.settled is not None and metric.whole
    settled, notes = metric.settled({"y": np.array([[-2.0], [3.0]])}, np.array([0, 1]))
    assert "logits, with threshold 0" in notes[0]
    # The variant's own scores would be taken for probabilities.
    assert value(settled, np.array([[0.2], [0.4]]), [1, 1]).tolist() == [1, 1]
    settled, notes = metric.settled({"y": np.array([[0.1], [0.9]])}, np.array([0, 1]))
    assert "probabilities, with the threshold 0.5" in notes[0] and settled.settled is None


def test_a_score_that_is_no_number_is_wrong() -> None:
    assert value(metrics.binary(), [np.nan, np.nan], [0, 1]).tolist() == [0, 0]
    assert value(metrics.multi_label(), [[np.nan, 1.0]], [[0, 1]]).tolist() == [0]


def test_multi_label_is_the_f1_of_each_sample() -> None:
    logits = RANDOM.normal(size=(60, 7))
    labels = (RANDOM.random((60, 7)) < 0.3).astype(int)
    labels[0], logits[0] = 0, -1
    expected = reference.f1_score(labels, logits > 0, average="samples", zero_division=1)
    assert value(metrics.multi_label(), logits, labels).mean() == pytest.approx(expected)
    assert value(metrics.multi_label(scores="logit"), logits, labels)[0] == 1


def test_regression_is_scikit_learns() -> None:
    wanted, given = RANDOM.normal(size=(50, 3)), RANDOM.normal(size=(50, 3))
    assert value(metrics.mse(), given, wanted).mean() == pytest.approx(reference.mean_squared_error(wanted, given))
    assert value(metrics.mae(), given, wanted).mean() == pytest.approx(reference.mean_absolute_error(wanted, given))
    assert value(metrics.r2(), given, wanted) == pytest.approx(reference.r2_score(wanted, given))
    # (N, 1) against (N,) would broadcast to (N, N).
    column = value(metrics.mse(), given[:, :1], wanted[:, 0])
    assert column.shape == (50,) and column.mean() == pytest.approx(np.mean((given[:, 0] - wanted[:, 0]) ** 2))


def test_tokens_are_judged_by_their_own_labels() -> None:
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(-1)
    assert value(metrics.token_top1(), logits.numpy(), labels.numpy()).tolist() == [1, 1, 1, 1]
    labels[0, :3] = metrics.IGNORED_TOKEN
    labels[0, 3] = (labels[0, 3] + 1) % 5
    assert value(metrics.token_top1(), logits.numpy(), labels.numpy()).tolist() == pytest.approx([2 / 3, 1, 1, 1])
    assert value(metrics.token_top1(), logits.argmax(-1).numpy(), labels.numpy())[0] == pytest.approx(2 / 3)


def test_class_numbers_are_judged_as_they_are() -> None:
    assert value(metrics.top1(), np.array([3, 1, 2]), [3, 0, 2]).tolist() == [1, 0, 1]
    assert value(metrics.top1(), np.eye(3), [[0], [1], [0]]).tolist() == [1, 1, 0]


@pytest.mark.parametrize("last", [False, True])
def test_mean_iou_is_scikit_learns_jaccard_score(last: bool) -> None:
    scores = RANDOM.normal(size=(3, 4, 6, 5))
    labels = RANDOM.integers(0, 4, (3, 6, 5))
    labels[0, 0, 0] = 255
    kept, predicted = labels != 255, scores.argmax(1)
    expected = reference.jaccard_score(labels[kept], predicted[kept], average="macro")
    given = np.moveaxis(scores, 1, -1) if last else scores
    assert value(metrics.mean_iou(), given, labels) == pytest.approx(expected)
    assert value(metrics.mean_iou(), predicted, labels) == pytest.approx(expected)
    shares = [(predicted[i] == labels[i])[kept[i]].mean() for i in range(3)]
    assert value(metrics.pixel_accuracy(), given, labels) == pytest.approx(shares)


def test_one_score_a_pixel_needs_its_reading() -> None:
    scores, labels = RANDOM.normal(size=(2, 1, 4, 4)), RANDOM.integers(0, 2, (2, 4, 4))
    expected = reference.jaccard_score(labels.ravel(), scores.ravel() > 0, average="macro")
    assert value(metrics.mean_iou(scores="logit"), scores, labels) == pytest.approx(expected)
    assert value(metrics.mean_iou(scores="logit"), scores[:, 0], labels) == pytest.approx(expected)
    with pytest.raises(DataError, match="a probability or a logit"):
        value(metrics.mean_iou(), scores, labels)


@pytest.mark.parametrize("classes", [1, 3])
def test_pixels_whose_scores_are_nan_are_wrong_whatever_their_label(classes: int) -> None:
    scores, labels = RANDOM.normal(size=(2, classes, 4, 4)), np.zeros((2, 4, 4), int)
    scores[:, 0] = -5.0 if classes == 1 else 5.0  # class 0 everywhere
    labels[0, 0, 0] = 1
    assert value(metrics.pixel_accuracy(scores="logit"), scores, labels).tolist() == [15 / 16, 1.0]
    scores[0, :, 1:] = np.nan
    assert value(metrics.pixel_accuracy(scores="logit"), scores, labels).tolist() == [3 / 16, 1.0]
    # Of class 0 there are 31 pixels, 19 of them found, and one more is called so; class 1 is never found.
    assert value(metrics.mean_iou(scores="logit"), scores, labels) == pytest.approx(19 / 32 / 2)


def test_classes_on_two_possible_axes_must_be_named() -> None:
    scores, labels = RANDOM.normal(size=(2, 4, 4, 4)), RANDOM.integers(0, 4, (2, 4, 4))
    with pytest.raises(DataError, match="class_axis="):
        value(metrics.pixel_accuracy(), scores, labels)
    expected = [(scores.argmax(-1) == labels)[i].mean() for i in range(2)]
    assert value(metrics.pixel_accuracy(class_axis=-1), scores, labels) == pytest.approx(expected)


def test_embeddings_are_judged_by_their_nearest_neighbour() -> None:
    labels = np.repeat(np.arange(10), 4)
    points = np.eye(10)[labels] + RANDOM.normal(0, 0.5, (40, 10))
    similar = reference.pairwise.cosine_similarity(points)
    np.fill_diagonal(similar, -2)
    expected = labels[similar.argmax(1)] == labels
    assert value(metrics.recall_at_1(), points, labels).tolist() == expected.tolist()
    alone = np.append(labels, 99)
    similar = reference.pairwise.cosine_similarity(np.vstack([points, np.full(10, -1.0)]))
    np.fill_diagonal(similar, -2)
    right = (alone[similar.argmax(1)] == alone)[:40].mean()
    assert value(metrics.recall_at_1(), np.vstack([points, np.full(10, -1.0)]), alone) == pytest.approx(right)
    pairs = value(metrics.cosine(), points, points * 3)
    assert pairs == pytest.approx(np.ones(40))


BOXES = np.array(
    [[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 9, 10]], [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 0, 0]]], float
)
SCORES = np.array([[0.9, 0.8, 0.7], [0.6, 0.95, 0.0]])
LABELS = np.array([[[0, 0, 0, 10, 10], [0, 20, 20, 30, 30]], [[0, 1, 0, 10, 10], [-1, 0, 0, 0, 0]]], float)
# By score: 0.95 wrong, 0.9 right, 0.8 right, 0.7 wrong (its box is taken), 0.6 right (IoU 0.9).
# Precision 0, 1/2, 2/3, 1/2, 3/5; recall steps of 1/3 at the right ones; the best precision from there on: 2/3, 2/3, 3/5.
AVERAGE_PRECISION = (2 / 3 + 2 / 3 + 3 / 5) / 3


def test_average_precision_is_the_area_counted_by_hand() -> None:
    outputs = {"boxes": BOXES, "scores": SCORES}
    assert value(metrics.average_precision(), outputs, LABELS) == pytest.approx(AVERAGE_PRECISION)
    # At 0.95 the box of IoU 0.9 is wrong too.
    assert value(metrics.average_precision(0.95), outputs, LABELS) == pytest.approx((2 / 3 + 2 / 3) / 3)


def test_boxes_in_every_form_give_the_same() -> None:
    size = BOXES[..., 2:] - BOXES[..., :2]
    for form, boxes in (
        ("xywh", np.concatenate([BOXES[..., :2], size], -1)),
        ("cxcywh", np.concatenate([BOXES[..., :2] + size / 2, size], -1)),
    ):
        metric = metrics.average_precision(form=form)  # type: ignore[arg-type]
        assert value(metric, {"boxes": boxes, "scores": SCORES}, LABELS) == pytest.approx(AVERAGE_PRECISION)
    rows = np.concatenate([BOXES, SCORES[..., None], np.zeros((2, 3, 1))], -1)
    metric = metrics.average_precision(boxes="y", scores=None)
    assert value(metric, rows, LABELS) == pytest.approx(AVERAGE_PRECISION)
    kept = [part[part[:, 4] > 0] for part in rows]
    calls = Answers({"y": np.concatenate(kept)}, {"y": None}, samples=2, counts={"y": [3, 2]}, calls=2)
    assert value(metric, calls, LABELS) == pytest.approx(AVERAGE_PRECISION)
    with pytest.raises(DataError, match="which rows are of which image"):
        value(metric, Answers({"y": np.concatenate(kept)}, {"y": None}, samples=2), LABELS)


def test_a_box_of_another_class_is_wrong() -> None:
    outputs = {"boxes": BOXES, "scores": SCORES, "kind": np.array([[0, 1, 0], [0, 0, 0]])}
    # 0.95 wrong, 0.9 right, 0.7 wrong, 0.6 right, of 3: precision 0, 1/2, 1/3, 2/4.
    expected = (1 / 2 + 1 / 2) / 3
    assert value(metrics.average_precision(classes="kind"), outputs, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "words"),
    [
        (metrics.top1(), np.zeros((4, 1)), np.zeros(4, int), "two classes at least.*'binary'"),
        (metrics.top1(), np.zeros((4, 3)), np.array([1, 2, 3, 3]), r"2 of 4 labels.*from 1 to 3.*0 to 2.*pass labels - 1"),
        (metrics.top1(), np.zeros((4, 3)), np.array([0, -1, 2, 2]), "1 of 4 labels name no class"),
        (metrics.top1(), np.zeros((4, 3)), np.zeros(4), "integer labels"),
        (metrics.token_top1(), np.zeros((2, 3, 4)), np.full((2, 3), 4), "6 of 6 labels"),
        (metrics.token_top1(), np.zeros((2, 3)), np.zeros((2, 3), int), "token-top-1 needs"),
        (metrics.token_top1(), np.zeros((1, 3, 4)), np.full((1, 3), -100), "no token to judge"),
        (metrics.perplexity(), np.zeros((1, 3, 4)), np.full((1, 3), 4), "3 of 3 labels"),
        (metrics.binary(), np.zeros((4, 2)), np.zeros(4, int), "binary needs one score"),
        (metrics.binary(), np.zeros((4, 1)), np.array([0, 1, 2, 1]), "needs labels 0 and 1; got labels 0, 1, 2"),
        (metrics.multi_label(), np.zeros((4, 2)), np.zeros(4, int), "multi-label needs"),
        (metrics.mse(), np.zeros((4, 2)), np.zeros(4), "mse needs outputs and labels of one shape"),
        (metrics.mae(), np.zeros(2), np.array([0, np.nan]), "NaN or infinite"),
        (metrics.r2(), np.zeros(2), np.ones(2), "spread of the labels"),
        (metrics.cosine(), np.zeros((2, 3)), np.zeros(2), "cosine needs"),
        (metrics.recall_at_1(), np.zeros((2, 3)), np.zeros((2, 3), int), "recall@1 needs"),
        (metrics.recall_at_1(), np.zeros((2, 3)), np.arange(2), "All 2 labels differ"),
        (metrics.mean_iou(), np.zeros((2, 3, 4, 4)), np.zeros((2, 8, 8), int), "resize one to the other"),
        (metrics.mean_iou(), np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 3), "32 of 32 labels"),
        (metrics.mean_iou(), np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 255), "no pixel to judge"),
        (metrics.mean_iou(), np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4)), "integer labels"),
        (metrics.average_precision(boxes="y", scores=None), np.zeros((2, 3, 4)), LABELS, "without scores="),
        (metrics.average_precision(boxes="y", scores="y"), np.zeros((2, 3, 4)), LABELS, "as many boxes"),
        (metrics.average_precision(boxes="y", scores=None), np.zeros((3, 3, 6)), LABELS, "2 images on axis 0"),
        (metrics.average_precision(boxes="z"), np.zeros((2, 3, 6)), LABELS, "no output 'z'"),
        (metrics.average_precision(), np.zeros((2, 3, 6)), LABELS[0], r"labels \(N, M, 5\)"),
        (metrics.average_precision(boxes="y", scores=None), np.zeros((2, 3, 6)), LABELS * 0 - 1, "No label holds a box"),
    ],
)  # fmt: skip
def test_what_a_metric_is_not_made_for_is_refused(metric: Any, outputs: Any, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        value(metric, outputs, labels)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="scores is 'sigmoid'"):
        metrics.binary(scores="sigmoid")  # type: ignore[arg-type]
    for options in ({"iou": 0}, {"form": "yxyx"}):
        with pytest.raises(ValueError, match="xyxy, xywh or cxcywh"):
            metrics.average_precision(**options)  # type: ignore[arg-type]


def test_metrics_are_remembered_with_all_that_they_depend_on() -> None:
    made = [make() for make in metrics.NAMED.values()]
    made += [
        metrics.top1("a"),
        metrics.binary(scores="logit"),
        metrics.mean_iou(ignored=None),
        metrics.average_precision(0.75),
    ]
    known = [metrics.identity(metric) for metric in made]
    assert None not in known and len(set(known)) == len(known)
