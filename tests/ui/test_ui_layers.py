"""The view of layers: two variants side by side, honest where nothing was profiled, and a recipe from chosen layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_study
import tiny
from tiny import FakeRun, attempt, settle

from workbench.errors import BackendMissing, Cancelled, EngineError
from workbench.explaining.evidence import Evidence, Layer, Pass
from workbench.explaining.explanation import Explanation
from workbench.records import Progress, TensorSpec
from workbench.study import Study
from workbench.ui import layer_rows
from workbench.ui.state import State
from workbench.ui.state.layers import NOT_PROFILED, Layers
from workbench.ui.views.layers import MOST_BARS, layer_bars

RECORDED = Path(__file__).parents[2] / "data" / "studies" / "digits_resnet-h200-why.json.gz"
HOSTILE = "<img src=x onerror=alert(1)>"


def layer(name: str, seconds: float, precision: str, nodes: tuple[str, ...], **more: object) -> Layer:
    module = nodes[0].strip("/").replace("/", ".") if nodes else ""
    fields = {"kind": "compute", "nodes": nodes, "modules": (module,) if module else (), **more}
    return Layer(name=name, operator="Gemm", precision=precision, seconds=seconds, **fields)  # type: ignore[arg-type]


def passed(name: str) -> Pass:
    spec = (TensorSpec("h", "float32", (None, 16)),)
    if name == "fp32":
        return Pass(
            name, (layer("g1", 3e-3, "fp32", ("/first/Gemm",), writes=spec), layer("g2", 1e-3, "fp32", ("/head/Gemm",)))
        )
    added = layer("Reorder", 0.5e-3, "", (), kind="layout")
    return Pass(name, (added, layer("q1", 1e-3, "int8", ("/first/Gemm",)), layer("q2", 1e-3, "fp32", ("/head/Gemm",))))


class FakeLook:
    """Explains without profiling; `fails` is raised instead."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def __call__(self, study, variant, data, *, layers, store, progress, cancel) -> Explanation:  # type: ignore[no-untyped-def]
        self.asked.append(variant)
        progress(Progress("profile", variant, 0.5))
        if self.fails is not None:
            raise self.fails
        return Explanation(study.name, Evidence("onnxruntime-cpu", passed("fp32"), passed(variant), None, "int8"))


@pytest.fixture
def look() -> FakeLook:
    return FakeLook()


@pytest.fixture
def state(tmp_path: Path, own_store: Path, look: FakeLook) -> Iterator[State]:
    fake = FakeRun()
    made = State(tiny.classifier(tmp_path), tiny.samples(), run_study=fake, protocol=tiny.QUICK)
    made.layers = Layers(made.session, made.selection, made.plan, made.results, look)
    made.session.attempt(made.results.show, synthetic_study.study(("fp32", "fp16", "int8-kl")))
    settle()
    yield made
    fake.go_on.set()
    made.session.stop()
    made.session.leave()


def test_the_baseline_stands_beside_the_last_variant_and_nothing_is_claimed_before_it_was_profiled(
    state: State,
) -> None:
    assert (state.layers.first, state.layers.second) == ("fp32", "int8-kl")
    assert state.layers.words == NOT_PROFILED and layer_bars(state.layers.shown, state.layers.names) == ""


def test_two_variants_stand_side_by_side_joined_by_their_nodes(state: State, look: FakeLook) -> None:
    assert attempt(state, state.layers.profile) == ""
    assert look.asked == ["int8-kl"], "the baseline comes with it"
    rows = {row.name: row for row in state.layers.rows}
    assert rows["Gemm: Gemm"].module in ("first.Gemm", "head.Gemm")
    first = next(row for row in state.layers.rows if "/first/Gemm" in row.nodes)
    assert (first.first.seconds, first.second.seconds) == (3e-3, 1e-3)
    assert (first.first.precision, first.second.precision, first.shape) == ("fp32", "int8", "any x 16")
    added = next(row for row in state.layers.rows if not row.nodes)
    assert added.second.is_added and added.first.layers == () and added.module == layer_rows.NO_MODULE
    assert "fp32: 4 ms in layers; int8-kl: 2.5 ms" in state.layers.words and state.layers.sentences


@pytest.mark.parametrize(
    ("first", "second", "asked"), [("int8-kl", "fp32", ["int8-kl"]), ("fp16", "int8-kl", ["fp16", "int8-kl"])]
)
def test_any_two_variants_can_be_chosen_in_either_order(
    state: State, look: FakeLook, first: str, second: str, asked: list[str]
) -> None:
    state.layers.first, state.layers.second = first, second
    assert attempt(state, state.layers.profile) == "" and look.asked == asked
    assert state.layers.names == (first, second)
    if second == "fp32":
        assert next(row for row in state.layers.rows if "/first/Gemm" in row.nodes).second.precision == "fp32"


