"""Which toggles mean something for a backend, a model and its data, and the reason where one does not.

Asks backends what they are; knows nothing of widgets. A reason is a sentence that is shown beside the greyed toggle.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from workbench import engines
from workbench.datasets import Dataset
from workbench.engines.base import Missing
from workbench.errors import DataError, LoadError, expect
from workbench.recipes import CALIBRATORS, FLOAT_FORMATS
from workbench.records import Model
from workbench.study.sweep import QUANTIZATIONS, STATIC

# (toggle, value) -> why it cannot be chosen.
Reasons = dict[tuple[str, str], str]

_NEEDS_CALIBRATION = "the data have no calibration samples"
# Toggle value -> what TensorRT calls the precision it needs.
_TENSORRT_PRECISION = {
    **{name: name for name in FLOAT_FORMATS if name != "fp32"},
    **dict.fromkeys(("int8", "int8-smooth", "int8-dynamic", "int8-weights"), "int8"),
    "fp8": "fp8",
    "int4-weights": "int4",
}


def refusals(backend: str, model: Model | None = None, data: Dataset | None = None) -> Reasons:
    """Return the toggles that cannot be chosen -> why.

    Raises:
        BackendMissing: there is no such backend; LoadError, DataError: the others are something else.
    """
    engines.backend(backend)
    if model is not None:
        expect(model, Model, "refusals", "Load it first: workbench.load(...).", LoadError)
    if data is not None:
        expect(data, Dataset, "refusals", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    found: Reasons = {}
    for value, why in _of_backend(backend).items():
        found["precision" if value in FLOAT_FORMATS else "quantization", value] = why
    if data is not None and data.calibration is None:
        found |= {("quantization", value): _NEEDS_CALIBRATION for value in STATIC}
        found |= {("calibrator", value): _NEEDS_CALIBRATION for value in CALIBRATORS}
    if not backend.startswith("tensorrt"):
        found["profile", "shapes"] = f"{backend} takes any shape; only TensorRT compiles for a range of them"
    else:
        found["threads", "count"] = "TensorRT runs on the GPU"
    if model is not None and model.quantized_by is not None:
        why = f"the model is quantized already (by {model.quantized_by})"
        found |= {("quantization", value): why for value in QUANTIZATIONS if value != "none"}
        found |= {("precision", value): why for value in FLOAT_FORMATS if value != "fp32"}
    return found


def caveats(backend: str) -> tuple[str, ...]:
    """Return what holds for a backend although it can be chosen."""
    if backend != "onnxruntime-cpu":
        return ()
    return (
        "FP16 and BF16 on a CPU are stored small and computed in FP32: an accuracy rehearsal, not a speed-up.",
        "FP8 on a CPU is computed in FP32 between its rounding steps: an accuracy rehearsal too.",
    )


def lacking(backends: dict[str, Missing | None], model: Model) -> dict[str, dict[str, str]]:
    """Return, for each backend that is here, the operators of the model that it cannot run -> the reason."""
    usable = [name for name, absent in backends.items() if absent is None]
    return {name: engines.backend(name).lacks(name, _path(model)) for name in usable}


def layer_names(model: Model, proto: onnx.ModelProto) -> dict[str, str]:
    """Return every node that a recipe can leave out -> its module path (or nothing), in the order of the graph."""
    return {node.name: model.modules.get(node.name, "") for node in proto.graph.node if node.name}


def _of_backend(backend: str) -> dict[str, str]:
    if backend == "onnxruntime-cpu":
        return {"tf32": "TF32 exists on NVIDIA GPUs only"}
    if not backend.startswith("tensorrt") or engines.backends().get(backend) is not None:
        return {}
    from workbench.engines.tensorrt import capabilities, cuda

    library, device = capabilities.Capabilities(capabilities.library(backend)), cuda.load().device()
    refused = {value: library.refuses(precision, device) for value, precision in _TENSORRT_PRECISION.items()}
    return {value: why for value, why in refused.items() if why is not None}


def _path(model: Model) -> Path:
    return Path(model.path)
