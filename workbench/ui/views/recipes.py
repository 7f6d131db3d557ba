"""The page on which recipes, a sweep, the backend and the protocol are chosen."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from workbench.recipes import CALIBRATORS, FLOAT_FORMATS, FUSION_LEVELS, NAMED
from workbench.records import Protocol
from workbench.study import sweep
from workbench.study.sweep import QUANTIZATIONS
from workbench.ui.state import State
from workbench.ui.state.plan import Plan
from workbench.ui.views import controls
from workbench.ui.views.markup import escape, message
from workbench.ui.views.previewing import preview_box

_TOGGLES: tuple[tuple[str, str, str, dict[Any, str]], ...] = (
    ("fusion", "fusions", "Fusion", {level: level for level in reversed(FUSION_LEVELS)}),
    ("precision", "precisions", "Precision", {name: name for name in FLOAT_FORMATS}),
    ("quantization", "quantizations", "Quantization", {name: name for name in QUANTIZATIONS}),
    ("calibrator", "calibrators", "Calibrator", {name: name for name in CALIBRATORS}),
    ("per_channel", "per_channel", "Weight scales", {True: "per channel", False: "per tensor"}),
    ("sparse", "sparse", "Pruning", {False: "dense", True: "2:4 sparse"}),
)
_BOUNDARIES = ("compute", "end_to_end", "throughput")


def recipes_page(state: State) -> widgets.Widget:
    """Return the page."""
    plan = state.plan
    estimate = controls.html()
    controls.follow(plan, "estimate", lambda: controls.write(estimate, f"<p><b>{message(plan.estimate)}</b></p>"))
    return controls.page(
        controls.html("<h2>Recipes of the study</h2>"),
        *_chosen(state),
        *_trtexec(state),
        controls.html("<h2>Sweep</h2><p class='wb-quiet'>Every combination of what is ticked becomes a recipe.</p>"),
        *_toggles(state),
        *_layers(state),
        *_add_sweep(state),
        controls.html("<h2>Backend and protocol</h2>"),
        *_protocol(state),
        estimate,
        preview_box(state),
    )


def _chosen(state: State) -> tuple[widgets.Widget, ...]:
    session, plan = state.session, state.plan
    chosen = controls.field(widgets.SelectMultiple(description="In the study", rows=6), "700px")
    remove = controls.button(
        session, "Remove selected", lambda: plan.remove(tuple(chosen.value)), "Drop the selected recipes from the study"
    )
    named = controls.field(widgets.Dropdown(description="Known recipe", options=list(NAMED)))
    add = controls.button(session, "Add", lambda: plan.add_named(named.value), "Add the known recipe to the study")

    refused = controls.html()

    def show() -> None:
        chosen.options = [(f"{recipe.name}:  {sweep.describe(recipe)}", recipe.name) for recipe in plan.recipes]
        reasons = {recipe.name: why for recipe in plan.recipes if (why := plan.refusal(recipe))}
        controls.write(refused, controls.greyed_words(reasons, "Will fail here"))

    def show_named() -> None:
        options = [
            (name if not (why := plan.refusal(NAMED[name])) else f"{name} (not here: {why})", name) for name in NAMED
        ]
        if list(named.options) != options:
            named.options = options

    controls.follow(plan, ("recipes", "reasons"), show)
    controls.follow(plan, "reasons", show_named)
    return chosen, refused, controls.actions(remove), controls.row(named, add)


def _toggles(state: State) -> tuple[widgets.Widget, ...]:
    session, plan = state.session, state.plan
    groups = {
        toggle: (field, controls.Checks(session, words, values, _setter(plan, toggle)))
        for toggle, field, words, values in _TOGGLES
    }
    samples = controls.field(
        widgets.Text(description="Samples", placeholder="64, 256, all", continuous_update=False), "320px"
    )
    controls.bind(session, plan, "samples_text", samples, plan.set_samples)
    # What only calibrated quantization has comes and goes as one: each change of a layout is a message and a frame.
    calibrated = controls.page(groups["calibrator"][1].widget, samples, groups["per_channel"][1].widget)

    def show() -> None:
        for toggle, (field, checks) in groups.items():
            greyed = {
                value: plan.reasons[toggle, str(value)]
                for value in checks.boxes
                if (toggle, str(value)) in plan.reasons
            }
            checks.show(getattr(plan.toggles, field), greyed)
        is_static = any(value in sweep.STATIC for value in plan.toggles.quantizations)
        calibrated.layout.display = None if is_static else "none"

    controls.follow(plan, ("toggles", "reasons"), show)
    for _, checks in groups.values():
        checks.refresh = show
    first = [groups[name][1].widget for name in ("fusion", "precision", "quantization")]
    caveats = controls.html("", "wb-quiet")
    controls.follow(
        plan,
        "caveats",
        lambda: controls.write(caveats, "".join(f"<div>{message(line)}</div>" for line in plan.caveats)),
    )
    return (*first, calibrated, groups["sparse"][1].widget, caveats)


def _setter(plan: Plan, toggle: str) -> Any:
    return lambda values: plan.set_toggle(toggle, values)


def _layers(state: State) -> tuple[widgets.Widget, ...]:
    session, plan, selection = state.session, state.plan, state.selection
    query = controls.field(widgets.Text(description="Search layers", placeholder="words of a node or module name"))
    controls.bind(session, plan, "query", query, plan.search)
    found = controls.field(widgets.SelectMultiple(description="Found", rows=5), "700px")
    left_out = controls.field(widgets.SelectMultiple(description="Left out", rows=3), "700px")
    leave = controls.button(
        session, "Leave out", lambda: plan.exclude(tuple(found.value)), "Keep the selected layers in floating point"
    )
    take = controls.button(
        session, "Take back", lambda: plan.include(tuple(left_out.value)), "Quantize the selected layers again"
    )

    def label(node: str) -> str:
        module = selection.layers.get(node, "")
        return f"{node}  ({module})" if module else node

    def show_found() -> None:
        found.options = [(label(node), node) for node in plan.matches]

    def show_left_out() -> None:
        left_out.options = [(label(node), node) for node in plan.excluded]

    controls.follow(plan, "matches", show_found)
    controls.follow(plan, "excluded", show_left_out)
    box = widgets.Accordion(
        [controls.page(query, found, controls.actions(leave), left_out, controls.actions(take))],
        titles=("Excluded layers",),
    )
    return (box,)


def _trtexec(state: State) -> tuple[widgets.Widget, ...]:
    session, plan = state.session, state.plan
    line = controls.field(
        widgets.Text(description="trtexec", placeholder="trtexec --onnx=model.onnx --fp16 --noTF32"), "700px"
    )
    take = controls.button(
        session, "Take over", lambda: plan.add_trtexec(line.value), "Add what the pasted command asks for"
    )
    words = controls.html()

    def show() -> None:
        controls.write(words, f'<p role="status">{message(plan.trtexec_words)}</p>' if plan.trtexec_words else "")

    controls.follow(plan, "trtexec_words", show)
    return (controls.row(line, take), words)


def _add_sweep(state: State) -> tuple[widgets.Widget, ...]:
    session, plan = state.session, state.plan
    words = controls.html()
    add = controls.button(session, "Add sweep", plan.add_sweep, "Add every recipe of the sweep to the study")

    def show() -> None:
        count = plan.sweep_size
        controls.write(add, f"Add {count} recipe{'s' if count > 1 else ''}", "description")
        controls.write(words, f'<span class="wb-name">{escape(plan.sweep_words)}</span>')

    controls.follow(plan, ("sweep_size", "sweep_words"), show)
    return (controls.row(add, words),)


def _protocol(state: State) -> tuple[widgets.Widget, ...]:
    session, plan = state.session, state.plan
    backend = controls.menu(session, plan, "Backend", "backends", "backend", command=plan.set_backend)
    boundary = controls.field(widgets.Dropdown(description="Time boundary", options=_BOUNDARIES))
    controls.bind(session, plan, "boundary", boundary)
    numbers = {
        trait: controls.bind(session, plan, trait, controls.field(_number(words, least), "260px"))
        for trait, words, least in (
            ("batch", "Batch", 1),
            ("rounds", "Rounds", 1),
            ("threads", "Threads", 1),
            ("smallest_batch", "Smallest batch", 0),
            ("largest_batch", "Largest batch", 0),
        )
    }
    seconds = controls.field(widgets.Text(description="Seconds a round", continuous_update=False), "260px")
    controls.bind(session, plan, "min_seconds_text", seconds)
    notes = controls.html("", "wb-quiet")

    def show() -> None:
        profile, threads = plan.reasons.get(("profile", "shapes")), plan.reasons.get(("threads", "count"))
        for trait, why in (("smallest_batch", profile), ("largest_batch", profile), ("threads", threads)):
            controls.write(numbers[trait], bool(why), "disabled")
        greyed = {"shape profile": profile, "threads": threads, "this model": plan.reasons.get(("backend", "model"))}
        controls.write(notes, controls.greyed_words({name: why for name, why in greyed.items() if why}))

    controls.follow(plan, "reasons", show)
    plan.observe(lambda change: session.attempt(plan.restart_estimate), ["batch", "rounds", "min_seconds_text"])
    return (
        backend,
        boundary,
        controls.row(numbers["batch"], numbers["rounds"], seconds, numbers["threads"]),
        controls.row(numbers["smallest_batch"], numbers["largest_batch"]),
        notes,
        controls.html(
            f"<p class='wb-quiet'>A latency is that of one call of as many samples as the batch has. A round is a fresh process; "
            f"with fewer than {Protocol().rounds} rounds intervals are wide.</p>"
        ),
    )


def _number(words: str, least: int) -> widgets.Widget:
    return widgets.BoundedIntText(description=words, min=least, max=100_000)
