"""A study as one HTML file that needs nothing else: no network, no fonts, no script to be read.

Jinja2 escapes whatever comes from the record, and a Content-Security-Policy lets the browser run only the one script
that is ours (it sorts the table), so that a hostile name or error text stays text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import workbench
from workbench import plots
from workbench.explaining.explanation import Explanation
from workbench.judging import roofline
from workbench.judging.comparison import Comparison
from workbench.judging.standing import compared
from workbench.records import StudyRecord
from workbench.reports import ceilings, details, formats, gpu_state
from workbench.reports.code import reproduce
from workbench.reports.examples import Examples, examples
from workbench.reports.methods import methods
from workbench.reports.reference import Reference, against
from workbench.reports.rows import Table, main_table
from workbench.reports.verdict import verdict
from workbench.reports.why import Layers, Why, WhyFigure, layers, whys

_TEMPLATES = resources.files("workbench.reports") / "templates"


@dataclass(frozen=True)
class Drawing:
    """A figure in both themes as data URIs, with what it shows in words for who cannot see it."""

    key: str
    light: str
    dark: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    version: str
    facts: list[str]
    verdict: list[str]
    notes: list[str]
    sections: list[tuple[str, str]]
    figures: list[Drawing]
    baseline: str
    table: Table
    anchors: dict[str, str]
    failures: list[details.FailureDetail]
    examples: Examples | None
    whys: list[tuple[Why, list[Drawing]]]
    layers: list[tuple[Layers, list[Drawing]]]
    reference: Reference | None
    details: list[details.VariantDetail]
    methods: list[str]
    environment: list[tuple[str, str]]
    ceilings: tuple[str, list[tuple[str, str]]] | None
    reproduce: str
    colophon: str


def html(
    record: StudyRecord,
    comparison: Comparison | None = None,
    explanations: Sequence[Explanation] = (),
    reference: StudyRecord | None = None,
) -> str:
    """Return the study as a self-contained HTML page.

    Args:
        comparison: made from the record where None.
        explanations: of its variants, for a section of their layers and one that says why.
        reference: another study, for a section of what is unlike it.
    """
    refusal = ""
    if comparison is None:
        comparison, refusal = compared(record)
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    style, script = _ours("style.css"), _ours("sort.js")
    return environment.from_string(_ours("report.html.jinja")).render(
        page=_page(record, (comparison, refusal), explanations, reference),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _page(
    record: StudyRecord,
    judged: tuple[Comparison | None, str],
    explanations: Sequence[Explanation],
    reference: StudyRecord | None,
) -> Page:
    comparison, refusal = judged
    roofs = ceilings.known(record, explanations)
    failed, told = details.failures(record), details.variant_details(record)
    disagreements, drawings = examples(record), _drawings(record, comparison)
    layered = layers(explanations)
    sections = [
        ("results", "Results", True),
        ("failures", "What failed", bool(failed)),
        ("distributions", "What was measured", any(drawing.key != "front" for drawing in drawings)),
        ("layers", "Layers", bool(layered)),
        ("why", "Why", bool(explanations)),
        ("examples", "Where variants disagree", disagreements is not None),
        ("variants", "What each recipe did", bool(told)),
        ("methods", "How it was measured", True),
        ("environment", "Where it was measured", True),
        ("reference", "Beside the reference", reference is not None),
        ("reproduce", "Do it again", True),
    ]
    anchors = {item.name: item.anchor for item in told} | {item.variant: item.anchor for item in failed}
    return Page(
        title=details.title(record),
        version=workbench.__version__,
        facts=details.facts(record),
        verdict=verdict(record, comparison, refusal),
        notes=details.notes(record, comparison),
        sections=[(anchor, heading) for anchor, heading, present in sections if present],
        figures=drawings,
        baseline=record.baseline,
        table=main_table(record, comparison),
        anchors=anchors,
        failures=failed,
        examples=disagreements,
        whys=[(one, [_why_drawing(figure) for figure in one.figures]) for one in whys(explanations)],
        layers=[(one, [_why_drawing(figure) for figure in one.figures]) for one in layered],
        reference=None if reference is None else against(record, reference),
        details=told,
        methods=methods(record),
        environment=[row for row in details.environment_rows(record) if roofs is None or row[0] != roofline.KIND],
        ceilings=None if roofs is None else (ceilings.words(roofs), ceilings.rows(roofs)),
        reproduce=reproduce(record),
        colophon=f"Made by trt-workbench {workbench.__version__} from a study of {formats.moment(record.created_at)}. "
        f"Statistics are computed from the raw samples, which the JSON form of this report holds.",
    )


def _drawings(record: StudyRecord, comparison: Comparison | None) -> list[Drawing]:
    words = f"{record.name}: "
    measured = any(result.measurement is not None for result in record.results)
    answered = measured and any(result.accuracy is not None for result in record.results)
    found: list[Drawing] = []
    if answered and comparison is not None:
        alt = words + " ".join(verdict(record, comparison)[:2]) + " The numbers are in the table below."
        caption = "Accuracy against latency. Up and to the left is better; where bars overlap, look at the verdicts."
        found.append(
            _drawing("front", lambda theme: plots.front(record, comparison=comparison, theme=theme), alt, caption)
        )
    if measured:
        alt = words + "histograms of the latency of every call for each variant, with medians as in the table."
        caption = "How steady each latency is. All axes span the same factor around their median, so widths compare."
        found.append(_drawing("latencies", lambda theme: plots.latencies(record, theme=theme), alt, caption))
        alt = words + "the median of each round over time, as deviation from the variant's own median in percent."
        caption = "Whether the machine drifted. Ratios pair rounds of the same turn, so a common drift cancels in them."
        found.append(_drawing("rounds", lambda theme: plots.rounds(record, theme=theme), alt, caption))
    told = gpu_state.tracks(record)
    if told:
        alt = words + "what the GPU's driver told after each round, as ranges in the table of the environment."
        caption = "Whether the GPU was slowed down, or still warmed up, while variants took turns."
        found.append(_drawing("gpu", lambda theme: plots.tracks(told, theme=theme), alt, caption))
    if any(result.engine is not None for result in record.results):
        alt = words + "sizes of the files that run, as in the table."
        found.append(_drawing("sizes", lambda theme: plots.sizes(record, theme=theme), alt, "What has to be shipped."))
    return found


def _drawing(key: str, draw: Callable[[Any], Figure], alt: str, caption: str) -> Drawing:
    light, dark = (_uri(plots.svg(draw(theme))) for theme in ("light", "dark"))
    return Drawing(key, light, dark, alt, caption)


def _why_drawing(figure: WhyFigure) -> Drawing:
    return Drawing(figure.key, _uri(figure.light), _uri(figure.dark), figure.alt, figure.caption)


def _uri(svg: str) -> str:
    # As an image the drawing has its own namespace: identifiers of two drawings cannot clash, and no script in it runs.
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _ours(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
