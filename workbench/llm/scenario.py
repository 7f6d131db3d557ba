"""The chatbot scenario: requests arrive at a rate, a policy batches them, a real engine answers; who waits how long?

Serving runs in a fresh process, in real time. Raw moments are kept; percentiles are shown only where the number of
requests supports them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench import codec
from workbench.engines.base import Feeds
from workbench.engines.decoding import Decoder, open_decoder
from workbench.engines.slot_decoding import SlotDecoder, open_slots
from workbench.errors import DataError
from workbench.judging.intervals import required_samples
from workbench.llm.loading import LanguageModel
from workbench.llm.requests import Request, Traffic, draw, longest
from workbench.llm.serving import ContinuousBatching, DynamicBatching, NoBatching, Policy, Served, serve
from workbench.machine import child, conditions
from workbench.machine.handle import QUIET, Handle
from workbench.records import Engine

if TYPE_CHECKING:
    import pandas as pd

Moment = Literal["first_token", "answer"]
LIMIT_SECONDS = 0.5
_POLICIES: dict[str, type[Policy]] = {
    "NoBatching": NoBatching,
    "DynamicBatching": DynamicBatching,
    "ContinuousBatching": ContinuousBatching,
}
_WARMUP_REQUESTS = 8
# The search stops when the lowest failing rate is this little above the highest passing one.
_RATE_STEP = 1.15
_MOST_PROBES = 16
# A load must last this many limits before a rate counts as kept: of a rate 15 % above what a server can do, requests at the
# end of eight limits have waited for a whole one. Few requests that come at once would prove any rate.
_LEAST_LIMITS = 8


@dataclass(frozen=True)
class ServingRun:
    """What happened to the requests of one traffic, policy and rate.

    Attributes:
        arrival, first_token, finished: seconds after the start, a request each; NaN where serving ended before.
        input_tokens, output_tokens: of each request.
        mean_batch, widest_batch: requests in a decode step, on average and at most.
        abandoned: whether serving was ended early because the limit could not be kept any more.
    """

    variant: str
    backend: str
    device: str
    policy: str
    rate: float
    arrival: tuple[float, ...]
    first_token: tuple[float, ...]
    finished: tuple[float, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    mean_batch: float
    widest_batch: int
    abandoned: bool = False
    conditions: dict[str, Any] = field(default_factory=dict)

    def waits(self, of: Moment = "answer") -> np.ndarray:
        """Return how long each request waited for its first token or its whole answer; infinite where it got none."""
        ends = np.asarray(self.first_token if of == "first_token" else self.finished)
        return np.where(np.isnan(ends), np.inf, ends - np.asarray(self.arrival))

    def percentile(self, quantile: float, of: Moment = "answer") -> float | None:
        """Return a percentile of the waits, or None where there are too few requests for it."""
        waits = self.waits(of)
        # The next higher observed value: interpolation would be between numbers one of which may be infinite.
        return (
            float(np.quantile(waits, quantile, method="higher")) if len(waits) >= required_samples(quantile) else None
        )

    @property
    def seconds(self) -> float:
        """From the first arrival to the last answer."""
        return float(np.nanmax(self.finished)) - self.arrival[0]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of finished answers over the time that serving took."""
        done = ~np.isnan(np.asarray(self.finished))
        return float(np.asarray(self.output_tokens)[done].sum() / self.seconds)

    def goodput(self, limit_seconds: float = LIMIT_SECONDS, of: Moment = "answer") -> float:
        """Return the requests/s that were served within the limit."""
        return float((self.waits(of) <= limit_seconds).sum() / self.seconds)


@dataclass(frozen=True)
class HighestRate:
    """The highest rate that keeps a percentile under a limit, found by trying.

    Attributes:
        rate: the highest that passed; 0 where none did.
        failed_rate: the lowest that failed; None where the search ended before one did.
        probes: every run that was made, in order.
    """

    policy: str
    quantile: float
    limit_seconds: float
    of: Moment
    rate: float
    failed_rate: float | None
    probes: tuple[ServingRun, ...]


def serve_traffic(
    language: LanguageModel,
    engine: Engine | Sequence[Engine],
    policies: Sequence[Policy],
    rates: Sequence[float],
    text: np.ndarray,
    *,
    traffic: Traffic | None = None,
    threads: int | None = None,
    handle: Handle = QUIET,
) -> list[ServingRun]:
    """Serve the same requests under every policy at every rate, in a fresh process each policy.

    Args:
        engine: of a decoder whose cache grows; or a prefill's and a step's, for one with slots (see `open_slots`).
        text: token ids (L,) that prompts are cut from, such as evaluation windows, flattened.
        traffic: None takes the defaults of `Traffic`.

    Raises:
        DataError: a rate that is not positive, too little text, or requests longer than the model takes.
        ChildKilled, RunError, EngineError: the server failed; Cancelled: the caller stopped it.
    """
    traffic = traffic or Traffic()
    found = []
    for policy in policies:
        job = ServeJob(_sent(engine, policy, traffic, threads), tuple(rates))
        for rate in rates:
            _check(language, traffic, rate, text)
        with child.measuring(handle):
            answer = child.call(
                "workbench.llm.scenario:serve_job", job, {"text": text}, returns=ServedRuns, handle=handle
            )
        found += answer.record.runs
    return found


