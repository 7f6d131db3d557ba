"""The network drawn: what a box stands for, what colours it, and what a click may do to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import tiny
from tiny import attempt, settle

import workbench as wb
from workbench.errors import RecipeError, StoreError
from workbench.machine.store import Store
from workbench.ui.graph_drawing import MOST_BOXES, PRECISIONS, by_amount, by_precision, dot, drawn
from workbench.ui.state import State


@pytest.fixture
def network(tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(tiny.classifier(tmp_path).path)


def test_a_box_is_a_node_or_all_nodes_of_a_module(network: onnx.ModelProto) -> None:
    found = drawn(network, {}, None)
    assert [box.nodes for box in found.boxes] == [("/first/Gemm",), ("/relu/Relu",), ("/head/Gemm",)]
    assert found.arrows == ((0, 1), (1, 2))
    modules = {"/first/Gemm": "body.first", "/relu/Relu": "body.act", "/head/Gemm": "head"}
    found = drawn(network, modules, 1)
    assert [box.label for box in found.boxes] == ["body\n2 nodes", "Gemm\nhead"] and found.arrows == ((0, 1),)
    assert found.boxes[0].operators == {"Gemm": 1, "Relu": 1}


def test_boxes_are_coloured_by_precision_or_by_an_amount(network: onnx.ModelProto) -> None:
    first, relu, head = drawn(network, {}, None).boxes
    paint = by_precision({"/first/Gemm": "int8"})
    assert paint(first)[0] == PRECISIONS["int8"] and "1 in int8" in paint(first)[1]
    assert paint(head)[0] == PRECISIONS["fp32"]
    paint = by_amount({"/first/Gemm": 2.0, "/head/Gemm": 0.0}, lambda value: f"{value} s")
    assert paint(first) == ("#e97814", "Gemm\n/first/Gemm\n2.0 s") and paint(head)[0] == "#fff6e8"
    assert paint(relu)[0] == "#ffffff" and "nothing known" in paint(relu)[1]


def test_names_from_outside_stay_within_their_quotes(network: onnx.ModelProto) -> None:
    network.graph.node[0].name = 'a"]; evil [label="\\N'
    text = dot(drawn(network, {}, None), by_precision({}), selected=1)
    assert 'a\\"]; evil [label=\\"\\\\N' in text and text.count("evil") == 2, "in label and tooltip alone"
    assert '"1" [label="Relu' in text and "penwidth=4" in text


def test_too_many_boxes_are_refused_with_a_way_out(network: onnx.ModelProto) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], [f"y{place}"], name=f"n{place}") for place in range(MOST_BOXES + 1)]
    network.graph.node.extend(nodes)
    with pytest.raises(RecipeError, match="Choose a coarser one"):
        drawn(network, {}, None)


@pytest.fixture
def state(tmp_path: Path, own_store: Path) -> Iterator[State]:
    made = State(tiny.classifier(tmp_path), tiny.samples(), store=Store(own_store), protocol=tiny.QUICK)
    settle()
    made.session.attempt(made.running.start)
    made.running.result(120)
    settle()
    yield made
    made.session.stop()
    made.session.leave()


def test_a_click_on_a_box_makes_a_recipe_that_keeps_it_or_lowers_it_alone(state: State) -> None:
    graph = state.graph
    state.session.attempt(state.results.select, "int8-kl")
    assert graph.variant == "int8-kl"
    assert "Nothing is chosen" in attempt(state, graph.keep)
    graph.detail = "every node"
    assert attempt(state, graph.draw) == ""
    assert "by the precision" in graph.words and PRECISIONS["int8"] in graph.dot
    place = next(index for index, box in enumerate(graph.found.boxes) if box.nodes == ("/head/Gemm",))
    attempt(state, graph.choose, str(place))
    assert graph.chosen == ("/head/Gemm",) and "penwidth=4" in graph.dot
    assert attempt(state, graph.keep) == ""
    kept = state.plan.recipes[-1]
    assert kept.step("quantize").exclude == ("^/head/Gemm$",)
    assert attempt(state, graph.only) == ""
    assert state.plan.recipes[-1].step("quantize").exclude == ("^/first/Gemm$",)
    assert state.plan.recipes[-1].name.startswith("int8-kl-keep1-"), "another choice of one layer has another name"
    relu = next(index for index, box in enumerate(graph.found.boxes) if "/relu/Relu" in box.nodes)
    attempt(state, graph.choose, str(relu))
    assert "lowers none of what is chosen" in attempt(state, graph.only)


def test_a_box_is_given_a_type_that_recipe_and_backend_can_have(state: State) -> None:
    graph = state.graph
    state.session.attempt(state.results.select, "int8-kl")
    assert "Nothing is chosen" in attempt(state, graph.give, "fp16")
    graph.detail = "every node"
    attempt(state, graph.draw)
    place = next(index for index, box in enumerate(graph.found.boxes) if box.nodes == ("/head/Gemm",))
    attempt(state, graph.choose, str(place))
    assert attempt(state, graph.give, "fp16") == ""
    made = state.plan.recipes[-1]
    assert made.name == "int8-kl-fp16x1" and made.step("quantize").exclude == ("^/head/Gemm$",)
    assert set(made.step("precision").exclude) == {"^/first/Gemm$", "^/relu/Relu$"}
    assert "is INT8 already" in attempt(state, graph.give, "int8")
    state.plan.reasons = {("precision", "bf16"): "no such arithmetic"}
    assert graph.refused() == {"bf16": "no such arithmetic"}
    assert "no such arithmetic" in attempt(state, graph.give, "bf16")


def test_what_is_not_known_yet_is_said_with_where_to_get_it(state: State) -> None:
    graph = state.graph
    attempt(state, graph.draw)
    graph.colour = "time"
    assert "profile it in view `Layers`" in graph.words
    graph.colour = "error"
    assert "rank the layers" in graph.words
    attempt(state, state.tuning.rank)
    assert "share of the noise" in graph.words and "% of the noise" in graph.dot
    record = state.results.record
    gone = dataclasses.replace(
        record, name="elsewhere", model=dataclasses.replace(record.model, path="/nowhere/net.onnx")
    )
    attempt(state, state.results.show, gone)
    assert graph.found is None and "is not here" in attempt(state, graph.draw)
    assert "is not here" in graph.words, "the page says why it is empty"


def test_a_study_is_opened_at_its_graph(state: State) -> None:
    app = wb.explore(state.running.study_name, state.session.store)
    settle()
    assert app.state.session.page == "Results" and app.state.results.view == "Graph" and not app.error
    assert app.state.graph.found is not None and "digraph" in app.state.graph.dot
    app.close()
    with pytest.raises(StoreError, match="no study 'nothing'"):
        wb.explore("nothing", state.session.store)
