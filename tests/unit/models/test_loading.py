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


class Forbidding(nn.Module):
    """Scores of which some are forbidden with minus infinity, as in a policy or a masked attention."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("forbidden", torch.tensor([False, True, False]))

    def forward(self, x):
        return self.linear(x).masked_fill(self.forbidden, float("-inf"))


def test_infinities_that_the_module_gives_too_are_no_difference(tmp_path):
    model = load(Forbidding(), torch.randn(2, 4), folder=tmp_path)
    assert "Compared with PyTorch" in model.origin.notes[-1] and "nan" not in model.origin.notes[-1]


def test_a_bfloat16_module_is_exported_as_float32_with_the_same_values(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).bfloat16()
    x = torch.randn(5, 4)
    model = load(module, torch.randn(2, 4, dtype=torch.bfloat16), folder=tmp_path)
    assert model.inputs[0].dtype == model.outputs[0].dtype == "float32"
    assert "is in bfloat16" in model.origin.notes[0]
    weight, bias = (value.detach().float() for value in module[0].parameters())
    from workbench.engines import onnxruntime

    with onnxruntime.open_file(model.path) as runner:
        found = runner.infer({"input": x.numpy()})["output"]
    expected = torch.relu(x @ weight.T + bias)
    assert torch.from_numpy(found).sub(expected).abs().max() < 1e-5
    assert module[0].weight.dtype == torch.bfloat16, "the user's module is left as it was"


def test_a_bfloat16_module_that_cannot_be_copied_says_what_to_do(tmp_path):
    module = nn.Linear(4, 3).bfloat16()
    module.seen = module.weight * 2  # torch refuses to copy a tensor that is part of a computation
    with pytest.raises(ExportError, match=r"cannot be copied to become float32.*Pass module.float\(\)"):
        load(module, torch.randn(2, 4, dtype=torch.bfloat16), folder=tmp_path)


def test_examples_and_outputs_that_require_grad_are_taken_by_their_values(tmp_path):
    class Returning(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.weight, self.weight

    model = load(Returning(), (torch.randn(2, 3, requires_grad=True) * 2,), folder=tmp_path)
    assert "Compared with PyTorch" in model.origin.notes[-1]


@pytest.mark.parametrize("make", [lambda net, x: torch.jit.trace(net, x), lambda net, x: torch.jit.script(net)])
def test_script_modules_are_refused_as_such_alone_and_inside_another(make, tmp_path):
    x = torch.randn(2, 4)
    script = make(nn.Linear(4, 3), x)
    with pytest.raises(ExportError, match="cannot be exported: it is a ScriptModule"):
        load(script, x, folder=tmp_path)
    with pytest.raises(ExportError, match="cannot be exported: its part '0' is a ScriptModule"):
        load(nn.Sequential(script, nn.ReLU()), x, folder=tmp_path)
