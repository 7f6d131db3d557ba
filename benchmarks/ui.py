"""How fast the app reacts: a study of many variants on display, a page of many layers, and clicks while a study is at work.

Run by hand: python benchmarks/ui.py [variants]. First in this process, then in Chromium in front of Voila, from the click to
the paint; writes benchmarks/results/ui.json. A machine that does other work at the same time shows in the load beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "browser"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "unit"))

import synthetic_study

import workbench as wb
from workbench.machine import device
from workbench.recipes import Recipe
from workbench.records import StudyRecord
from workbench.ui.app import Workbench
from workbench.ui.jobs import DRAWING, STUDIES
from workbench.ui.layer_rows import LayerRow, Side

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("fp16", "int8-kl", "int8-max", "int8-dynamic")


def large_study(variants: int) -> StudyRecord:
    """A made-up study of that many variants; its latencies have the structure of real ones."""
    base = synthetic_study.study(("fp32", *KINDS))
    results = [base.results[0]]
    for number in range(1, variants):
        made = base.results[1 + number % len(KINDS)]
        recipe = Recipe(f"{made.recipe.name}-{number}", made.recipe.steps)
        results.append(
            dataclasses.replace(
                made,
                recipe=recipe,
                variant=dataclasses.replace(made.variant, recipe=recipe),
                engine=dataclasses.replace(made.engine, variant=recipe.name),
                measurement=dataclasses.replace(made.measurement, variant=recipe.name),
                accuracy=dataclasses.replace(made.accuracy, variant=recipe.name),
            )
        )
    return dataclasses.replace(base, results=tuple(results))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def display(app: Workbench, record: StudyRecord) -> dict[str, float]:
    results, started, began = app.state.results, time.perf_counter(), time.process_time()
    told: dict[str, float] = {}

    def tell(words: str) -> None:
        if words not in told:
            told[words] = time.perf_counter() - started
            wall, processor = time.perf_counter() - started, time.process_time() - began
            print(f"  {words:<22} after {wall:.2f} s ({processor:.2f} s of processor time)")

    results.observe(lambda change: tell("table"), "summary")
    results.observe(lambda change: tell("front's figure"), "figure")
    app.state.session.attempt(results.show, record)
    while not any(row.on_front for row in results.summary.comparison.rows) if results.summary else True:
        time.sleep(0.05)
    tell("table with the front")
    DRAWING.settle()
    return told


def reactions(app: Workbench) -> dict[str, float]:
    """Toggle, search and type while a real study works; the longest reaction counts."""
    state = app.state
    app.start()
    taken = []
    clicks = [
        lambda: state.plan.set_toggle("quantization", ("none", "int8")),
        lambda: state.plan.search("conv"),
        lambda: state.results.select(state.results.variants[-1]),
        lambda: state.export.show_code(),
        lambda: state.plan.set_toggle("quantization", ("none",)),
        lambda: state.results.set_budget("5", "1"),
    ]
    while not state.running.job.is_final:
        for click in clicks:
            taken.append(seconds(lambda click=click: state.session.attempt(click)))
            time.sleep(0.05)
    taken.sort()
    print(f"  {len(taken)} clicks: median {taken[len(taken) // 2] * 1e3:.1f} ms, longest {taken[-1] * 1e3:.1f} ms")
    assert not app.error, app.error
    return {"median": taken[len(taken) // 2], "longest": taken[-1], "clicks": len(taken)}


CELLS = """
import sys
sys.path[:0] = {paths!r}
import dataclasses, ipywidgets, workbench as wb
from ui import large_study, many_layers
protocol = wb.Protocol(rounds=60, min_seconds=0.3)
app = wb.Workbench(wb.load("digits_resnet"), wb.datasets.digits(), protocol=protocol)
def button(words, command):
    made = ipywidgets.Button(description=words)
    made.on_click(lambda clicked: app.state.session.attempt(command))
    return made
records, rows = [large_study({variants} + more) for more in range(2)], many_layers()
def layers():
    app.state.layers.names, app.state.layers.rows = ("fp32", "int8"), rows
    app.state.layers.search("")
ipywidgets.VBox([app.widget, button("show study", lambda: app.state.results.show(records[0])),
                 button("show another", lambda: app.state.results.show(records[1])), button("show layers", layers),
                 button("start study", app.start), button("stop study", app.cancel)])
