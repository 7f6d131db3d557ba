from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rounds import measurement

from workbench.errors import CompareError
from workbench.judging import statistics
from workbench.judging.accuracy import agreeing
from workbench.judging.comparison import compare, compare_studies, unlike
from workbench.judging.pareto import undominated
from workbench.recipes import NAMED
from workbench.records import (
    Accuracy,
    Engine,
    Failure,
    Measurement,
    Model,
    Origin,
    Protocol,
    StudyRecord,
    VariantResult,
)

ROUNDS = 8
SAMPLES = 400


def result(
    name: str, seconds: float, wrong: int = 0, *, turn: int = 0, bytes_: int = 1000, **changes: Any
) -> VariantResult:
    """Return a result whose rounds scatter by 0.5 %, with the first `wrong` of 400 answers wrong."""
    luck = np.exp(np.random.default_rng(turn).normal(0, 0.005, ROUNDS))
    record = measurement(seconds * luck, variant=name, turn=turn, **changes)
    engine = Engine(name, name, "all", record.backend, "1", record.device, "x.onnx", (), (), 0.1, bytes_)
    return VariantResult(NAMED[name], engine=engine, measurement=record, accuracy=answers(name, wrong))


def answers(name: str, wrong: int, **changes: Any) -> Accuracy:
    scores = tuple(0.0 if index < wrong else 1.0 for index in range(SAMPLES))
    guesses = tuple(1 if index < wrong else 0 for index in range(SAMPLES))
    plain = Accuracy(name, name, "onnxruntime-cpu", SAMPLES, "digits", "shipped", "data")
    labelled = replace(plain, metric="top-1", scores=scores, parent_scores=(1.0,) * SAMPLES)
    return replace(labelled, **{"predictions": guesses, "parent_predictions": (0,) * SAMPLES, **changes})


FP32 = result("fp32", 2e-3)


def test_a_candidate_gets_ratio_change_agreement_and_size() -> None:
    comparison = compare(FP32, [result("int8-kl", 1e-3, 20, turn=1, bytes_=270)])
    row = comparison["int8-kl"]
    assert row.ratio is not None and row.ratio.verdict == "faster" and row.ratio.value == pytest.approx(2.0, rel=0.02)
    assert row.change is not None and row.change.verdict == "worse"
    assert row.agreement is not None and row.agreement.value == 0.95
    assert row.size_ratio == 0.27 and row.notes == ()


def test_the_baseline_is_the_first_row_and_has_no_ratio_with_itself() -> None:
    comparison = compare(FP32, [result("fp16", 2.5e-3, turn=1)])
    first = comparison.rows[0]
    assert (comparison.baseline, first.variant, first.ratio, first.size_ratio) == ("fp32", "fp32", None, 1.0)


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean 'fp16'"):
        compare(FP32, [result("fp16", 2.5e-3, turn=1)])["fp61"]


def test_the_front_drops_what_is_slower_without_better_answers() -> None:
    fast_worse, slow_worse = result("int8-kl", 1e-3, 20, turn=1), result("int8-max", 1.5e-3, 60, turn=2)
    comparison = compare(FP32, [fast_worse, slow_worse])
    assert comparison.front == ("fp32", "int8-kl") and comparison.quality == "score"


def test_answers_that_are_not_distinguishable_count_as_equal_on_the_front() -> None:
    one_flip = result("int8-kl", 1e-3, 1, turn=1)
    assert compare(FP32, [one_flip]).front == ("int8-kl",)


def test_latencies_that_are_not_distinguishable_count_as_equal_on_the_front() -> None:
    same_speed_worse, same = result("int8-kl", 2e-3, 60, turn=1), result("fp32-basic", 2e-3, 0, turn=2)
    assert compare(FP32, [same_speed_worse, same]).front == ("fp32", "fp32-basic")


