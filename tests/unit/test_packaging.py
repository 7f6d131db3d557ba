"""pyproject.toml, environment.yml, constraints.txt and CI say the same thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workbench import engines

ROOT = Path(__file__).parents[2]
# The same project under another name in conda's main channel.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch-cpu": "torch"}


def requirements(extra: str | None) -> dict[str, str]:
    """Name -> lowest version of a section of pyproject.toml, extras of our own resolved."""
    text = (ROOT / "pyproject.toml").read_text()
    if extra is None:
        block = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.S)
    else:
        block = re.search(rf"\n{extra} = \[(.*?)\]\n", text, re.S)
    assert block, extra
    found = {}
    for item in re.findall(r'"([^"]+)"', block.group(1)):
        if item.startswith("trt-workbench["):
            for inner in item[len("trt-workbench[") : -1].split(","):
                found |= requirements(inner)
        else:
            name, _, version = item.partition(">=")
            found[name] = version
    return found


def environment() -> dict[str, str]:
    found = {}
    for line in (ROOT / "environment.yml").read_text().splitlines():
        item = re.match(r"\s+- ([a-zA-Z0-9_-]+)>=([0-9.]+)", line)
        if item:
            found[CONDA_NAMES.get(item.group(1), item.group(1))] = item.group(2)
    return found


def test_the_conda_environment_holds_the_same_packages_and_versions() -> None:
    wanted = requirements(None) | requirements("cpu") | requirements("lab") | requirements("torch")
    assert environment() == wanted


def test_no_two_test_files_have_one_name() -> None:
    # pytest imports a test file by its name alone: two of one name stop a run of everything, while each part still passes.
    names = [path.name for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert sorted(names) == sorted(set(names))


def test_the_two_runtimes_that_overwrite_each_other_are_in_different_extras() -> None:
    assert "onnxruntime" not in requirements(None) and "onnxruntime-gpu" not in requirements(None)
    assert "onnxruntime" not in requirements("gpu")
    assert "onnxruntime-gpu" not in requirements("test")
    uncommented = [line.split("#")[0] for line in (ROOT / "environment.yml").read_text().splitlines()]
    assert not any("onnxruntime-gpu" in line for line in uncommented)


@pytest.mark.parametrize("extra", [None, "cpu", "lab", "torch", "test"])
def test_everything_that_ci_installs_is_pinned(extra: str | None) -> None:
    pinned = re.findall(r"^([a-z0-9_-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    absent = {name.replace("_", "-") for name in requirements(extra)} - set(pinned)
    assert not absent


def test_the_oldest_python_is_the_same_everywhere() -> None:
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 10)" in (ROOT / "Makefile").read_text()


def test_ci_and_the_workflow_run_the_same_command_as_the_readme() -> None:
    for path in (".ci/run", ".github/workflows/test.yml", "README.md"):
        assert "make test" in (ROOT / path).read_text(), path


def test_every_backend_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in engines.MODULES if name not in readme]
