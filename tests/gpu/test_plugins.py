"""Operators that TensorRT does not know, as plugins on a real GPU. Skipped, with the reason, where something is missing.

`plugin/snake.cu` is compiled here, with the nvcc on the path and TensorRT's headers of the very release (`NvInfer.h` and
its neighbours, from github.com/NVIDIA/TensorRT) in the folder that WORKBENCH_TENSORRT_INCLUDE names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import recipes
from workbench.engines import tensorrt as backend
from workbench.engines.base import BuildRequest
from workbench.engines.tensorrt import building, capabilities, cuda, log, plugins
from workbench.errors import EngineError
from workbench.machine.store import Store, digest
from workbench.measuring.latency import measure
from workbench.records import BuildOptions, Engine, Measurement, Protocol, TensorSpec, Variant

ABSENT = backend.missing("tensorrt")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ABSENT is not None, reason=f"no TensorRT here: {ABSENT}")]
SOURCE = Path(__file__).parent / "plugin" / "snake.cu"
INCLUDE = "WORKBENCH_TENSORRT_INCLUDE"
ALPHA = 0.75


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, compiled for this GPU. CUDA's runtime is linked into it: TensorRT may have been built with another."""
    nvcc, headers = shutil.which("nvcc"), os.environ.get(INCLUDE, "")
    if nvcc is None:
        pytest.skip("no nvcc here to compile the plugin with")
    if not (Path(headers) / "NvInfer.h").is_file():
        pytest.skip(f"{INCLUDE} names no folder with NvInfer.h; it is {headers!r}")
    made = tmp_path_factory.mktemp("plugin") / "libsnake.so"
    major, minor = cuda.load().device().compute_capability
    command = [nvcc, "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", f"-arch=sm_{major}{minor}", "-O2",
               "-I", headers, "-o", str(made), str(SOURCE)]  # fmt: skip
    # A Python that brings libraries of its own must not lend them to the compiler.
    clean = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    return made


def one_node(folder: Path, node: onnx.NodeProto, recipe: str = "fp32") -> Variant:
    """y = node(x @ w) for x of (n, 8), in FP32; or y = node(x) in FP16."""
    half = recipe == "fp16"
    kind, dtype = (TensorProto.FLOAT16, "float16") if half else (TensorProto.FLOAT, "float32")
    nodes = [node] if half else [helper.make_node("MatMul", ["x", "w"], ["h"], name="/fc/MatMul"), node]
    node.input[0] = "x" if half else "h"
    graph = helper.make_graph(
        nodes, "one node",
        [helper.make_tensor_value_info("x", kind, ["n", 8])],
        [helper.make_tensor_value_info("y", kind, ["n", 8])],
        [] if half else [numpy_helper.from_array(weights(), "w")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(node.domain, 1)]
    path = folder / "one-node.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return Variant(
        recipe=recipes.named(recipe), model_sha256="0" * 64, path=str(path), sha256=digest(path),
        size_bytes=path.stat().st_size, opset=17, inputs=(TensorSpec("x", dtype, (None, 8)),),
        outputs=(TensorSpec("y", dtype, (None, 8)),), dialect=backend.dialect("tensorrt"),
    )  # fmt: skip


def snake_node() -> onnx.NodeProto:
    return helper.make_node("Snake", ["h"], ["y"], name="/act/Snake", domain="made.here", alpha=ALPHA)


def snake(x: np.ndarray) -> np.ndarray:
    return x + np.sin(ALPHA * x) ** 2 / ALPHA


def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


def samples(count: int = 1024) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)


def built(folder: Path, made: Variant, *libraries: Path) -> Engine:
    place = folder / "engine"
    place.mkdir()
    extra = {"batch": [1, 1024, 4096], "plugins": [str(library) for library in libraries]}
    return backend.build(BuildRequest(made, "tensorrt", BuildOptions(extra=extra), str(place)), lambda line: None)


def answers(engine: Engine, x: np.ndarray) -> np.ndarray:
    with backend.open_runner(engine, None) as runner:
        return runner.infer({"x": x})["y"]


def test_an_operator_of_tensorrts_own_library_of_plugins_runs(tmp_path: Path) -> None:
    caps = capabilities.Capabilities(capabilities.library())
    building.new_builder(caps, log.logger(caps.trt, log.Journal()), ())
    name = "CustomGeluPluginDynamic"
    if name not in plugins.registered(caps):
        pytest.skip(f"{caps.name} has no plugin {name}")
    node = helper.make_node(name, ["h"], ["y"], name="/act/Gelu", domain="made.here", type_id=0)
    made = one_node(tmp_path, node)
    got = answers(built(tmp_path, made), samples())
    h = (samples() @ weights()).astype(np.float64)
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(got, gelu, atol=2e-5)  # values up to 15, in FP32 with the order of eight sums unknown
    assert backend.lacks("tensorrt", Path(made.path)) == {}


