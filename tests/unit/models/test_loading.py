"""`load` tells the kinds of source apart and answers nonsense with what it accepts."""

import subprocess
import sys

import pytest
import torch
from small_onnx import small_model
from torch import nn

from workbench.errors import ExportError, LoadError
from workbench.machine.store import Store
from workbench.models import load


def test_an_onnx_file_stays_where_it_is(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    file = saved(small_model())
    for given in (file, str(file)):
        assert load(given).path == str(file)
    assert load(file, name="mine").name == "mine"
    assert not (tmp_path / "home").exists()


def test_options_without_effect_are_noted(saved):
    model = load(saved(small_model()), opset=18, exporter="dynamo")
    assert model.origin.notes == ("The file is ONNX already: opset, exporter had no effect.",)


def test_a_module_is_exported_into_the_store(tmp_path):
    store = Store(tmp_path / "store")
    model = load(nn.Linear(3, 2), torch.ones(1, 3), store=store, exporter="torchscript")
    assert (model.name, model.origin.kind, model.origin.reference) == ("Linear", "torch", "Linear")
    assert model.path.startswith(str(store.root))
    assert store.holds(model.sha256, model.path)
    named = load(nn.Linear(3, 2), torch.ones(1, 3), name="my net", store=store, exporter="torchscript")
    assert named.name == "my net"
    assert named.path.endswith("my_net.onnx")


def test_the_same_module_gives_the_same_file(tmp_path):
    module, store = nn.Linear(3, 2), Store(tmp_path / "store")
    first, again = (load(module, torch.ones(1, 3), store=store, exporter="torchscript") for _ in range(2))
    assert first == again


def test_a_module_without_example_inputs_is_refused():
    with pytest.raises(ExportError, match="without example inputs"):
        load(nn.Linear(3, 2))


def test_shipped_models_are_loaded_by_name():
    model = load("digits_resnet")
    assert (model.name, model.origin.kind, model.origin.reference) == ("digits_resnet", "shipped", "digits_resnet")
    assert model.inputs[0].shape == (None, 1, 32, 32)
    assert "layer1.0.conv1" in model.modules.values()
    assert load("digits_captions/text_tower").inputs[0].dtype == "int64"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digits_resnt", "Did you mean 'digits_resnet'"),
        ("no such thing at all", "Pass an .onnx file, a PyTorch module"),
        ("./a/b/c", "no such file or folder"),
        ("net.onnx", "There is no file"),
        ("weights.pth", "holds pickled weights"),
        ("net.SAFETENSORS", "holds weights without a network"),
        ("net.plan", "is a TensorRT plan"),
        (3, "Cannot load a int"),
        (nn.Linear, "Cannot load a type"),
    ],
)
def test_other_sources_are_refused_with_what_is_accepted(source, words):
    with pytest.raises(LoadError, match=words):
        load(source)


def test_without_shipped_data_an_unknown_name_still_gets_an_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(LoadError, match=r"Cannot load 'digits_resnet'.*set WORKBENCH_DATA"):
        load("digits_resnet")


def test_example_inputs_for_a_file_are_refused(saved):
    with pytest.raises(LoadError, match="example_inputs are for modules"):
        load(saved(small_model()), [torch.ones(1, 2)])


def test_loading_an_onnx_file_imports_neither_torch_nor_a_runtime(saved):
    file = saved(small_model())
    code = (
        "import sys; from workbench import datasets; from workbench.models import load; load(sys.argv[1]);"
        "print(sorted({'torch', 'onnxruntime', 'tensorrt', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
