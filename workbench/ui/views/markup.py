"""Text and tables as HTML. All text from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from workbench.graph.cost import Cost
from workbench.graph.fused_layers import FusionMap
from workbench.judging.classes import ClassChange
from workbench.judging.comparison import Comparison
from workbench.records import Model, TensorSpec
from workbench.reports import formats
from workbench.reports.rows import speed_words
from workbench.ui.disagreements import Disagreements, Sample
from workbench.ui.pictures import Clip
from workbench.ui.state.previewing import Line
from workbench.ui.state.running import VariantProgress

__all__ = ["escape"]

_CODE = re.compile(r"`([^`\n]+)`")
_LONGEST_LABEL = 16
_MOST_MOVED = 20
_MOST_OUTLYING = 20
_MARKS = {"waiting": "○", "running": "▶", "done": "✓", "failed": "✗"}


def message(text: str) -> str:
    """Return a message as HTML: escaped, and what it has between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def label(text: str) -> str:
    """Return a word from outside for the label of a control: short, and no formula, which Jupyter would typeset there.

    Labels are typeset as TeX, in which a name can become a link; the signs that begin a formula are replaced by their wide forms.
    """
    shown = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
    return shown.translate({ord("$"): "\uff04", ord("\\"): "\uff3c"})


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), caption: str = ""
) -> str:
    """Return a table of escaped cells; columns in `numbers` are aligned to the right."""
    classes = [' class="wb-number"' if place in numbers else "" for place in range(len(headings))]
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for text, kind in zip(headings, classes, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, classes, strict=True))}</tr>" for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wb-scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def wrapped(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of escaped cells whose long entries take several lines."""
    return table(headings, rows).replace("<td>", '<td class="wb-wrap">')


def error(text: str) -> str:
    """Return the error line; empty where there is none."""
    return f'<div class="wb-error" role="alert"><b>Error.</b> {message(text)}</div>' if text else ""


def preview_lines(lines: Sequence[Line]) -> str:
    """Return what TensorRT would make of each recipe, one row each; all but the first compared with it."""
    found = [line.found for line in lines if line.found is not None]
    rows = []
    for line in lines:
        if line.found is None:
            rows.append((escape(line.recipe), message(f"Not for this GPU: {line.refusal}"), "", "", "", ""))
            continue
        one = line.found
        computed = "; ".join(f"{count} in {types}" for types, count in one.computed.items())
        attention = f"{one.fused_attentions} of {len(one.attentions)}" if one.attentions else "none there"
        against = "" if one is found[0] else escape(one.against(found[0]))
        rows.append(
            (
                escape(line.recipe),
                escape(computed),
                attention,
                str(len(one.layers)),
                formats.size(one.weight_bytes),
                against,
            )
        )
    headings = ("Recipe", "Convolutions and products", "Fused attentions", "Kernels", "Weights", "Against the first")
    return table(headings, rows, numbers=(3, 4)) if rows else ""


def model_card(model: Model, cost: Cost | None, lacks: dict[str, dict[str, str]]) -> str:
    """Return what is known of a model before anything is built."""
    facts = [
        ("Name", escape(model.name)),
        ("Origin", escape(f"{model.origin.kind}: {model.origin.reference}")),
        ("Parameters", f"{model.parameters:,}"),
        ("File", f"{formats.size(model.size_bytes)}, opset {model.opset}, sha256 {escape(model.sha256[:12])}…"),
        ("Work a sample", _cost_words(cost)),
        ("Already quantized", escape(model.quantized_by or "no")),
    ]
    operators = sorted(model.operators.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        wrapped(("", ""), facts),
        "<h3>Inputs and outputs</h3>",
        table(("", "Name", "Type", "Shape"), [*_specs("input", model.inputs), *_specs("output", model.outputs)]),
        "<h3>Operators</h3>",
        f"<p>{', '.join(f'{escape(name)}&nbsp;&times;&nbsp;{count}' for name, count in operators)}</p>",
        "<h3>What backends lack</h3>",
        _lacks(lacks),
        *(f'<p class="wb-quiet">{message(note)}</p>' for note in model.origin.notes),
    ]
    return "".join(parts)


