"""A Jupyter workbench that shows what each optimization costs in accuracy and gains in latency.

The verbs: `load transform build open_runner measure check compare run report convert Workbench`. Importing
this package imports none of torch, tensorrt, onnxruntime and ipywidgets; each is imported by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from workbench.version import __version__

# Public name -> the module it comes from, imported when the name is first used. No module may be called like a verb:
# importing it would put the module where the verb should be.
_HOMES = {
    "load": "workbench.models",
    "define": "workbench.models.operators",
    "transform": "workbench.transformation.steps",
    "calibrate": "workbench.tuning.calibrating",
    "build": "workbench.engines.jobs",
    "open_runner": "workbench.engines",
    "refit": "workbench.engines",
    "from_trtexec": "workbench.engines.tensorrt.trtexec",
    "for_orin": "workbench.handoff.orin",
    "read_foreign": "workbench.handoff.foreign",
    "foreign_rows": "workbench.handoff.foreign",
    "nsys_command": "workbench.handoff.nsys",
    "backends": "workbench.engines",
    "measure": "workbench.measuring.latency",
    "check": "workbench.measuring.answers",
    "compare": "workbench.judging.comparison",
    "run": "workbench.study",
    "Study": "workbench.study",
    "studies": "workbench.study.catalog",
    "optimize": "workbench.study.search",
    "layer_costs": "workbench.tuning.sensitivity",
    "layer_times": "workbench.tuning.layers",
    "ceiling": "workbench.tuning.ceilings",
    "ceilings": "workbench.tuning.machine_ceilings",
    "compare_calibrators": "workbench.tuning.calibrator_comparison",
    "confirm": "workbench.study.confirming",
    "combinations": "workbench.study.sweep",
    "sweep": "workbench.study.sweeping",
    "matrix": "workbench.study.batches",
    "refusals": "workbench.study.offers",
    "study_seconds": "workbench.study.estimate",
    "preview": "workbench.study.previews",
    "explain": "workbench.study.why",
    "Explanation": "workbench.explaining.explanation",
    "explain_files": "workbench.explaining.files",
    "report": "workbench.reports",
    "convert": "workbench.conversion",
    "Workbench": "workbench.ui",
    "explore": "workbench.ui",
    "Store": "workbench.machine.store",
    "Fuse": "workbench.recipes",
    "Precision": "workbench.recipes",
    "Quantize": "workbench.recipes",
    "QuantizeWeights": "workbench.recipes",
    "Recipe": "workbench.recipes",
    "SmoothQuant": "workbench.recipes",
    "Sparsify": "workbench.recipes",
    "BuildOptions": "workbench.records",
    "Protocol": "workbench.records",
    "ShapeProfile": "workbench.records",
}
_MODULES = {
    "accuracy": "workbench.judging.accuracy",
    "statistics": "workbench.judging.statistics",
    "metrics": "workbench.datasets.metrics",
    **{name: f"workbench.{name}" for name in ("datasets", "engines", "errors", "plots", "recipes", "zoo", "llm")},
}

__all__ = [*_HOMES, *_MODULES]

if TYPE_CHECKING:
    from workbench import datasets, engines, errors, llm, plots, recipes, zoo
    from workbench.conversion import convert
    from workbench.datasets import metrics
    from workbench.engines import backends, open_runner, refit
    from workbench.engines.jobs import build
    from workbench.engines.tensorrt.trtexec import from_trtexec
    from workbench.explaining.explanation import Explanation
    from workbench.explaining.files import explain_files
    from workbench.handoff.foreign import foreign_rows, read_foreign
    from workbench.handoff.nsys import nsys_command
    from workbench.handoff.orin import for_orin
    from workbench.judging import accuracy, statistics
    from workbench.judging.comparison import compare
    from workbench.machine.store import Store
    from workbench.measuring.answers import check
    from workbench.measuring.latency import measure
    from workbench.models import load
    from workbench.models.operators import define
    from workbench.recipes import Fuse, Precision, Quantize, QuantizeWeights, Recipe, SmoothQuant, Sparsify
    from workbench.records import BuildOptions, Protocol, ShapeProfile
    from workbench.reports import report
    from workbench.study import Study, run
    from workbench.study.batches import matrix
    from workbench.study.catalog import studies
    from workbench.study.confirming import confirm
    from workbench.study.estimate import study_seconds
    from workbench.study.offers import refusals
    from workbench.study.previews import preview
    from workbench.study.search import optimize
    from workbench.study.sweep import combinations
    from workbench.study.sweeping import sweep
    from workbench.study.why import explain
    from workbench.transformation.steps import transform
    from workbench.tuning.calibrating import calibrate
    from workbench.tuning.calibrator_comparison import compare_calibrators
    from workbench.tuning.ceilings import ceiling
    from workbench.tuning.layers import layer_times
    from workbench.tuning.machine_ceilings import ceilings
    from workbench.tuning.sensitivity import layer_costs
    from workbench.ui import Workbench, explore


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names alone: what a tab completion should offer."""
    return sorted([*__all__, "__version__"])
