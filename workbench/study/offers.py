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
from workbench.recipes import CALIBRATORS, FLOAT_FORMATS, FUSION_LEVELS
from workbench.records import Model
from workbench.study.sweep import QUANTIZATIONS, STATIC

# (toggle, value) -> why it cannot be chosen.
Reasons = dict[tuple[str, str], str]

_MODULE = "This is the PyTorch module, not the ONNX file: only the floating-point type can be changed."
_CAVEATS = {
    "onnxruntime-cpu": (
        "FP16 and BF16 on a CPU are stored small and computed in FP32: an accuracy rehearsal, not a speed-up.",
        "FP8 on a CPU is computed in FP32 between its rounding steps: an accuracy rehearsal too.",
    ),
    "openvino": (
        "FP16 on a CPU is stored small and computed in FP32; BF16 is real arithmetic where the processor has it.",
        "FP8 on a CPU is computed in FP32 between its rounding steps: an accuracy rehearsal too.",
    ),
    "torch": (_MODULE, "FP16 on a CPU without hardware for it is far slower than FP32."),
    "torch-compile": (_MODULE, "FP16 on a CPU without hardware for it is far slower than FP32."),
    "torch-cudagraph": (_MODULE,),
}
_NEEDS_CALIBRATION = "the data have no calibration samples"
# What backends are asked for -> the toggle and its value.
_TOGGLES: dict[str, tuple[str, str]] = {
    **{name: ("precision", name) for name in FLOAT_FORMATS},
    **{name: ("quantization", name) for name in QUANTIZATIONS if name != "none"},
    **{f"fusion-{level}": ("fusion", level) for level in FUSION_LEVELS},
    "sparse": ("sparse", "True"),
    "exclude": ("exclude", "layers"),
}


def refusals(
    backend: str, model: Model | None = None, data: Dataset | None = None, *, target: str | None = None
) -> Reasons:
    """Return the toggles that cannot be chosen -> why. `("backend", "model")` has why the model cannot be run at all.

    Args:
        target: what is built for where the backend builds ahead of time, such as `sm86` (see `BuildOptions.target`).

    Raises:
        BackendMissing: there is no such backend; LoadError, DataError: the others are something else; BuildError: there
            is no such target.
    """
    engines.backend(backend)
    if model is not None:
        expect(model, Model, "refusals", "Load it first: workbench.load(...).", LoadError)
    if data is not None:
        expect(data, Dataset, "refusals", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    found: Reasons = {}
    # A backend that is not here cannot be asked, and cannot be chosen either.
    if engines.missing_to_build(backend) is None:
        asked = engines.backend(backend).refuses(backend, target)
        found |= {_TOGGLES[value]: why for value, why in asked.items()}
    if model is not None and (why := _unfit(backend, model)) is not None:
        found["backend", "model"] = f"{backend} cannot run {model.name}: {why}"
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
    return _CAVEATS.get(backend, ())


def lacking(backends: dict[str, Missing | None], model: Model) -> dict[str, dict[str, str]]:
    """Return, for each backend that is here, the operators of the model that it cannot run -> the reason.

    The empty name stands for the model itself, where a backend cannot run it whatever its operators.
    """
    found = {}
    for name in (name for name, absent in backends.items() if absent is None):
        unfit = _unfit(name, model)
        found[name] = engines.backend(name).lacks(name, Path(model.path)) if unfit is None else {"": unfit}
    return found


def layer_names(model: Model, proto: onnx.ModelProto) -> dict[str, str]:
    """Return every node that a recipe can leave out -> its module path (or nothing), in the order of the graph."""
    return {node.name: model.modules.get(node.name, "") for node in proto.graph.node if node.name}


def _unfit(backend: str, model: Model) -> str | None:
    module = engines.backend(backend)
    return module.unfit(backend, model) if hasattr(module, "unfit") else None
