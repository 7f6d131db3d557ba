"""Quality read through the cache: a parent is itself, windows say what whole-window graphs say, a coarse cache costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_llama import VOCABULARY

from workbench import datasets, llm
from workbench.datasets.metrics import perplexity
from workbench.errors import DataError
from workbench.llm import GraphSize, fidelity

TOKENS = np.random.default_rng(1).integers(1, VOCABULARY, (6, 16))


@pytest.fixture(scope="module")
def windows() -> datasets.Dataset:
    return replace(datasets.arrays(TOKENS, TOKENS, metric=perplexity()), name="random words")


def test_text_read_through_an_exact_cache_has_the_loss_of_whole_windows(
    slot_model, slot_engines, windows, language, engine
) -> None:
    found = llm.slots_quality(slot_model, slot_engines, slot_engines, windows, prompts=[(3, 4)], new_tokens=6, slots=4)
    assert set(found.agreement) == {1.0} and set(found.divergence) == {0.0}
    assert (found.match, found.match_tokens) == ((6,), 6)
    whole = fidelity.quality(language, engine, engine, llm.dataset(language, windows))
    # Losses near 5 nats; FP32 sums in another order.
    np.testing.assert_allclose(found.loss, whole.loss, atol=1e-4)


def test_a_cache_in_8_bits_is_compared_window_by_window(slot_model, slot_engines, windows, folder, store) -> None:
    model = llm.load_slots(folder, cache="int8", samples=TOKENS, store=store)
    coded = llm.build_slots(model, store=store)
    found = llm.slots_quality(slot_model, coded, slot_engines, windows)
    assert len(found.loss) == len(found.divergence) == 6 and found.match == () and found.match_tokens == 0
    # Eight bits a key change the loss of this net by well under a tenth of a nat, and every window's a little.
    np.testing.assert_allclose(found.loss, found.parent_loss, atol=0.1)
    assert min(found.divergence) > 0 and found.perplexity_change.words


def test_windows_that_do_not_fit_are_named(slot_model, slot_engines, windows, folder, store) -> None:
    def compare(data: datasets.Dataset, engines=slot_engines) -> None:
        llm.slots_quality(slot_model, engines, engines, data)

    with pytest.raises(DataError, match="has no labels"):
        compare(replace(windows, evaluation=replace(windows.evaluation, labels=None)))
    with pytest.raises(DataError, match="61"):
        compare(replace(windows, evaluation=replace(windows.evaluation, labels=TOKENS + 60)))
    with pytest.raises(DataError, match="takes 128 at most"):
        compare(replace(windows, evaluation=replace(windows.evaluation, labels=np.tile(TOKENS, 9))))
    short = llm.load_slots(folder, [GraphSize("prefill", 1, 4), GraphSize("step", 2, 8)], store=store)
    with pytest.raises(DataError, match="have 16 tokens, and the longest cache has 8 columns"):
        compare(windows, llm.build_slots(short, store=store))
