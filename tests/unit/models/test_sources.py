"""Models from transformers folders and hubs: what is safe is loaded, what is not is refused, and offline is told fast."""

import json
import sys
import time
import types

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workbench.errors import LoadError
from workbench.models import load, sources
from workbench.records import TensorSpec

# float32 sums in another order, on logits near 1
TOLERANCE = 1e-5


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    return session.run([model.outputs[0].name], feeds)[0]


@pytest.fixture
def copy(tiny_llama, tmp_path):
    """A copy of the tiny LLaMA that a test may damage."""
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def save_tiny(name, folder):
    """Save a tiny model of random weights of this architecture."""
    import transformers as t

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    made = {
        "BertForSequenceClassification": lambda: t.BertForSequenceClassification(
            t.BertConfig(vocab_size=32, max_position_embeddings=64, **small)
        ),
        "ViTForImageClassification": lambda: t.ViTForImageClassification(
            t.ViTConfig(image_size=8, patch_size=4, num_channels=1, **small)
        ),
        "T5ForConditionalGeneration": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=32, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
        ),
        "HubertModel": lambda: t.HubertModel(
            t.HubertConfig(conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,), num_conv_pos_embeddings=4, **small)
        ),
    }[name]()
    made.save_pretrained(folder)
    return made.eval()


