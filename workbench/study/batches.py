"""`matrix`: one recipe under many batches and threads (or streams): what a call takes, and how many samples a second there are.

Each place is a study of its own, remembered like any other: an interrupted matrix goes on where it stopped, and a larger one
measures what is new. Places are measured one after the other and not in turns, which the record says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench import engines
from workbench.datasets import Dataset
from workbench.errors import RecipeError, WorkbenchError
from workbench.judging.statistics import Summary
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Recipe, named
from workbench.records import BuildOptions, Model, Progress, Protocol, cards, formats
from workbench.study import progress as bars
from workbench.study.running import run

if TYPE_CHECKING:
    import pandas

Over = Literal["threads", "streams"]
NOT_IN_TURNS = (
    "Places were measured one after the other, not in turns: small differences between them may be the machine's."
)


@dataclass(frozen=True)
class Place:
    """One batch under one number of threads or streams.

    Attributes:
        summary: of the latency of a call; None where it failed.
        samples_per_second: as measured for streams, else the batch over the median latency.
        study: name of the study behind it.
        failure: why there is nothing; empty where there is.
    """

    batch: int
    workers: int
    summary: Summary | None
    samples_per_second: float | None
    study: str = ""
    failure: str = ""


@dataclass(frozen=True, repr=False)
class Matrix(cards.Card):
    """All places of one recipe on one backend.

    Attributes:
        over: what `Place.workers` counts.
    """

    model: str
    recipe: str
    backend: str
    over: Over
    places: tuple[Place, ...]
    notes: tuple[str, ...] = (NOT_IN_TURNS,)

    def sweet_spot(self, at_most_seconds: float | None = None) -> Place | None:
        """Return the place with the most samples a second whose call surely keeps to a latency; None where none does.

        Args:
            at_most_seconds: the upper end of the latency's interval must be below it (the median where there is none).
        """
        fits = [
            place
            for place in self.places
            if place.summary is not None
            and place.samples_per_second is not None
            and (at_most_seconds is None or _upper(place.summary) <= at_most_seconds)
        ]
        return max(fits, key=lambda place: place.samples_per_second or 0.0, default=None)

    def words(self, at_most_seconds: float | None = None) -> str:
        """Say the sweet spot in a sentence."""
        found = self.sweet_spot(at_most_seconds)
        within = "" if at_most_seconds is None else f" within {formats.milliseconds(at_most_seconds)} ms a call"
        if found is None or found.summary is None:
            return f"No batch and number of {self.over} that was measured is fast enough{within}."
        return (
            f"Most samples a second{within}: batch {found.batch} with {counted(found.workers, self.over)}, "
            f"{found.samples_per_second:,.0f} samples/s at {formats.milliseconds(found.summary.median)} ms a call."
        )

    def frame(self) -> pandas.DataFrame:
        """Return one row a place, in seconds and samples a second; NaN where nothing is known."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "batch": place.batch,
                    self.over: place.workers,
                    "median_seconds": None if place.summary is None else place.summary.median,
                    "low_seconds": None if place.summary is None else place.summary.low,
                    "high_seconds": None if place.summary is None else place.summary.high,
                    "samples_per_second": place.samples_per_second,
                    "study": place.study,
                }
                for place in self.places
            ]
        )

    def _headline(self) -> str:
        return f"{self.recipe!r} of {self.model!r} on {self.backend}, {len(self.places)} places. {self.words()}"

    def _facts(self) -> cards.Facts:
        for place in self.places:
            told = place.failure
            if place.summary is not None:
                told = f"{formats.milliseconds(place.summary.median)} ms, {place.samples_per_second:,.0f} samples/s"
            yield f"batch {place.batch}, {counted(place.workers, self.over)}", told
        yield "notes", " ".join(self.notes)


def matrix(
    model: Model | str | Path,
    data: Dataset | None = None,
    recipe: str | Recipe = "fp32",
    *,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    threads: Sequence[int] | None = None,
    streams: Sequence[int] | None = None,
    backend: str = "auto",
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    store: Store | None = None,
    progress: bars.Listener | Literal["auto"] | None = "auto",
    watch: Callable[[Matrix], None] = lambda found: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Matrix:
    """Measure one recipe under every batch and number of threads or streams.

    Args:
        threads: of the CPU; streams: concurrent callers, with the boundary `throughput`. One of the two at most; neither
            is the options' own number of threads.
        watch: called with what there is after each place.

    Raises:
        RecipeError: both threads and streams are given, or there is nothing to measure.
        LoadError, BackendMissing: as for `run`. A place that fails is recorded, and the others go on.
        Cancelled: `cancel` said so; what was measured is remembered.
    """
    if threads is not None and streams is not None:
        raise RecipeError("matrix(...) got threads and streams; give one of them: the other axis is the batch.")
    store, one = store or Store(), named(recipe)
    model = as_model(model, "matrix", store)
    backend, _ = engines.choose(backend)
    protocol, options = protocol or Protocol(), options or BuildOptions()
    over: Over = "threads" if streams is None else "streams"
    workers = streams or threads or (options.threads or 1,)
    wanted = list(itertools.product(dict.fromkeys(workers), dict.fromkeys(batches)))
    if not wanted or min(map(min, wanted)) < 1:
        raise RecipeError(
            f"matrix(...) got batches {tuple(batches)} and {over} {tuple(workers)}; give numbers of at least 1."
        )
    tell, places = bars.listener(progress), []
    for number, (count, batch) in enumerate(wanted):
        tell(Progress("matrix", one.name, number / len(wanted), f"batch {batch}, {counted(count, over)}"))
        changed = replace(protocol, batch=batch)
        built = options
        if over == "streams":
            changed = replace(changed, streams=count, boundary="throughput")
        elif threads is not None:
            built = replace(options, threads=count)
        try:
            study = run(
                model, data, [one], backend=backend, protocol=changed, options=built, baseline=one.name, store=store,
                progress=None, cancel=cancel,
            )  # fmt: skip
        except WorkbenchError as error:
            if cancel():
                raise
            places.append(Place(batch, count, None, None, failure=str(error)))
        else:
            found = study.latency(one.name)
            used = study.record.protocol.batch  # a model with a fixed first axis takes its own
            rate = found.queries_per_second
            each = used * rate if rate is not None else used / found.median
            places.append(Place(used, count, found, each, study.name))
        watch(Matrix(model.name, one.name, backend, over, tuple(places)))
    tell(Progress("finished", "", 1.0))
    return Matrix(model.name, one.name, backend, over, tuple(places))


def counted(count: int, over: Over) -> str:
    """Return `1 thread`, `2 threads`."""
    return f"{count} {over if count != 1 else over.removesuffix('s')}"


def _upper(found: Summary) -> float:
    return found.median if found.high is None else found.high
