"""The app as widgets, without a kernel: what is shown, what a click does, and what is left after `close()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pytest
import synthetic_study
import tiny
from tiny import settle

import workbench as wb
from workbench.graph.fused_layers import FusionMap, RuntimeLayer
from workbench.records import Model, TensorSpec
from workbench.ui import pictures
from workbench.ui.app import Workbench, _family
from workbench.ui.disagreements import Disagreements, Sample
from workbench.ui.state.running import VariantProgress
from workbench.ui.views import markup
from workbench.ui.views.live import Front, Table


@pytest.fixture
def app(tmp_path: Path, own_store: Path) -> Iterator[Workbench]:
    made = Workbench(tiny.classifier(tmp_path), tiny.samples(), protocol=tiny.QUICK)
    settle()
    yield made
    made.close()


def controls(app: Workbench, kind: type) -> list[Any]:
    return [widget for widget in _family(app.widget) if isinstance(widget, kind)]


def control(app: Workbench, kind: type, words: str) -> Any:
    (found,) = [widget for widget in controls(app, kind) if widget.description == words]
    return found


def shown(app: Workbench) -> str:
    return "".join(widget.value for widget in controls(app, widgets.HTML))


def test_a_real_study_from_click_to_table(app: Workbench) -> None:
    control(app, widgets.Button, "Start").click()
    study = app.result(120)
    assert not study.failures and not app.error
    assert control(app, widgets.FloatProgress, "All variants").value == 1.0
    assert "✓ int8-kl" in shown(app)
    (front,) = controls(app, Front)
    assert {name for trace in front.figure["data"] for name in trace.get("customdata", ())} == {
        "fp32",
        "fp16",
        "int8-kl",
    }
    assert "Numbers: view Table." in front.words and len(front.library) > 1_000_000, "plotly.js comes from its package"
    results = table(app, "Variants with their numbers")
    assert [row["key"] for row in results.rows] == ["fp32", "fp16", "int8-kl"]
    assert results.rows[0]["cells"][0]["text"] == "fp32 (baseline)"
    app.state.results.view = "Layers"
    (fusion,) = [box for box in controls(app, widgets.Accordion) if box.titles[0].startswith("What became")]
    assert "layers of the runtime" not in shown(app), "nothing is read before somebody looks"
    fusion.selected_index = 0
    settle()
    assert app.error == ""
    assert f"{app.state.layers.second}: " in shown(app) and "layers of the runtime" in shown(app)
    assert "<b>Before:</b>" in shown(app) and "<b>After:</b>" in shown(app)
    assert wb.Study.open(study.name).record == study.record


def test_no_message_of_the_app_shows_backticks() -> None:
    app = Workbench()
    settle()
    told = ""
    for name in (
        "Start",
        "Rank layers",
        "Read weights",
        "Collect",
        "Observe channels",
        "Measure",
        "Profile",
        "Preview",
    ):
        control(app, widgets.Button, name).click()
        told = shown(app)
        assert app.error and "`" not in told, name
    assert "on page <code>Model</code>" in told
    app.close()


def test_plotly_is_sent_ahead_when_the_browser_asks_for_it_with_or_without_a_model() -> None:
    app = Workbench()
    (front,) = controls(app, Front)
    assert front.figure == {} and not front.library
    front._handle_custom_msg("library", [])  # what the page sends once the app is painted
    assert front.figure == {} and len(front.library) > 1_000_000
    app.close()


def test_every_control_has_a_description(app: Workbench) -> None:
    kinds = (widgets.Text, widgets.Textarea, widgets.Dropdown, widgets.SelectMultiple, widgets.Checkbox, widgets.Button,
             widgets.BoundedIntText, widgets.Select, widgets.FloatProgress)  # fmt: skip
    found = controls(app, kinds)  # type: ignore[arg-type]
    assert len(found) > 40
    assert [widget for widget in found if not widget.description] == []
    assert [widget for widget in controls(app, widgets.Button) if not widget.tooltip] == []


def test_a_toggle_that_the_backend_lacks_is_greyed_with_its_reason(app: Workbench) -> None:
    assert control(app, widgets.Checkbox, "tf32").disabled
    assert not control(app, widgets.Checkbox, "fp16").disabled
    assert "Not here: tf32 (TF32 exists on NVIDIA GPUs only)." in shown(app)
    assert control(app, widgets.BoundedIntText, "Largest batch").disabled


def test_ticking_boxes_makes_the_sweep_and_adding_it_fills_the_list(app: Workbench) -> None:
    calibrators = [widget for widget in controls(app, widgets.Checkbox) if widget.description == "mse"]
    control(app, widgets.Checkbox, "int8").value = True
    (mse,) = calibrators
    mse.value = True
    (add,) = [widget for widget in controls(app, widgets.Button) if widget.description == "Add 3 recipes"]
    add.click()
    names = [value for _, value in control(app, widgets.SelectMultiple, "In the study").options]
    assert names == ["fp32", "fp16", "int8-kl", "int8-mse"]
    listed = control(app, widgets.SelectMultiple, "In the study")
    listed.value = ("fp16",)
    control(app, widgets.Button, "Remove selected").click()
    assert [recipe.name for recipe in app.state.plan.recipes] == ["fp32", "int8-kl", "int8-mse"]


def test_unticking_all_of_a_toggle_ticks_its_first_again(app: Workbench) -> None:
    box = control(app, widgets.Checkbox, "all")
    box.value = False
    assert box.value and app.state.plan.toggles.fusions == ("all",)


def test_an_error_of_a_command_is_shown_as_an_alert_and_goes_away(app: Workbench) -> None:
    control(app, widgets.Button, "Export report").click()
    assert 'role="alert"' in shown(app) and "no study to report" in shown(app)
    control(app, widgets.Text, "Search layers").value = "gemm"
    assert 'role="alert"' not in shown(app)
    assert len(control(app, widgets.SelectMultiple, "Found").options) == 2


def test_choosing_a_page_by_keyboard_or_command_is_the_same(app: Workbench) -> None:
    *_, pages = controls(app, widgets.Tab)
    pages.selected_index = pages.titles.index("Run")
    assert app.state.session.page == "Run"
    app.state.session.page = "Studies"
    assert pages.titles[pages.selected_index] == "Studies"


def test_a_row_or_a_point_that_is_clicked_selects_its_variant_in_both(app: Workbench) -> None:
    app.state.session.attempt(app.state.results.show, synthetic_study.study())
    settle()
    results, (front,) = table(app, "Variants with their numbers"), controls(app, Front)
    results.selected = ["int8-kl"]
    assert app.state.results.selected == "int8-kl" == front.selected
    front.selected = "fp16"
    assert results.selected == ["fp16"] and app.state.layers.second == "fp16"


def table(app: Workbench, label: str) -> Table:
    (found,) = [made for made in controls(app, Table) if made.label == label]
    return found


def test_a_budget_typed_into_its_field_marks_the_best_row_in_words(app: Workbench) -> None:
    app.state.session.attempt(app.state.results.show, synthetic_study.study())
    settle()
    control(app, widgets.Text, "Loss (points)").value = "50"
    settle()
    (best,) = [row for row in table(app, "Variants with their numbers").rows if row["mark"]]
    assert best["cells"][0] == {"text": "★ int8-max", "detail": "best in budget", "title": "int8-max"}
    assert "Best: int8-max" in shown(app) and "cannot be told apart from" in shown(app), (
        "so few rounds tell no speed apart"
    )


def test_closing_and_running_the_cell_again_finds_the_finished_study(app: Workbench) -> None:
    app.start()
    study = app.result(120)
    model, data = app.state.selection.model, app.state.selection.data
    again = Workbench(model, data, protocol=tiny.QUICK)
    settle()
    assert again.state.running.record == study.record
    assert app.state.session.is_closed, "the earlier app of this cell is gone"
    again.close()
    afterwards = Workbench(model, data, protocol=tiny.QUICK)
    settle()
    assert afterwards.state.results.record == study.record
    afterwards.close()


def test_a_model_chosen_in_the_menu_is_there_again_when_the_cell_is_run_again(app: Workbench, tmp_path: Path) -> None:
    menu = Workbench(protocol=tiny.QUICK)
    menu.state.selection.source, menu.state.selection.path = "ONNX file", str(tmp_path / "classifier.onnx")
    control(menu, widgets.Button, "Load").click()
    settle()
    menu.start()
    again = Workbench(protocol=tiny.QUICK)
    assert again.state.selection.model == menu.state.selection.model
    assert again.result(120).record.model.name == "classifier"
    assert "wb.load" in again.code()
    again.close()


def test_closing_stops_a_running_study(app: Workbench) -> None:
    app.start()
    job = app.state.running.job
    app.close()
    assert job.is_final and job.snapshot.state == "cancelled"


def test_a_closed_app_takes_no_more_commands(app: Workbench) -> None:
    app.close()
    app.state.session.attempt(app.state.plan.add_named, "nothing")
    assert app.error == ""


def test_the_model_page_says_what_is_needed_before_anything_is_built(app: Workbench) -> None:
    page = shown(app)
    assert "classifier" in page and "352 FLOP" in page and "Gemm&nbsp;&times;&nbsp;2" in page
    assert "onnxruntime-cpu can run every operator" in page


def test_data_without_calibration_offer_to_split_some_off(app: Workbench) -> None:
    selection = app.state.selection
    selection.data = dataclasses.replace(selection.data, calibration=None)
    assert "no calibration samples" in shown(app)
    control(app, widgets.BoundedIntText, "Samples to move").value = 5
    control(app, widgets.Button, "Split off").click()
    assert len(selection.data.calibration) == 5


HOSTILE = "<img src=x onerror=alert(1)>"


def hostile_model() -> Model:
    inputs = (TensorSpec(HOSTILE, "float32", (1,)),)
    return dataclasses.replace(synthetic_study.study().model, name=HOSTILE, inputs=inputs, operators={HOSTILE: 1})


@pytest.mark.parametrize(
    "text",
    [
        markup.error(HOSTILE),
        markup.variants([VariantProgress(HOSTILE, "running", HOSTILE, 0.5)]),
        markup.failures([VariantProgress(HOSTILE, "failed", "failed", 0.5, HOSTILE, HOSTILE)]),
        markup.layers({HOSTILE: 1}, FusionMap((RuntimeLayer(HOSTILE, HOSTILE, (HOSTILE,)),), (HOSTILE,))),
        markup.disagreements(Disagreements(HOSTILE, (Sample(1, "", HOSTILE, HOSTILE, HOSTILE, HOSTILE),)), HOSTILE, "b"),
        markup.clips([pictures.Clip(HOSTILE, 1.0, 20.0)]),
        markup.model_card(hostile_model(), None, {HOSTILE: {HOSTILE: HOSTILE}}),
    ],
    ids=["error", "variants", "failures", "layers", "disagreements", "clips", "model"],
)  # fmt: skip
def test_names_from_outside_are_text_and_never_markup(text: str) -> None:
    assert HOSTILE not in text
    assert "&lt;img" in text


def test_a_sample_as_text_and_one_as_picture_are_both_described() -> None:
    samples = (
        Sample(3, "data:image/png;base64,AA", "", "7", "7", "1"),
        Sample(4, "", "def f():", "", "3 of 128 predictions differ", ""),
    )
    text = markup.disagreements(Disagreements("two", samples), "fp32", "int8")
    assert 'alt="sample 3, label 7"' in text and "fp32: 7<br>int8: 1" in text
    assert "<pre>def f():</pre>" in text and "3 of 128 predictions differ" in text


def test_the_preview_shows_each_recipe_beside_the_first(app: Workbench) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    assert "tells neither speed" in shown(app)
    button = control(app, widgets.Button, "Preview")
    assert not button.disabled
    control(app, widgets.Dropdown, "For the GPU").value = "sm120"
    button.click()
    settle()
    page = shown(app)
    assert "Built for sm120, not run." in page and not app.error
    assert "int8-kl against fp32:" in page and "<td>none there</td>" in page
    assert "Kernels of <b>int8-kl</b>" in page and "wb-t-int8" in page and "int8 x int8 → " in page
    app.state.previewing.absent = "TensorRT for RTX is not installed. Run: pip <it>"
    assert button.disabled and "pip &lt;it&gt;" in shown(app)


def test_a_recipe_that_the_target_cannot_have_is_told_with_the_reason() -> None:
    from workbench.ui.state.previewing import Line

    page = markup.preview_lines((Line("fp8", None, "sm86 has <no> FP8"),))
    assert "Not for this GPU: sm86 has &lt;no&gt; FP8" in page
    assert markup.preview_lines(()) == ""


def test_what_goes_wrong_with_a_button_is_said_beside_it_once_and_goes_with_the_next_command(app: Workbench) -> None:
    button = control(app, widgets.Button, "Add")
    named = control(app, widgets.Dropdown, "Known recipe")
    named.value = "fp32"
    button.click()
    assert "in the study already" in app.error and app.state.session.place is button
    alerts = [widget for widget in controls(app, widgets.HTML) if 'role="alert"' in widget.value]
    (row,) = [box for box in controls(app, widgets.Box) if button in box.children]
    assert len(alerts) == 1 and alerts[0] in row.children and alerts[0].layout.display is None
    app.state.session.attempt(app.state.plan.add_named, "fp32")
    alerts = [widget for widget in controls(app, widgets.HTML) if 'role="alert"' in widget.value]
    assert len(alerts) == 1 and alerts[0] not in row.children, "without a button it stands at the top"
    named.value = "bf16"
    button.click()
    assert not [widget for widget in controls(app, widgets.HTML) if 'role="alert"' in widget.value]
