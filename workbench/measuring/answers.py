"""Check what a variant does to the answers: run it and its parent over the evaluation samples, and compare.

The arithmetic is in `workbench.judging.accuracy`; here is only the running, in child processes and in chunks, so that the
logits of a language model need not all be held.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np

from workbench.datasets import Dataset
from workbench.datasets.outputs import Answers
from workbench.engines import jobs
from workbench.engines.feeding import fixed_batch
from workbench.errors import DataError, EngineError, LostAnswers, expect
from workbench.judging import accuracy
from workbench.machine import arrays, disk
from workbench.machine.handle import QUIET, Handle
from workbench.records import Accuracy, Engine

Outputs = dict[str, np.ndarray]

# Outputs of one chunk of samples are held in memory twice, the variant's and the parent's.
_CHUNK_BYTES = 128 << 20


def check(
    engine: Engine,
    parent: Engine,
    data: Dataset,
    *,
    batch: int = 32,
    keep_parent: Path | None = None,
    handle: Handle = QUIET,
) -> Accuracy:
    """Compare a variant's answers with its FP32 parent's, and with the labels where there are any.

    Args:
        parent: the engine of the FP32 parent; may be the same engine.
        data: bound to the model (see `Dataset.bound_to`); its evaluation split is used.
        batch: samples a call.
        keep_parent: an existing folder in which the parent's outputs are kept for the next call.
        handle: the caller's, which may stop it.

    Raises:
        DataError: outputs and labels do not fit the metric.
        RunError, ChildKilled: an engine failed.
        LostAnswers: the variant gives NaN or infinity where its parent does not.
    """
    for one in (engine, parent):
        expect(one, Engine, "check", "Build one first: workbench.build(variant, ...).", EngineError)
    expect(data, Dataset, "check", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    evaluation = data.evaluation
    accumulator = accuracy.Accumulator(data.metric)
    size = _chunk_size(engine, evaluation.inputs, batch, len(evaluation))
    start = 0
    while start < len(evaluation):
        rows = slice(start, min(start + size, len(evaluation)))
        theirs = _parent_outputs(parent, data, rows, batch, folder=keep_parent, handle=handle)
        if theirs.whole and size < len(evaluation):
            # What has no axis of samples cannot be put together again from chunks.
            size, start, accumulator = len(evaluation), 0, accuracy.Accumulator(data.metric)
            continue
        feeds = {name: array[rows] for name, array in evaluation.inputs.items()}
        ours = theirs if engine == parent else jobs.infer(engine, feeds, batch, axes=theirs.axes, handle=handle)
        _refuse_lost(engine, ours, theirs)
        accumulator.update(ours, theirs, None if evaluation.labels is None else evaluation.labels[rows])
        if theirs.whole and (copies := _copies(engine, len(evaluation))):
            accumulator.note(
                f"The last call was filled up with {copies} copies, which are in {', '.join(theirs.whole)} too."
            )
        start = rows.stop
    return accumulator.result(
        variant=engine.variant,
        variant_sha256=engine.variant_sha256,
        backend=engine.backend,
        data_name=data.name,
        data_kind=data.kind,
        data_sha256=evaluation.sha256,
    )


def _refuse_lost(engine: Engine, ours: Answers, theirs: Answers) -> None:
    """Refuse answers that are lost: no distance over the others would tell how wrong they are."""
    for name, values in ours.items():
        if values.shape != theirs[name].shape:
            continue  # the comparison itself says so
        lost = np.atleast_1d(_finite(theirs[name]) & ~_finite(values))
        if lost.any():
            lost = np.moveaxis(lost, theirs.axes.get(name) or 0, 0)
            samples = int(lost.reshape(len(lost), -1).any(axis=1).sum())
            raise LostAnswers(
                f"Output {name!r} of {engine.variant!r} is NaN or infinite in {samples} of {len(lost)} samples where its "
                f"parent's is finite: there is no accuracy to speak of. If it computes in FP16, numbers beyond 65504 "
                f"became infinite: keep those layers in FP32 (give calibration samples, so that auto_exclude finds them, or "
                f"name them in Precision(exclude=...)), or take bf16."
            )


def _finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.name == "bfloat16":  # no kind that numpy's isfinite knows
        values = values.astype(np.float32)
    return np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)


def _copies(engine: Engine, count: int) -> int:
    """How many copies fill up the last call of an engine with a batch of its own."""
    fixed = fixed_batch(engine.inputs)
    return 0 if fixed is None else -count % fixed


def _parent_outputs(
    parent: Engine, data: Dataset, rows: slice, batch: int, *, folder: Path | None, handle: Handle
) -> Answers:
    kept = None if folder is None else folder / f"{parent.variant_sha256}-{rows.start}-{rows.stop}.npz"
    if kept is not None and kept.with_suffix(".json").exists():
        with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
            return Answers(arrays.load(kept), **json.loads(kept.with_suffix(".json").read_text(encoding="utf-8")))
    feeds = {name: array[rows] for name, array in data.evaluation.inputs.items()}
    outputs = jobs.infer(parent, feeds, batch, axes=data.sample_axes, handle=handle)
    if kept is not None:
        with disk.writing(kept):
            arrays.save(kept, outputs)
            # Written last and at once: a kill in the middle must not leave half of it under the name that is looked for.
            about = kept.with_suffix(".json")
            about.with_suffix(".tmp").write_text(json.dumps(outputs.about()), encoding="utf-8")
            about.with_suffix(".tmp").replace(about)
    return outputs


def _chunk_size(engine: Engine, inputs: Outputs, batch: int, count: int) -> int:
    """How many samples' outputs fit a chunk; one batch is run where the shapes do not tell."""
    if all(size is not None for spec in engine.outputs for size in spec.shape[1:]):
        sample_bytes = sum(4.0 * float(np.prod([size or 1 for size in spec.shape[1:]])) for spec in engine.outputs)
    else:
        probe = jobs.infer(engine, {name: array[:batch] for name, array in inputs.items()}, batch)
        sample_bytes = sum(array.nbytes for array in probe.values()) / min(batch, count)
    fitting = int(_CHUNK_BYTES / max(sample_bytes, 1.0))
    return min(max(fitting // batch, 1) * batch, count)