@pytest.mark.parametrize(
    ("beats", "front"),
    [
        ({0: {1}, 1: set(), 2: set()}, {0, 2}),
        ({0: {1}, 1: {2}, 2: {0}}, {0, 1, 2}),
        ({0: {1}, 1: {2}, 2: {0}, 3: {1}}, {3}),
        ({0: {1}, 1: {2}, 2: {0, 3}, 3: set()}, {0, 1, 2}),
    ],
)
def test_variants_that_dominate_each_other_in_a_circle_stay_or_go_together(
    beats: dict[int, set[int]], front: set[int]
) -> None:
    assert undominated(list(beats), lambda one, other: other in beats[one]) == front


@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.integers(-1, 1), min_size=n * n, max_size=n * n)))
def test_what_is_found_by_few_questions_is_what_following_every_pair_finds(verdicts: list[int]) -> None:
    count = math.isqrt(len(verdicts))
    beats: dict[int, set[int]] = {item: set() for item in range(count)}
    for one, other in itertools.combinations(range(count), 2):
        winner, loser = (one, other) if verdicts[one * count + other] > 0 else (other, one)
        if verdicts[one * count + other]:
            beats[winner].add(loser)
    assert undominated(list(beats), lambda one, other: other in beats[one]) == following_every_pair(beats)


def following_every_pair(beats: dict[int, set[int]]) -> set[int]:
    """What no other item reaches by beating, unless it reaches that too."""
    reach = {item: set(found) for item, found in beats.items()}
    for middle, one in itertools.product(beats, beats):
        if middle in reach[one]:
            reach[one] |= reach[middle]
    return {item for item in beats if all(item not in reach[other] or other in reach[item] for other in beats)}


@pytest.mark.parametrize(
    "kind", ["right or wrong", "values, less is better", "agreement", "sqnr", "few rounds", "no turns"]
)
@pytest.mark.parametrize("seed", [3, 4])
def test_the_front_of_many_is_what_comparing_every_pair_by_itself_gives(kind: str, seed: int) -> None:
    """The shortcuts of a front of many (signs before intervals, few resamples, no needless pair) change no verdict."""
    random = np.random.default_rng(seed)
    names = [name for name in NAMED if name != "fp32"][:14]
    many = [result("fp32", 2e-3)] + [
        result(name, 2e-3 * (1 + 0.004 * random.integers(-4, 4)), int(random.integers(0, 4) * 6), turn=place)
        for place, name in enumerate(names, 1)
    ]
    many = [changed(item, kind, random, place) for place, item in enumerate(many)]
    beats: dict[int, set[int]] = {place: set() for place in range(len(many))}
    for one, other in itertools.permutations(range(len(many)), 2):
        ratio = statistics.ratio(many[other].measurement, many[one].measurement)
        faster = {"faster": 1, "slower": -1, "no interval": (ratio.value > 1) - (ratio.value < 1)}.get(ratio.verdict, 0)
        better = better_by_itself(many[one].accuracy, many[other].accuracy, kind)
        if max(faster, better) > 0 and min(faster, better) >= 0:
            beats[one].add(other)
    expected = {many[place].recipe.name for place in following_every_pair(beats)}
    assert set(compare(many[0], many[1:]).front) == expected
    assert 0 < len(expected) < len(many)


def changed(item: VariantResult, kind: str, random: np.random.Generator, place: int) -> VariantResult:
    check, measured = item.accuracy, item.measurement
    assert check is not None and measured is not None
    if kind == "values, less is better":
        values = tuple(random.normal(1 + 0.1 * (place % 5), 0.5, SAMPLES))
        check = replace(check, metric="error", scores=values, higher_is_better=False)
    if kind in ("agreement", "sqnr"):
        check = replace(check, metric=None, scores=(), parent_scores=())
    if kind == "sqnr":
        check = replace(check, predictions=(), parent_predictions=(), sqnr_db={"y": float(random.integers(10, 20))})
    if kind == "few rounds":
        measured = replace(measured, rounds=measured.rounds[:2])
    if kind == "no turns":
        rounds = tuple(replace(one, started_at=one.started_at + 1e6 * place) for one in measured.rounds)
        measured = replace(measured, rounds=rounds)
    return replace(item, accuracy=check, measurement=measured)


