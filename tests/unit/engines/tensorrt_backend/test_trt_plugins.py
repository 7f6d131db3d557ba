"""Libraries of plugins: who opens them, what is remembered of them, and what is refused."""

from __future__ import annotations

import _ctypes
import json
import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest
from onnx import helper
from releases import only_8
from tiny_variants import feeds, network, variant

from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import plan, plugins
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import BuildError, EngineError
from workbench.machine.store import digest


@pytest.fixture
def library(machine, tmp_path: Path) -> Path:
    """A shared library that can be opened, and gives the stand-in one plugin when asked."""
    made = tmp_path / "libsnake.so"
    shutil.copy(_ctypes.__file__, made)
    machine.world.libraries = {made.name: {"Snake"}}
    return made


def custom():
    """The tiny network with an operator in it that nobody knows."""
    model = network()
    model.graph.node.append(helper.make_node("Snake", ["y"], ["z"], name="/act/Snake", domain="made.here"))
    model.opset_import.append(helper.make_opsetid("made.here", 1))
    return model


def test_a_library_is_opened_before_a_file_is_parsed_and_before_a_plan_is_loaded(
    machine, tmp_path: Path, library: Path, monkeypatch
) -> None:
    engine = machine.build(variant(tmp_path), extra={"plugins": [str(library)]})
    names = [name for name, _ in machine.trt.calls]
    assert names.index("IPluginRegistry.load_library") < names.index("OnnxParser.parse_from_file")
    assert plan.read_sidecar(Path(engine.path)).plugins == {str(library): digest(library)}

    monkeypatch.setattr(plugins, "_opened", {})  # another process
    machine.world.plugins = {"Gelu_TRT"}
    machine.trt.calls.clear()
    with backend.open_runner(engine, None) as runner:
        assert runner.infer(feeds(1))["y"].shape == (1, 3)
    names = [name for name, _ in machine.trt.calls]
    assert names.index("init_libnvinfer_plugins") < names.index("IPluginRegistry.load_library")
    assert names.index("IPluginRegistry.load_library") < names.index("Runtime.deserialize_cuda_engine")


def test_a_library_is_opened_once_a_process(machine, tmp_path: Path, library: Path) -> None:
    for _ in range(2):
        machine.build(variant(tmp_path), extra={"plugins": [str(library)]})
    assert len(machine.trt.called("IPluginRegistry.load_library")) == 1


def test_a_library_that_registers_itself_is_not_asked(machine, tmp_path: Path, library: Path, monkeypatch) -> None:
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path: machine.world.plugins.add("Snake"))
    machine.build(variant(tmp_path), extra={"plugins": [str(library)]})
    assert machine.trt.called("IPluginRegistry.load_library") == []


def test_a_library_that_gives_nothing_new_is_refused(machine, tmp_path: Path, library: Path) -> None:
    machine.world.libraries = {}
    with pytest.raises(EngineError, match="registers no plugin"):
        machine.build(variant(tmp_path), extra={"plugins": [str(library)]})


def test_a_file_that_is_no_library_is_refused(machine, tmp_path: Path) -> None:
    wrong = tmp_path / "libwrong.so"
    wrong.write_text("no library")
    with pytest.raises(EngineError, match=r"libwrong\.so cannot be opened"):
        machine.build(variant(tmp_path), extra={"plugins": [str(wrong)]})


