"""Layers and calibrators as tables to sort: what each saves and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.calibrators import SideBySide
from workbench.sensitivity import LayerCosts

if TYPE_CHECKING:
    import pandas


def layer_table(costs: LayerCosts) -> pandas.DataFrame:
    """Return one row a layer, the noisiest first; numbers stay numbers, so that it can be sorted by any column."""
    import pandas

    total = sum(item.alone_noise for item in costs.rows) or 1.0
    return pandas.DataFrame(
        [
            {
                "layer": item.name,
                "nodes": len(item.nodes),
                "measured together": item.group,
                "share of noise %": 100 * item.alone_noise / total,
                "alone, dB": item.alone_db,
                f"lost alone, {costs.unit}": item.alone_lost,
                "all but it, dB": item.kept_db,
                f"lost by all but it, {costs.unit}": item.kept_lost,
                "FP32 ms": _ms(item.seconds),
                "lowered ms": _ms(item.lowered_seconds),
                "saved ms": _ms(item.saved_seconds),
            }
            for item in costs.rows
        ]
    )


def calibrator_table(found: SideBySide) -> pandas.DataFrame:
    """Return one row a calibrator: how much it clips, and what that costs on the tensors, at the outputs, in the task."""
    import pandas

    rows = []
    for one in found.rows:
        decibels = [record.sqnr_db for record in one.tensors]
        rows.append(
            {
                "calibrator": one.calibrator,
                "tensors clipped": sum(record.clipped_share > 0 for record in one.tensors),
                "largest share clipped %": 100 * max(record.clipped_share for record in one.tensors),
                "median tensor, dB": float(pandas.Series(decibels).median()),
                "worst tensor, dB": min(decibels),
                "outputs, dB": one.sqnr_db,
                f"lost, {found.unit}": one.lost,
            }
        )
    return pandas.DataFrame(rows).sort_values("outputs, dB", ascending=False, ignore_index=True)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
