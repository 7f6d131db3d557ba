"""`explain_files`: why one ONNX file is slower or less accurate than another, without a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench import datasets, engines
from workbench.engines import jobs
from workbench.engines.feeding import fixed_batch
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.gathering import Side, Subject, gather
from workbench.explaining.reached import within
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import load
from workbench.recipes import Fuse, Recipe
from workbench.records import BuildOptions
from workbench.transformation.steps import transform
from workbench.tuning.machine_ceilings import ceilings


def explain_files(
    before: str | Path,
    after: str | Path,
    inputs: NDArray | Mapping[str, NDArray] | None = None,
    *,
    backend: str = "auto",
    batch: int = 8,
    options: BuildOptions | None = None,
    store: Store | None = None,
    handle: Handle = QUIET,
) -> Explanation:
    """Explain why `after` (quantized by any tool, or reduced) takes the time it takes beside `before`, and what it loses.

    Args:
        before: the FP32 model; nodes and tensors are joined with those of `after` by name.
        inputs: samples on axis 0, under the model's input names, or the array of its only input; None takes random ones.
        backend: a name from `workbench.backends()`, or `auto`.
        batch: samples a call while layers are profiled.

    Raises:
        LoadError, DataError, BuildError: as `workbench.load`, `workbench.datasets.arrays` and `workbench.build`.
        EngineError: the backend has no profiler of layers.
    """
    store, options = store or Store(), options or BuildOptions()
    backend, _ = engines.choose(backend)
    make = _Builder(backend, options, store, handle)
    sides = (make.side(before, "before"), make.side(after, "after"))
    model = load(before, store=store)
    data = (datasets.random(model) if inputs is None else datasets.arrays(inputs)).bound_to(model)
    subject = Subject(
        backend,
        *sides,
        data.evaluation.cycled(fixed_batch(model.inputs) or batch),
        model.modules,
        samples={name: np.asarray(array) for name, array in data.evaluation.inputs.items()},
    )
    limits = partial(ceilings, backend, threads=options.threads, store=store, handle=handle)
    evidence = within(gather(subject, limits(), handle=handle), partial(limits, again=True))
    return explanation(Path(after).stem, evidence)


@dataclass(frozen=True)
class _Builder:
    backend: str
    options: BuildOptions
    store: Store
    handle: Handle

    def side(self, path: str | Path, name: str) -> Side:
        # Fusion is asked of the graph of a file in FP32 only; one that is quantized already is run as it stands.
        recipe = Recipe(name, (Fuse("all"),))
        dialect = engines.backend(self.backend).dialect(self.backend)
        variant = transform(load(path, store=self.store), recipe, dialect=dialect, store=self.store)
        engine = jobs.build(variant, self.backend, self.options, store=self.store, handle=self.handle)
        return Side(engine, variant.path)
