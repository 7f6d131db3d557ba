"""The channels of the activation that the calibration view shows: how large each is, and which stand out."""

from __future__ import annotations

from typing import Any

import numpy as np
from traitlets import Bytes, HasTraits, Tuple, Unicode

from workbench import engines
from workbench.calibration.channels import OUTLIER, outliers
from workbench.errors import DataError
from workbench.machine.handle import Handle
from workbench.recipes import NAMED
from workbench.tuning.calibrating import ChannelMaxima, channels
from workbench.ui import pictures
from workbench.ui.jobs import DRAWING, STUDIES, Job
from workbench.ui.state.inspection import Inspection
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import THEMES
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

# The recipe whose tensors the calibration view lists.
_CALIBRATED = NAMED["int8-kl"]


class Channels(HasTraits):
    """What was observed of each channel.

    Attributes:
        words: where that stands, and what stands out in the tensor that is shown.
        light, dark: PNG; empty where the tensor has no channels, or nothing was observed yet.
        outlying: (tensor, largest channel over the median one), those with outlier channels, the worst first.
    """

    words = Unicode("Not observed yet.")
    light = Bytes()
    dark = Bytes()
    outlying = Tuple()

    def __init__(self, session: Session, selection: ModelSelection, plan: Plan, inspection: Inspection) -> None:
        super().__init__()
        self.session, self.selection, self.plan, self.inspection = session, selection, plan, inspection
        self._maxima: dict[str, tuple[float, ...]] = {}
        selection.observe(lambda change: self._forget(), ["model", "data"])
        inspection.observe(lambda change: self._draw(), "tensor")

    def observe_channels(self) -> None:
        """Run the model over its calibration samples once more, or read what was observed before.

        Raises:
            DataError: no model, or data without calibration samples.
        """
        model, data, backend = self.selection.model, self.selection.data, self.plan.backend
        if model is None or data is None or data.calibration is None:
            raise DataError("Channels need a model and data with calibration samples. Choose both on page `Model`.")
        store = self.session.store

        def work(job: Job[ChannelMaxima]) -> ChannelMaxima:
            dialect = engines.backend(backend).dialect(backend)
            handle = Handle(cancelled=job.cancelled)
            return channels(model, data, _CALIBRATED, dialect=dialect, store=store, handle=handle)

        self.words = "Observing …"
        self.session.start(STUDIES, Job("channels", work, key=("channels", id(self))), self._take)

    def _take(self, job: Job[ChannelMaxima]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        elif snapshot.state == "failed":
            self.words = "Not observed."
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self._maxima = job.outcome.of
            ratios = {name: outliers(np.array(maxima)) for name, maxima in self._maxima.items()}
            worst_first = sorted(ratios.items(), key=lambda item: -item[1][0])
            self.outlying = tuple((name, ratio) for name, (ratio, out, _) in worst_first if out)
            self._draw()

    def _draw(self) -> None:
        tensor, maxima = self.inspection.tensor, self._maxima.get(self.inspection.tensor)
        self.light = self.dark = b""
        if not self._maxima:
            return
        stand = f"{len(self.outlying)} of {len(self._maxima)} activations have a channel {OUTLIER:g} times the median or more."
        if maxima is None:
            which = f"{tensor} has no channels: no layer with constant weights reads it. " if tensor else ""
            self.words = which + stand
            return
        self.words = f"{tensor}, largest magnitude by channel. {stand}"

        def work(job: Job[Any]) -> Any:
            return [pictures.channels(tensor, maxima, theme) for theme in THEMES]

        self.session.start(DRAWING, Job("channels", work, key=("channels", id(self))), self._take_pictures)

    def _take_pictures(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None and self._maxima:
            self.light, self.dark = job.outcome

    def _forget(self) -> None:
        self._maxima, self.outlying, self.light, self.dark = {}, (), b"", b""
        self.words = "Not observed yet."
