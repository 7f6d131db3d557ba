"""What a machine can do at most, as rows for a reader: the ceilings that were measured beside a study. Formats only."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from workbench import codec
from workbench.errors import StoreError
from workbench.explaining.explanation import Explanation
from workbench.judging import roofline
from workbench.judging.roofline import Ceilings
from workbench.records import StudyRecord
from workbench.reports import formats

Rows = list[tuple[str, str]]


def known(record: StudyRecord, explanations: Sequence[Explanation] = ()) -> Ceilings | None:
    """Return the ceilings that a study keeps, or that its explanations were judged with; None where there are none."""
    kept = record.environment.get(roofline.KIND)
    with contextlib.suppress(StoreError):  # of a file that was edited: it stands in the environment as it is
        if kept is not None:
            return codec.from_plain(Ceilings, kept)
    return next((found.evidence.ceilings for found in explanations if found.evidence.ceilings is not None), None)


def rows(found: Ceilings) -> Rows:
    """Return names and values: arithmetic by type, copies by size, what a call and a layer cost."""
    told = [(f"{name.upper()} arithmetic", f"{rate / 1e9:,.0f} GFLOP/s") for name, rate in found.rates.items()]
    told += [(f"{name.upper()} arithmetic", why) for name, why in found.absent.items() if name not in found.rates]
    told += [
        (f"copying {formats.size(size)}", f"{rate / 1e9:,.1f} GB/s")
        for size, rate in zip(found.copy_bytes, found.copy_rates, strict=True)
    ]
    return [
        *told,
        ("a call of one tiny layer", f"{found.call_seconds * 1e6:.1f} µs"),
        ("each further tiny layer", f"{found.layer_seconds * 1e6:.2f} µs"),
    ]


def words(found: Ceilings) -> str:
    """Say what was measured, with what and when."""
    threads = "" if found.threads is None else f", {formats.count(found.threads, 'thread')} in an operator"
    return (
        f"The fastest that matrix products, convolutions and copies were seen to run on {found.device} with "
        f"{found.backend} {found.backend_version}{threads}, on {formats.moment(found.measured_at)}."
    )
