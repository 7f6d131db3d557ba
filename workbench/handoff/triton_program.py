"""The programs that run inside a Triton server, written into the folder of a model's version with what they are to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.machine.store import write_text

Program = Literal["triton_model.py", "triton_text_model.py"]


def write(place: Path, program: Program, settings: Mapping[str, Any]) -> None:
    """Write a program as `model.py`, what it imports, and its settings."""
    here = Path(__file__).parent
    shutil.copyfile(here / program, place / "model.py")
    shutil.copyfile(here / "triton_tensors.py", place / "triton_tensors.py")
    write_text(place / "served.json", json.dumps(settings, indent=1))
