from __future__ import annotations

import pytest

from workbench.errors import RecipeError
from workbench.recipes import NAMED, Fuse, Precision, Quantize, QuantizeWeights, Recipe, SmoothQuant, Sparsify, named


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'int8-kl'"):
        named("int8kl")


@pytest.mark.parametrize("given", [8, Fuse(), None])
def test_what_is_neither_a_name_nor_a_recipe_is_refused(given: object) -> None:
    with pytest.raises(RecipeError, match=f"got a {type(given).__name__}"):
        named(given)  # type: ignore[arg-type]


def test_a_recipe_object_passes_through() -> None:
    recipe = Recipe("mine", (Fuse("off"),))
    assert named(recipe) is recipe
    assert recipe.fusion == "off"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fuse("most"), "Fuse.level is 'most'; allowed: off, basic, all"),
        (lambda: Precision("fp12"), "Precision.to is 'fp12'"),
        (lambda: Quantize(calibrator="entropie"), "Quantize.calibrator"),
        (lambda: Quantize(samples=0), "at least 1"),
        (lambda: Quantize(exclude=("(",)), "no regular expression"),
        (lambda: QuantizeWeights("int4", block_size=20), "power of two"),
        (lambda: SmoothQuant(alpha=1.5), r"\[0, 1\]"),
        (lambda: Sparsify("1:4"), "Sparsify.pattern"),
        (lambda: Sparsify(method="random"), "Sparsify.method"),
        (lambda: Quantize(exclude="head"), r"the string 'head'; .* one as \('head',\)"),
        (lambda: Quantize(op_types="MatMul"), "op_types is the string 'MatMul'"),
        (lambda: Recipe(""), "name is empty"),
        (lambda: Recipe("name", ("fp16",)), "pass a tuple of Fuse, Precision"),
        (lambda: Recipe("bare", Fuse()), "pass a tuple of Fuse, Precision"),
        (lambda: Recipe("twice", (Fuse(), Fuse())), "each at most once"),
        (lambda: Recipe("order", (Quantize(), Fuse())), "in the order"),
    ],
)
def test_nonsense_is_refused_when_it_is_written_down(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_only_static_quantization_and_smoothing_need_calibration() -> None:
    needing = {name for name, recipe in NAMED.items() if recipe.needs_calibration}
    assert "int8-kl" in needing and "int8-smooth" in needing and "fp8" in needing
    assert not needing & {"fp32", "fp16", "int8-dynamic", "int4-weights", "sparse-2:4"}
    profiting = {name for name, recipe in NAMED.items() if recipe.uses_samples}
    assert profiting >= {"fp16", "sparse-2:4", "sparse-2:4-fp16", "sparse-2:4-int8"}
    assert not profiting & {"fp32", "int8-kl"} and not Recipe("bare", (Sparsify(method="magnitude"),)).uses_samples


def test_excluding_adds_patterns_to_every_step_that_has_them() -> None:
    recipe = NAMED["int8-kl-fp16"].excluding("head", name="mixed")
    assert recipe.name == "mixed"
    assert [getattr(step, "exclude", None) for step in recipe.steps] == [None, ("head",), ("head",)]
    assert NAMED["int8-kl-fp16"].step("quantize").exclude == ()