def test_a_library_that_is_missing_or_cannot_be_read_is_refused(machine, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(EngineError, match=r"absent\.so is missing"):
        machine.build(variant(tmp_path), extra={"plugins": [str(tmp_path / "absent.so")]})
    (tmp_path / "closed.so").write_text("")

    def refuse(path: Path) -> str:
        raise PermissionError("permission denied")

    monkeypatch.setattr(plugins, "digest", refuse)
    with pytest.raises(EngineError, match=r"Cannot read the library of plugins .*closed\.so: permission denied"):
        machine.build(variant(tmp_path), extra={"plugins": [str(tmp_path / "closed.so")]})


def test_an_engine_does_not_open_with_another_library(machine, tmp_path: Path, library: Path, monkeypatch) -> None:
    engine = machine.build(variant(tmp_path), extra={"plugins": [str(library)]})
    whole = library.read_bytes()
    library.write_bytes(whole + b"\0")
    with pytest.raises(EngineError, match=r"libsnake\.so changed"):
        backend.open_runner(engine, None)
    library.unlink()
    with pytest.raises(EngineError, match=r"libsnake\.so is missing"):
        backend.open_runner(engine, None)


def test_a_library_that_was_compiled_again_wants_another_process(machine, tmp_path: Path, library: Path) -> None:
    machine.build(variant(tmp_path), extra={"plugins": [str(library)]})
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(EngineError, match="in a new process"):
        machine.build(variant(tmp_path), extra={"plugins": [str(library)]})


def test_a_plan_from_before_there_were_plugins_is_loaded(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    path = plan.sidecar_path(Path(engine.path))
    told = json.loads(path.read_text())
    del told["plugins"]
    path.write_text(json.dumps(told))
    assert plan.read_sidecar(Path(engine.path)).plugins == {}


@pytest.mark.parametrize("wrong", [["libsnake.so"], {"libsnake.so": 3}])
def test_a_sidecar_with_other_plugins_than_paths_and_hashes_is_refused(machine, tmp_path: Path, wrong: object) -> None:
    engine = machine.build(variant(tmp_path))
    path = plan.sidecar_path(Path(engine.path))
    path.write_text(json.dumps({**json.loads(path.read_text()), "plugins": wrong}))
    with pytest.raises(EngineError, match="plugins is"):
        plan.read_sidecar(Path(engine.path))


@pytest.mark.parametrize("wrong", ["libsnake.so", [3]])
def test_plugins_are_a_list_of_paths(machine, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(BuildError, match="list of paths"):
        machine.build(variant(tmp_path), extra={"plugins": wrong})


def test_an_operator_that_a_plugin_has_is_not_lacking(machine, tmp_path: Path) -> None:
    made = variant(tmp_path, model=custom())
    machine.world.unsupported = {"Snake"}
    assert set(backend.lacks("tensorrt", Path(made.path))) == {"Snake"}
    machine.world.plugins.add("Snake")
    assert backend.lacks("tensorrt", Path(made.path)) == {}


def test_a_definition_does_not_go_before_a_plugin(machine, tmp_path: Path, library: Path) -> None:
    model = custom()
    for name in ("Snake", "Unused"):
        text = f'<opset_import: ["": 17], domain: "made.here"> {name} (x) => (y) {{ y = Sin(x) }}'
        model.functions.append(onnx.parser.parse_function(text))
    made = variant(tmp_path, model=model)
    machine.build(made)
    assert machine.trt.called("OnnxParser.parse") == []
    machine.build(made, extra={"plugins": [str(library)]})
    ((parsed, path),) = machine.trt.called("OnnxParser.parse")
    assert [function.name for function in onnx.load_from_string(parsed).functions] == ["Unused"]
    assert path == made.path, "weights may lie beside the file"


def test_what_a_definition_is_made_of_is_asked_not_its_name(machine, tmp_path: Path) -> None:
    model = custom()
    text = '<opset_import: ["": 17], domain: "made.here"> Snake (x) => (y) { y = Sin(x) }'
    model.functions.append(onnx.parser.parse_function(text))
    made = variant(tmp_path, model=model)
    machine.world.unsupported = {"Snake"}
    assert backend.lacks("tensorrt", Path(made.path)) == {}
    machine.world.unsupported = {"Sin"}
    assert set(backend.lacks("tensorrt", Path(made.path))) == {"Sin"}


@only_8
def test_an_operator_that_nobody_has_is_refused_with_the_ways_out(machine, tmp_path: Path) -> None:
    machine.world.parser_errors = [("UNSUPPORTED_NODE", 3, "No importer registered for op: Snake. Attempting plugin")]
    with pytest.raises(BuildError, match=r"Snake \(node '/act/Snake'\).*BuildOptions\.extra\['plugins'\]"):
        machine.build(variant(tmp_path, model=custom()))


def test_tensorrt_for_rtx_takes_no_plugins(rtx, tmp_path: Path) -> None:
    assert plugins.registered(Capabilities(rtx.trt)) == frozenset()
    with pytest.raises(BuildError, match=r"option plugins=.*it takes none"):
        rtx.build(variant(tmp_path), extra={"plugins": ["libsnake.so"]})
