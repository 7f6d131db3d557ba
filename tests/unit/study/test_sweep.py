"""From toggles to recipes, and how long they will take."""

from __future__ import annotations

import pytest

from workbench.recipes import NAMED, Precision, Quantize
from workbench.records import Progress, Protocol
from workbench.study import estimate, sweep
from workbench.study.estimate import Pace
from workbench.study.sweep import Toggles


def names(**toggles: object) -> list[str]:
    return [recipe.name for recipe in sweep.recipes(Toggles(**toggles))]


def test_the_default_toggles_make_the_baseline() -> None:
    assert sweep.recipes(Toggles()) == (NAMED["fp32"],)


def test_known_recipes_get_their_known_names() -> None:
    found = sweep.recipes(Toggles(precisions=("fp32", "fp16"), quantizations=("none", "int8")))
    assert [recipe.name for recipe in found] == ["fp32", "int8-kl", "fp16", "int8-kl-fp16"]
    assert all(NAMED[recipe.name] == recipe for recipe in found)


def test_a_sweep_is_the_product_of_what_was_chosen() -> None:
    found = names(quantizations=("int8",), calibrators=("kl", "max"), samples=(64, None), per_channel=(True, False))
    assert len(found) == len(set(found)) == 2 * 2 * 2
    assert "int8-max-n64-per-tensor" in found


def test_toggles_that_make_no_difference_make_no_recipe() -> None:
    assert names(quantizations=("int8-dynamic",), calibrators=("kl", "max"), samples=(64, None)) == ["int8-dynamic"]


def test_every_recipe_of_a_large_sweep_has_a_name_of_its_own() -> None:
    found = names(
        fusions=("all", "basic", "off"),
        precisions=("fp32", "fp16", "bf16"),
        quantizations=sweep.QUANTIZATIONS,
        calibrators=("kl", "max", "mse"),
        sparse=(False, True),
    )
    assert len(found) == len(set(found)) == 3 * 3 * 2 * (4 + 3 * 3)


def test_left_out_layers_are_in_every_step_and_in_the_name() -> None:
    (plain, quantized) = sweep.recipes(Toggles(quantizations=("none", "int8"), excluded=("^/head/Gemm$",)))
    assert plain.name == "fp32", "a recipe without steps to exclude from stays what it is"
    assert quantized.name.startswith("int8-kl-without1-")
    assert quantized.step("quantize").exclude == ("^/head/Gemm$",)
    (other,) = sweep.recipes(Toggles(quantizations=("int8",), excluded=("^/first/Gemm$",)))
    assert other.name != quantized.name


@pytest.mark.parametrize(("text", "counts"), [("64, 256, all", (64, 256, None)), ("", (None,)), ("8,8", (8,))])
def test_sample_counts_are_read_from_text(text: str, counts: tuple[int | None, ...]) -> None:
    assert sweep.parse_samples(text) == counts


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5"])
def test_what_is_no_sample_count_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as: 64, 256, all"):
        sweep.parse_samples(text)


def test_a_recipe_is_described_in_a_line() -> None:
    (recipe,) = sweep.recipes(Toggles(quantizations=("int8",), precisions=("fp16",), samples=(64,)))
    assert sweep.describe(recipe) == "fused; INT8, kl, 64 samples, weights per channel; FP16"
    assert {type(step) for step in recipe.steps} >= {Quantize, Precision}


def test_the_estimate_grows_with_variants_and_rounds_and_follows_what_was_seen() -> None:
    protocol = Protocol(rounds=2, min_seconds=1.0, warmup_seconds=0.5)
    seen = Pace(answer_seconds=4.0, round_overhead_seconds=0.5)
    assert estimate.study_seconds(3, protocol, seen) == pytest.approx(3 * (4.0 + 2 * (0.5 + 1.5)))
    assert not Pace().is_seen and seen.is_seen


def test_the_pace_counts_what_took_time_and_not_what_the_store_had() -> None:
    protocol = Protocol(rounds=2, min_seconds=1.0, warmup_seconds=0.5)
    ticks = [
        (0.0, Progress("transform", "fp32", 0.0)),
        (0.01, Progress("build", "fp32", 0.1)),  # the variant was in the store
        (2.01, Progress("check", "fp32", 0.2)),
        (5.01, Progress("measure", "fp32", 0.3)),
        (7.01, Progress("finished", "", 1.0)),
    ]
    assert estimate.pace(ticks, protocol) == Pace(pytest.approx(5.0), pytest.approx(0.5))
    assert estimate.pace(ticks[:1], protocol) == Pace()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "less than 1 s"), (12.4, "12 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_said_as_roughly_as_they_are_known(seconds: float, words: str) -> None:
    assert estimate.words(seconds) == words
