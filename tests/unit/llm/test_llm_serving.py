"""The server loop: queueing arithmetic on a scripted clock, and right answers on a real decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import llm
from workbench.engines.decoding import Decoder
from workbench.llm.loading import LanguageModel
from workbench.llm.requests import Request
from workbench.llm.serving import ContinuousBatching, DynamicBatching, NoBatching, Policy, Served, serve

FIXED, EACH = 0.010, 0.002  # seconds: a call of the fake decoder costs FIXED + EACH * batch
ALONE = FIXED + EACH
POLICIES = [NoBatching(), DynamicBatching(4, 0.005), ContinuousBatching(3), ContinuousBatching(4, 2, 0.02)]


class ScriptedClock:
    """Time that moves only when somebody sleeps or the fake decoder works, so that queueing is exact arithmetic."""

    def __init__(self) -> None:
        self.moment = 0.0

    def now(self) -> float:
        return self.moment

    def sleep_until(self, moment: float) -> None:
        assert math.isfinite(moment), "the server would sleep for ever"
        self.moment = max(self.moment, moment)


@dataclass(frozen=True)
class Shape:
    """The cache of the fake decoder: only its size."""

    batch: int
    length: int


class CostlyDecoder:
    """Behaves like a decoder whose every call costs FIXED + EACH * batch on a scripted clock; its tokens are all 1."""

    def __init__(self, clock: ScriptedClock) -> None:
        self.clock = clock
        self.batches: list[int] = []

    def empty(self, batch: int) -> Shape:
        return Shape(batch, 0)

    def step(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Shape
    ) -> tuple[np.ndarray, Shape]:
        assert mask.shape == (cache.batch, cache.length + tokens.shape[1])
        self.batches.append(len(tokens))
        self.clock.moment += FIXED + EACH * len(tokens)
        return np.tile([0.0, 1.0], (len(tokens), 1)), Shape(cache.batch, mask.shape[1])

    def join(self, first: Shape, second: Shape) -> Shape:
        return Shape(first.batch + second.batch, max(first.length, second.length))

    def keep(self, cache: Shape, rows: Sequence[int], length: int) -> Shape:
        return Shape(len(rows), length)


def asked(arrivals: Sequence[float], outputs: Sequence[int]) -> list[Request]:
    pairs = zip(arrivals, outputs, strict=True)
    return [Request(arrival, (1, 2, 3), output) for arrival, output in pairs]


def played(requests: Sequence[Request], policy: Policy) -> tuple[Served, CostlyDecoder]:
    decoder = CostlyDecoder(ScriptedClock())
    return serve(decoder, requests, policy, decoder.clock), decoder  # type: ignore[arg-type]


def test_without_batching_each_request_waits_for_all_before_it() -> None:
    served, decoder = played(asked([0.0, 0.001, 0.5], [3, 2, 1]), NoBatching())
    np.testing.assert_allclose(served.first_token, [ALONE, 4 * ALONE, 0.5 + ALONE])
    np.testing.assert_allclose(served.finished, [3 * ALONE, 5 * ALONE, 0.5 + ALONE])
    assert set(decoder.batches) == {1}


def test_a_dynamic_batch_starts_when_it_is_full() -> None:
    served, decoder = played(asked([0.0, 0.001, 0.002], [1, 1, 1]), DynamicBatching(3, 1.0))
    np.testing.assert_allclose(served.finished, [0.002 + FIXED + 3 * EACH] * 3)
    assert decoder.batches == [3]


def test_a_dynamic_batch_starts_when_its_first_request_has_waited_long_enough() -> None:
    served, decoder = played(asked([0.0, 0.001, 0.5], [1, 1, 1]), DynamicBatching(3, 0.004))
    np.testing.assert_allclose(served.finished, [0.004 + FIXED + 2 * EACH] * 2 + [0.504 + ALONE])
    assert decoder.batches == [2, 1]


def test_nobody_joins_a_running_dynamic_batch_and_it_shrinks_as_requests_finish() -> None:
    served, decoder = played(asked([0.0, 0.0, 0.001], [1, 3, 1]), DynamicBatching(2, 0.004))
    assert decoder.batches == [2, 1, 1, 1]
    first_batch = FIXED + 2 * EACH + 2 * ALONE
    np.testing.assert_allclose(served.finished, [FIXED + 2 * EACH, first_batch, first_batch + ALONE])


def test_with_continuous_batching_a_request_joins_at_the_next_step() -> None:
    served, decoder = played(asked([0.0, 0.001], [4, 2]), ContinuousBatching(2))
    # prefill of the first, prefill of the second, two steps together, the last one alone
    assert decoder.batches == [1, 1, 2, 1, 1]
    pair = FIXED + 2 * EACH
    np.testing.assert_allclose(served.first_token, [ALONE, 2 * ALONE])
    np.testing.assert_allclose(served.finished, [2 * ALONE + pair + 2 * ALONE, 2 * ALONE + pair])


def test_newcomers_wait_for_company_while_others_run_and_no_longer_than_allowed() -> None:
    requests = asked([0.0, 0.001, 0.002, 0.2, 0.201], [40, 2, 2, 2, 2])
    served, decoder = played(requests, ContinuousBatching(8, together=2, longest_wait_seconds=0.1))
    assert decoder.batches[:2] == [1, 2], "the first starts at once, the two behind it together"
    alone = played(asked([0.0, 0.001], [40, 2]), ContinuousBatching(8, together=2, longest_wait_seconds=0.1))[0]
    waited = alone.first_token[1] - 0.001
    assert 0.1 < waited < 0.1 + 2 * (FIXED + 2 * EACH), "nobody came, so it started when it had waited long enough"
    assert not np.isnan(served.finished).any()


def test_continuous_batching_never_runs_more_requests_than_it_has_slots() -> None:
    served, decoder = played(asked([0.0] * 7, [3] * 7), ContinuousBatching(2))
    assert max(decoder.batches) == served.widest == 2
    assert not np.isnan(served.finished).any()


def test_batching_serves_more_requests_in_the_same_time_where_a_call_has_a_fixed_cost() -> None:
    requests = asked(np.linspace(0.0, 0.1, 40).tolist(), [8] * 40)
    ends = [played(requests, policy)[0].finished.max() for policy in (NoBatching(), ContinuousBatching(8))]
    # 40 * 8 calls alone against about 40 * 8 / 8 calls of 8: 12 ms a token against 26 ms for 8 tokens.
    assert ends[0] / ends[1] > 2.5


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 6)), min_size=1, max_size=12),
    st.sampled_from(POLICIES),
)
def test_every_request_is_answered_in_full_and_none_before_it_arrives(
    drawn: list[tuple[float, int]], policy: Policy
) -> None:
    requests = asked(*zip(*sorted(drawn), strict=True))
    served, _ = played(requests, policy)
    arrivals = np.array([request.arrival_seconds for request in requests])
    assert [len(answer) for answer in served.answers] == [request.output_tokens for request in requests]
    assert (served.first_token >= arrivals + ALONE - 1e-12).all()
    assert (served.finished >= served.first_token).all()
    assert (np.diff(served.first_token) >= 0).all()  # first come, first served


def test_serving_ends_early_when_it_is_called_hopeless() -> None:
    decoder = CostlyDecoder(ScriptedClock())
    served = serve(
        decoder,  # type: ignore[arg-type]
        asked([0.0] * 10, [1] * 10),
        NoBatching(),
        decoder.clock,
        hopeless=lambda served, now: now > 3.5 * ALONE,
    )
    assert np.isnan(served.finished).tolist() == [False] * 4 + [True] * 6


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
def test_every_policy_gives_each_request_the_answer_it_gets_alone(
    language: LanguageModel, decoder: Decoder, policy: Policy
) -> None:
    rng = np.random.default_rng(5)
    requests = [
        Request(0.0, tuple(rng.integers(1, 61, rng.integers(1, 12)).tolist()), int(rng.integers(1, 9)))
        for _ in range(9)
    ]
    served = serve(decoder, requests, policy)
    for request, answer in zip(requests, served.answers, strict=True):
        alone = llm.generate(language, decoder, [request.tokens], new_tokens=request.output_tokens, stop=())
        assert tuple(answer) == alone.tokens[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DynamicBatching(0), "largest >= 1"),
        (lambda: DynamicBatching(2, -1.0), "longest_wait_seconds >= 0"),
        (lambda: DynamicBatching(2, math.nan), "longest_wait_seconds >= 0"),
        (lambda: ContinuousBatching(0), "slots is 0"),
        (lambda: ContinuousBatching(4, 0), "together from 1 to slots"),
        (lambda: ContinuousBatching(4, 5), "slots .4.* got 5 and"),
        (lambda: ContinuousBatching(4, 2, math.nan), "longest_wait_seconds >= 0"),
    ],
)
def test_policies_without_room_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
