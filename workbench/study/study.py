"""A study that was run, or is being run: its record, and the verbs that show it. Measures nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import codec
from workbench.datasets import Dataset
from workbench.errors import DataError, EngineError, StoreError, expect, nearest
from workbench.judging import standing
from workbench.judging.best import Budget, Choice, choose, recommended
from workbench.judging.comparison import Comparison, compare
from workbench.judging.statistics import Summary, summary
from workbench.machine.store import Store, write_record
from workbench.records import StudyRecord, VariantResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas
    from matplotlib.figure import Figure

    from workbench.explaining.explanation import Explanation
    from workbench.handoff.triton import Deployment
    from workbench.handoff.triton_text import Language
    from workbench.recipes import Recipe


class Study:
    """What is known of one model under N recipes.

    Attributes:
        record: all of it as plain, immutable data.
    """

    def __init__(self, record: StudyRecord) -> None:
        remedy = "Open one that was run with workbench.Study.open(name)."
        expect(record, StudyRecord, "Study", remedy, StoreError)
        self.record = record

    @classmethod
    def open(cls, source: str | Path, store: Store | None = None) -> Study:
        """Open a study that was run before.

        Args:
            source: its name in the store, or a `.json` or `.json.gz` file that `save` (or a report) wrote.

        Raises:
            StoreError: there is no such study, or the file is damaged.
        """
        if str(source).endswith((".json", ".json.gz")):
            path = Path(source)
            if not path.exists():
                raise StoreError(
                    f"There is no file {path}. Give the name of a study in the store, or a .json that exists."
                )
            return cls(_whole(codec.from_file(StudyRecord, path)))
        store = store or Store()
        text = store.get("study", str(source))
        if text is None:
            names = store.keys("study")
            hint = (
                nearest(str(source), names)
                if names
                else "The store holds no study yet: run one with workbench.run(...)."
            )
            raise StoreError(f"There is no study {str(source)!r} in {store.root}. {hint}")
        return cls(_whole(codec.from_json(StudyRecord, text)))

    @property
    def name(self) -> str:
        """The study's name, under which `Study.open` finds it."""
        return self.record.name

    def __getitem__(self, variant: str) -> VariantResult:
        """Return all that is known of one variant."""
        for result in self.record.results:
            if result.recipe.name == variant:
                return result
        names = [result.recipe.name for result in self.record.results]
        raise KeyError(f"{self.name} has no variant {variant!r}. {nearest(variant, names)}")

    @property
    def failures(self) -> dict[str, str]:
        """Variants that did not get through -> the message that says why."""
        return {item.recipe.name: item.failure.message for item in self.record.results if item.failure is not None}

    def comparison(self) -> Comparison:
        """Compare every variant with the baseline: ratios with intervals, verdicts, the Pareto front of accuracy and latency."""
        baseline = self[self.record.baseline]
        others = [item for item in self.record.results if item.recipe.name != self.record.baseline]
        return compare(baseline, others)

    def best(self, *, at_most_lost: float | None = None, at_most_seconds: float | None = None) -> Choice:
        """Return which variant to take, and why, in words.

        Args:
            at_most_lost: accuracy that may be lost, in points for shares, else in the unit of the score.
            at_most_seconds: median latency of a call that must be kept to. Without either, what is distinguishably
                faster than the baseline and not distinguishably worse.

        Raises:
            CompareError: the baseline was not measured.
        """
        comparison = self.comparison()
        shown = standing.quality(self.record, comparison)
        if shown is None:
            return Choice(None, "No variant's answers were checked, so none can be recommended.")
        points, _ = standing.points(self.record, comparison, shown)
        alike, budget = standing.alike_in_speed(self.record), Budget(at_most_seconds, at_most_lost)
        apart = standing.apart_in_speed(self.record)
        if budget.is_empty:
            return recommended(points, shown, alike, apart=apart)
        return choose(points, shown, self.record.baseline, budget, alike, apart=apart)

    def table(self) -> pandas.DataFrame:
        """Return one row a variant, formatted for a reader (numbers with their intervals)."""
        from workbench import reports

        return reports.table(self.record)

    def frame(self) -> pandas.DataFrame:
        """Return one row a variant with raw numbers: seconds, bytes, shares from 0 to 1; NaN where nothing is known."""
        from workbench import reports

        return reports.frame(self.record)

    def latency(self, variant: str) -> Summary:
        """Return what a variant's raw latencies say: median with its interval, percentiles, in seconds.

        Raises:
            KeyError: there is no such variant; DataError: it was not measured.
        """
        measured = self[variant].measurement
        if measured is None:
            failure = self.failures.get(variant, "the study was stopped before")
            raise DataError(f"{variant!r} was not measured: {failure}. Run the study again, or choose another variant.")
        return summary(measured)

    def plot(self, **options: Any) -> Figure:
        """Return accuracy against latency, with intervals and the front (see `workbench.plots.front`)."""
        from workbench import plots

        return plots.front(self.record, **options)

    def layers(self, data: Dataset | None = None, store: Store | None = None) -> pandas.DataFrame:
        """Profile all variants and return one row a layer: module, nodes, operator, shape, and each variant's type, ms and more.

        Args:
            data: what the study was run with, for the errors; see `workbench.study.lens.layers_table`.
        """
        from workbench.study import lens

        return lens.layers_table(self.record, data, store=store)

    def keeping(self, variant: str, rows: pandas.DataFrame | Iterable[str], name: str | None = None) -> Recipe:
        """Return a variant's recipe with the layers of chosen rows of `layers()` kept as they were, to run next.

        Raises:
            RecipeError: no row was chosen.
        """
        from workbench.study import lens

        return lens.keeping(self[variant].recipe, rows, name)

    def report(
        self, path: str | Path, explanations: Sequence[Explanation] | None = None, reference: Study | None = None
    ) -> Path:
        """Write the study for a reader.

        Args:
            path: `.html` (self-contained), `.md`, `.csv`, `.json`, or a folder with all four; for a paper `.tex` (a booktabs
                table), `.svg`, `.pdf` or `.png` (the figure), and `.ipynb` (a notebook that draws from the record).
            explanations: from `workbench.explain`, for sections of layers and reasons in `.html` and `.md`; None takes those
                that the study keeps.
            reference: another study, for a section of what is unlike it in both.
        """
        from workbench import reports

        other = None if reference is None else reference.record
        told = list(self.explanations.values()) if explanations is None else explanations
        return reports.write(self.record, Path(path), told, other)

    def explore(self, store: Store | None = None) -> Any:
        """Open the widget at this study's network, drawn; see `workbench.explore`."""
        import workbench

        return workbench.explore(self, store)

    @property
    def explanations(self) -> dict[str, Explanation]:
        """Variant -> what `workbench.explain` found when it was last explained, on whichever machine that was."""
        from workbench.study import explained

        return explained.kept(self.record)

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON, to be opened on another machine with `Study.open`; it holds no path of this one.

        Args:
            path: ends in `.json`, or in `.json.gz` for a file of a sixth of the size.
        """
        return write_record(path, self.record)

    def deploy(
        self,
        variant: str,
        folder: str | Path,
        to: str = "triton",
        *,
        at_most_seconds: float | None = None,
        backend: str = "auto",
        instances: int | None = None,
        beside: Study | Sequence[Study] = (),
        name: str | None = None,
        language: Language | None = None,
    ) -> Deployment:
        """Write a variant as files for a server: a model repository for the Triton Inference Server.

        Args:
            folder: is made; must not exist.
            to: `triton`.
            at_most_seconds: latency that a request may have. Sizes of batches and the time that a request waits for
                company come from it and from what was measured; without it nothing waits.
            backend: Triton's: `onnxruntime_onnx`, `tensorrt_plan` or `python`; `auto` takes that of the engine.
            instances: copies of the engine; None takes as many as were measured at once.
            beside: studies of the same model, recipe and machine with other batches: no batch is formed that nobody
                measured.
            name: of the model on the server; None takes the model's and the variant's.
            language: from `workbench.llm.load`, where the study is of its `.model`: a second model beside the decoder takes
                a text and gives its continuation; at_most_seconds is that of one call of the decoder then.

        Raises:
            EngineError: the variant failed, its files are gone, this backend cannot serve it, or language is not that of
                the study.
            StoreError: the folder exists, or cannot be written.
            DataError, CompareError: no measured batch is fast enough, the studies beside are of something else, or the
                language model has no tokenizer.
        """
        from workbench.handoff import triton

        if to != "triton":
            raise EngineError(f"A variant cannot be deployed to {to!r}. {nearest(str(to), ['triton'])}")
        options = triton.Options(backend, at_most_seconds, instances, triton.studies(beside), name, language)
        return triton.deploy(self.record, variant, Path(folder), options)

    def log_to(self, tool: str, project: str | None = None) -> list[str]:
        """Hand all variants to an experiment tracker, one run each; return the names of the runs.

        Args:
            tool: `trackio` (on this machine), `mlflow` or `wandb` (where they are configured to keep runs).
            project: None takes the model's name.

        Raises:
            BackendMissing: no such tracker, or it is not installed.
            RunError: the tracker reported an error.
        """
        from workbench.handoff import trackers

        return trackers.log(self.record, tool, project)

    def capsule(self, path: str | Path, data: Dataset | None = None, store: Store | None = None) -> Path:
        """Write the study for another machine, where `workbench.confirm(path)` runs it again and compares.

        The file holds the model, this record (recipes, protocol, versions, raw samples) and the calibration tables.

        Args:
            path: `.zip`.
            data: those of the study, to travel along; None keeps them here, and only their hash goes.
            store: where the study was run; None takes the default store.

        Raises:
            LoadError: the model's file is gone or was changed.
            DataError: the data are not those of the study, or cannot travel.
            StoreError: the place cannot be written.
        """
        from workbench.handoff import capsule

        if data is not None:
            remedy = "Pass the dataset that the study was run with."
            expect(data, Dataset, "capsule", remedy, DataError)
        return capsule.write(self.record, Path(path), data, store or Store())

    def __repr__(self) -> str:
        done = [item.recipe.name for item in self.record.results if item.failure is None]
        failed = f", failed: {', '.join(self.failures)}" if self.failures else ""
        return f"Study({self.name!r}: {self.record.model.name} on {self.record.backend}: {', '.join(done)}{failed})"

    def _repr_html_(self) -> str:
        from workbench.reports.verdict import verdict

        found = verdict(self.record, *standing.compared(self.record))
        first, rest = html.escape(found[0]), html.escape(" ".join(found[1:]))
        table = self.table().to_html(escape=True)
        return f'<p><b>{first}</b> {rest}</p><div style="overflow-x: auto">{table}</div>'


def _whole(record: StudyRecord) -> StudyRecord:
    """Refuse a record that was put together from several: every name in it is looked up later."""
    names = [result.recipe.name for result in record.results]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise StoreError(
            f"The study {record.name!r} has two variants called {twice[0]!r}. The file was edited or damaged."
        )
    for result in record.results:
        for part in (result.engine, result.measurement, result.accuracy, result.failure):
            if part is not None and part.variant != result.recipe.name:
                raise StoreError(
                    f"The study {record.name!r} has under {result.recipe.name!r} the {type(part).__name__} of "
                    f"{part.variant!r}. The file was edited or damaged."
                )
    return record
