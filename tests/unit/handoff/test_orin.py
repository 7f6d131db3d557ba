"""Files for an Orin: the GPU's file computes what the recipe says, the DLA's what the model does, its cache the thresholds."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_nets import net, values

import workbench as wb
from workbench.engines.tensorrt import calibration_cache
from workbench.errors import DataError, RecipeError, StoreError
from workbench.handoff import dla
from workbench.machine.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Any:
    folder = tmp_path_factory.mktemp("orin") / "out"
    return wb.for_orin("digits_resnet", wb.datasets.digits(), "int8-kl-fp16", folder, batch=4, store=store)


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_both_files_compute_the_model_and_only_the_gpus_is_quantized(written: Any) -> None:
    folder = Path(written.folder)
    model, data = wb.load("digits_resnet"), wb.datasets.digits().bound_to(wb.load("digits_resnet"))
    x = next(iter(data.evaluation.inputs.values()))[:4]
    wanted = answers(Path(model.path), x)
    assert np.abs(answers(folder / "model_dla.onnx", x) - wanted).max() < 1e-4
    quantized = answers(folder / "model.onnx", x)
    error = np.linalg.norm(quantized - wanted) / np.linalg.norm(wanted)
    assert 1e-3 < error < 0.2
    operators = {node.op_type for node in onnx.load(folder / "model_dla.onnx").graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators
    pairs = [node for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "QuantizeLinear"]
    cache = calibration_cache.read(folder / "calibration.cache")
    assert cache.version == 100300 and len(cache.scales) >= 8 and pairs
    # What both say of one tensor is one number: a scale of the pair is that of the cache.
    proto = onnx.load(folder / "model.onnx")
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    same = [
        (float(constants[node.input[1]]), cache.scales[node.input[0]])
        for node in pairs
        if node.input[0] in cache.scales and constants[node.input[1]].ndim == 0
    ]
    assert len(same) >= 5 and all(np.isclose(ours, theirs, rtol=1e-5) for ours, theirs in same)


def test_the_commands_build_and_measure_and_what_comes_back_has_names_that_can_be_read(written: Any) -> None:
    gpu, on_dla = shlex.split(written.commands["gpu"]), shlex.split(written.commands["dla"])
    assert {"--int8", "--fp16", "--exportTimes=gpu_times.json"} <= set(gpu) and not any("DLA" in word for word in gpu)
    assert {"--useDLACore=0", "--allowGPUFallback", "--calib=calibration.cache", "--int8", "--fp16"} <= set(on_dla)
    shapes = {
        word.split("=")[1].split(":")[1]
        for word in on_dla
        if word.startswith(("--minShapes", "--optShapes", "--maxShapes"))
    }
    assert len(shapes) == 1 and next(iter(shapes)).startswith("4x"), "a DLA has no dynamic shapes"
    assert "--skipInference" not in gpu
    subprocess.run(["bash", "-n", Path(written.folder) / "commands.sh"], check=True)
    assert f"{len(written.refused)} of {written.nodes} nodes" in (Path(written.folder) / "dla.md").read_text()
    assert 0 < len(written.refused) < written.nodes / 2, "a convolutional network is what a DLA is for"


def test_floats_and_sparsity_have_their_flags_and_no_cache(tmp_path: Path, store: Store) -> None:
    made = wb.for_orin("digits_resnet", wb.datasets.digits(), "fp16", tmp_path / "a", release="8.6", store=store)
    assert "--int8" not in made.commands["dla"] and not (tmp_path / "a" / "calibration.cache").exists()
    sparse = wb.for_orin("digits_resnet", wb.datasets.digits(), "sparse-2:4-fp16", tmp_path / "b", store=store)
    assert "--sparsity=enable" in sparse.commands["gpu"] and any("2:4" in note for note in sparse.notes)


@pytest.mark.parametrize(("recipe", "words"), [
    ("int8-weights", "Weight-only"), ("bf16", "BF16"), ("fp8", "static INT8 alone"), ("int8-dynamic", "static INT8 alone"),
])  # fmt: skip
def test_recipes_that_the_device_has_not_are_refused(tmp_path: Path, store: Store, recipe: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        wb.for_orin("digits_resnet", wb.datasets.digits(), recipe, tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


def test_other_wrong_requests_are_sentences(tmp_path: Path, store: Store) -> None:
    digits = wb.datasets.digits()
    with pytest.raises(DataError, match=r"8.6 or 10.3"):
        wb.for_orin("digits_resnet", digits, "fp16", tmp_path / "out", release="9", store=store)
    with pytest.raises(DataError, match="1 to 4096"):
        wb.for_orin("digits_resnet", digits, "fp16", tmp_path / "out", batch=0, store=store)
    with pytest.raises(StoreError, match="exists already"):
        wb.for_orin("digits_resnet", digits, "fp16", tmp_path, store=store)


def refused(text: str, shapes: dict[str, tuple[int, ...]] | None = None, **weights: np.ndarray) -> list[str]:
    proto = net(text, **weights)
    known = {"x": (1, 8, 16, 16), **(shapes or {}), **{name: array.shape for name, array in weights.items()}}
    return [item.reason for item in dla.refusals(proto.graph, known)]


@pytest.mark.parametrize(("text", "shapes", "words"), [
    ("y = Conv<pads = [1,1,1,1]>(x, w)", {}, None),
    ("y = Conv(x, big)", {}, "33x33"),
    ("y = Conv<strides = [9,9]>(x, w)", {}, "stride of more than 8"),
    ("y = Conv<pads = [32,32,32,32]>(x, w)", {}, "Padding of more than 31"),
    ("y = Conv(x, x)", {}, "computed while it runs"),
    ("y = Conv(x, w)", {"x": (1, 8, 4, 16, 16)}, "two spatial axes"),
    ("y = ConvTranspose<pads = [1,1,1,1]>(x, w)", {}, "deconvolution with padding"),
    ("y = MaxPool<kernel_shape = [2,2]>(x)", {}, None),
    ("y = MaxPool<kernel_shape = [9,9]>(x)", {}, "9x9"),
    ("y = GlobalAveragePool(x)", {}, "16x16"),
    ("y = MaxPool<kernel_shape = [2,2], strides = [17,17]>(x)", {}, "stride of more than 16"),
    ("y = AveragePool<kernel_shape = [2,2], pads = [1,1,1,1]>(x)", {}, "leaves out the padding"),
    ("y = GlobalMaxPool(x)", {"x": (1, 8, 4)}, "two spatial axes"),
    ("y = Add(x, x)", {}, None),
    ("y = Add(x, x)", {"x": (1, 8)}, "four axes"),
    ("[a] b = MaxPool<kernel_shape = [2,2]>(x) [y] y = Mul(x, b)", {"b": (1, 8, 15, 15)}, "broadcasts"),
    ("y = Relu(x)", {"x": (1, 9000, 1, 1)}, "more than 8192"),
    ("y = Relu(x)", {"x": (5000, 1, 1, 1)}, "batch of more than 4096"),
    ("y = Concat<axis = 1>(x, x)", {}, None),
    ("y = Concat<axis = 2>(x, x)", {}, "only channels"),
    ("y = Softmax<axis = 1>(x)", {"x": (1, 8, 1, 1)}, None),
    ("y = Softmax<axis = 1>(x)", {}, "must have one element"),
    ("y = Softmax(x)", {"x": (1, 8)}, "four axes"),
    ("y = Resize<mode = \"cubic\">(x)", {}, "not cubic"),
    ("y = Resize<mode = \"nearest\">(x)", {"y": (1, 8, 24, 24)}, "whole steps"),
    ("y = Resize<mode = \"linear\">(x)", {"y": (1, 8, 32, 32)}, None),
    ("y = Reshape(x, to)", {"y": (1, 2048)}, "four axes to four"),
    ("y = MatMul(x, x)", {}, "no MatMul"),
])  # fmt: skip
def test_each_restriction_is_told_and_its_neighbour_is_free(text: str, shapes: Any, words: str | None) -> None:
    constants = {"w": values((8, 8, 3, 3), 0), "big": values((8, 8, 33, 33), 0), "to": np.array([1, -1], np.int64)}
    used = {name: array for name, array in constants.items() if f" {name})" in text}
    found = refused(f"(float[1,8,16,16] x) => (float[1,8,16,16] y) {{ {text} }}", shapes, **used)
    assert (found == []) if words is None else any(words in reason for reason in found), found