def better_by_itself(ours: Accuracy, theirs: Accuracy, kind: str) -> int:
    if kind == "sqnr":
        return int(np.sign(ours.sqnr_db["y"] - theirs.sqnr_db["y"]))
    scores = [np.array(agreeing(check) if kind == "agreement" else check.scores) for check in (ours, theirs)]
    change = statistics.score_change(*scores, higher_is_better=kind != "values, less is better")
    return {"better": 1, "worse": -1}.get(change.verdict, 0)


def test_without_labels_agreement_with_the_parent_is_the_axis() -> None:
    def unlabelled(item: VariantResult) -> VariantResult:
        assert item.accuracy is not None
        return replace(item, accuracy=replace(item.accuracy, metric=None, scores=(), parent_scores=()))

    candidates = [unlabelled(result("int8-kl", 1e-3, 60, turn=1)), unlabelled(result("int8-max", 1e-3, 10, turn=2))]
    comparison = compare(unlabelled(FP32), candidates)
    assert comparison.quality == "agreement" and comparison.front == ("fp32", "int8-max")
    assert comparison["int8-kl"].change is None


def test_without_class_scores_the_worst_output_decides() -> None:
    def distances(item: VariantResult, decibels: float | None) -> VariantResult:
        plain = Accuracy(
            item.recipe.name, "v", "cpu", SAMPLES, "noise", "random", "data", sqnr_db={"y": decibels, "z": 90.0}
        )
        return replace(item, accuracy=plain)

    candidates = [distances(result("int8-kl", 1e-3, turn=1), 20.0), distances(result("int8-max", 1e-3, turn=2), 30.0)]
    comparison = compare(distances(FP32, None), candidates)
    assert comparison.quality == "sqnr" and comparison.front == ("fp32", "int8-max")


def test_without_any_check_of_answers_the_front_is_the_fastest() -> None:
    comparison = compare(replace(FP32, accuracy=None), [replace(result("fp16", 3e-3, turn=1), accuracy=None)])
    assert comparison.quality == "none" and comparison.front == ("fp32",)


def test_a_score_of_the_whole_set_is_compared_by_its_value() -> None:
    def whole(item: VariantResult, score: float) -> VariantResult:
        assert item.accuracy is not None
        return replace(item, accuracy=replace(item.accuracy, scores=(score,), parent_scores=(0.9,)))

    comparison = compare(whole(FP32, 0.9), [whole(result("int8-kl", 1e-3, turn=1), 0.7)])
    assert comparison.front == ("fp32", "int8-kl")


def test_one_round_draws_the_front_from_single_values_and_says_so() -> None:
    def single(item: VariantResult) -> VariantResult:
        assert item.measurement is not None
        return replace(item, measurement=replace(item.measurement, rounds=item.measurement.rounds[:1]))

    comparison = compare(single(FP32), [single(result("fp16", 3e-3, turn=1))])
    assert comparison.front == ("fp32",) and "few rounds for intervals" in comparison.notes[0]
    row = comparison["fp16"]
    assert row.ratio is not None and row.ratio.verdict == "no interval"


def test_a_failed_variant_has_a_row_with_its_reason() -> None:
    failed = VariantResult(NAMED["int8-kl"], failure=Failure("int8-kl", "build", "BuildError", "no kernel for Foo"))
    row = compare(FP32, [failed])["int8-kl"]
    assert (row.ratio, row.change, row.on_front) == (None, None, None)
    assert row.notes == ("int8-kl failed at build: no kernel for Foo",)


def test_a_variant_without_measurement_is_named() -> None:
    waiting = replace(result("fp16", 1e-3, turn=1), measurement=None)
    assert compare(FP32, [waiting])["fp16"].notes == ("fp16 was not measured.",)


