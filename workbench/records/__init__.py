"""The frozen records that cross modules: standard library only; `workbench.codec` writes and reads them as JSON.

Raw values are stored and statistics are derived (see `workbench.judging.statistics`), so a stored record can be
judged again with better statistics later. Seconds and bytes everywhere. A shape is a tuple; a dynamic axis is None.

History of SCHEMA_VERSION: 1 - first; 2 - studies hold their build options; 3 - build options have a target;
4 - accuracies hold margins; 5 - studies hold the explanations of their variants.
"""

from __future__ import annotations

from workbench.records.engines import BuildOptions, Engine, LayerProfile, LayerTime, ShapeProfile
from workbench.records.measuring import Boundary, Measurement, Protocol, Round
from workbench.records.models import Model, Origin, Program, Skipped, StepReport, TensorSpec, Variant
from workbench.records.studies import SCHEMA_VERSION, Accuracy, Failure, Progress, StudyRecord, VariantResult

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Boundary",
    "BuildOptions",
    "Engine",
    "Failure",
    "LayerProfile",
    "LayerTime",
    "Measurement",
    "Model",
    "Origin",
    "Program",
    "Progress",
    "Protocol",
    "Round",
    "ShapeProfile",
    "Skipped",
    "StepReport",
    "StudyRecord",
    "TensorSpec",
    "Variant",
    "VariantResult",
]
