"""Hundreds of conversions and studies, and a day's use of the app, each in one process: what is held does not grow.

Counted are memory, Python objects, widgets, descriptors, threads and children. Kinds that are not run again stay in the file.

python benchmarks/soak.py --only app --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import psutil
import torch
from ipywidgets.widgets import widget as ipywidgets_widget

import workbench as wb
from workbench.machine import device
from workbench.ui.jobs import DRAWING, STUDIES
from workbench.ui.views.live import Table

QUICK = wb.Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=3, warmup_seconds=0.0, warmup_runs=1)


def network() -> torch.nn.Module:
    """A small network."""
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def converted(folder: Path, cycle: int) -> None:
    """Convert a module, call it, drop it."""
    module, x = network(), torch.randn(4, 8)
    fast = wb.convert(module, [x], store=wb.Store(folder / "store"))
    torch.testing.assert_close(fast(x), module(x).detach(), rtol=1e-3, atol=1e-4)


def samples(seed: int) -> wb.datasets.Dataset:
    """Random samples with random labels."""
    rng = np.random.default_rng(seed)
    return wb.datasets.arrays(rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)).split_off(
        calibration=16
    )


def studied(folder: Path, cycle: int) -> None:
    """Run a study with a name of its own, so that all is done anew, and render its report."""
    data = samples(cycle)
    model = wb.load(network(), torch.randn(4, 8), store=wb.Store(folder / "store"))
    study = wb.run(
        model, data, ["fp32", "int8-max"], protocol=QUICK, store=wb.Store(folder / "store"), name=f"s{cycle}"
    )
    study.report(folder / "report.html")


class Used:
    """The app over a store with two studies of its model, used as from a browser: through what its widgets hold."""

    def __init__(self, folder: Path) -> None:
        store, data = wb.Store(folder / "store"), samples(0)
        model = wb.load(network(), torch.randn(4, 8), store=store)
        self.studies = ("earlier", "later")
        for name in self.studies:
            wb.run(model, data, ["fp32", "fp16", "int8-max"], protocol=QUICK, store=store, name=name)
        self.app = wb.Workbench(model, data, store=store, protocol=QUICK)
        self.random = np.random.default_rng(0)
        self.settle()
        self.press("Studies", "Open", self.studies[:1])
        self.events: tuple[Callable[[], None], ...] = (
            self.toggle, self.set_protocol, self.turn_page, self.select, self.sort, self.filter, self.set_recipes,
            lambda: self.press("Studies", "Open", (self.pick(self.studies),)),
            lambda: self.press("Studies", "Compare two", self.studies),
        )  # fmt: skip

    def use(self) -> None:
        """Do one thing, and wait until the app has drawn what follows from it: events are seconds apart."""
        self.pick(self.events)()
        self.settle()
        if self.app.error:
            raise RuntimeError(f"The app reports {self.app.error}")

    def settle(self) -> None:
        STUDIES.settle()
        DRAWING.settle()

    def pick(self, choices: Any) -> Any:
        return choices[self.random.integers(len(choices))]

    def all(self, kind: Any, *words: str) -> list[Any]:
        found = [part for part in _parts(self.app.widget) if isinstance(part, kind)]
        return [part for part in found if not words or (part.label if kind is Table else part.description) in words]

    def toggle(self) -> None:
        box = self.pick([box for box in self.all(widgets.Checkbox) if not box.disabled])
        box.value = not box.value

    def set_protocol(self) -> None:
        self.pick(self.all(widgets.BoundedIntText, "Batch", "Rounds")).value = int(self.random.integers(1, 9))

    def turn_page(self) -> None:
        tabs = self.pick(self.all(widgets.Tab))
        tabs.selected_index = int(self.random.integers(len(tabs.children)))

    def select(self) -> None:
        (table,) = self.all(Table, "Variants with their numbers")
        table.selected = [self.pick(table.rows)["key"]]

    def sort(self) -> None:
        table = self.pick([table for table in self.all(Table) if table.columns])
        heading = self.pick(table.columns)["heading"]
        table.sort = {"heading": heading, "descending": bool(self.random.integers(2))}
        table.hidden = [self.pick(table.columns)["heading"]]

    def filter(self) -> None:
        field = self.pick(self.all(widgets.Text, "Search layers", "Latency (ms)", "Loss (points)"))
        field.value = self.pick(("gemm", "relu", "")) if field.description == "Search layers" else self.pick(("", "5"))

    def set_recipes(self) -> None:
        """Add a recipe, or take all but the baseline out."""
        (chosen,) = self.all(widgets.SelectMultiple, "In the study")
        (known,) = self.all(widgets.Dropdown, "Known recipe")
        names = [name for _, name in chosen.options]
        more = [name for label, name in known.options if label == name and name not in names]
        if len(names) > 6 or not more:
            chosen.value = tuple(name for name in names if name != "fp32")
            self.click("Remove selected")
            return
        known.value = self.pick(more)
        self.click("Add")

    def press(self, page: str, words: str, names: tuple[str, ...]) -> None:
        self.app.state.session.page = page
        self.settle()
        (table,) = self.all(Table, "Studies in the store")
        table.selected = list(names)
        self.click(words)

    def click(self, words: str) -> None:
        (button,) = self.all(widgets.Button, words)
        button.click()


def _parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _parts(child)


def used(folder: Path, cycle: int) -> None:
    """Do one thing in the app of this folder."""
    _opened(folder).use()


_opened = functools.cache(Used)
CYCLES = {"convert": converted, "run": studied, "app": used}
# Of the app as many events as a day has, one each ten seconds; the objects of all are counted 72 times.
COUNTS = {"convert": (300, 10), "run": (300, 10), "app": (8640, 120)}


def counted() -> dict[str, int]:
    """Return what must not grow."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss_bytes": process.memory_info().rss,
        "objects": len(gc.get_objects()),
        "widgets": len(ipywidgets_widget._instances),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def grown(before: Counter[str]) -> list[tuple[str, int]]:
    """Return the types of which there are more objects now."""
    return (Counter(type(item).__name__ for item in gc.get_objects()) - before).most_common(8)