def test_a_baseline_without_measurement_is_refused_with_the_reason() -> None:
    failed = VariantResult(NAMED["fp32"], failure=Failure("fp32", "build", "BuildError", "no kernel for Foo"))
    with pytest.raises(CompareError, match="it failed at build: no kernel for Foo"):
        compare(failed, [FP32])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "NVIDIA H200"}, "device 'Example CPU (2 cores)' against 'NVIDIA H200'"),
        ({"backend": "tensorrt"}, "backend 'onnxruntime-cpu' against 'tensorrt'"),
        ({"shapes": {"image": (1, 1, 32, 32)}}, "(8, 1, 32, 32)"),
        ({"environment": {"threads": 2}}, "threads 1 against 2"),
        ({"protocol": Protocol(boundary="end_to_end")}, "boundary 'compute' against 'end_to_end'"),
        ({"protocol": Protocol(batch=1)}, "batch 8 against 1"),
        ({"protocol": Protocol(cuda_graph=True)}, "cuda_graph False against True"),
    ],
)
def test_unlike_conditions_are_refused_naming_both_values(changes: dict[str, Any], words: str) -> None:
    other = result("fp16", 1e-3, turn=1, **changes)
    with pytest.raises(CompareError) as caught:
        compare(FP32, [other])
    assert words in str(caught.value) and "allow_unlike=True" in str(caught.value)
    row = compare(FP32, [other], allow_unlike=True)["fp16"]
    assert row.ratio is not None and words in row.notes[0]


def test_rounds_and_seconds_of_a_protocol_do_not_make_measurements_unlike() -> None:
    assert FP32.measurement is not None
    longer: Measurement = replace(FP32.measurement, protocol=Protocol(rounds=20, min_seconds=2.0, seed=3))
    assert unlike(FP32.measurement, longer) == {}


def test_accuracy_on_other_data_gives_no_change() -> None:
    other = replace(result("fp16", 1e-3, turn=1), accuracy=answers("fp16", 0, data_sha256="other"))
    row = compare(FP32, [other])["fp16"]
    assert row.change is None and "checked on other data" in row.notes[0]


def test_another_metric_gives_no_change() -> None:
    other = replace(result("fp16", 1e-3, turn=1), accuracy=answers("fp16", 0, metric="top-5"))
    assert "has the metric top-5, the baseline top-1" in compare(FP32, [other])["fp16"].notes[0]


def test_rounds_of_another_time_are_named() -> None:
    late = replace(result("fp16", 1e-3, turn=1), measurement=measurement([1e-3, 1.01e-3, 0.99e-3], offset_seconds=1e5))
    row = compare(FP32, [late])["fp16"]
    assert row.ratio is not None and not row.ratio.paired and "were not measured in turns" in row.notes[0]


def study(name: str, results: list[VariantResult], model: str = "digits_resnet", sha256: str = "m") -> StudyRecord:
    origin = Origin("onnx", "m.onnx")
    record = Model(model, "m.onnx", sha256, 10, 17, (), (), origin, 1, {})
    return StudyRecord(name, 0.0, record, "onnxruntime-cpu", "asked", Protocol(), "fp32", tuple(results))


def test_studies_are_compared_variant_by_variant() -> None:
    before = study("before", [FP32, result("fp16", 3e-3, turn=1)])
    after = study("after", [result("fp32", 1e-3, turn=1), result("int8-kl", 1e-3, turn=2)], sha256="other")
    comparison = compare_studies(before, after)
    assert [row.variant for row in comparison.rows] == ["fp32"]
    ratio = comparison["fp32"].ratio
    assert ratio is not None and ratio.value == pytest.approx(2.0, rel=0.02)
    assert comparison.front == ()
    assert comparison.notes[:2] == ("Only 'before' has 'fp16'.", "Only 'after' has 'int8-kl'.")
    assert comparison.notes[2].startswith("The models differ")


def test_studies_without_a_common_variant_are_refused() -> None:
    with pytest.raises(CompareError, match="share no variant: fp32 against fp16"):
        compare_studies(study("a", [FP32]), study("b", [result("fp16", 1e-3)]))


def test_studies_of_other_models_are_refused_unless_asked() -> None:
    pair = study("a", [FP32]), study("b", [result("fp32", 1e-3, turn=1)], model="digits_vit")
    with pytest.raises(CompareError, match="model 'digits_resnet' against 'digits_vit'"):
        compare_studies(*pair)
    allowed = compare_studies(*pair, allow_unlike=True)
    assert allowed["fp32"].ratio is not None and "model 'digits_resnet' against 'digits_vit'" in allowed.notes[0]
