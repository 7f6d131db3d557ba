"""What calibration found, as sentences for reports: whether thresholds settled, odd tensors, samples out of range."""

from __future__ import annotations

from workbench.calibration.table import CalibrationTable
from workbench.transformation.observing import RangeAlarm

_TROUBLES = {
    "empty": "never seen, as no value reached it",
    "nan": "NaN in places",
    "infinite": "infinite in places",
    "dead": "zero throughout",
    "constant": "one value throughout",
}


def settled(table: CalibrationTable, tolerance: float = 0.01) -> str | None:
    """Say in a sentence after how many samples the table's thresholds were stable; None where it was not recorded."""
    records = [record for record in table.convergence() if record.abs_max[-1] > 0]
    if not records:
        return None
    stable = [record.stable_after(tolerance) for record in records]
    moving = [record.tensor for record, after in zip(records, stable, strict=True) if after is None]
    within = f"within {tolerance:.0%} of their last value"
    if moving:
        return (
            f"{len(moving)} of {len(records)} thresholds ({records[0].method}) still moved by more than {tolerance:.0%} "
            f"at the end of {table.samples} calibration samples ({', '.join(moving[:3])}): more samples may change them."
        )
    latest = max(after for after in stable if after is not None)
    return f"Thresholds ({records[0].method}) were {within} after {latest} of {table.samples} calibration samples."


def troubles(table: CalibrationTable) -> tuple[str, ...]:
    """Name the tensors whose ranges deserve a look, one sentence a kind of trouble."""
    kinds: dict[str, list[str]] = {}
    for problem in table.problems():
        kinds.setdefault(problem.kind, []).append(problem.tensor)
    return tuple(
        f"{len(names)} calibrated tensor{'s are' if len(names) > 1 else ' is'} {_TROUBLES[kind]}: "
        f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}."
        for kind, names in kinds.items()
    )


def alarmed(alarm: RangeAlarm) -> str | None:
    """Say in a sentence how many samples left the calibrated range; None where none did."""
    if not alarm.outside:
        return None
    worst = max(alarm.excess, key=lambda name: alarm.excess[name])
    return (
        f"{len(alarm.outside)} of {alarm.samples} evaluation samples leave the range that calibration saw, in "
        f"{len(alarm.tensors)} tensors; farthest in {worst!r}, {alarm.excess[worst]:.2f} times its largest magnitude. "
        f"What lies outside is clipped: calibrate on more, or on more varied, samples if these matter."
    )
