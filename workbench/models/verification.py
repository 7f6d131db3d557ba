"""After an export: run the file on ONNX Runtime's CPU engine and compare it with the PyTorch module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench import engines
from workbench.engines import isolated
from workbench.engines.limits import broken
from workbench.errors import ExportError, RunError
from workbench.models import onnx_file
from workbench.models.eager import answers_depend_on_earlier_calls, eager_outputs
from workbench.models.place import Place
from workbench.models.signature import bind
from workbench.records import Model

# Two FP32 engines sum in different orders; a graph that computes something else is off by orders of magnitude more.
LARGEST_RELATIVE_ERROR = 1e-3
# That opening the file, or a call, may take.
_MOST_SECONDS = 300.0


def compared(model: Model, module: Any, example_inputs: Any, place: Place | None = None) -> Model:
    """Compare an exported file with its module, and note in the model's origin what was compared and how far apart they are.

    At the example's sizes and, one after the other, at two other lengths of every axis that is called dynamic, as far as
    the export's own limits go: exporters bake sizes in. At length 1, which tracers never see, the file is limited to two
    and more where it is something else. And in a second call: a module that keeps state has no file that does.

    Args:
        place: where a file with further limits goes.

    Raises:
        ExportError: the file does not run at a size that the module takes, or computes something else there; or the
            module's answer depends on earlier calls.
    """
    absent = engines.backend("onnxruntime-cpu").missing("onnxruntime-cpu")
    if absent is not None:
        return _noted(model, f"The export was not compared with PyTorch. {absent}")
    if answers_depend_on_earlier_calls(module, example_inputs):
        raise ExportError(
            f"{type(module).__name__} keeps state between calls: the same inputs gave another answer in a second call. An "
            f"ONNX file has no state, so every call would start anew. Pass the state in and return it (as transformers "
            f"does with a cache), or reset it in forward."
        )
    largest, seen, refused, single = 0.0, [], [], []
    limits = [text for spec in model.inputs for text in spec.limits]
    with isolated.open_file(model.path, seconds=_MOST_SECONDS) as runner:
        for sizes in _sizes_to_try(model, example_inputs, module):
            try:
                feeds, expected = eager_outputs(module, example_inputs, sizes)
            except ExportError:
                refused.append(_words(sizes))
                continue
            feeds = {spec.name: feeds[spec.name] for spec in model.inputs}
            if broken(limits, {name: array.shape for name, array in feeds.items()}):
                continue
            try:
                error = _error_at(runner, model, feeds, expected)
            except ExportError:
                if not (
                    ones := [(name, axis) for name, lengths in sizes.items() for axis in lengths if lengths[axis] == 1]
                ):
                    raise
                single += ones
                continue
            largest = max(largest, error)
            seen.append(", ".join(f"{name} {array.shape}" for name, array in feeds.items()))
    if not seen:
        return _noted(
            model, "The export was not compared with PyTorch: the module takes none of the sizes that were tried."
        )
    words = f"Compared with PyTorch on {'; '.join(seen)}: largest relative difference {largest:.1e}."
    if refused:
        words += f" The module itself does not take {'; '.join(refused)}."
    if single:
        model = _at_least_two(model, single, limits, place or Place())
        words += f" It holds for sizes with {' and '.join(f'{name}[{axis}] >= 2' for name, axis in single)} only."
    return _noted(model, words)


def _at_least_two(model: Model, places: list[tuple[str, int]], limits: list[str], place: Place) -> Model:
    """Return the model with the limits that axes have two samples or more: with one the module does something else."""
    proto = onnx.load(model.path)
    onnx_file.write_limits(proto, [*limits, *(f"L[{name!r}][{axis}] >= 2" for name, axis in places)])
    file = place.keep(proto, model.name)
    return replace(onnx_file.read(file, name=model.name, origin=model.origin, place=place), program=model.program)


def _error_at(runner: Any, model: Model, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    try:
        outputs = runner.infer(feeds)
    except RunError as error:
        raise ExportError(
            f"The exported {model.name} does not run on {shapes}, which the module takes: {error} A size of the example "
            f"inputs was probably baked in. Rewrite the part that depends on it, or leave that axis out of dynamic "
            f"(dynamic=False fixes all)."
        ) from error
    largest = max((_relative_error(outputs[key], value) for key, value in expected.items()), default=0.0)
    if not largest <= LARGEST_RELATIVE_ERROR:  # also true for NaN
        raise ExportError(
            f"The exported {model.name} differs from the module by {largest:.1e} of the largest output, or of integers in "
            f"that share, on {shapes}; at most {LARGEST_RELATIVE_ERROR:.0e} is rounding. Something was baked in or depends on "
            f"randomness: check the notes {model.origin.notes}, try the other exporter, or pass dynamic=False (or fewer "
            f"dynamic axes)."
        )
    return largest


def _sizes_to_try(model: Model, example_inputs: Any, module: Any) -> list[dict[str, dict[int, int]]]:
    """The example's own sizes, then one more, twice as long, and one along each dynamic axis; axes of one name move together."""
    examples = bind(module, example_inputs).tensors
    symbols = _symbols(Path(model.path))
    found: list[dict[str, dict[int, int]]] = [{}]
    for symbol in dict.fromkeys(name for axes in symbols.values() for name in axes.values()):
        places = [(name, axis) for name, axes in symbols.items() for axis, one in axes.items() if one == symbol]
        for grown in (lambda length: length + 1, lambda length: 2 * length, lambda _: 1):
            sizes: dict[str, dict[int, int]] = {}
            for name, axis in places:
                if name in examples:
                    sizes.setdefault(name, {})[axis] = grown(examples[name].shape[axis])
            if sizes not in found:
                found.append(sizes)
    return found


def _symbols(path: Path) -> dict[str, dict[int, str]]:
    """Input name -> {dynamic axis: its name}."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        value.name: {axis: dim.dim_param for axis, dim in enumerate(value.type.tensor_type.shape.dim) if dim.dim_param}
        for value in graph.input
    }


def _words(sizes: dict[str, dict[int, int]]) -> str:
    return ", ".join(f"axis {axis} of {name} = {size}" for name, axes in sizes.items() for axis, size in axes.items())


def _relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    if value.shape != expected.shape:
        return float("inf")
    differing = float(np.mean(value != expected)) if expected.size else 0.0
    ours, theirs = value.astype(np.float64), expected.astype(np.float64)
    # Infinities of one sign are no difference: a module may forbid an answer with -inf. NaN and others are infinitely far.
    infinite = np.isinf(ours) & (ours == theirs)
    ours, theirs = ours[~infinite], theirs[~infinite]
    if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return float("inf")
    found = float(np.abs(ours - theirs).max(initial=0.0) / max(np.abs(theirs).max(initial=0.0), 1e-12))
    # Which of two classes with equal scores is the highest, rounding decides: of integers a few may be quite others.
    return min(found, differing) if expected.dtype.kind in "biu" else found


def _noted(model: Model, note: str) -> Model:
    return replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))
