"""The architecture as a test: imports point one way, and `import workbench` loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent
# A room imports only from itself or from rooms of lower rows; ARCHITECTURE.md lists the rooms in order of the flow.
LAYERS = [
    {"errors", "version"},
    {"recipes", "calibration", "zoo"},
    {"records"},
    {"codec"},
    {"machine"},
    {"datasets", "graph"},
    {"engines", "judging"},
    {"models", "transformation", "measuring", "plots"},
    {"tuning"},
    {"explaining"},
    {"reports", "handoff"},
    {"study", "conversion"},
    {"llm", "ui", "doctor", "notebook"},
    {"commands"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "tensorrt", "onnxruntime", "ipywidgets", "onnx", "matplotlib", "pandas", "transformers", "numpy")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, also by name in a string (`import_module`, the target of a child process)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"workbench(\.\w+)+(:\w+)?", node.value) else []
        elif isinstance(node, ast.JoinedStr) and "workbench." in ast.unparse(node) and _is_imported(node, path):
            raise AssertionError(f"{path.name} imports a module of the package under a name made at run time")
        found |= {re.split(r"[.:]", name)[1] for name in names if name.startswith("workbench.")}
    return found


def _is_imported(text: ast.JoinedStr, path: Path) -> bool:
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    texts = (
        ast.unparse(call.args[0]) for call in calls if call.args and ast.unparse(call.func).endswith("import_module")
    )
    return ast.unparse(text) in texts


def test_few_modules_lie_loose() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= 9, f"a newcomer reads folders: give {sorted(loose)} rooms"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_only_to_the_same_or_a_lower_layer(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return  # the package's front door names every verb, lazily
    assert own in LEVEL, f"{own} has no layer: add it to LAYERS and to ARCHITECTURE.md"
    upward = {name for name in imported_rooms(path) if name in LEVEL and LEVEL[name] > LEVEL[own]}
    assert not upward, f"{path.name} (layer {LEVEL[own]}) imports {upward} from above"


def circles() -> list[set[str]]:
    """Files that import each other in a loop."""
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
             for path in modules()}  # fmt: skip
    ahead = {name: _imported_files(path, files) - {name} for name, path in files.items() if name != "__init__"}
    reach: dict[str, set[str]] = {name: set(near) for name, near in ahead.items()}
    grew = True
    while grew:
        grew = False
        for seen in reach.values():
            more = set().union(*(reach.get(other, set()) for other in seen)) - seen
            seen |= more
            grew = grew or bool(more)
    return sorted(({other for other in seen if name in reach.get(other, set())} for name, seen in reach.items()
                   if name in seen), key=sorted)  # fmt: skip


def _imported_files(path: Path, files: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("workbench"):
            home = node.module.removeprefix("workbench").removeprefix(".")
            names = [f"{home}.{alias.name}".removeprefix(".") for alias in node.names]
            found |= {name if name in files else home for name in names}
    return found & set(files)


def test_no_file_imports_itself_through_others() -> None:
    assert circles() == []


def test_no_module_is_called_like_a_verb() -> None:
    rooms = {room(path) for path in modules()} - set(workbench._MODULES)
    assert not rooms & set(workbench._HOMES), "importing such a module would hide the verb of the same name"


def test_every_public_name_can_be_had() -> None:
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = workbench.lode


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, workbench; print([name for name in {HEAVY!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_only_the_engines_import_the_inference_libraries() -> None:
    for path in modules():
        if room(path) == "engines":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []
            used = {name.split(".")[0] for name in names} & {"onnxruntime", "tensorrt", "openvino", "cuda"}
            assert not used, f"{path} imports {used}; only workbench/engines may"
