"""Quality of a variant beside its parent, and recipes fit for decoders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_llama import VOCABULARY, build

from workbench import datasets, llm
from workbench.datasets.metrics import perplexity
from workbench.errors import Cancelled, DataError, RecipeError
from workbench.llm import fidelity, lowering
from workbench.llm.loading import LanguageModel
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.recipes import Quantize, QuantizeWeights
from workbench.records import Engine
from workbench.transformation.steps import transform


@pytest.fixture(scope="module")
def data(language: LanguageModel) -> datasets.Dataset:
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, (6, 16))
    return llm.dataset(language, replace(datasets.arrays(tokens, tokens, metric=perplexity()), name="random words"))


@pytest.fixture(scope="module")
def int8(language: LanguageModel, store: Store) -> Engine:
    return build(language, store, lowering.recipe(language, "int8-dynamic"))


def test_a_parent_agrees_with_itself_in_everything(
    language: LanguageModel, engine: Engine, data: datasets.Dataset
) -> None:
    found = fidelity.quality(language, engine, engine, data, prompts=[(3, 4), (5,)], new_tokens=6)
    assert found.perplexity_ratio == 1
    assert set(found.agreement) == {1.0}
    assert set(found.divergence) == {0.0}
    assert found.match == (6, 6)
    assert found.perplexity_change.difference == 0


def test_a_lowered_variant_is_compared_window_by_window_and_answer_by_answer(
    language: LanguageModel, engine: Engine, int8: Engine, data: datasets.Dataset
) -> None:
    found = fidelity.quality(language, int8, engine, data, prompts=[(3, 4), (5,), (6, 7, 8)], new_tokens=8, batch=4)
    assert len(found.loss) == len(found.parent_loss) == len(found.divergence) == 6
    assert min(found.divergence) > 0
    assert found.perplexity is not None
    assert found.perplexity.low is not None
    # 8 bits change the loss of this net by well under a tenth of a nat.
    np.testing.assert_allclose(found.loss, found.parent_loss, atol=0.1)
    assert found.match_length is not None
    assert all(0 <= length <= 8 for length in found.match)
    assert found.next_token_agreement is not None
    assert found.kl_divergence is not None


def test_divergence_and_agreement_are_those_of_the_distributions() -> None:
    theirs = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]]], np.float32))
    ours = np.log(np.array([[[0.25, 0.75], [0.9, 0.1]]], np.float32))
    loss, parent, agreement, divergence = fidelity.compare_logits(ours, theirs, np.array([[0, 1]]))[:, 0]
    assert divergence == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2, abs=1e-6)  # FP32 logits
    assert agreement == 0.5
    assert (loss, parent) == (pytest.approx(-np.log(0.75), abs=1e-6), pytest.approx(-np.log(0.5), abs=1e-6))
    with pytest.raises(DataError, match="Feed both the same tokens"):
        fidelity.compare_logits(ours, theirs[:, :1], np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("first", "second", "length"), [((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 9, 3), 1), ((9,), (1,), 0)]
)
def test_answers_match_up_to_their_first_difference(first: tuple, second: tuple, length: int) -> None:
    assert fidelity.match_length(first, second) == length


def test_data_without_labels_and_a_cancelled_comparison_end_with_an_error(
    language: LanguageModel, engine: Engine, data: datasets.Dataset
) -> None:
    bare = replace(data, evaluation=replace(data.evaluation, labels=None))
    with pytest.raises(DataError, match="no labels"):
        fidelity.quality(language, engine, engine, bare)
    with pytest.raises(Cancelled):
        fidelity.quality(language, engine, engine, data, handle=Handle(cancelled=lambda: True))


def test_head_embeddings_and_attention_stay_high_unless_asked(language: LanguageModel, store: Store) -> None:
    def lowered(**asked: bool) -> tuple[set[str], set[str]]:
        chosen = lowering.recipe(language, "int8-dynamic", **asked)
        report = transform(language.model, chosen, store=store).reports[-1]
        modules = language.model.modules
        return {modules.get(name, name) for name in report.changed}, {
            modules.get(item.name, item.name) for item in report.skipped
        }

    changed, skipped = lowered()
    assert "lm_head" in skipped
    assert not any(name.endswith("self_attn") for name in changed)
    assert {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)} <= changed
    assert "lm_head" in lowered(head=True)[0]


def test_patterns_name_all_layers_at_once(language: LanguageModel) -> None:
    assert lowering.head_patterns(language) == ["^lm_head$"]
    assert lowering.attention_patterns(language) == [r"^model\.layers\.\d+\.self_attn$"]
    step = lowering.recipe(language, "int8-weights").steps[-1]
    assert isinstance(step, QuantizeWeights)
    assert step.exclude == ("^lm_head$", r"^model\.layers\.\d+\.self_attn$")
    asked = lowering.recipe(language, "int8-kl", head=True, attention=True, name="all").steps[-1]
    assert isinstance(asked, Quantize)
    assert asked.exclude == ()


def test_recipes_without_quantization_come_back_unchanged(language: LanguageModel) -> None:
    assert lowering.recipe(language, "fp16").steps == lowering.named("fp16").steps
    with pytest.raises(RecipeError, match="no recipe 'int7'"):
        lowering.recipe(language, "int7")