def test_a_plugin_of_ones_own_runs_inside_an_engine(tmp_path: Path, library: Path) -> None:
    engine = built(tmp_path, one_node(tmp_path, snake_node()), library)
    np.testing.assert_allclose(answers(engine, samples()), snake(samples() @ weights()), atol=2e-5)  # as above
    np.testing.assert_allclose(answers(engine, samples(3)), snake(samples(3) @ weights()), atol=2e-5)
    rows, _ = backend.layer_table(engine)
    (row,) = [row for row in rows if row.kind == "plugin"]
    assert "Snake" in row.name


def test_a_plugin_computes_in_fp16_where_tensors_are(tmp_path: Path, library: Path) -> None:
    engine = built(tmp_path, one_node(tmp_path, snake_node(), "fp16"), library)
    x = samples().astype(np.float16)
    got = answers(engine, x)
    assert got.dtype == np.float16
    np.testing.assert_allclose(
        got.astype(np.float32), snake(x.astype(np.float32)), rtol=1e-3, atol=1e-3
    )  # one rounding
    rows, _ = backend.layer_table(engine)
    (row,) = [row for row in rows if row.kind == "plugin"]
    assert row.precision == "fp16"


def test_an_engine_is_built_and_measured_in_other_processes_with_its_plugin(tmp_path: Path, library: Path) -> None:
    made = one_node(tmp_path, snake_node())
    options = BuildOptions(extra={"batch": [1, 32, 64], "plugins": [str(library)]})
    engine = wb.build(made, "tensorrt", options, store=Store(tmp_path / "store"))
    protocol = Protocol(batch=32, rounds=2, cuda_graph=True)
    (found,) = measure([engine], {"x": samples(32)}, protocol).values()
    assert isinstance(found, Measurement) and len(found.rounds) == 2
    np.testing.assert_allclose(answers(engine, samples(32)), snake(samples(32) @ weights()), atol=2e-5)


DEFINITION = """<opset_import: ["": 17], domain: "made.here">
Snake <alpha: float = 1.0> (x) => (y) {
  a = Constant <value_float: float = @alpha> ()
  angle = Mul (a, x)
  sine = Sin (angle)
  square = Mul (sine, sine)
  part = Div (square, a)
  y = Add (x, part)
}"""


def test_a_study_puts_a_plugin_beside_what_it_is_defined_by(tmp_path: Path, library: Path) -> None:
    store = Store(tmp_path / "store")
    source = Path(one_node(tmp_path, snake_node()).path)
    model = wb.load(wb.define(source, DEFINITION), name="snake", store=store)
    whole = wb.Recipe("plugin", (wb.Fuse(keep=("Snake",)),))
    options = BuildOptions(extra={"batch": [1, 32, 64], "plugins": [str(library)]})
    study = wb.run(
        model, wb.datasets.arrays(samples(64)), ["fp32", whole], backend="tensorrt", options=options, store=store,
        protocol=Protocol(batch=32, rounds=2), progress=None,
    )  # fmt: skip
    assert [study[name].failure for name in ("fp32", "plugin")] == [None, None]
    found = study["plugin"].accuracy
    assert found is not None
    assert all(value is None or value > 100 for value in found.sqnr_db.values())  # FP32, sines of two makes
    kinds = {name: {row.kind for row in backend.layer_table(study[name].engine)[0]} for name in ("fp32", "plugin")}
    assert "plugin" in kinds["plugin"] and "plugin" not in kinds["fp32"]


def test_a_library_that_is_gone_or_another_is_not_opened(tmp_path: Path, library: Path) -> None:
    engine = built(tmp_path, one_node(tmp_path, snake_node()), library)
    kept = library.rename(tmp_path / "kept.so")
    with pytest.raises(EngineError, match=r"libsnake\.so is missing"):
        backend.open_runner(engine, None)
    library.write_bytes(kept.read_bytes() + b"\0")
    with pytest.raises(EngineError, match=r"libsnake\.so changed"):
        backend.open_runner(engine, None)
    kept.replace(library)
    assert answers(engine, samples(1)).shape == (1, 8)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(EngineError, match="missing"):
        built(other, one_node(tmp_path, snake_node()), tmp_path / "absent.so")