"""
# From a click to the moment at which what it brings is painted: the second frame after it is there. What changes is watched
# rather than every frame, because frames that are asked for would take the processor from what is measured.
WATCH = """
([selector, text]) => new Promise((resolve) => {
  let start = NaN;
  const isShown = (one) => one.checkVisibility() && one.textContent.includes(text);
  const isThere = () => [...document.querySelectorAll(selector)].some(isShown);
  const watcher = new MutationObserver(() => { if (!isNaN(start) && isThere()) done(() => performance.now() - start); });
  const done = (taken) => {
    watcher.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(taken())));
  };
  const begin = () => { if (isNaN(start)) start = performance.now(); };
  for (const press of ["pointerdown", "click"]) window.addEventListener(press, begin, { once: true, capture: true });
  watcher.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  setTimeout(() => done(() => NaN), 60000);
})
"""


def many_layers(count: int = 500) -> tuple[LayerRow, ...]:
    """Made-up layers of two variants in modules of ten."""
    sides = [Side((place % 7 + 1) * 1e-5, 1 / count, "fp32", (f"layer {place}",), False) for place in range(count)]
    return tuple(
        LayerRow(f"conv{place}: Conv", f"stage{place // 100}.block{place // 10}.conv{place}", (f"/conv{place}",), "8 x 64",
                 side, dataclasses.replace(side, seconds=side.seconds / 2, precision="int8"))
        for place, side in enumerate(sides)
    )  # fmt: skip


class Screen:
    """A page, and how long it takes from a click to the paint of what it brings."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def paint(self, click: Callable[[], None], selector: str, text: str = "") -> float:
        self.page.evaluate(f"(asked) => {{ window.painted = ({WATCH})(asked); }}", [selector, text])
        click()
        return float(self.page.evaluate("() => window.painted")) / 1e3

    def press(self, words: str) -> Callable[[], None]:
        return lambda: self.page.get_by_role("button", name=words, exact=True).evaluate("one => one.click()")

    def tick(self, name: str) -> Callable[[], None]:
        return lambda: self.page.get_by_role("checkbox", name=name, exact=True).evaluate("one => one.click()")

    def tab(self, name: str) -> Callable[[], None]:
        place = self.page.get_by_role("tab", name=name, exact=True).bounding_box()
        assert place is not None
        return lambda: self.page.mouse.click(place["x"] + 10, place["y"] + 10)


def measured(screen: Screen, variants: int) -> dict[str, float]:
    """Return seconds from each click to its paint."""
    found: dict[str, float] = {}
    screen.tab("Results")()
    shown = screen.paint(screen.press("show study"), ".wb-front .points path")
    found[f"{variants} variants, shown while the app still opens (its model is examined, plotly.js loaded)"] = shown
    screen.page.wait_for_timeout(3000)
    # One variant more than the first study has, so that its last point tells that it is drawn.
    another = screen.paint(screen.press("show another"), f".wb-front .points path:nth-child({variants + 1})")
    found[f"{variants + 1} variants, another study in the open app"] = another
    screen.tab("Layers")()
    found["500 layers"] = screen.paint(screen.press("show layers"), ".wb-layer", "conv499")
    screen.tab("Run")()
    screen.press("start study")()
    screen.page.get_by_text("elapsed").wait_for(timeout=120_000)
    pages: list[float] = []
    boxes: list[float] = []
    for _ in range(6):
        pages.append(screen.paint(screen.tab("Recipes"), "h2", "Recipes of the study"))
        boxes.append(screen.paint(screen.tick("int8"), "button", "Add 2 recipes"))
        boxes.append(screen.paint(screen.tick("int8"), "button", "Add 1 recipe"))
        pages.append(screen.paint(screen.tab("Run"), ".widget-label", "All variants"))
    for what, taken in (("another page", pages), ("a box and what the kernel makes of it", boxes)):
        taken.sort()
        found[f"while a study runs: {what}, median"] = taken[len(taken) // 2]
        found[f"while a study runs: {what}, longest"] = taken[-1]
    screen.press("stop study")()
    return found


def in_browser(variants: int, folder: Path) -> dict[str, float]:
    """Show the app in Chromium in front of Voila, and measure there."""
    import nbformat
    from jupyter_servers import CHROMIUM, FLAGS, free_port, serve
    from playwright.sync_api import sync_playwright

    cell = CELLS.format(paths=sys.path[:3], variants=variants)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, folder / "bench.ipynb")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "voila", str(folder / "bench.ipynb"), "--template=workbench", "--no-browser",
               "--Voila.ip=127.0.0.1", f"--port={port}"]  # fmt: skip
    jupyter = str(ROOT / "workbench" / "ui" / "jupyter")
    environment = {
        **os.environ,
        "JUPYTER_PATH": jupyter,
        "WORKBENCH_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
    }
    for _ in serve(command, url, environment, folder, folder / "voila.log", "/static/"):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(120_000)
            page.goto(url, timeout=180_000)
            page.get_by_role("tab", name="Results", exact=True).wait_for(timeout=180_000)
            found = measured(Screen(page), variants)
            browser.close()
            return found
    return {}


def main() -> None:
    variants = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        store = wb.Store(folder)
        protocol = wb.Protocol(rounds=3, min_seconds=0.2)
        app = Workbench(wb.load("digits_resnet"), wb.datasets.digits(), store=store, protocol=protocol)
        STUDIES.settle()
        record = large_study(variants)
        print(f"display of {variants} variants")
        shown = display(app, record)
        print("clicks while a study of three variants runs")
        clicks = reactions(app)
        app.close()
    with tempfile.TemporaryDirectory() as folder:
        print("in Chromium, from the click to the paint")
        painted = in_browser(variants, Path(folder))
    for what, taken in painted.items():
        print(f"  {what:<75} {taken * 1e3:7.0f} ms")
    result = {
        "machine": device.cpu_device(), "cores": os.cpu_count(), "load_1_5_15": os.getloadavg(), "variants": variants,
        "display_seconds": shown, "clicks_seconds": clicks, "browser_seconds": painted,
    }  # fmt: skip
    place = ROOT / "benchmarks" / "results" / "ui.json"
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"load {os.getloadavg()}; written to {place}")


if __name__ == "__main__":
    main()
