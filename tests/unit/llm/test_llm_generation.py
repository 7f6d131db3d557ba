"""Generating with a cache that stays on the device."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_llama import VOCABULARY

from workbench import llm
from workbench.engines.decoding import Decoder
from workbench.errors import DataError
from workbench.llm.loading import LanguageModel

PROMPTS = [(5, 6, 7, 8, 9), (11,), (20, 21, 22)]


def test_a_batch_with_padding_gives_what_each_prompt_gives_alone(language: LanguageModel, decoder: Decoder) -> None:
    together = llm.generate(language, decoder, PROMPTS, new_tokens=20, stop=())
    alone = [llm.generate(language, decoder, [prompt], new_tokens=20, stop=()).tokens[0] for prompt in PROMPTS]
    assert list(together.tokens) == alone
    assert [len(tokens) for tokens in alone] == [20, 20, 20]


def test_greedy_generation_equals_that_of_transformers(language: LanguageModel, decoder: Decoder) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(language.folder, local_files_only=True)
    eager.generation_config.eos_token_id = None  # neither side may stop early
    ids = torch.tensor([PROMPTS[0]])
    wanted = eager.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    found = llm.generate(language, decoder, [PROMPTS[0]], new_tokens=12, stop=())
    assert list(found.tokens[0]) == wanted[0, len(PROMPTS[0]) :].tolist()


def test_a_stop_token_ends_its_own_sequence_and_leaves_the_others_unchanged(
    language: LanguageModel, decoder: Decoder
) -> None:
    free = llm.generate(language, decoder, PROMPTS, new_tokens=20, stop=()).tokens
    stop = free[0][3]
    stopped = llm.generate(language, decoder, PROMPTS, new_tokens=20, stop=[stop])
    for ours, theirs, ending in zip(stopped.tokens, free, stopped.endings, strict=True):
        wanted = theirs[: theirs.index(stop) + 1] if stop in theirs else theirs
        assert ours == wanted
        assert ending == ("stop" if stop in theirs else "length")


def test_sampling_repeats_with_its_seed_and_changes_with_another(language: LanguageModel, decoder: Decoder) -> None:
    def draw(seed: int) -> tuple[tuple[int, ...], ...]:
        sampling = llm.Sampling(1.5, top_k=40, top_p=0.95, seed=seed)
        return llm.generate(language, decoder, PROMPTS, new_tokens=12, stop=(), sampling=sampling).tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_text_goes_in_and_comes_out_and_tokens_are_reported_as_they_come(
    language: LanguageModel, decoder: Decoder
) -> None:
    seen: list[tuple[int, int]] = []
    found = llm.generate(
        language, decoder, ["w5 w6"], new_tokens=3, stop=(), on_token=lambda prompt, token: seen.append((prompt, token))
    )
    assert seen == [(0, token) for token in found.tokens[0]]
    assert found.texts[0] == language.decode(found.tokens[0])


def test_sequences_join_and_leave_between_steps_without_changing_each_other(decoder: Decoder) -> None:
    rng = np.random.default_rng(3)
    streams = {name: rng.integers(1, VOCABULARY, 30).tolist() for name in "abc"}

    def alone(name: str, prompt: int, steps: int) -> list[np.ndarray]:
        sequences = llm.Sequences(decoder)
        logits = [sequences.add([streams[name][:prompt]])]
        for token in streams[name][prompt : prompt + steps]:
            sequences.accept(np.array([token]))
            logits.append(sequences.step())
        return [row[0] for row in logits]

    wanted = {"a": alone("a", 4, 6), "b": alone("b", 9, 6), "c": alone("c", 2, 6)}
    sequences = llm.Sequences(decoder)
    found: dict[str, list[np.ndarray]] = {"a": list(sequences.add([streams["a"][:4]]))}

    def advance(order: str, prompts: dict[str, int]) -> None:
        done = {name: len(found[name]) - 1 for name in order}
        sequences.accept(np.array([streams[name][prompts[name] + done[name]] for name in order]))
        for name, row in zip(order, sequences.step(), strict=True):
            found[name].append(row)

    prompts = {"a": 4, "b": 9, "c": 2}
    for _ in range(3):
        advance("a", prompts)
    found["b"], found["c"] = ([row] for row in sequences.add([streams["b"][:9], streams["c"][:2]]))
    assert sequences.lengths.tolist() == [7, 9, 2]
    for _ in range(3):
        advance("abc", prompts)
    sequences.keep([2, 0])  # the longest leaves, the others change places
    assert (len(sequences), sequences.columns) == (2, 10)
    for _ in range(3):
        advance("ca", prompts) if len(found["a"]) < 7 else sequences.keep([0]) or advance("c", prompts)
    for name, rows in found.items():
        for ours, theirs in zip(rows, wanted[name], strict=False):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)  # FP32 sums over padded columns in another order
    sequences.keep([])
    assert len(sequences) == 0


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompts"),
        ([()], "Prompt 0 is empty"),
        ([(VOCABULARY,)], f"token id {VOCABULARY}"),
        ([tuple(range(1, 61)) * 2], "Prompt 0 of 120 tokens with 20 new ones needs 140 tokens; .* takes 128"),
        ("w5", "prompts is one string"),
    ],
)
def test_prompts_that_do_not_fit_the_model_are_refused(
    language: LanguageModel, decoder: Decoder, prompts: list[tuple[int, ...]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        llm.generate(language, decoder, prompts, new_tokens=20)


def test_asking_for_no_token_is_refused(language: LanguageModel, decoder: Decoder) -> None:
    with pytest.raises(DataError, match="new_tokens is 0"):
        llm.generate(language, decoder, PROMPTS, new_tokens=0)
