"""Modules become ONNX files that compute the same, and what did not go as asked is in the notes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from workbench.errors import ExportError
from workbench.machine.store import digest
from workbench.models import eager_outputs, exporting
from workbench.models.exporting import ExportOptions, export
from workbench.models.place import Place
from workbench.records import Origin, TensorSpec

# float32 sums of a few products in another order, on values near 1
TOLERANCE = 1e-5


class Small(nn.Module):
    """A convolution with BatchNorm, a Sequential, a reduction whose form changed in opset 18, and named outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, image, *, scale):
        hidden = self.body(torch.relu(self.bn(self.conv(image))).mean(2))
        return {"logits": hidden.mean(1) * scale, "hidden": [hidden, hidden + 1]}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small(), {"image": torch.randn(1, 1, 8, 8), "scale": torch.ones(1, 1)}


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """The module exported by both exporters, from an example with one sample."""
    folder = tmp_path_factory.mktemp("exported")
    return {name: make(*small, folder, exporter=name, name=name) for name in ("dynamo", "torchscript")}


def make(module, example, folder, *, name="net", **options):
    origin = Origin("torch", type(module).__name__)
    return export(module, example, ExportOptions(**options), origin=origin, place=Place(folder=folder), name=name)


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.outputs]
    return dict(zip(names, session.run(names, feeds), strict=True))


BOTH = pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])


@BOTH
def test_the_export_computes_what_the_module_does_at_another_batch(small, exported, exporter):
    feeds, expected = eager_outputs(*small, {"image": {0: 5}, "scale": {0: 5}})
    assert feeds["image"].shape == (5, 1, 8, 8)
    outputs = run(exported[exporter], feeds)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=TOLERANCE)


@BOTH
def test_names_shapes_and_origin_are_as_asked(exported, exporter):
    model = exported[exporter]
    # Only the dynamo exporter tells which sizes must be equal.
    equal = ("L['image'][0] == L['scale'][0]",) if exporter == "dynamo" else ()
    image = TensorSpec("image", "float32", (None, 1, 8, 8), equal)
    assert model.inputs == (image, TensorSpec("scale", "float32", (None, 1)))
    assert [spec.name for spec in model.outputs] == ["logits", "hidden_0", "hidden_1"]
    assert model.outputs[0].shape == (None, 3)
    assert (model.opset, model.origin.kind, model.origin.exporter) == (17, "torch", exporter)
    dims = onnx.load(model.path).graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"


@BOTH
def test_nodes_tell_their_modules_as_the_user_knows_them(exported, exporter):
    modules = exported[exporter].modules
    assert {"conv", "body.0", "body.1"} <= set(modules.values())
    assert all("exported" not in path for path in modules.values())
    proto = onnx.load(exported[exporter].path)
    assert "conv.weight" in {tensor.name for tensor in proto.graph.initializer} or exporter == "torchscript"
    assert b"site-packages" not in proto.SerializeToString()


def test_a_merged_batch_norm_is_noted(exported):
    assert "FuseBatchNormIntoConv" in exported["dynamo"].origin.notes[0]


def test_nothing_but_the_model_is_left_behind(exported):
    files = {file.name for file in Path(exported["dynamo"].path).parent.iterdir()}
    assert files == {"dynamo.onnx", "dynamo.pt2", "torchscript.onnx"}


def test_the_module_gets_its_modes_back(small, tmp_path):
    module, example = small
    module.train()
    module.bn.eval()
    before = module.bn.running_mean.clone()
    make(module, example, tmp_path, exporter="torchscript")
    assert (module.training, module.bn.training, module.conv.training) == (True, False, True)
    assert torch.equal(module.bn.running_mean, before)


