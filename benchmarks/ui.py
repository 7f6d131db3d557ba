"""How fast the app reacts: a study of many variants on display, and a click while a study is at work.

Run by hand: python benchmarks/ui.py [variants]. Without a browser; what the browser adds is its own drawing.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "unit"))

import synthetic_study

import workbench as wb
from workbench.recipes import Recipe
from workbench.records import StudyRecord
from workbench.ui.app import Workbench
from workbench.ui.jobs import DRAWING, STUDIES

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


def display(app: Workbench, record: StudyRecord) -> None:
    results, started, began = app.state.results, time.perf_counter(), time.process_time()
    told: list[str] = []

    def tell(words: str) -> None:
        if words not in told:
            told.append(words)
            wall, processor = time.perf_counter() - started, time.process_time() - began
            print(f"  {words:<22} after {wall:.2f} s ({processor:.2f} s of processor time)")

    results.observe(lambda change: tell("table"), "summary")
    results.observe(lambda change: tell("front's figure"), "figure")
    app.state.session.attempt(results.show, record)
    while not any(row.on_front for row in results.summary.comparison.rows) if results.summary else True:
        time.sleep(0.05)
    tell("table with the front")
    DRAWING.settle()


def reactions(app: Workbench) -> None:
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


def main() -> None:
    variants = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        store = wb.Store(folder)
        protocol = wb.Protocol(rounds=3, min_seconds=0.2)
        app = Workbench(wb.load("digits_resnet"), wb.datasets.digits(), store=store, protocol=protocol)
        STUDIES.settle()
        record = large_study(variants)
        print(f"display of {variants} variants")
        display(app, record)
        print("clicks while a study of three variants runs")
        reactions(app)
        app.close()


if __name__ == "__main__":
    main()
