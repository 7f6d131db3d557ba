"""The app as a researcher uses it: JupyterLab, a mouse, a keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_servers import Lab, picture, watched

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
expect = playwright.expect
expect.set_options(timeout=30_000)

SETUP = """
import workbench as wb
app = wb.Workbench(protocol=wb.Protocol(rounds=3, min_seconds=0.3, warmup_seconds=0.05))
app
"""
LONG = 120_000


def run_all(page: Any, address: str) -> None:
    """Open a notebook and run it; a kernel that is still starting loses the first request, so it is asked again."""
    page.goto(address)
    page.wait_for_selector(".jp-Notebook")
    page.get_by_text(re.compile(r"\| Idle$")).wait_for()
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            expect(prompt).not_to_have_text("[ ]:", timeout=8_000)
            break
        except AssertionError:
            continue
    page.wait_for_selector(".workbench .wb-tabs [role=tab]", timeout=LONG)


def go_to(page: Any, name: str) -> None:
    page.locator(".workbench").get_by_role("tab", name=name, exact=True).first.click()


def press(page: Any, name: str) -> None:
    page.locator(".workbench button:visible", has_text=re.compile(f"^{name}$")).click()


def choose(page: Any, label: str, option: str) -> None:
    control = page.get_by_label(label, exact=True).locator("visible=true")
    found = control.locator("option", has_text=re.compile(rf"^{re.escape(option)}($|\W)")).first
    control.select_option(value=found.get_attribute("value"))


def tick(page: Any, name: str) -> None:
    page.get_by_role("checkbox", name=name, exact=True).check()


def test_a_study_from_the_menu_to_the_opened_report(page: Any, lab: Lab) -> None:
    run_all(page, lab.notebook("study.ipynb", SETUP))
    app = page.locator(".workbench").first

    choose(page, "Shipped model", "digits_resnet")
    press(page, "Load")
    expect(app.get_by_text("onnxruntime-cpu can run every operator")).to_be_visible(timeout=LONG)
    expect(app.get_by_text("273,754")).to_be_visible()
    picture(page, "model")

    go_to(page, "Recipes")
    picture(page, "recipes_before")
    choose(page, "In the study", "int8-kl")
    press(page, "Remove selected")
    tick(page, "int8")
    tick(page, "kl")
    picture(page, "recipes")
    press(page, "Add 2 recipes")
    expect(app.locator("option", has_text="int8-kl").first).to_be_attached()

    go_to(page, "Run")
    press(page, "Start")
    expect(app.locator(".wb-status", has_text=re.compile(r"\d+%: measuring"))).to_be_visible(timeout=LONG)
    picture(page, "run")
    press(page, "Cancel")
    expect(app.locator(".wb-status", has_text="cancelled")).to_be_visible(timeout=LONG)
    picture(page, "run_cancelled")
    page.locator(".workbench button:visible", has_text=re.compile("^(Resume|Start)$")).click()
    expect(app.locator(".wb-status", has_text="finished after")).to_be_visible(timeout=LONG)
    picture(page, "run_finished")

    go_to(page, "Results")
    point = app.locator(".wb-front .points path").nth(1)
    expect(point).to_be_visible(timeout=LONG)
    point.hover(force=True)
    expect(app.locator(".hoverlayer .hovertext")).to_contain_text("99% interval")
    picture(page, "results_plot")
    page.mouse.down()
    page.mouse.up()
    expect(page.get_by_label("Selected", exact=True)).not_to_have_value("")
    selected = page.get_by_label("Selected", exact=True).input_value()
    page.get_by_label("Latency (ms)", exact=True).fill("1000")
    page.get_by_label("Loss (points)", exact=True).fill("50")
    page.keyboard.press("Enter")
    expect(app.get_by_text(re.compile("^Best: "))).to_be_visible()
    expect(app.locator(".wb-front .shapelayer path").first).to_be_attached()
    for view in ("Table", "Layers", "Graph", "Disagreements", "Calibration"):
        go_to(page, view)
        if view == "Calibration":
            press(page, "Collect")
            expect(app.locator("img.wb-light:visible").nth(1)).to_be_visible(timeout=LONG)
            press(page, "Observe channels")
            expect(app.locator("img.wb-light:visible").nth(2)).to_be_visible(timeout=LONG)
            press(page, "Read weights")
            expect(app.locator("img.wb-light:visible").nth(3)).to_be_visible(timeout=LONG)
        if view == "Layers":
            expect(app.get_by_text("Not profiled yet")).to_be_visible()
            choose(page, "Second", "int8-kl")
            press(page, "Profile")
            expect(app.get_by_text(re.compile("ms in layers"))).to_be_visible(timeout=LONG)
            expect(app.locator(".wb-bar i.wb-t-int8:visible").first).to_be_visible()
            page.get_by_label("Layers", exact=True).select_option(index=1)
            expect(app.locator(".wb-chosen:visible")).to_have_count(1)
            full = app.evaluate(
                """root => [...root.querySelectorAll('.wb-bar i')].filter(bar => parseFloat(bar.style.width) > 20).map(
                    bar => 100 * bar.getBoundingClientRect().width / parseFloat(bar.style.width))"""
            )
            app.get_by_text("What became of the nodes").click()
            expect(app.get_by_text("layers of the runtime")).to_be_visible()
            assert len(full) > 5 and max(full) - min(full) < 1, (
                "bars of equal times are equally long, whatever stands beside"
            )
        if view == "Table":
            rows = app.locator("tbody th[scope=row]:visible")
            expect(rows).to_have_count(3)
            expect(app.locator("tr.wb-chosen:visible")).to_contain_text(selected)
            app.get_by_role("button", name="Latency (ms)").click()
            expect(app.get_by_role("columnheader", name="Latency (ms)")).to_have_attribute("aria-sort", "ascending")
            page.get_by_label("Search variants").fill("int8-kl")
            expect(rows).to_have_count(1)
            page.get_by_label("Search variants").fill("")
            expect(rows).to_have_count(3)
        if view == "Graph":
            choose(page, "Variant", "int8-kl")
            box = app.locator(".wb-graph g.node", has_text="layer1.0")
            box.first.click(timeout=LONG)
            expect(app.get_by_text("Chosen: layer1.0")).to_be_visible()
            choose(page, "Colour by", "time")
            expect(app.get_by_text("by the profiled time of int8-kl")).to_be_visible()
            expect(box.first.locator("path").first).to_have_attribute("fill", re.compile("^#(?!ffffff)"))
            press(page, "Keep in floating point")
            expect(app.get_by_text(re.compile("^Added int8-kl"))).to_be_visible()
            choose(page, "Type", "fp16")
            press(page, "Give it this type")
            expect(app.get_by_text(re.compile("^Added int8-kl-fp16x"))).to_be_visible()
        if view == "Disagreements":
            expect(app.get_by_text(re.compile("differ on|same answer"))).to_be_visible()
        app.get_by_role("tab", name=view, exact=True).scroll_into_view_if_needed()
        picture(page, f"results_{view.lower()}")
    go_to(page, "Table")
    expect(app.locator("tbody th[scope=row]:visible")).to_have_count(3)

    go_to(page, "Tune")
    press(page, "Rank layers")
    expect(app.get_by_text("the noisiest first")).to_be_visible(timeout=2 * LONG)
    app.locator("tbody tr:visible").first.click()
    expect(app.get_by_role("button", name="Add recipe that keeps 1 layer", exact=True)).to_be_enabled()
    picture(page, "tune")

    go_to(page, "Export")
    press(page, "Show as code")
    expect(page.get_by_label("Code", exact=True)).to_have_value(re.compile("wb.run"))
    press(page, "Export report")
    link = app.get_by_text("Download the report")
    expect(link).to_be_visible(timeout=LONG)
    picture(page, "export")
    with page.expect_download() as waiting:
        link.click()
    report = lab.folder / "downloaded.html"
    waiting.value.save_as(report)
    read = page.context.new_page()
    read.goto(report.as_uri())
    expect(read.get_by_text("int8-kl").first).to_be_visible()
    picture(read, "report")
    read.set_viewport_size({"width": 420, "height": 900})
    assert read.evaluate("() => document.documentElement.scrollWidth") <= 420, "a phone scrolls tables, not the page"
    folded = read.locator("details:not([open]) p").first
    expect(folded).not_to_be_visible()
    read.emulate_media(media="print")
    expect(folded).to_be_visible()
    read.close()

    go_to(page, "Studies")
    row = app.locator("tbody tr:visible", has_text="digits_resnet")
    expect(row).to_have_count(1)
    row.click()
    page.get_by_role("textbox", name="Tags", exact=True).fill("first, mine")
    page.keyboard.press("Tab")
    press(page, "Keep tags and note")
    expect(row).to_contain_text("first, mine")
    picture(page, "studies")
    press(page, "Delete")
    expect(row).to_have_count(0)
    press(page, "Undo delete")
    expect(row).to_have_count(1)
    expect(app.locator("[role=alert]")).to_have_count(0)


FINISHED = """
import workbench as wb
protocol = wb.Protocol(rounds=3, min_seconds=0.05, warmup_seconds=0.02)
app = wb.Workbench(wb.load("digits_resnet"), wb.datasets.digits(), protocol=protocol, name="small")
app.start()
study = app.result(120)
"""
VIEWS = ("Model", "Recipes", "Run", "Results", "Tune", "Batches", "Export", "Studies")
OF_RESULTS = ("Table", "Layers", "Graph", "Disagreements", "Calibration")


@dataclass(frozen=True)
class Opened:
    """The app with a finished study, open in JupyterLab, and what went wrong in its page so far."""

    page: Any
    app: Any
    errors: list[str]

    def look(self, theme: str, width: int = 1280) -> None:
        """Change JupyterLab's theme, as its menu does, and the width of the window."""
        self.page.set_viewport_size({"width": width, "height": 900})
        change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        self.page.evaluate(change, f"JupyterLab {theme}")
        expect(self.page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']")).to_be_attached()

    def pages(self) -> Iterator[str]:
        """Go to every page and every view of the results, one after the other."""
        for name in (*VIEWS, "Results", *OF_RESULTS):
            go_to(self.page, name)
            self.page.wait_for_timeout(500)  # what is drawn in the background is drawn
            yield name


@pytest.fixture(scope="module")
def opened(kept_page: Any, lab: Lab) -> Opened:
    # JupyterLab's own bundle; its extensions, the widgets' among them, are not in there.
    errors = watched(kept_page, f"{lab.url}/static/lab/")
    run_all(kept_page, lab.notebook("finished.ipynb", FINISHED, "app"))
    kept_page.keyboard.press("ControlOrMeta+B")
    return Opened(kept_page, kept_page.locator(".workbench").first, errors)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_no_serious_fault_on_any_page_and_the_console_no_error(opened: Opened, theme: str) -> None:
    package = pytest.importorskip("axe_playwright_python", reason="axe-core comes with axe-playwright-python")
    opened.page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    opened.look(theme)
    found = []
    for name in opened.pages():
        result = opened.page.evaluate("async () => await axe.run('.workbench', { resultTypes: ['violations'] })")
        for fault in result["violations"]:
            if fault["impact"] in ("serious", "critical"):
                found.append(f"{name}: {fault['id']}: {fault['nodes'][0]['html'][:120]}")
    assert not found, "\n".join(found)
    assert not opened.errors, "\n".join(opened.errors)


def test_a_dark_theme_and_a_narrow_panel_show_everything(opened: Opened) -> None:
    page, app = opened.page, opened.app
    opened.look("Dark")
    go_to(page, "Results")
    go_to(page, "Plot")
    expect(app.locator(".wb-front .points path").first).to_be_visible(timeout=LONG)
    colour = app.locator(".wb-front .xtitle").evaluate("element => getComputedStyle(element).fill")
    assert all(int(part) > 150 for part in re.findall(r"\d+", colour)[:3]), f"{colour}: text follows the dark theme"
    for name in VIEWS:
        go_to(page, name)
        app.locator(".wb-tabs").first.scroll_into_view_if_needed()
        picture(page, f"dark_{name.lower()}")
    opened.look("Dark", 420)
    go_to(page, "Results")
    go_to(page, "Plot")
    title = app.locator(".wb-front .xtitle")
    expect(title).to_contain_text("less is better")
    expect(title.locator("tspan")).to_have_count(2)
    inside = title.evaluate("""element => {
        const [ours, plot] = [element, element.closest('.wb-front')].map(one => one.getBoundingClientRect());
        return ours.left >= plot.left && ours.right <= plot.right; }""")
    assert inside, "a title is not cut off"
    go_to(page, "Model")
    cut = app.locator(".wb-scroll:visible").first.evaluate("element => element.scrollWidth - element.clientWidth")
    assert cut <= 2, "what is known of the model wraps"
    for name in opened.pages():
        app.locator(".wb-tabs").first.scroll_into_view_if_needed()
        picture(page, f"narrow_{name.lower()}")
        overflow = app.evaluate("element => element.scrollWidth - element.clientWidth")
        assert overflow <= 2, f"the page {name} is {overflow} pixels too wide for a narrow panel"


def test_the_keyboard_alone_reaches_toggles_and_starts_a_study(opened: Opened) -> None:
    page, app = opened.page, opened.app
    opened.look("Light")
    go_to(page, "Model")
    tab = app.get_by_role("tab", name="Model", exact=True)
    tab.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(app.get_by_role("tab", name="Recipes", exact=True)).to_have_attribute("aria-selected", "true")
    expect(tab).to_have_attribute("aria-selected", "false")
    box = page.get_by_role("checkbox", name="int8", exact=True)
    expect(box).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if box.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.press("Space")
    expect(box).to_be_checked()
    expect(app.get_by_role("button", name="Add 2 recipes", exact=True)).to_be_visible()
    assert box.evaluate("element => getComputedStyle(element).outlineStyle") == "solid", "focus can be seen"
    unnamed = app.evaluate(
        """root => [...root.querySelectorAll('input, select, textarea, button')].filter(
            item => !item.labels?.length && !item.textContent.trim() && !item.title && !item.ariaLabel).length"""
    )
    assert unnamed == 0, f"{unnamed} controls have no name that a screen reader could say"


@pytest.mark.flaky(reruns=1)  # what is typed into a cell depends on where the page's focus is, and pages are busy
def test_a_cell_that_is_run_again_finds_its_study_and_a_click_is_answered_while_it_works(page: Any, lab: Lab) -> None:
    cell = (
        FINISHED.replace('name="small"', 'name="long"').replace("rounds=3", "rounds=40").replace("study = app", "# app")
    )
    run_all(page, lab.notebook("again.ipynb", cell + "app"))
    app = page.locator(".workbench").first
    expect(app.locator(".wb-status", has_text=re.compile(r"\d+%: "))).to_be_visible()
    go_to(page, "Recipes")
    page.get_by_role("checkbox", name="int8", exact=True).check()
    expect(app.get_by_role("button", name="Add 2 recipes", exact=True)).to_be_visible()
    page.locator(".jp-CodeCell").first.click()
    rerun = cell.replace("app.start()\n", "")
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(rerun + "app")
    page.keyboard.press("Control+Enter")
    expect(app.locator(".wb-status", has_text=re.compile(r"\d+%: "))).to_be_visible(timeout=LONG)
    page.wait_for_selector(".workbench .wb-tabs [role=tab]", timeout=LONG)
    go_to(page, "Run")
    press(page, "Cancel")
    expect(app.locator(".wb-status", has_text="cancelled")).to_be_visible(timeout=LONG)
    expect(app.locator("[role=alert]")).to_have_count(0)