class OnlyTraced(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > -1e9 else x


def test_another_exporter_is_noted_with_the_reason_and_what_it_fixed(tmp_path, capfd):
    model = make(OnlyTraced(), torch.ones(2, 3), tmp_path)
    assert model.origin.exporter == "torchscript"
    reason, fixed = model.origin.notes
    assert reason.startswith("Exported by the torchscript exporter, because the dynamo exporter failed (")
    assert "1 values that may depend on the inputs were fixed" in fixed
    assert capfd.readouterr() == ("", "")  # neither exporter says anything


class NoExporter(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


def test_when_both_exporters_fail_both_reasons_are_given(tmp_path):
    with pytest.raises(ExportError, match=r"the dynamo exporter failed \(.*the torchscript exporter failed \("):
        make(NoExporter(), torch.ones(2, 3, 3), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_forced_exporter_is_not_replaced_by_the_other(tmp_path):
    with pytest.raises(ExportError) as caught:
        make(OnlyTraced(), torch.ones(2, 3), tmp_path, exporter="dynamo")
    assert "torchscript" not in str(caught.value)


def test_a_module_that_fails_in_pytorch_is_told_apart(tmp_path):
    with pytest.raises(ExportError, match=r"Linear fails in PyTorch already, on example inputs input \(2, 3\)"):
        make(nn.Linear(4, 2), torch.ones(2, 3), tmp_path)


def test_a_non_tensor_output_is_named(tmp_path):
    class Chatty(nn.Module):
        def forward(self, x):
            return {"y": x, "note": "hello"}

    with pytest.raises(ExportError, match="Output note is a str"):
        make(Chatty(), torch.ones(2, 3), tmp_path)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x + 1 if x.shape[0] == 4 else x


def test_an_axis_that_the_exporter_fixed_is_noted(tmp_path):
    model = make(FixedBatch(), torch.ones(4, 3), tmp_path, exporter="dynamo")
    assert model.inputs[0].shape == (4, 3)
    assert model.origin.notes == ("Axis 0 of input 'x' was asked to be dynamic, but the exporter fixed it to 4.",)


def test_a_module_that_insists_on_one_sample_is_exported_from_one(tmp_path):
    class One(nn.Module):
        def forward(self, x):
            return x.reshape(3)

    model = make(One(), torch.ones(1, 3), tmp_path, exporter="torchscript")
    assert model.outputs[0].shape == (3,)


def test_an_older_opset_goes_to_torchscript_and_a_newer_one_through_dynamo(tmp_path):
    old = make(nn.Linear(3, 2), torch.ones(2, 3), tmp_path, opset=13)
    assert (old.opset, old.origin.exporter, old.origin.notes) == (13, "torchscript", ())
    new = make(nn.Linear(3, 2), torch.ones(2, 3), tmp_path, opset=20)
    assert (new.opset, new.origin.exporter, new.origin.notes) == (20, "dynamo", ())


def test_an_opset_that_was_not_honoured_is_noted_with_the_operator(tmp_path):
    model = make(nn.Mish(), torch.ones(2, 3), tmp_path)
    if model.opset == 18:
        assert "Asked for opset 17, the exporter wrote opset 18 (Mish" in model.origin.notes[-1]
    else:
        assert (model.opset, model.origin.notes) == (17, ())
    forced = make(nn.LayerNorm(3), torch.ones(2, 3), tmp_path, opset=13, exporter="dynamo")
    assert forced.opset == 18
    assert "Asked for opset 13, the exporter wrote opset 18" in forced.origin.notes[-1]


@pytest.mark.parametrize(
    ("options", "words"), [({"exporter": "tracing"}, "exporter is 'tracing'"), ({"opset": 3}, "opset is 3")]
)
def test_options_that_do_not_exist_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ExportOptions(**options)


def test_the_program_is_kept_beside_the_model_and_is_the_same_each_time(exported, small, tmp_path):
    module, _ = small
    program = exported["dynamo"].program
    assert exported["torchscript"].program is None
    again = make(module, {"image": torch.randn(1, 1, 8, 8), "scale": torch.zeros(1, 1)}, tmp_path, exporter="dynamo")
    assert again.program.sha256 == program.sha256 == digest(Path(program.path))


def test_a_program_that_is_too_large_is_left_out_and_noted(small, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST_PROGRAM_BYTES", 10)
    model = make(*small, tmp_path, exporter="dynamo")
    assert model.program is None
    assert any("stored a second time" in note for note in model.origin.notes)


def test_a_program_that_cannot_be_written_is_noted(small, tmp_path, monkeypatch):
    def fail(program, file):
        raise RuntimeError("an operator without a schema")

    monkeypatch.setattr(torch.export, "save", fail)
    model = make(*small, tmp_path, exporter="dynamo")
    assert model.program is None
    assert any("an operator without a schema" in note for note in model.origin.notes)


def test_a_module_that_ignores_its_inputs_is_refused_with_the_likely_reason(tmp_path):
    class Numpy(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.ones((2, 3), np.float32))

    with pytest.raises(ExportError, match="numpy"):
        make(Numpy(), torch.ones(2, 3), tmp_path, exporter="dynamo")
