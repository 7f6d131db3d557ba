"""Make the book: run the notebooks, put all pages together, render them as a static site that needs no network.

    python docs/book/make.py build/book [--as-they-are]

The site is in `build/book/site/`. With `--as-they-are` notebooks are not run, so that their cells show no results.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# What stands in the book, in its order; the pages of the reference are made below.
TUTORIALS = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
HOW_TO = [
    f"docs/how_to/{name}"
    for name in ("choose", "own_data", "gpu", "custom_operators", "regressions", "hand_over", "read_a_report")
]
BACKGROUND = [
    "docs/truth", "docs/robustness", "benchmarks/results/h200/README", "data/README", "ARCHITECTURE", "CONTRIBUTING",
]  # fmt: skip
# The public names of the package by page.
REFERENCE = {
    "models": (
        "Models and recipes",
        "load define calibrate transform Recipe Fuse Precision Quantize QuantizeWeights SmoothQuant Sparsify recipes zoo",
    ),
    "engines": (
        "Engines",
        "convert build open_runner refit backends BuildOptions ShapeProfile preview refusals engines errors",
    ),
    "measuring": (
        "Measuring and judging",
        "measure check compare Protocol compare_calibrators accuracy statistics",
    ),
    "studies": ("Studies", "run Study studies Store optimize confirm sweep combinations matrix study_seconds"),
    "explaining": ("Layers and reasons", "explain explain_files Explanation layer_costs layer_times ceiling ceilings"),
    "reading": (
        "Reports, other devices, and what others made",
        "report plots for_orin from_trtexec read_foreign foreign_rows nsys_command",
    ),
    "data": ("Data and metrics", "datasets metrics"),
    "llm": ("Language models", "llm"),
    "app": ("The app", "Workbench explore"),
}
# A widget needs a kernel, or scripts from the network; a picture of it needs neither.
_WIDGET = "application/vnd.jupyter.widget-view+json"
_STILL = "*Here the notebook shows the app; in JupyterLab it answers.*\n\n![The app](../docs/workbench.png)"


def main(arguments: list[str] | None = None) -> Path:
    """Make the book and return the folder of its site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder; what is in its source/ and site/ is replaced")
    parser.add_argument("--as-they-are", action="store_true", help="do not run the notebooks")
    options = parser.parse_args(arguments)
    source, site = options.out.resolve() / "source", options.out.resolve() / "site"
    gather(source)
    if not options.as_they_are:
        run_notebooks(source / "notebooks")
    for notebook in sorted((source / "notebooks").glob("*.ipynb")):
        make_still(notebook)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(HERE), "-b", "html"]
    subprocess.run([*command, "-d", str(options.out / "doctrees"), str(source), str(site)], check=True)
    print(site / "index.html")
    return site


def gather(source: Path) -> None:
    """Copy all pages to where they are in the repository, so that their links hold, and write the others."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("book"))
    for page in (*TUTORIALS, *BACKGROUND, "README"):
        path = ROOT / f"{page}.ipynb" if page in TUTORIALS else ROOT / f"{page}.md"
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / path.relative_to(ROOT))
    # What notebooks open; `*.md` of them would be pages, and stand above where they are any.
    for folder in ("data/studies", "benchmarks/results"):
        pages = shutil.ignore_patterns("*.md")
        shutil.copytree(ROOT / folder, source / folder, ignore=pages, dirs_exist_ok=True)
    (source / "reference").mkdir()
    for name, text in reference().items():
        (source / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    (source / "index.md").write_text(index(), encoding="utf-8")


def index() -> str:
    """Return the first page: the README, and all pages in their order."""
    parts = {
        "Tutorials": TUTORIALS,
        "How to": HOW_TO,
        "Pictures": ["docs/gallery"],
        "Reference": [f"reference/{name}" for name in REFERENCE],
        "Background": BACKGROUND,
    }
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", ":maxdepth: 1", "", *pages, "```"])
        for title, pages in parts.items()
    ]
    return "\n\n".join(["```{include} README.md\n```", *trees, ""])


def reference() -> dict[str, str]:
    """Return the pages of the reference by name; Sphinx puts into them what the docstrings say."""
    pages = {}
    for page, (title, names) in REFERENCE.items():
        lines = [f"# {title}", ""]
        for name in names.split():
            lines += _entry(f"wb.{name}", getattr(importlib.import_module("workbench"), name))
        pages[page] = "\n".join(lines)
    return pages


def _entry(said: str, found: object) -> list[str]:
    if not inspect.ismodule(found):
        return [f"## {said}", "", *_directive(found), ""]
    lines = [f"## {said}", "", *_directive(found), ""]
    for name in getattr(found, "__all__", ()):
        item = getattr(found, name)
        if inspect.isclass(item) or inspect.isfunction(item):
            lines += [f"### {said}.{name}", "", *_directive(item), ""]
    return lines


def _directive(found: object) -> list[str]:
    if inspect.ismodule(found):
        options = [] if hasattr(found, "__all__") else [":members:"]
        inner = [f".. automodule:: {found.__name__}", *(f"   {option}" for option in options), "   :no-index:"]
    elif inspect.isclass(found):
        inner = [f".. autoclass:: {found.__module__}.{found.__qualname__}", "   :members:", "   :no-index:"]
    else:
        inner = [f".. autofunction:: {found.__module__}.{found.__qualname__}", "   :no-index:"]  # type: ignore[attr-defined]
    return ["```{eval-rst}", *inner, "```"]


def run_notebooks(folder: Path) -> None:
    """Run every notebook as CI does, and keep the answers in it."""
    options = ["-q", "--nbmake", "--overwrite", "--nbmake-timeout=300", "-p", "no:cacheprovider", "--override-ini"]
    command = [sys.executable, "-m", "pytest", *options, "testpaths=.", "--rootdir", str(folder), str(folder)]
    subprocess.run(command, cwd=folder, check=True)


def make_still(path: Path) -> None:
    """Put a picture where a notebook shows the app, and drop what only a running kernel could show."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" not in cell:
            continue
        cell["outputs"] = _printed(cell["outputs"])
        widgets = [output for output in cell["outputs"] if _WIDGET in output.get("data", {})]
        cell["outputs"] = [output for output in cell["outputs"] if output not in widgets]
        if widgets and re.search(r"\b(Workbench|explore)\(", "".join(cell["source"])):
            cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": {"text/markdown": _STILL}})
    path.write_text(json.dumps(notebook), encoding="utf-8")


def _printed(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs with printed text as a terminal shows it at the end: progress that was written over is gone."""
    merged: list[dict[str, Any]] = []
    for output in outputs:
        text = "".join(output.get("text", ()))
        if output["output_type"] != "stream":
            merged.append(output)
        elif merged and merged[-1].get("name") == output["name"]:
            merged[-1]["text"] += text
        else:
            merged.append({**output, "text": text})
    for output in merged:
        if output["output_type"] == "stream":
            lines = [line for line in output["text"].split("\n") if "\r" not in line or _last(line)]
            output["text"] = "\n".join(_last(line) for line in lines)
    return [output for output in merged if output["output_type"] != "stream" or output["text"].strip()]


def _last(line: str) -> str:
    """Return what stands in a line after its last carriage return; a bar that is closed leaves blanks and returns."""
    return line.rsplit("\r", 1)[-1].rstrip() if "\r" in line else line


if __name__ == "__main__":
    main()
