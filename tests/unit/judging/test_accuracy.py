from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from workbench import codec
from workbench.datasets.metrics import Metric, perplexity, top1
from workbench.errors import DataError
from workbench.judging import accuracy, distances
from workbench.judging.accuracy import Accumulator, agreement, compare_outputs, flips
from workbench.records import Accuracy

GENERATOR = np.random.default_rng(0)
PARENT = GENERATOR.normal(size=(50, 10)).astype(np.float32)
VARIANT = PARENT + GENERATOR.normal(0, 0.1, PARENT.shape).astype(np.float32)
LABELS = PARENT.argmax(-1)


def compare(ours: Any, theirs: Any, labels: Any = None, metric: Metric | None = None, **identity: Any) -> Accuracy:
    return compare_outputs({"logits": np.asarray(ours)}, {"logits": np.asarray(theirs)}, labels, metric, **identity)


def test_distances_have_their_textbook_values() -> None:
    record = compare([[3.0, 4.0], [0.0, 0.0]], [[3.0, 3.0], [0.0, 1.0]])
    assert record.sqnr_db["logits"] == pytest.approx(10 * np.log10(19 / 2))
    assert record.cosine["logits"] == pytest.approx(21 / np.sqrt(25 * 19))
    assert record.largest_error["logits"] == 1.0


def test_equal_outputs_have_no_error_and_no_ratio_to_it() -> None:
    record = compare(PARENT, PARENT)
    assert (record.sqnr_db, record.cosine, record.largest_error) == ({"logits": None}, {"logits": 1.0}, {"logits": 0.0})
    assert record.notes == () and len(flips(record)) == 0


def test_batches_give_the_same_record_as_all_at_once() -> None:
    whole = compare(VARIANT, PARENT, LABELS, top1())
    parts = Accumulator(top1())
    for rows in (slice(0, 7), slice(7, 40), slice(40, 50)):
        parts.update({"logits": VARIANT[rows]}, {"logits": PARENT[rows]}, LABELS[rows])
    record = parts.result()
    assert (record.scores, record.predictions, record.samples) == (whole.scores, whole.predictions, 50)
    # Sums of float64 in another order: a few units in the last place.
    assert record.sqnr_db["logits"] == pytest.approx(whole.sqnr_db["logits"], rel=1e-12)


def test_large_outputs_are_summed_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(VARIANT, PARENT)
    monkeypatch.setattr(distances, "_BLOCK_VALUES", 25)
    assert compare(VARIANT, PARENT).sqnr_db["logits"] == pytest.approx(whole.sqnr_db["logits"], rel=1e-12)


def test_scores_predictions_and_flips_go_sample_by_sample() -> None:
    ours = PARENT.copy()
    ours[[3, 30]] = -ours[[3, 30]]
    record = compare(ours, PARENT, LABELS, top1(), variant="int8", data_name="digits")
    assert list(flips(record)) == [3, 30]
    assert sum(record.scores) == 48 and sum(record.parent_scores) == 50
    share = agreement(record)
    assert share is not None and share.value == 0.96 and share.low is not None and share.low < 0.96
    assert (record.metric, record.unit, record.variant, record.data_name) == ("top-1", "share", "int8", "digits")
    assert codec.from_json(Accuracy, codec.to_json(record)) == record


def test_perplexity_of_a_language_model_is_kept_as_one_value_a_sample() -> None:
    logits = GENERATOR.normal(size=(4, 6, 11)).astype(np.float32)
    ids = GENERATOR.integers(0, 11, (4, 6))
    ours = logits.copy()
    ours[1, 2] = -ours[1, 2]
    record = compare(ours, logits, ids, perplexity())
    assert len(record.scores) == 4 and (record.display, record.higher_is_better) == ("exp_mean", False)
    assert len(record.predictions) == 24 and list(flips(record)) == [1]
    share = agreement(record)
    assert share is not None and share.value == pytest.approx(23 / 24)


def test_bfloat16_and_float16_outputs_are_compared() -> None:
    for kind in (ml_dtypes.bfloat16, np.float16):
        record = compare(PARENT.astype(kind), PARENT, LABELS, top1())
        assert record.sqnr_db["logits"] is not None and record.sqnr_db["logits"] > 40
        assert len(record.predictions) == 50


def test_nan_outputs_are_named_and_count_as_wrong() -> None:
    ours = PARENT.copy()
    ours[5, 2] = np.nan
    ours[9] = np.inf
    record = compare(ours, PARENT, LABELS, top1())
    assert record.notes[0].startswith("Output 'logits' of the variant is NaN or infinite in 2 of 50 samples")
    assert record.scores[5] == 0.0 and record.predictions[5] == accuracy.NO_PREDICTION and 5 in flips(record)
    assert record.sqnr_db == {"logits": None}, "the other samples are equal"


def test_a_variant_that_gives_only_nan_has_no_distance_and_crashes_nothing() -> None:
    record = compare(np.full_like(PARENT, np.nan), PARENT, LABELS, top1())
    assert (record.sqnr_db, record.cosine, record.largest_error) == ({}, {}, {})
    assert sum(record.scores) == 0 and len(flips(record)) == 50
    assert "50 of 50 samples" in record.notes[0]


