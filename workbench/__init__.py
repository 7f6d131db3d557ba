"""A Jupyter workbench that shows what each optimization costs in accuracy and gains in latency.

The verbs: `load transform build open_runner measure check compare run report convert Workbench`. Importing
this package imports none of torch, tensorrt, onnxruntime and ipywidgets; each is imported by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module it comes from, imported when the name is first used. No module may be called like a verb:
# importing it would put the module where the verb should be.
_HOMES = {
    "load": "workbench.loading",
    "transform": "workbench.transformation",
    "calibrate": "workbench.transformation",
    "build": "workbench.engines.jobs",
    "open_runner": "workbench.engines",
    "backends": "workbench.engines",
    "measure": "workbench.measurement",
    "check": "workbench.checking",
    "compare": "workbench.comparison",
    "run": "workbench.study",
    "Study": "workbench.study",
    "optimize": "workbench.search",
    "layer_costs": "workbench.sensitivity",
    "report": "workbench.reports",
    "convert": "workbench.conversion",
    "Workbench": "workbench.ui",
    "Store": "workbench.store",
    "Fuse": "workbench.recipes",
    "Precision": "workbench.recipes",
    "Quantize": "workbench.recipes",
    "QuantizeWeights": "workbench.recipes",
    "Recipe": "workbench.recipes",
    "SmoothQuant": "workbench.recipes",
    "Sparsify": "workbench.recipes",
    "BuildOptions": "workbench.records",
    "Protocol": "workbench.records",
}
_MODULES = ("accuracy", "datasets", "engines", "errors", "plots", "recipes", "statistics", "zoo", "llm", "metrics")

__all__ = [*_HOMES, *_MODULES]

if TYPE_CHECKING:
    from workbench import accuracy, datasets, engines, errors, llm, metrics, plots, recipes, statistics, zoo
    from workbench.checking import check
    from workbench.comparison import compare
    from workbench.conversion import convert
    from workbench.engines import backends, open_runner
    from workbench.engines.jobs import build
    from workbench.loading import load
    from workbench.measurement import measure
    from workbench.recipes import Fuse, Precision, Quantize, QuantizeWeights, Recipe, SmoothQuant, Sparsify
    from workbench.records import BuildOptions, Protocol
    from workbench.reports import report
    from workbench.search import optimize
    from workbench.sensitivity import layer_costs
    from workbench.store import Store
    from workbench.study import Study, run
    from workbench.transformation import calibrate, transform
    from workbench.ui import Workbench


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"workbench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