def test_what_goes_wrong_is_said_beside_the_button_and_nothing_else_is_shown(state: State, look: FakeLook) -> None:
    look.fails = EngineError("torch-compile has no profiler of layers.")
    assert attempt(state, state.layers.profile) == ""
    assert state.layers.words == "Not profiled." and "no profiler of layers" in state.layers.error
    assert not state.layers.is_running and state.layers.rows == ()
    look.fails = Cancelled("stopped")
    assert attempt(state, state.layers.profile) == "" and state.layers.words.startswith("Cancelled")
    assert state.layers.error == ""


def test_profiling_can_be_cancelled_before_and_while_it_runs(state: State) -> None:
    state.layers.cancel()
    state.session.attempt(state.layers.profile)
    state.layers.cancel()
    settle()
    assert not state.layers.is_running


def test_what_cannot_be_profiled_is_refused_with_the_way_out(state: State) -> None:
    state.layers.second = "fp32"
    assert "Choose two different variants" in attempt(state, state.layers.profile)
    state.layers.second = "gone"
    assert "no variant 'gone'" in attempt(state, state.layers.profile)
    state.results.record = None
    assert "no study" in attempt(state, state.layers.profile) and "no study" in attempt(state, state.layers.keep)


def test_the_filter_looks_through_names_nodes_modules_and_types(state: State) -> None:
    attempt(state, state.layers.profile)
    for query, count in (("", 3), ("HEAD gemm", 1), ("int8", 1), ("reorder", 1), ("nothing like it", 0)):
        state.layers.search(query)
        assert len(state.layers.shown) == count, query


def test_chosen_layers_become_a_recipe_that_keeps_them(state: State) -> None:
    attempt(state, state.layers.profile)
    assert "Click layers in the list" in attempt(state, state.layers.keep)
    place = next(place for place, row in enumerate(state.layers.rows) if "/head/Gemm" in row.nodes)
    state.layers.selected = (place,)
    assert attempt(state, state.layers.keep) == ""
    added = state.plan.recipes[-1]
    assert added.name.startswith("int8-kl") and any("head" in pattern for pattern in added.steps[-1].exclude)
    assert added.name in state.layers.words
    assert "in the study already" in attempt(state, state.layers.keep)


def test_layers_of_one_study_are_not_shown_under_another(state: State) -> None:
    attempt(state, state.layers.profile)
    other = synthetic_study.study(("fp32", "int8-max"))
    state.results.show(other.__class__(**{**other.__dict__, "name": "another"}))
    settle()
    assert state.layers.rows == () and state.layers.words == NOT_PROFILED
    assert (state.layers.first, state.layers.second) == ("fp32", "int8-max")


def test_bars_have_type_time_and_nodes_in_words_and_no_markup_of_others() -> None:
    ours = Pass("a", (layer(HOSTILE, 2e-3, "fp32", ("/first/Gemm",)), layer("g", 1e-3, HOSTILE, ("/x/Gemm",))))
    rows = layer_rows.layer_rows(ours, passed("int8-kl"))
    text = layer_bars(rows, ("a", HOSTILE), rows[:1])
    assert "<img" not in text and "wb-chosen" in text and "wb-added" in text
    assert "2.00 ms fp32" in text and "wb-t-int8" in text and "of the call" in text and "/first/Gemm" in text


def test_more_bars_than_a_browser_draws_at_once_are_said() -> None:
    many = Pass("a", tuple(layer(f"l{i}", 1e-4 * (i + 1), "fp32", (f"/b{i % 7}/n{i}",)) for i in range(MOST_BARS + 20)))
    text = layer_bars(layer_rows.layer_rows(many, many), ("a", "b"))
    assert text.count('class="wb-layer"') == MOST_BARS and "20 more match" in text


def test_a_study_of_another_machine_shows_what_it_was_told_there(state: State, look: FakeLook) -> None:
    recorded = Study.open(RECORDED)
    state.session.attempt(state.results.show, recorded.record)
    look.fails = BackendMissing("TensorRT is not installed.")
    attempt(state, state.layers.profile)
    assert state.layers.words.startswith("Recorded on NVIDIA H200. fp32:")
    assert any("int8" in row.second.precision for row in state.layers.rows if row.second is not None)
    assert any("CUDA graph" in sentence for sentence in state.layers.sentences)


def test_a_study_of_another_machine_that_was_told_nothing_says_why_it_shows_nothing(
    state: State, look: FakeLook
) -> None:
    look.fails = BackendMissing("TensorRT is not installed.")
    attempt(state, state.layers.profile)
    assert state.layers.error == "TensorRT is not installed." and state.layers.rows == ()