def variants(items: Iterable[VariantProgress]) -> str:
    """Return how far each variant is."""
    rows = [
        (
            f'<span class="wb-{item.state}">{_MARKS[item.state]} {escape(item.name)}</span>',
            f'<progress max="1" value="{item.fraction:.3f}" aria-label="{escape(item.name)}"></progress> {item.fraction:.0%}',
            f'<span class="wb-{item.state}">{escape(item.stage)}</span>',
        )
        for item in items
    ]
    return table(("Variant", "Done", "Stage"), rows) if rows else ""


def failures(items: Iterable[VariantProgress]) -> str:
    """Return what went wrong with each failed variant, its log behind a disclosure."""
    parts = []
    for item in items:
        if item.state == "failed":
            log = f"<details><summary>Log of {escape(item.name)}</summary><pre>{escape(item.log)}</pre></details>"
            parts.append(
                f'<div class="wb-error"><b>{escape(item.name)} {message(item.stage)}.</b> {message(item.message)}'
                f"{log if item.log else ''}</div>"
            )
    return "".join(parts)


def disagreements(found: Disagreements, first: str, second: str) -> str:
    """Return the samples on which two variants differ, those that are least certain, and what moved by class."""
    parts = [f"<p>{message(found.words)}</p>", _cards(found.samples, first, second)]
    left = f" {found.unlabelled} samples whose label nobody got right are left out." if found.unlabelled else ""
    if found.by_class:
        rows = [
            (
                str(row.label),
                str(row.samples),
                f"{100 * row.before:.1f}",
                f"{100 * row.after:.1f}",
                f"{100 * (row.after - row.before):+.1f}<small>{_interval(row)}</small>",
                escape(row.change.verdict),
            )
            for row in found.by_class
        ]
        headings = ("Class", "Samples", f"{escape(first)} (%)", f"{escape(second)} (%)", "Change (points)", "Verdict")
        parts += [
            f"<h3>Classes that lost or gained right answers</h3>{table(headings, rows, numbers=(1, 2, 3, 4))}",
            f'<p class="wb-quiet">Intervals hold for all classes together.{left}</p>',
        ]
    if found.moved:
        answers = [
            (str(row.label), str(row.answer), str(row.before), str(row.after), f"{row.after - row.before:+d}")
            for row in found.moved[:_MOST_MOVED]
        ]
        columns = ("Class", "Wrongly answered", escape(first), escape(second), "Change")
        rest = len(found.moved) - len(answers)
        more = f'<p class="wb-quiet">{rest} smaller changes are not shown.</p>' if rest else ""
        parts.append(
            f"<h3>Wrong answers that became more or fewer</h3>{table(columns, answers, numbers=(2, 3, 4))}{more}"
        )
    if found.unsure:
        parts.append(
            f"<h3>Least certain under {escape(second)}</h3><p class='wb-quiet'>The margin is how far the score of the "
            f"parent's answer is above all others; below zero another answer won.</p>"
            f"{_cards(found.unsure, first, second)}"
        )
    return "".join(parts)


def _interval(row: ClassChange) -> str:
    if row.change.low is None or row.change.high is None:
        return ""
    return f"[{100 * row.change.low:+.1f}, {100 * row.change.high:+.1f}]"


def _cards(samples: Sequence[Sample], first: str, second: str) -> str:
    return f'<div class="wb-cards">{"".join(_sample(sample, first, second) for sample in samples)}</div>'


def clips(found: Iterable[Clip]) -> str:
    """Return what each calibrator would do to a tensor."""
    rows = [
        (
            escape(clip.calibrator),
            f"{clip.threshold:.4g}",
            "∞" if clip.sqnr_db == float("inf") else f"{clip.sqnr_db:.1f}",
        )
        for clip in found
    ]
    return table(("Calibrator", "Clips beyond", "Expected SQNR (dB)"), rows, numbers=(1, 2)) if rows else ""


def outlying(found: Sequence[tuple[str, float]]) -> str:
    """Return the activations with outlier channels, the worst first."""
    rows = [(f'<span class="wb-name">{escape(name)}</span>', f"{ratio:.3g}") for name, ratio in found[:_MOST_OUTLYING]]
    left = len(found) - len(rows)
    more = f'<p class="wb-quiet">{left} with smaller outliers are not shown.</p>' if left else ""
    headings = ("Activation with outlier channels", "Largest channel, times the median")
    return table(headings, rows, numbers=(1,)) + more if rows else ""