def highest_rate(
    language: LanguageModel,
    engine: Engine | Sequence[Engine],
    policy: Policy,
    text: np.ndarray,
    traffic: Traffic | None = None,
    *,
    limit_seconds: float = LIMIT_SECONDS,
    quantile: float = 0.99,
    of: Moment = "answer",
    first_rate: float = 10.0,
    threads: int | None = None,
    handle: Handle = QUIET,
) -> HighestRate:
    """Find the highest rate at which a percentile of the waits stays under a limit.

    Doubles or halves from `first_rate` until one rate passes and one fails, then closes in to 15 %. A run is ended as
    soon as more requests are late than the percentile allows.

    Args:
        traffic: its number of requests is the least; where they would come within eight limits there are more (see `lasting`).

    Raises:
        DataError: too few requests for the percentile (662 for the 99th), or as `serve_traffic`.
    """
    traffic = traffic or Traffic(requests=required_samples(quantile))
    if traffic.requests < required_samples(quantile):
        raise DataError(
            f"{traffic.requests} requests do not support the {quantile:.0%} percentile: it takes "
            f"{required_samples(quantile)}. Pass more requests, or a lower quantile."
        )
    _check(language, traffic, first_rate, text)
    job = SearchJob(_sent(engine, policy, traffic, threads), limit_seconds, quantile, of, first_rate)
    with child.measuring(handle):
        answer = child.call(
            "workbench.llm.scenario:search_job", job, {"text": text}, returns=HighestRate, handle=handle
        )
    found: HighestRate = answer.record
    return found


def table(runs: Sequence[ServingRun], limit_seconds: float = LIMIT_SECONDS) -> pd.DataFrame:
    """Return one row a run: percentiles in milliseconds (a dash where requests are too few), rates and goodput."""
    import pandas as pd

    rows = []
    for run in runs:
        row: dict[str, Any] = {"Policy": run.policy, "Offered (requests/s)": run.rate, "Requests": len(run.arrival)}
        for of, title in (("first_token", "TTFT"), ("answer", "Answer")):
            for quantile, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
                value = run.percentile(quantile, of)  # type: ignore[arg-type]
                row[f"{title} {name} (ms)"] = "-" if value is None else f"{value * 1e3:.1f}"
        row["Tokens/s"] = round(run.tokens_per_second)
        row[f"Goodput (requests/s in {limit_seconds * 1e3:g} ms)"] = round(run.goodput(limit_seconds), 1)
        row["Mean batch"] = round(run.mean_batch, 2)
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Sent:
    """What every job of this module sends; a policy as its kind and its fields."""

    engines: tuple[Engine, ...]
    policy: dict[str, Any]
    traffic: Traffic
    threads: int | None


@dataclass(frozen=True)
class ServeJob:
    """What `serve_traffic` sends to each process."""

    sent: _Sent
    rates: tuple[float, ...]


@dataclass(frozen=True)
class ServedRuns:
    """What comes back to `serve_traffic`."""

    runs: tuple[ServingRun, ...]


@dataclass(frozen=True)
class SearchJob:
    """What `highest_rate` sends."""

    sent: _Sent
    limit_seconds: float
    quantile: float
    of: Moment
    first_rate: float


def serve_job(job: ServeJob, arrays: Feeds) -> tuple[ServedRuns, dict[str, np.ndarray]]:
    """Be the child of `serve_traffic`."""
    sent, policy, text = job.sent, _policy(job.sent.policy), arrays["text"]
    with _opened(sent, policy) as decoder:
        _warm_up(decoder, sent.traffic, policy, text)
        runs = [run_once(decoder, sent.engines[-1], policy, rate, draw(sent.traffic, rate, text)) for rate in job.rates]
    return ServedRuns(tuple(runs)), {}


def search_job(job: SearchJob, arrays: Feeds) -> tuple[HighestRate, dict[str, np.ndarray]]:
    """Be the child of `highest_rate`."""
    sent, policy, text = job.sent, _policy(job.sent.policy), arrays["text"]
    late = (job.limit_seconds, job.quantile, job.of)
    with _opened(sent, policy) as decoder:
        _warm_up(decoder, sent.traffic, policy, text)

        def probe(rate: float) -> ServingRun:
            requests = draw(lasting(sent.traffic, rate, job.limit_seconds), rate, text)
            return run_once(decoder, sent.engines[-1], policy, rate, requests, late=late)

        passed, failed, probes = search(probe, lambda run: _keeps(run, *late), job.first_rate)
    return HighestRate(policy.label, job.quantile, job.limit_seconds, job.of, passed, failed, tuple(probes)), {}


