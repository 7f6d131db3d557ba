"""What the tests of this folder share."""

import onnx
import pytest


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model into the test's folder and returns the path."""

    def save(proto, name="net.onnx", **options):
        onnx.save_model(proto, str(tmp_path / name), **options)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A folder with a one-layer LLaMA of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("tiny_llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