def test_a_causal_language_model_has_free_batch_and_sequence(tiny_llama, tmp_path):
    from transformers import LlamaForCausalLM

    model = load(tiny_llama, folder=tmp_path)
    assert model.inputs == (TensorSpec("input_ids", "int64", (None, None)),)
    assert model.outputs == (TensorSpec("logits", "float32", (None, None, 32)),)
    assert (model.origin.kind, model.origin.reference) == ("transformers", tiny_llama.name)
    assert "model.layers.0.mlp.down_proj" in model.modules.values()
    ids = np.random.default_rng(0).integers(0, 32, (3, 9))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tiny_llama).eval()(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(run(model, {"input_ids": ids}), expected, atol=TOLERANCE)


def test_an_encoder_takes_a_mask_that_matters(tmp_path):
    module = save_tiny("BertForSequenceClassification", tmp_path / "bert")
    model = load(tmp_path / "bert", folder=tmp_path, exporter="torchscript")
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    ids = np.random.default_rng(0).integers(0, 32, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    np.testing.assert_allclose(run(model, {"input_ids": ids, "attention_mask": mask}), expected, atol=TOLERANCE)


def test_an_image_model_takes_pixels_of_its_own_size(tmp_path):
    save_tiny("ViTForImageClassification", tmp_path / "vit")
    found = sources.transformers_folder(tmp_path / "vit")
    assert {name: tuple(value.shape) for name, value in found.example_inputs.items()} == {"pixel_values": (2, 1, 8, 8)}
    assert found.dynamic == {"pixel_values": {0: "batch"}}


@pytest.mark.parametrize(
    ("name", "words"),
    [("T5ForConditionalGeneration", "is an encoder-decoder model"), ("HubertModel", "takes 'input_values'")],
)
def test_models_without_a_known_call_are_refused(tmp_path, name, words):
    save_tiny(name, tmp_path)
    with pytest.raises(LoadError, match=words):
        sources.transformers_folder(tmp_path)


def test_code_from_a_model_folder_is_never_run(copy):
    ran = copy / "ran"
    (copy / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass EvilConfig: pass\n")
    change_config(copy, model_type="evil", auto_map={"AutoConfig": "modeling_evil.EvilConfig"})
    with pytest.raises(LoadError, match=r"asks for code from its repository \(auto_map\)"):
        sources.transformers_folder(copy)
    change_config(copy, model_type="llama")
    assert "offers code of its own" in sources.transformers_folder(copy).notes[0]
    assert not ran.exists()


def test_pickled_weights_are_never_opened(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="has no weights; only safetensors"):
        sources.transformers_folder(copy)
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(LoadError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        sources.transformers_folder(copy)


def test_weights_that_are_missing_or_damaged_are_refused(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks 1 weights of LlamaForCausalLM \(model\.layers\.0\.mlp\.down_proj"):
        sources.transformers_folder(copy)
    file.write_bytes(whole[:100])
    with pytest.raises(LoadError, match=r"Cannot read .*model\.safetensors: its header claims \d+ bytes"):
        sources.transformers_folder(copy)
    file.write_bytes(whole[:-100])
    with pytest.raises(LoadError, match="transformers cannot load"):
        sources.transformers_folder(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Cannot read"),
        ("[]", "has no model_type"),
        ('{"model_type": 3}', "has no model_type"),
        ('{"model_type": "unheard-of"}', "model_type 'unheard-of', which transformers"),
        ('{"model_type": "llama", "architectures": ["os"]}', "architecture 'os', which is no model class"),
        ('{"model_type": "llama", "architectures": ["__doc__"]}', "which is no model class"),
        ('{"model_type": "llama", "architectures": "LlamaForCausalLM"}', "architecture ''"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(copy, content, words):
    (copy / "config.json").write_text(content)
    with pytest.raises(LoadError, match=words):
        sources.transformers_folder(copy)


def test_a_configuration_of_absurd_size_is_not_read(copy, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_CONFIG_BYTES", 10)
    with pytest.raises(LoadError, match="too many for a configuration"):
        sources.transformers_folder(copy)


def test_a_folder_that_is_no_model_tells_what_is_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LoadError, match=r"no config\.json, but notes\.txt"):
        load(tmp_path)


def test_a_hub_out_of_reach_is_told_within_seconds(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens on port 9
    started = time.monotonic()
    with pytest.raises(LoadError, match="could not be had from the Hugging Face hub"):
        load("nobody-at-all/no-such-model")
    assert time.monotonic() - started < 10  # a bound on waiting, not a measurement


def test_from_the_hub_only_data_files_are_fetched(tiny_llama, monkeypatch):
    """The fetch itself is replaced: it answers with a folder, as the hub's client does, and keeps what it was asked."""
    asked = {}

    def snapshot_download(identifier, **options):
        asked.update(options, identifier=identifier)
        return str(tiny_llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = sources.hub("org/net")
    assert found.reference == f"org/net@{tiny_llama.name}"
    assert asked["identifier"] == "org/net"
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


class TinyVision(types.ModuleType):
    """Stands in for torchvision.models: knows one model, whose weights arrive or not."""

    def __init__(self, reachable):
        super().__init__("torchvision.models")
        self.reachable = reachable

    def list_models(self):
        return ["resnet18", "resnet50"]

    def get_model_weights(self, name):
        class Weights:
            def transforms(self):
                return types.SimpleNamespace(crop_size=[8])

            def __str__(self):
                return "V1"

        return types.SimpleNamespace(DEFAULT=Weights())

    def get_model(self, name, weights):
        if not self.reachable:
            raise OSError("no route to host")
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 5))


@pytest.fixture(params=[True])
def torchvision(request, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", TinyVision(request.param))


def test_a_torchvision_model_is_exported_with_its_image_size(torchvision, tmp_path):
    model = load("torchvision:resnet18", folder=tmp_path, exporter="torchscript")
    assert model.inputs == (TensorSpec("input", "float32", (None, 3, 8, 8)),)
    assert (model.name, model.origin.kind, model.origin.reference) == ("resnet18", "torchvision", "resnet18 (V1)")


def test_an_unknown_torchvision_model_gets_suggestions(torchvision):
    with pytest.raises(LoadError, match=r"no model 'resnet5'. Similar names: resnet50"):
        load("torchvision:resnet5")


@pytest.mark.parametrize("torchvision", [False], indirect=True)
def test_weights_out_of_reach_are_told(torchvision):
    with pytest.raises(
        LoadError, match=r"weights of torchvision:resnet18 could not be had \(OSError: no route to host"
    ):
        load("torchvision:resnet18")


class TinyTimm(types.ModuleType):
    """Stands in for timm with one model."""

    def is_model(self, name):
        return name == "tiny"

    def list_models(self):
        return ["tiny"]

    def create_model(self, name, pretrained):
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
        module.default_cfg = {"input_size": (3, 4, 4), "pretrained": pretrained}
        return module


def test_a_timm_model_takes_its_own_input_size(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", TinyTimm("timm"))
    found = sources.timm("tiny")
    assert tuple(found.example_inputs[0].shape) == (2, 3, 4, 4)
    assert (found.kind, found.reference, found.module.default_cfg["pretrained"]) == ("timm", "tiny", True)
    with pytest.raises(LoadError, match=r"timm has no model 'tinny'\. Similar names: tiny"):
        sources.timm("tinny")


@pytest.mark.parametrize(
    ("source", "package"), [("torchvision:x", "torchvision"), ("timm:x", "timm"), ("org/net", "huggingface_hub")]
)
def test_a_library_that_is_not_there_is_named_with_its_install_line(monkeypatch, source, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadError, match=f"pip install {package}"):
        load(source)


def test_a_model_of_two_towers_is_refused_with_what_to_pass(tmp_path):
    import transformers as t

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**small, "vocab_size": 32, "max_position_embeddings": 16, "eos_token_id": 31, "bos_token_id": 30}
    config = t.CLIPConfig(text_config=text, vision_config={**small, "image_size": 8, "patch_size": 4})
    t.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"several kinds of input \(text, vision\).*load\(model.vision_model, example"):
        load(tmp_path)


def test_inputs_that_were_made_up_and_do_not_fit_are_not_called_the_users(tiny_llama, monkeypatch):
    import transformers as t

    def refuse(self, *arguments, **named):
        raise ValueError("bbox is missing")

    monkeypatch.setattr(t.LlamaForCausalLM, "forward", refuse)
    with pytest.raises(
        LoadError, match=r"takes other inputs than.*\(input_ids\): ValueError: bbox is missing\. Load it"
    ) as caught:
        load(tiny_llama)
    assert "in PyTorch already" not in str(caught.value)
