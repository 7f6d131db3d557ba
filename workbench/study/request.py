"""What a study is asked to be: everything checked and settled before anything is started."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench import codec, datasets, engines
from workbench.datasets import Dataset
from workbench.engines import feeding
from workbench.errors import DataError, RecipeError, expect
from workbench.recipes import LONGEST_NAME, Recipe, named
from workbench.records import BuildOptions, Model, Protocol, ShapeProfile


@dataclass(frozen=True)
class Request:
    """One study as it was asked for.

    Attributes:
        dataset: bound to the model; random inputs where no data were given.
        recipes: the baseline among them.
        backend_reason: why this backend was taken, in a sentence.
        named: whether the caller gave the name; a study of that name then grows with what is asked of it.
        notes: what did not go as asked.
    """

    model: Model
    dataset: Dataset
    recipes: tuple[Recipe, ...]
    baseline: str
    backend: str
    backend_reason: str
    protocol: Protocol
    options: BuildOptions
    name: str
    named: bool
    notes: tuple[str, ...] = ()


def requested(
    model: Model,
    data: Dataset | None,
    recipes: Sequence[str | Recipe],
    *,
    backend: str,
    protocol: Protocol | None,
    options: BuildOptions | None,
    baseline: str,
    name: str | None,
) -> Request:
    """Check what was asked for; the arguments are those of `workbench.run`.

    Raises:
        LoadError, RecipeError, BackendMissing, DataError: it cannot be.
    """
    if data is not None:
        expect(data, Dataset, "run", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    if protocol is not None:
        remedy = "Pass workbench.Protocol(rounds=..., batch=...), or nothing for the defaults."
        expect(protocol, Protocol, "run(protocol=...)", remedy, DataError)
    if options is not None:
        remedy = "Pass workbench.BuildOptions(threads=...), or nothing for the defaults."
        expect(options, BuildOptions, "run(options=...)", remedy, DataError)
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable()):
        raise DataError(
            f"The name of a study is {repr(name)[:80]}; it must be text of 1 to {LONGEST_NAME} printable characters."
        )
    chosen = _chosen(recipes if isinstance(recipes, (list, tuple)) else [recipes], baseline)  # type: ignore[list-item]
    backend, reason = engines.choose(backend)
    dataset = (datasets.random(model) if data is None else data).bound_to(model)
    protocol, notes = _fitting(protocol or Protocol(), model)
    shapes = {name: (protocol.batch, *array.shape[1:]) for name, array in dataset.evaluation.inputs.items()}
    feeding.check_limits(model.inputs, shapes)
    options = with_profiles(options or BuildOptions(), backend, dataset, protocol)
    request = Request(
        model=model,
        dataset=dataset,
        recipes=tuple(chosen),
        baseline=baseline,
        backend=backend,
        backend_reason=reason,
        protocol=protocol,
        options=options,
        name="",
        named=name is not None,
        notes=(*notes, *dataset.notes, *_data_notes(dataset)),
    )
    return replace(request, name=name or _derived_name(request))


def summary_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a study's record says of its data."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "sha256": dataset.sha256,
        "evaluation_samples": len(dataset.evaluation),
        "calibration_samples": 0 if dataset.calibration is None else len(dataset.calibration),
        "metric": None if dataset.metric is None else dataset.metric.name,
    }


def with_profiles(options: BuildOptions, backend: str, dataset: Dataset, protocol: Protocol) -> BuildOptions:
    """Give engines that compile for shapes the shapes that this study will feed, unless the caller named some."""
    if backend not in ("tensorrt", "tensorrt-rtx") or options.profiles:
        return options
    profile = {
        name: ShapeProfile(
            (1, *array.shape[1:]), (protocol.batch, *array.shape[1:]), (protocol.batch, *array.shape[1:])
        )
        for name, array in dataset.evaluation.inputs.items()
    }
    return replace(options, profiles=(profile,))


def _chosen(recipes: Sequence[str | Recipe], baseline: str) -> list[Recipe]:
    chosen = [named(recipe) for recipe in recipes]
    names = [recipe.name for recipe in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"The recipe names {', '.join(twice)} appear more than once. Give each recipe its own name.")
    return chosen if baseline in names else [named(baseline), *chosen]


def _fitting(protocol: Protocol, model: Model) -> tuple[Protocol, tuple[str, ...]]:
    """Take the model's own batch size where its first axis is fixed."""
    fixed = {spec.shape[0] for spec in model.inputs if spec.shape and spec.shape[0] is not None}
    if not fixed or fixed == {protocol.batch}:
        return protocol, ()
    if len(fixed) > 1:
        raise DataError(
            f"The inputs of {model.name} have the fixed first axes {sorted(fixed)}; one batch cannot serve all."
        )
    batch = int(next(iter(fixed)))
    note = f"The model takes batches of {batch} only, so batch {batch} was measured instead of {protocol.batch}."
    return replace(protocol, batch=batch), (note,)


def _derived_name(request: Request) -> str:
    """Another request is another study: what one found is never replaced by what another finds."""
    terms = [
        request.model.sha256,
        request.dataset.sha256,
        None if request.dataset.metric is None else request.dataset.metric.name,
        request.backend,
        codec.to_plain(request.protocol),
        codec.to_plain(request.options),
        request.baseline,
        codec.to_plain(request.recipes),
    ]
    return f"{request.model.name}-{hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:8]}"


def _data_notes(dataset: Dataset) -> tuple[str, ...]:
    if dataset.kind != "random":
        return ()
    return ("The inputs are random numbers: latencies hold for these shapes, and no accuracy is claimed.",)