def test_a_nan_of_the_parent_is_named_as_the_parents() -> None:
    theirs = PARENT.copy()
    theirs[0] = np.nan
    assert "of its parent is NaN or infinite in 1 of 50" in compare(PARENT, theirs).notes[0]


def test_scores_that_are_not_finite_are_named() -> None:
    logits = np.zeros((2, 3, 5), dtype=np.float32)
    ours = logits.copy()
    ours[0] = np.inf
    record = compare(ours, logits, np.zeros((2, 3), dtype=int), perplexity())
    assert "1 of 2 scores of the variant are not finite, so its score is unknown." in record.notes


def test_a_silent_parent_has_no_signal_to_noise_ratio() -> None:
    record = compare(np.ones((3, 4)), np.zeros((3, 4)))
    assert record.sqnr_db == {} and record.cosine == {"logits": 0.0}
    assert "all zero" in record.notes[0]


def test_random_inputs_claim_no_accuracy() -> None:
    record = compare(VARIANT, PARENT, LABELS, top1(), data_kind="random")
    assert record.metric is None and record.scores == () and record.notes[0].startswith("Random inputs: no accuracy")
    assert record.predictions and record.sqnr_db


def test_a_metric_without_a_value_a_sample_sees_all_samples_at_once() -> None:
    seen: list[int] = []

    def balanced(outputs: Any, labels: np.ndarray) -> float:
        seen.append(len(labels))
        right = outputs["logits"].argmax(-1) == labels
        return float(np.mean([right[labels == one].mean() for one in np.unique(labels)]))

    parts = Accumulator(Metric("balanced", balanced))
    for rows in (slice(0, 20), slice(20, 50)):
        parts.update({"logits": VARIANT[rows]}, {"logits": PARENT[rows]}, LABELS[rows])
    record = parts.result()
    assert record.parent_scores == (1.0,) and len(record.scores) == 1 and seen[-1] == 50


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (np.zeros((4, 3), np.float32), None, True),
        (np.zeros((4, 3), np.float32), np.zeros(4, int), True),
        (np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32), False),  # regression
        (np.zeros((4, 1), np.float32), None, False),
        (np.zeros((4, 3), np.int64), None, False),
        (np.zeros((4, 3, 8, 8), np.float32), None, False),
        (np.zeros((4, 20, 85), np.float32), np.zeros(4, int), False),  # boxes
    ],
)
def test_predictions_exist_where_the_first_output_holds_class_scores(values: Any, labels: Any, expected: bool) -> None:
    assert bool(compare(values, values, labels).predictions) is expected


def test_without_predictions_flips_are_the_samples_whose_right_became_wrong() -> None:
    exact = Metric("exact", lambda outputs, labels: (outputs["logits"][:, 0] > 0).astype(float))
    record = compare(np.array([[1], [-1], [1]]), np.array([[1], [1], [1]]), np.zeros(3), exact)
    assert list(flips(record)) == [1] and agreement(record) is None
    distance = Metric("distance", lambda outputs, labels: outputs["logits"][:, 0] * 0.5)
    assert len(flips(compare(np.ones((3, 1)), np.zeros((3, 1)), np.zeros(3), distance))) == 0


def test_outputs_that_are_no_numbers_are_named() -> None:
    outputs = {"logits": PARENT, "names": np.array(["a"] * 50)}
    record = compare_outputs(outputs, outputs)
    assert record.notes == ("Output 'names' holds <U1, not numbers: it was not compared.",)
    assert set(record.cosine) == {"logits"}


def test_an_output_without_axes_is_compared() -> None:
    record = compare_outputs({"loss": np.float32(2.0)}, {"loss": np.float32(1.0)})  # type: ignore[dict-item]
    assert record.largest_error == {"loss": 1.0} and record.samples == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"a": PARENT}, {"b": PARENT}, r"\['a'\] against \['b'\]"),
        ({}, {}, "at least one"),
        ({"a": PARENT}, {"a": PARENT[:5]}, r"\(50, 10\) in the variant and \(5, 10\)"),
    ],
)
def test_outputs_that_are_not_alike_are_refused(ours: Any, theirs: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Accumulator().update(ours, theirs)


def test_a_metric_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="'top-1' needs labels"):
        compare(PARENT, PARENT, None, top1())


def test_a_metric_that_breaks_says_on_what() -> None:
    broken = Metric("broken", lambda outputs, labels: outputs["missing"])
    with pytest.raises(
        DataError, match=r"'broken' failed with KeyError: 'missing'.*logits \(50, 10\) and labels \(50,\)"
    ):
        compare(PARENT, PARENT, LABELS, broken)


def test_a_metric_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"returned an array \(3,\) for 50 samples"):
        compare(PARENT, PARENT, LABELS, Metric("short", lambda outputs, labels: np.zeros(3)))


def test_no_samples_make_no_record() -> None:
    with pytest.raises(DataError, match="No samples were compared"):
        Accumulator().result()
