"""Choosing the next token."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import RunError
from workbench.llm.sampling import Sampling, choose, probabilities

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def test_temperature_zero_takes_the_most_probable_token() -> None:
    assert choose(np.stack([LOGITS, LOGITS[::-1]]), Sampling(), []).tolist() == [0, 3]


def test_temperature_one_is_the_models_distribution_and_less_sharpens_it() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1.0)), [0.5, 0.25, 0.15, 0.1], atol=1e-6)  # FP32 logits
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(0.5)), squares / squares.sum(), atol=1e-6)


def test_top_k_leaves_the_k_most_probable_and_all_that_equal_the_kth() -> None:
    assert (probabilities(LOGITS, Sampling(1.0, top_k=2)) > 0).tolist() == [True, True, False, False]
    assert (probabilities(np.zeros(4, np.float32), Sampling(1.0, top_k=2)) > 0).all()
    assert (probabilities(LOGITS, Sampling(1.0, top_k=9)) > 0).all()


@pytest.mark.parametrize(("top_p", "left"), [(0.5, 1), (0.51, 2), (0.76, 3), (1.0, 4), (0.01, 1)])
def test_top_p_leaves_the_smallest_set_that_holds_the_probability(top_p: float, left: int) -> None:
    # A hair below the sums, since these are exact in decimals and not in FP32.
    found = probabilities(LOGITS, Sampling(1.0, top_p=top_p - 1e-4 if top_p < 1 else top_p))
    assert (found > 0).sum() == left
    assert found.sum() == pytest.approx(1)


def test_drawn_tokens_follow_the_distribution_and_the_seed() -> None:
    stream = np.random.default_rng(0)
    drawn = [int(choose(LOGITS[None], Sampling(1.0), [stream])[0]) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    # Four standard errors of the largest share: sqrt(0.25 / 4000) = 0.008.
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.032)
    again = np.random.default_rng(0)
    assert drawn[:50] == [int(choose(LOGITS[None], Sampling(1.0), [again])[0]) for _ in range(50)]


def test_logits_that_are_not_finite_are_refused_with_a_way_out() -> None:
    with pytest.raises(RunError, match=r"1 of 2 sequences are NaN or infinite.*BF16"):
        choose(np.stack([LOGITS, LOGITS * np.nan]), Sampling(), [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": 5}, "need a temperature above 0"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**options)
