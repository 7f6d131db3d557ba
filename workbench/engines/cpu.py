"""What the engines on a CPU have in common: telling whether a file suits this CPU. Opens no engine."""

from __future__ import annotations

from pathlib import Path

import onnx

from workbench.graph.cpu_fit import fit_note
from workbench.graph.quantized_by import quantized_by
from workbench.machine import device


def fit_notes(path: Path) -> list[str]:
    """Return a sentence where a quantized ONNX file was made for another kind of CPU, else nothing."""
    if quantized_by(onnx.load(path, load_external_data=False)) is None:
        return []
    note = fit_note(onnx.load(path), device.int8())
    return [] if note is None else [note]
