"""From token ids to a decoder's inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_llama import VOCABULARY

from workbench import datasets, llm
from workbench.datasets.metrics import perplexity
from workbench.errors import DataError
from workbench.llm import feeding
from workbench.llm.loading import LanguageModel
from workbench.measuring import answers as checking
from workbench.records import Engine

WINDOWS = np.random.default_rng(0).integers(0, VOCABULARY, (6, 16))


def windows(tokens: np.ndarray = WINDOWS) -> datasets.Dataset:
    return replace(datasets.arrays(tokens, tokens, metric=perplexity()), name="windows")


def test_prompts_are_padded_at_the_front_and_positions_count_tokens_only() -> None:
    batch = feeding.batch([(5, 6, 7), (9,)])
    assert batch.tokens.tolist() == [[5, 6, 7], [0, 0, 9]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("prompts", [[], [()], [(1,), ()]])
def test_no_prompt_or_an_empty_one_is_refused(prompts: list[tuple[int, ...]]) -> None:
    with pytest.raises(DataError, match="at least one token"):
        feeding.batch(prompts)


def test_feeds_of_a_decode_step_have_a_filled_cache_and_the_next_position(language: LanguageModel) -> None:
    fed = llm.feeds(language.layout, np.array([[3], [4]]), past=10)
    assert fed["attention_mask"].shape == (2, 11)
    assert fed["position_ids"].tolist() == [[10], [10]]
    assert all(fed[name].shape == (2, 2, 10, 8) and fed[name].any() for name in language.layout.past)


def test_a_dataset_of_windows_goes_through_the_ordinary_check(language: LanguageModel, engine: Engine) -> None:
    data = llm.dataset(language, windows()).bound_to(language.model)
    found = checking.check(engine, engine, data, batch=4)
    assert found.metric == "perplexity"
    assert len(found.scores) == 6
    assert found.scores == found.parent_scores


def test_ids_outside_the_vocabulary_are_refused_with_the_id(language: LanguageModel) -> None:
    wrong = WINDOWS.copy()
    wrong[2, 3] = VOCABULARY
    with pytest.raises(DataError, match=rf"token id {VOCABULARY}; .* has {VOCABULARY} ids \(0 to {VOCABULARY - 1}\)"):
        llm.dataset(language, windows(wrong))
    wrong[2, 3] = -1
    with pytest.raises(DataError, match="token id -1"):
        llm.dataset(language, windows(wrong))


def test_windows_that_are_no_token_ids_or_too_long_are_refused(language: LanguageModel) -> None:
    with pytest.raises(DataError, match="expected integer token ids"):
        llm.dataset(language, replace(windows(), evaluation=datasets.Split({"": WINDOWS.astype(np.float32)})))
    with pytest.raises(DataError, match=r"shape \(6, 4, 4\)"):
        llm.dataset(language, replace(windows(), evaluation=datasets.Split({"": WINDOWS.reshape(6, 4, 4)})))
    with pytest.raises(DataError, match=r"needs 129 tokens; .* takes 128 at most"):
        llm.dataset(language, windows(np.zeros((2, 129), np.int64) + np.arange(2)[:, None]))
    two = datasets.Split({"a": WINDOWS, "b": WINDOWS})
    with pytest.raises(DataError, match="have one, token ids"):
        llm.dataset(language, replace(windows(), evaluation=two))
