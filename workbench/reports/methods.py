"""How it was measured, in words, generated from the record.

Knows nothing of layout and of results.
"""

from __future__ import annotations

from workbench.judging.intervals import ACCURACY_CONFIDENCE, CONFIDENCE, required_samples
from workbench.records import Protocol, StudyRecord
from workbench.reports import formats

_BOUNDARIES = {
    "compute": (
        "it covers the computation alone, with the inputs already where they are used. On a GPU it is taken with device "
        "events around the launch, on a CPU with the host's clock around the bare call; copies to and from a device are "
        "not in it"
    ),
    "end_to_end": "it is what a caller waits, on the host's clock, with the copies of inputs and outputs in it",
    "throughput": "several callers are served at once, and the work done in a second is the point of it",
}


def methods(record: StudyRecord) -> list[str]:
    """Return the paragraphs that say how the numbers came about."""
    protocol = record.protocol
    return [_timing(protocol), _taking_turns(protocol), _intervals(), *_answers(record), _place(record)]


def _timing(protocol: Protocol) -> str:
    streams = f" with {formats.count(protocol.streams, 'stream')}" if protocol.boundary == "throughput" else ""
    graph = " Launches go through a CUDA graph where the backend can." if protocol.cuda_graph else ""
    return (
        f"The time boundary is “{protocol.boundary}”{streams}: {_BOUNDARIES[protocol.boundary]}. One call has "
        f"{formats.count(protocol.batch, 'sample')}, and a latency is that of one call, not of one sample. No table "
        f"mixes boundaries.{graph}"
    )


def _taking_turns(protocol: Protocol) -> str:
    return (
        f"Each variant was measured in {formats.count(protocol.rounds, 'round')}, each in a fresh process, and within "
        f"a round the variants took turns in an order drawn from seed {protocol.seed}, so that a slow minute of the "
        f"machine falls on all of them. A round warmed up for at least {formats.seconds(protocol.warmup_seconds)} and "
        f"{formats.count(protocol.warmup_runs, 'call')}, which were thrown away, and then went on until it had "
        f"both {formats.seconds(protocol.min_seconds)} and {formats.count(protocol.min_runs, 'call')}."
    )


def _intervals() -> str:
    return (
        f"Of each round only the median counts, because calls of one process resemble each other: the latency is the "
        f"median of these medians, its interval and that of a speed-up hold at {CONFIDENCE:.0%} and come from a "
        f"studentized bootstrap over rounds, paired between variants. An interval that includes 1 is called not "
        f"distinguishable. A percentile is shown from the smallest number of calls that supports it at "
        f"{CONFIDENCE:.0%}: {required_samples(0.9)} for p90, {required_samples(0.95)} for p95, "
        f"{required_samples(0.99)} for p99."
    )


def _answers(record: StudyRecord) -> list[str]:
    checks = [result.accuracy for result in record.results if result.accuracy is not None]
    if not checks:
        return []
    first = checks[0]
    words = (
        f"Answers were checked on {formats.count(first.samples, 'sample')} of “{first.data_name}” ({first.data_kind} "
        f"data), the same ones for every variant, beside those of the FP32 parent."
    )
    if record.data.get("calibration_samples"):
        words += f" The {record.data['calibration_samples']} calibration samples are others, compared by hash."
    if first.metric is None:
        return [
            words + " There are no labels, so no accuracy is claimed: agreement is the share of samples with the "
            "parent's answer, and SQNR is the ratio of signal to error in the outputs."
        ]
    return [
        words
        + f" A score of right and wrong answers has Wilson's interval, a change McNemar's exact test and Newcombe's "
        f"paired interval; other scores have a bootstrap of paired differences; all at {ACCURACY_CONFIDENCE:.0%}. "
        f"Agreement is the share of samples with the parent's answer, right or wrong."
    ]


def _place(record: StudyRecord) -> str:
    devices = sorted({result.measurement.device for result in record.results if result.measurement is not None})
    where = f" on {formats.listed(devices)}" if devices else ""
    return f"Everything ran{where} with {record.backend}, chosen because: {record.backend_reason.rstrip('.')}."