def main() -> None:
    """Run each kind of cycle, print what grew, and write all counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, help="default: 300, and 8640 events of the app")
    parser.add_argument("--seconds", type=float, default=3600.0, help="that each kind may take; then it ends early")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(CYCLES), help="one kind of cycle; default: all")
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    for kind, cycle in CYCLES.items():
        if arguments.only not in (None, kind):
            continue
        cycles, every = COUNTS[kind]
        cycles = arguments.cycles or cycles
        with tempfile.TemporaryDirectory() as folder:
            counts, started, done, full = [], time.perf_counter(), 0, 0
            before: Counter[str] = Counter()
            while (share := max(done / cycles, (time.perf_counter() - started) / arguments.seconds)) < 1:
                if not full and share >= 1 / 3:  # caches are full by now
                    gc.collect()
                    before, full = Counter(type(item).__name__ for item in gc.get_objects()), done
                cycle(Path(folder), done)
                done += 1
                if done == 1 or done % every == 0:
                    counts.append({"cycle": done, **counted()})
            gc.collect()
            rest = max(done - full, 1)
            found[kind] = {
                "device": device.describe(),
                "seconds": time.perf_counter() - started,
                "cycles": done,
                "counts": counts,
                "grown_objects_a_cycle": {name: count / rest for name, count in grown(before)},
            }
        if not counts:
            print(kind, f"made {found[kind]['cycles']} cycles in {arguments.seconds:g} s: too few to count anything")
            continue
        first, last = counts[len(counts) // 3], counts[-1]
        print(
            kind, {name: f"{first[name]:,} -> {last[name]:,}" for name in first}, found[kind]["grown_objects_a_cycle"]
        )
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
