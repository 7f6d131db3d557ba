"""One explanation: its evidence, its ranked reasons, and how a person reads them: sentences, tables, a page, a figure."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench import codec
from workbench.errors import DataError
from workbench.explaining import coverage
from workbench.explaining.accuracy_rules import decibels
from workbench.explaining.evidence import Evidence, Layer
from workbench.explaining.judge import judge
from workbench.explaining.passes import grouped
from workbench.explaining.reasons import Advice, Aspect, Reason
from workbench.machine.store import write_record

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_MOST_LAYERS = 10


@dataclass(frozen=True)
class Trial:
    """A piece of advice that was measured.

    Attributes:
        recipe: the name of the variant that follows it, or the variant itself and how it is called.
        ratio: times faster than the variant that is explained, with its interval.
        noise_db: signal to noise against the baseline, of the explained variant and of this one; None where not compared.
        improves: whether it is distinguishably faster or distinguishably nearer to the baseline, and not worse in the other.
        words: the verdict with its numbers.
    """

    recipe: str
    advice: str
    ratio: float | None
    low: float | None
    high: float | None
    noise_db: tuple[float | None, float | None]
    improves: bool
    words: str


@dataclass(frozen=True)
class Explanation:
    """Why one variant takes the time it takes, and loses what it loses.

    Attributes:
        evidence: all that it was judged from.
        reasons: the main one first.
        trials: advice that was measured; empty unless it was asked for.
    """

    study: str
    evidence: Evidence
    reasons: tuple[Reason, ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, to be opened on another machine with `Explanation.open`.

        Args:
            path: ends in `.json`, or in `.json.gz` for a file of a sixth of the size.

        Raises:
            StoreError: the folder is missing, read-only or full.
        """
        return write_record(path, self)

    @classmethod
    def open(cls, path: str | Path) -> Explanation:
        """Read what `save` wrote, such as the explanation of a variant on a machine that is not here.

        Raises:
            StoreError: there is no such file, or it is damaged.
        """
        return codec.from_file(cls, Path(path))

    @property
    def variant(self) -> str:
        """The name of what is explained."""
        return self.evidence.variant.variant

    @property
    def main(self) -> Reason | None:
        """The main reason; None where nothing that is known costs much."""
        return self.reasons[0] if self.reasons else None

    def about(self, aspect: Aspect) -> tuple[Reason, ...]:
        """Return the reasons of one aspect, ranked: `time` or `accuracy`."""
        return tuple(reason for reason in self.reasons if reason.aspect == aspect)

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What the evidence suggests to try, each once, for the main reason first."""
        return tuple(dict.fromkeys(advice for reason in self.reasons for advice in reason.advice))

    @property
    def sentences(self) -> tuple[str, ...]:
        """The whole explanation in sentences: coverage, then reasons in their order, then memory, trials and notes."""
        told = [*coverage.sentences(self.evidence)]
        told += [reason.sentence for reason in self.reasons] or ["Nothing that is known costs much of the call."]
        told += [*self._noise(), *self._memory(), *(trial.words for trial in self.trials)]
        noise = self.evidence.noise
        return (*told, *self.evidence.notes, *(() if noise is None else noise.notes), *self.notes)

    def layers(self) -> pandas.DataFrame:
        """Return one row an executed layer of the variant: type, ms, operations, bytes, bound, and its share of the bound."""
        import pandas

        return pandas.DataFrame([_layer_row(layer) for layer in self.evidence.variant.layers])

    def slowest(self, most: int = _MOST_LAYERS) -> pandas.DataFrame:
        """Return the layers that matter most: those with most time beyond their bound."""
        table = self.layers()
        beyond = table["ms"] - table["bound ms"].fillna(0.0)
        return table.assign(**{"ms beyond bound": beyond}).sort_values("ms beyond bound", ascending=False).head(most)

    def against_baseline(self) -> pandas.DataFrame:
        """Return both variants' layers side by side, joined by the nodes that they stand for, the largest loss first."""
        import pandas

        rows = []
        for ours, theirs in grouped(self.evidence.baseline, self.evidence.variant):
            before, after = (1e3 * sum(layer.seconds for layer in side) for side in (ours, theirs))
            shown = (*ours, *theirs)
            rows.append(
                {
                    "layer": _label(shown),
                    "operators": " + ".join(dict.fromkeys(layer.operator for layer in theirs or ours)),
                    self.evidence.baseline.variant + " ms": before,
                    self.evidence.variant.variant + " ms": after,
                    "saved ms": before - after,
                    "type": " ".join(dict.fromkeys(layer.precision for layer in theirs)),
                }
            )
        return pandas.DataFrame(rows).sort_values("saved ms").reset_index(drop=True)

    def coverage(self) -> pandas.DataFrame:
        """Return what each type has of the variant's operations, bytes and time, in percent."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "type": row.precision,
                    "layers": row.layers,
                    "operations %": None if row.flops is None else 100 * row.flops,
                    "bytes %": None if row.size_bytes is None else 100 * row.size_bytes,
                    "time %": 100 * row.seconds,
                }
                for row in coverage.by_type(self.evidence.variant)
            ]
        )

    def tensors(self) -> pandas.DataFrame:
        """Return what quantizing each tensor does, the noisiest at the output first; empty where nothing was looked at."""
        import pandas

        noise = self.evidence.noise
        return pandas.DataFrame(
            [
                {
                    "tensor": fact.name,
                    "role": fact.role,
                    "read by": ", ".join(fact.readers),
                    "share of noise %": None if fact.noise_share is None else 100 * fact.noise_share,
                    "NSR by rounding": fact.round_nsr,
                    "NSR by clipping": fact.clip_nsr,
                    "clipped %": 100 * fact.clipped_share,
                    "outlier ratio": fact.outlier_ratio,
                    "codes of the median channel": fact.median_levels,
                }
                for fact in (() if noise is None else noise.tensors)
            ]
        )

    def flips(self) -> pandas.DataFrame:
        """Return the samples whose answer changed, and the layer that gives the old one back, where one does."""
        import pandas

        noise = self.evidence.noise
        return pandas.DataFrame([vars(flip) for flip in (() if noise is None else noise.flips)])

    def figure(
        self,
        what: Literal["roofline", "times", "precision", "errors"] = "roofline",
        theme: Literal["light", "dark"] = "light",
    ) -> Figure:
        """Draw the roofline of the variant's layers, both variants' `times` by layer, types along the network, or errors.

        Raises:
            ValueError: there is no such figure.
            DataError: there is nothing to draw it from, such as errors where none were looked at.
        """
        from workbench.plots import why

        found = self.evidence.variant
        points = [
            why.LayerPoint(
                _label((layer,)), layer.precision, layer.seconds, layer.flops, layer.size_bytes, layer.kind == "compute"
            )
            for layer in found.layers
        ]
        if what == "roofline":
            if self.evidence.ceilings is None:
                raise DataError(
                    "There are no ceilings of this machine to draw a roofline under; see workbench.ceilings."
                )
            return why.roofline(points, self.evidence.ceilings, name=self.variant, theme=theme)
        if what == "precision":
            return why.precision_strip(points, name=self.variant, theme=theme)
        if what == "times":
            rows = [
                (_label((*ours, *theirs)), _seconds(ours), _seconds(theirs))
                for ours, theirs in grouped(self.evidence.baseline, found)
            ]
            return why.time_bars(rows, (self.evidence.baseline.variant, self.variant), theme=theme)
        if what == "errors":
            noise = self.evidence.noise
            layers = () if noise is None else noise.layers
            return why.error_by_layer(
                [(row.name, _db(row.alone_nsr), _db(row.kept_nsr)) for row in layers], theme=theme
            )
        raise ValueError(f"what is {what!r}; allowed: roofline, times, precision, errors")

    def _noise(self) -> list[str]:
        noise = self.evidence.noise
        if noise is None:
            return []
        told = [f"Answers are at {decibels(noise.engine_nsr or noise.file_nsr)} from FP32's ({noise.samples} samples)."]
        mended = [flip for flip in noise.flips if flip.layer]
        if noise.flips:
            layers = ", ".join(dict.fromkeys(flip.layer for flip in mended)) or "no single layer"
            told.append(
                f"Of samples whose answer changed, {len(noise.flips)} were looked at; {len(mended)} get it back with one "
                f"layer in FP32: {layers}."
            )
        return told

    def _memory(self) -> list[str]:
        if self.evidence.memory is None:
            return []
        before, after = self.evidence.memory
        # Engines that name no weights of any layer are not told to have none.
        known = before.weights > 0 and after.weights > 0
        weights = (
            f"Weights {after.weights / 1e6:.3g} MB ({before.weights / 1e6:.3g} in the baseline); a" if known else "A"
        )
        was = f"{before.activations_alive / 1e6:.3g} of {before.activations_sum / 1e6:.3g}"
        told = [
            f"{weights}ctivations {after.activations_alive / 1e6:.3g} MB alive at once of "
            f"{after.activations_sum / 1e6:.3g} written ({was})."
        ]
        plans = [(memory.planned, memory.workspace) for memory in (after, before)]
        if all(value is not None for plan in plans for value in plan):
            (planned, scratch), (planned_was, scratch_was) = ([value / 1e6 for value in plan] for plan in plans)  # type: ignore[operator]
            told.append(
                f"The engine sets {planned:.3g} MB aside for activations and workspace, {scratch:.3g} of it workspace "
                f"({planned_was:.3g} and {scratch_was:.3g} in the baseline)."
            )
        return told

    def __repr__(self) -> str:
        return f"Explanation({self.study!r}, {self.variant!r}: {self.main.kind if self.main else 'nothing known'})"

    def _repr_html_(self) -> str:
        from workbench.plots import why

        first, rest = (self.sentences[0], self.sentences[1:])
        items = "".join(f"<li>{html.escape(text)}</li>" for text in rest)
        picture = "" if self.evidence.ceilings is None else why.as_image(self.figure())
        table = self.against_baseline().head(_MOST_LAYERS).to_html(escape=True, float_format=_number, index=False)
        return f"<p><b>{html.escape(first)}</b></p><ol>{items}</ol>{picture}{table}"


def explanation(study: str, evidence: Evidence, notes: tuple[str, ...] = ()) -> Explanation:
    """Judge evidence."""
    return Explanation(study, evidence, judge(evidence), notes=notes)


def _layer_row(layer: Layer) -> dict[str, Any]:
    share = layer.share_of_bound
    return {
        "module": ", ".join(layer.modules),
        "layer": layer.name,
        "operator": layer.operator,
        "nodes": ", ".join(layer.nodes),
        "kind": layer.kind,
        "type": layer.precision,
        "shape": " ".join("x".join("?" if size is None else str(size) for size in spec.shape) for spec in layer.writes),
        "ms": 1e3 * layer.seconds,
        "MFLOP": layer.flops / 1e6,
        "MB": layer.size_bytes / 1e6,
        "bound ms": None if layer.bound_seconds is None else 1e3 * layer.bound_seconds,
        "bound by": layer.bound_by,
        "share of bound %": None if share is None else 100 * share,
    }


def _label(layers: tuple[Layer, ...]) -> str:
    paths = list(dict.fromkeys(path for layer in layers for path in layer.modules))
    nodes = list(dict.fromkeys(node for layer in layers for node in layer.nodes))
    return ", ".join((paths or nodes)[:3]) or f"(added) {layers[0].name}"


def _seconds(layers: tuple[Layer, ...]) -> float:
    return float(sum(layer.seconds for layer in layers))


def _db(nsr: float | None) -> Any:
    return None if nsr is None else float(-10 * np.log10(nsr)) if nsr > 0 else np.inf


def _number(value: float) -> str:
    return f"{value:.3g}"