def lasting(traffic: Traffic, rate: float, limit_seconds: float) -> Traffic:
    """Return the traffic with so many requests that they arrive over eight limits at least; the first ones stay the same."""
    return replace(traffic, requests=max(traffic.requests, math.ceil(_LEAST_LIMITS * limit_seconds * rate)))


def search(
    probe: Callable[[float], ServingRun], keeps: Callable[[ServingRun], bool], first_rate: float
) -> tuple[float, float | None, list[ServingRun]]:
    """Return the highest rate that passed (0 where none did), the lowest that failed, and all runs."""
    passed, failed = 0.0, None
    rate = first_rate
    probes: list[ServingRun] = []
    while len(probes) < _MOST_PROBES:
        run = probe(rate)
        probes.append(run)
        if keeps(run):
            passed = max(passed, rate)
        else:
            failed = rate if failed is None else min(failed, rate)
        if failed is not None and passed and failed / passed <= _RATE_STEP:
            break
        rate = math.sqrt(passed * failed) if passed and failed else rate * 2 if failed is None else rate / 2
    return passed, failed, probes


def run_once(
    decoder: Decoder | SlotDecoder,
    engine: Engine,
    policy: Policy,
    rate: float,
    requests: Sequence[Request],
    *,
    late: tuple[float, float, Moment] | None = None,
) -> ServingRun:
    """Serve requests in real time, in this process.

    Args:
        late: (limit in seconds, quantile, what): give up when more requests are late than the quantile allows.
    """
    arrival = np.array([request.arrival_seconds for request in requests])
    before = conditions.snapshot()
    gave_up = False

    def hopeless(served: Served, now: float) -> bool:
        nonlocal gave_up
        if late is not None:
            limit, quantile, of = late
            ends = served.first_token if of == "first_token" else served.finished
            waits = np.where(np.isnan(ends), now, ends) - arrival  # those that still wait have waited until now
            gave_up = int((waits > limit).sum()) > (1 - quantile) * len(requests)
        return gave_up

    served = serve(decoder, requests, policy, hopeless=hopeless)
    return ServingRun(
        variant=engine.variant,
        backend=engine.backend,
        device=engine.device,
        policy=policy.label,
        rate=rate,
        arrival=tuple(arrival.tolist()),
        first_token=tuple(served.first_token.tolist()),
        finished=tuple(served.finished.tolist()),
        input_tokens=tuple(len(request.tokens) for request in requests),
        output_tokens=tuple(request.output_tokens for request in requests),
        mean_batch=served.step_requests / max(served.steps, 1),
        widest_batch=served.widest,
        abandoned=gave_up,
        conditions=conditions.between(before, conditions.snapshot()),
    )


def _keeps(run: ServingRun, limit: float, quantile: float, of: Moment) -> bool:
    found = run.percentile(quantile, of)
    return not run.abandoned and found is not None and found <= limit


def _warm_up(decoder: Decoder | SlotDecoder, traffic: Traffic, policy: Policy, text: np.ndarray) -> None:
    few = replace(traffic, requests=min(_WARMUP_REQUESTS, traffic.requests))
    serve(decoder, draw(few, 1e6, text), policy)


def _sent(engine: Engine | Sequence[Engine], policy: Policy, traffic: Traffic, threads: int | None) -> _Sent:
    plain = {"kind": type(policy).__name__, **codec.to_plain(policy)}
    engines = (engine,) if isinstance(engine, Engine) else tuple(engine)
    return _Sent(tuple(replace(item, log="") for item in engines), plain, traffic, threads)


def _opened(sent: _Sent, policy: Policy) -> Decoder | SlotDecoder:
    if len(sent.engines) == 1:
        return open_decoder(sent.engines[0], sent.threads)
    return open_slots(sent.engines, slots=policy.most, threads=sent.threads)


def _policy(plain: dict[str, Any]) -> Policy:
    return _POLICIES[plain["kind"]](**{name: value for name, value in plain.items() if name != "kind"})


def _check(language: LanguageModel, traffic: Traffic, rate: float, text: np.ndarray) -> None:
    needed = longest(draw(traffic, rate, text))
    if needed > language.largest_length:
        raise DataError(
            f"The longest request needs {needed} tokens; {language.model.name} takes {language.largest_length} at most. "
            f"Lower Traffic.input_tokens.most or output_tokens.most."
        )
