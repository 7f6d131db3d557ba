"""What leaves the app: the cell that does the same, and the report."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from traitlets import Bool, HasTraits, Unicode

from workbench.errors import StoreError
from workbench.explaining.explanation import Explanation
from workbench.reports import code
from workbench.study import Study, catalog
from workbench.study.why import explain_best
from workbench.ui.jobs import DRAWING, STUDIES, Job
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import Results
from workbench.ui.state.selection import FOLDER, GIVEN, IMAGES, NPZ, ONNX_FILE, RANDOM, SHIPPED, ModelSelection
from workbench.ui.state.session import Session

_FIRST_PATH = "report"
FORMATS = {"HTML page": ".html", "Markdown": ".md", "CSV": ".csv", "JSON": ".json", "folder with all four": ""}


class Export(HasTraits):
    """Code and reports.

    Attributes:
        code: the cell that does what the app is set to do, or that runs the study that is shown again.
        study: name of the study that is shown, which the report is of; what was made of another one is gone with it.
        report_path, report_format: where the report goes; `written` is where the last one went.
        report_page: the last report, where it is one HTML page, for a link that opens it.
        with_layers: whether the best variant is profiled beside the baseline first, for a section of layers.
    """

    code = Unicode()
    study = Unicode()
    report_path = Unicode(_FIRST_PATH)
    report_format = Unicode("HTML page")
    written = Unicode()
    report_page = Unicode()
    is_writing = Bool(False)
    with_layers = Bool(False)

    def __init__(
        self,
        session: Session,
        selection: ModelSelection,
        plan: Plan,
        results: Results,
        name: str | None = None,
        look: Callable[..., Explanation | None] = explain_best,
    ) -> None:
        super().__init__()
        self._look = look
        self.session, self.selection, self.plan, self.results = session, selection, plan, results
        self._name = name
        self._proposed = _FIRST_PATH
        results.observe(lambda change: self._follow(), "record")

    def show_study_code(self) -> None:
        """Write the cell that runs the study that is shown again.

        Raises:
            StoreError: there is none.
        """
        if self.results.record is None:
            raise StoreError("There is no study to write as code yet. Run one, or open an earlier one.")
        self.code = code.reproduce(self.results.record)

    def show_code(self) -> None:
        """Write the cell for what is chosen now.

        Raises:
            RecipeError: the protocol is not possible.
        """
        plan = self.plan
        self.code = code.cell(
            code.Asked(
                model=self._model(),
                data=self._data(),
                recipes=tuple(plan.recipes),
                backend=plan.backend,
                protocol=plan.protocol,
                options=plan.options,
                name=self._name,
            )
        )

    def export(self) -> None:
        """Write the report of the study that is shown, in the background; the pinned reference stands in it, where one is.

        Raises:
            StoreError: there is nothing to report, or no path.
        """
        record = self.results.record
        if record is None:
            raise StoreError("There is no study to report yet. Run one, or open an earlier one.")
        if not self.report_path.strip():
            raise StoreError("No file was named for the report. Write one into `File`.")
        path = Path(self.report_path.strip()).expanduser()
        suffix = FORMATS[self.report_format]
        path = path.with_suffix(suffix) if suffix and path.suffix != suffix else path

        data, store, with_layers = self.selection.data, self.session.store, self.with_layers
        known = data if data is not None and data.sha256 == record.data.get("sha256") else None

        def work(job: Job[tuple[Path, str]]) -> tuple[Path, str]:
            study, pinned = Study(record), catalog.pinned(store)
            found = None
            if with_layers:
                found = self._look(study, known, store=store, progress=job.report, cancel=job.cancelled)
            reference = None if pinned in (None, record.name) else Study.open(str(pinned), store)
            written = study.report(path, [] if found is None else [found], reference)
            return written, written.read_text(encoding="utf-8") if suffix == ".html" else ""

        self.written, self.report_page, self.is_writing = "", "", True
        job = Job("report", work, key=("report", id(self)))
        # What is profiled must not run beside what is measured.
        self.session.start(STUDIES if with_layers else DRAWING, job, lambda job: self._take(job, record.name))

    def _take(self, job: Job[tuple[Path, str]], study: str) -> None:
        snapshot = job.snapshot
        if not snapshot.is_final:
            return
        self.is_writing = False
        if snapshot.state == "failed":
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None and study == self.study:
            path, self.report_page = job.outcome
            self.written = str(path.resolve())

    def _follow(self) -> None:
        """Forget what was made of another study; a path that nobody typed follows the study's name."""
        record = self.results.record
        name = "" if record is None else record.name
        if name == self.study:
            return
        self.study, self.code, self.written, self.report_page = name, "", "", ""
        if self.report_path == self._proposed:
            words = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
            self._proposed = self.report_path = f"{_FIRST_PATH}-{words}" if words else _FIRST_PATH

    def _model(self) -> str:
        selection = self.selection
        if selection.source == GIVEN:
            return "model"
        if selection.source == SHIPPED:
            return f"wb.load({selection.shipped!r})"
        assert selection.source in (ONNX_FILE, FOLDER)
        return f"wb.load({selection.path.strip()!r})"

    def _data(self) -> str:
        selection = self.selection
        if selection.data_source == GIVEN:
            return "data"
        if selection.data_source == RANDOM:
            return "wb.datasets.random(model)"
        if selection.data_source in (NPZ, IMAGES):
            reader = "npz" if selection.data_source == NPZ else "image_folder"
            return f"wb.datasets.{reader}({selection.data_path.strip()!r})"
        return f"wb.datasets.{selection.data_source}()"
