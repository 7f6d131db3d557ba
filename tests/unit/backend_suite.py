"""ONNX's own backend suite: a small model for each operator and version, with inputs. Used by a test and by a benchmark.

For each model: the recipe `fp32`, which folds, fuses and converts, must give what the file itself gives in plain ONNX Runtime
with its optimizer off.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.case.model import collect_testcases as model_cases
from onnx.backend.test.case.node import collect_testcases as node_cases

import workbench as wb
from workbench.errors import WorkbenchError

LARGEST_RELATIVE_ERROR = 1e-3
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@dataclass(frozen=True)
class Case:
    """A model and one set of inputs for it; `feeds` is None where an input is no tensor."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray] | None


def cases() -> Iterator[Case]:
    """Yield all cases: operators, small models, what PyTorch's old exporter wrote, and well-known classifiers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose
        found = [*node_cases(), *model_cases()]
    for item in sorted(found, key=lambda item: str(item.name)):
        if item.model is not None and item.data_sets:
            yield Case(item.name, item.model, _feeds(item.model, item.data_sets[0][0]))
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for folder in sorted((DATA / kind).iterdir()):
            file, inputs = folder / "model.onnx", folder / "test_data_set_0"
            if file.is_file() and inputs.is_dir():
                model = onnx.load(str(file))
                yield Case(folder.name, model, _feeds(model, _read(inputs)))
    for file in sorted((DATA / "light").glob("*.onnx")):  # classifiers of images whose weights are made at run time
        model = onnx.load(str(file))
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        yield Case(file.stem, model, _feeds(model, [np.random.default_rng(0).random(shape, np.float32)]))


def _read(folder: Path) -> list[Any]:
    files = sorted(folder.glob("input_*.pb"), key=lambda path: int(re.findall(r"\d+", path.stem)[0]))
    return [numpy_helper.to_array(onnx.load_tensor(str(path))) for path in files]


def _feeds(model: onnx.ModelProto, values: Any) -> dict[str, np.ndarray] | None:
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    values = [numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in values]
    if len(names) != len(values) or not all(isinstance(value, (np.ndarray, np.generic)) for value in values):
        return None
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def outcome(case: Case, folder: Path, store: wb.Store, dialect: str | None = None) -> tuple[str, str]:
    """Return `equal`, `differs`, `refused`, `crashed`, or `not comparable` where the file itself cannot be run; and why.

    Args:
        dialect: of the variant; None takes this CPU's, and others may need another opset.
    """
    file = folder / "case.onnx"
    onnx.save(case.model, str(file))
    if case.feeds is None:
        return "not comparable", "an input is no tensor"
    if any(node.op_type in ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial") or "Random" in node.op_type
           for node in case.model.graph.node):  # fmt: skip
        return "not comparable", "it draws random numbers"
    try:
        wanted = run(file, case.feeds)
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime raises for what it does not have
        return "not comparable", f"ONNX Runtime: {str(error)[:150]}".replace(str(folder), "")
    try:
        variant = wb.transform(wb.load(file, store=store), "fp32", dialect=dialect, store=store)
    except WorkbenchError as error:
        return "refused", f"{type(error).__name__}: {str(error).replace(str(file.parent), '')[:300]}"
    except Exception as error:  # noqa: BLE001 - counted, so that a run goes on
        return "crashed", f"{type(error).__name__}: {str(error)[:300]}"
    try:
        found = run(Path(variant.path), case.feeds)
    except Exception as error:  # noqa: BLE001
        return "differs", f"it does not run any more: {str(error)[:300]}"
    errors = {name: difference(found[name], values) for name, values in wanted.items()}
    worst = max(errors, key=lambda name: errors[name])
    return ("equal", "") if errors[worst] <= LARGEST_RELATIVE_ERROR else ("differs", f"{worst}: {errors[worst]:.1e}")


def run(file: Path, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Run a file in plain ONNX Runtime, its optimizer off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def difference(found: Any, wanted: Any) -> float:
    """Return the largest difference over the largest magnitude; infinite where shapes, types or what is not finite differ."""
    if not isinstance(wanted, np.ndarray):
        return 0.0 if repr(found) == repr(wanted) else np.inf
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return np.inf
    if wanted.dtype.kind not in "fc":
        return 0.0 if np.array_equal(found, wanted) else np.inf
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)) or not np.array_equal(
        wanted[~finite], found[~finite], equal_nan=True
    ):
        return np.inf
    largest = max(float(np.abs(wanted[finite]).max(initial=0.0)), 1e-12)
    return float(np.abs(found[finite].astype(np.complex128) - wanted[finite]).max(initial=0.0)) / largest
