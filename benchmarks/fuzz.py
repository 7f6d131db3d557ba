"""Mutated files through every loader: a value or a WorkbenchError, nothing else. By hand; prints and writes what it found.

python benchmarks/fuzz.py --inputs 10000 --out benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "faults"))

import test_any_bytes as valid
import test_any_json as others

import workbench as wb
from workbench import datasets, zoo
from workbench.calibration.table import CalibrationTable
from workbench.datasets import ImagePreprocessing
from workbench.datasets.texts import read_tokenizer
from workbench.errors import WorkbenchError
from workbench.handoff.foreign import read_foreign
from workbench.machine import device

Loader = tuple[bytes, str, Callable[[Path], object]]


def loaders() -> dict[str, Loader]:
    """Loader -> a file that it reads, the name to give it, and how it is read."""
    small = ImagePreprocessing(height=4, width=4)
    found: dict[str, Loader] = {
        f"image {kind}": (valid.image_bytes(kind), "data/cat/x.png", lambda path: datasets.image_folder(path.parents[1], small))
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
    }  # fmt: skip
    study = sorted(Path(zoo.data_folder(), "studies").rglob("*.json"))[0]
    packed = sorted(Path(zoo.data_folder(), "studies").rglob("*.json.gz"))[0]
    return {
        **found,
        "onnx": (valid.onnx_bytes(), "m.onnx", wb.load),
        "npz": (valid.npz_bytes(), "d.npz", datasets.npz),
        "table": (table_bytes(), "t.npz", CalibrationTable.load),
        "study": (study.read_bytes(), "s.json", wb.Study.open),
        "packed study": (packed.read_bytes(), "s.json.gz", wb.Study.open),
        "text": (as_json([others.LINE])[1:-1], "t.jsonl", lambda path: datasets.text(path, others.TOKENS, 2)),
        "tokenizer": (as_json(others.TOKENIZER), "t/tokenizer.json", read_tokenizer),
        "other tool": (as_json(others.TRACE), "f.json", read_foreign),
    }


def as_json(plain: object) -> bytes:
    return json.dumps(plain).encode()


def table_bytes() -> bytes:
    """A real calibration table of a small network."""
    with tempfile.TemporaryDirectory() as folder:
        return others.table_bytes(Path(folder))


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Flip, insert, cut or repeat, in a few places."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        place, length = dice.randrange(len(found) + 1), dice.choice((1, 1, 1, 2, 4, 16))
        kind = dice.randrange(4)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            found[place:place] = dice.randbytes(length)
        elif kind == 2:
            del found[place : place + length]
        else:
            found[place : place + length] = dice.choice((b"\xff", b"\x00", b"\x7f")) * length
    return bytes(found)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    dice, process = random.Random(options.seed), psutil.Process()
    outcomes: dict[str, Counter[str]] = {}
    strange: list[dict[str, str]] = []
    slowest, largest = 0.0, process.memory_info().rss
    every = loaders()
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = str(Path(home) / "store")
        for number in range(options.inputs):
            name = list(every)[number % len(every)]
            content, place, read = every[name]
            path = Path(home) / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(changed := mutated(content, dice))
            started = time.perf_counter()
            try:
                with contextlib.redirect_stderr(None):
                    read(path)
                outcome = "value"
            except WorkbenchError as error:
                outcome = type(error).__name__
            except Exception as error:  # noqa: BLE001 - what is looked for
                outcome = f"RAW {type(error).__name__}"
                strange.append({"loader": name, "error": repr(error)[:300], "content": changed[:4096].hex()})
            outcomes.setdefault(name, Counter())[outcome] += 1
            slowest, largest = max(slowest, time.perf_counter() - started), max(largest, process.memory_info().rss)
    found = {
        "device": device.cpu_device(),
        "inputs": options.inputs,
        "seed": options.seed,
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "other_exceptions": strange,
        "slowest_seconds": slowest,
        "largest_memory_bytes": largest,
    }
    print(json.dumps({**found, "other_exceptions": [(one["loader"], one["error"]) for one in strange]}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
