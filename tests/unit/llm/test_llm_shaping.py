"""Shape profiles of a decoder."""

from __future__ import annotations

import pytest

from workbench import llm
from workbench.errors import DataError
from workbench.llm.loading import LanguageModel


def test_one_profile_holds_prompts_from_an_empty_cache_and_one_holds_decode_steps(language: LanguageModel) -> None:
    prefill, decode = llm.profiles(language, largest_batch=4, largest_prompt=32, largest_length=64, typical_prompt=16)
    assert set(prefill) == set(decode) == {spec.name for spec in language.model.inputs}
    assert (prefill["input_ids"].typical, prefill["attention_mask"].largest) == ((1, 16), (4, 32))
    assert prefill["past_key_values.0.key"].largest == (4, 2, 0, 8)
    assert decode["input_ids"].largest == (4, 1)
    assert decode["past_key_values.1.value"].largest == (4, 2, 128, 8)
    for profile in (prefill, decode):
        for place in ("smallest", "typical", "largest"):
            shapes = {name: getattr(item, place) for name, item in profile.items()}
            past = shapes["past_key_values.0.key"][2]
            assert shapes["attention_mask"][1] == past + shapes["input_ids"][1]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"largest_batch": 0, "largest_prompt": 8, "largest_length": 16}, "typical_batch <= largest_batch"),
        ({"largest_batch": 1, "largest_prompt": 16, "largest_length": 16}, "largest_prompt < largest_length"),
        ({"largest_batch": 1, "largest_prompt": 16, "largest_length": 200}, "reaches to 200 tokens; .* takes 128"),
    ],
)
def test_sizes_that_contradict_each_other_or_the_model_are_refused(
    language: LanguageModel, sizes: dict[str, int], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        llm.profiles(language, **sizes)