def layers(before: dict[str, int], found: FusionMap | None) -> str:
    """Return the runtime's layers with the nodes behind each."""
    if found is None:
        return ""
    after: dict[str, int] = {}
    for layer in found.layers:
        after[layer.operator] = after.get(layer.operator, 0) + 1
    rows = [
        (
            str(number),
            f"{escape(layer.operator)}<small>{escape(layer.name)}</small>",
            "<br>".join(map(escape, layer.sources)) or "added by the runtime",
        )
        for number, layer in enumerate(found.layers, start=1)
    ]
    folded = f"<p>Folded away: {escape(', '.join(found.folded))}.</p>" if found.folded else ""
    return (
        f"<p><b>Before:</b> {_counted(before)}</p><p><b>After:</b> {_counted(after)}</p>{folded}"
        f"{table(('#', 'Runtime layer', 'Nodes of the file'), rows)}"
    )


def comparison(found: Comparison | None) -> str:
    """Return a comparison of two studies."""
    if found is None:
        return ""
    rows = []
    for row in found.rows:
        speed, interval = ("-", "") if row.ratio is None else speed_words(row.ratio)
        change = "-" if row.change is None else row.change.words
        notes = "<br>".join(message(note) for note in row.notes)
        rows.append((escape(row.variant), f"{escape(speed)}<small>{escape(interval)}</small>", escape(change), notes))
    notes = "".join(f'<p class="wb-quiet">{message(note)}</p>' for note in found.notes)
    return table(("Variant", "Speed, later against earlier", "Score", "Notes"), rows) + notes


def _counted(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{escape(name)}&nbsp;&times;&nbsp;{count}" for name, count in ordered)


def _cost_words(cost: Cost | None) -> str:
    if cost is None:
        return "…"
    if cost.flops is None:
        return f"unknown: the operations of {len(cost.unknown)} layers cannot be told from shapes"
    shapes = ", ".join(f"{escape(name)} {_shape(shape)}" for name, shape in cost.assumed.items())
    return f"{_flops(cost.flops)} in {', '.join(cost.by_operator) or 'no layer'} ({shapes})"


def _flops(count: int) -> str:
    for unit, name in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{formats.significant(count / unit)} {name}"
    return f"{count:,} FLOP"


def _specs(kind: str, specs: Iterable[TensorSpec]) -> list[tuple[str, ...]]:
    return [(kind, escape(spec.name), escape(spec.dtype), _shape(spec.shape)) for spec in specs]


def _shape(shape: Sequence[int | None]) -> str:
    return " &times; ".join("any" if axis is None else str(axis) for axis in shape) or "scalar"


def _lacks(lacks: dict[str, dict[str, str]]) -> str:
    parts = []
    for backend, absent in lacks.items():
        if not absent:
            parts.append(f"<p>✓ {escape(backend)} can run every operator of this model.</p>")
        if "" in absent:
            parts.append(f"<p>✗ {escape(backend)} cannot run this model: {message(absent[''])}.</p>")
            continue
        for operator, why in absent.items():
            parts.append(f"<p>✗ {escape(backend)} lacks <b>{escape(operator)}</b>: {message(why)}.</p>")
    return "".join(parts) or '<p class="wb-quiet">Looking …</p>'


def _sample(sample: Sample, first: str, second: str) -> str:
    label = f"label {escape(sample.label)}" if sample.label else "no label"
    picture = f'<img src="{sample.image}" alt="sample {sample.index}, {label}">'
    shown = picture if sample.image else f"<pre>{escape(sample.text)}</pre>"
    answers = f"{escape(first)}: {escape(sample.first)}<br>{escape(second)}: {escape(sample.second)}"
    answers = answers if sample.second else escape(sample.first)
    answers += f"<br>{escape(sample.margin)}" if sample.margin else ""
    kind = "" if sample.image else ' class="wb-text"'
    return f"<figure{kind}>{shown}<figcaption><b>#{sample.index}</b>, {label}<br>{answers}</figcaption></figure>"
