"""The models of `h200.py`, the same in both of its halves: shapes and inputs here, PyTorch modules only when asked.

Random weights say nothing of accuracy: only the shipped models are trained. Knows nothing of engines or measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import datasets, zoo
from workbench.datasets import Dataset, Split
from workbench.records import ShapeProfile

SHIPPED = ("digits_resnet", "digits_vit")
BERT = {"full": {}, "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}}  # fmt: skip  # noqa: E501
RESNET = {"full": {}, "tiny": {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}}
LLAMA: dict[str, dict[str, int]] = {
    "full": {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
             "num_attention_heads": 16, "num_key_value_heads": 4},
    "tiny": {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
LENGTH = {"full": 128, "tiny": 8}


@dataclass(frozen=True)
class Case:
    """One model at one kind of input.

    Attributes:
        model: whose files it uses: prefill and decode are the same file.
        size: `full` or `tiny` (rehearsal).
    """

    name: str
    model: str
    size: str

    def batch(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Return random inputs of `count` samples."""
        rng, length = np.random.default_rng(seed), LENGTH[self.size]
        if self.model == "resnet50":
            side = 224 if self.size == "full" else 32
            return {"pixel_values": rng.normal(size=(count, 3, side, side)).astype(np.float32)}
        if self.model == "bert":
            vocabulary = 30522 if self.size == "full" else 100
            return {"input_ids": rng.integers(0, vocabulary, (count, length))}
        config = LLAMA[self.size]
        new, past = (length, 0) if self.name == "llama-prefill" else (1, length)
        feeds = {
            "input_ids": rng.integers(0, config["vocab_size"], (count, new)),
            "attention_mask": np.ones((count, past + new), np.int64),
            "position_ids": np.tile(np.arange(past, past + new), (count, 1)),
        }
        width = config["hidden_size"] // config["num_attention_heads"]
        for layer in range(config["num_hidden_layers"]):
            for kind in ("key", "value"):
                shape = (count, config["num_key_value_heads"], past, width)
                feeds[f"past_key_values.{layer}.{kind}"] = rng.normal(size=shape).astype(np.float32)
        return feeds

    def data(self, samples: int = 64) -> Dataset:
        """Return the digits for shipped models, random inputs for the others."""
        if self.model in SHIPPED:
            return datasets.digits()
        return Dataset(self.name, "random", Split(self.batch(samples, 0)), Split(self.batch(samples, 1)))

    def profile(self, largest: int) -> dict[str, ShapeProfile]:
        """Return the shapes to build for: batches from 1 to `largest`, tuned for the largest."""
        inputs = self.data(2).evaluation.inputs if self.model in SHIPPED else self.batch(2, 0)
        names = {"": "image"} if self.model in SHIPPED else {}
        return {
            names.get(name, name): ShapeProfile((1, *array.shape[1:]), *(((largest, *array.shape[1:]),) * 2))
            for name, array in inputs.items()
        }


def cases(size: str) -> list[Case]:
    """Return all cases."""
    plain = ("resnet50", *SHIPPED, "bert")
    return [*(Case(name, name, size) for name in plain), *(Case(f"llama-{part}", "llama", size) for part in ("prefill", "decode"))]  # fmt: skip  # noqa: E501


def module(name: str, size: str) -> tuple[Any, Any, Any]:
    """Return a PyTorch module, example inputs, and the axes that stay free."""
    import architectures
    import torch
    import transformers
    from torch import nn

    from workbench.llm import wrapping

    torch.manual_seed(0)
    if name in SHIPPED:
        from safetensors.torch import load_file

        network = {"digits_resnet": architectures.DigitsResNet, "digits_vit": architectures.DigitsViT}[name]()
        network.load_state_dict(load_file(zoo.data_file(f"models/{name}.safetensors")))
        return network.eval(), {"image": torch.zeros(2, 1, 32, 32)}, True
    if name == "llama":
        config = transformers.LlamaConfig(**LLAMA[size], max_position_embeddings=2048, attn_implementation="eager")  # type: ignore[call-arg]
        inputs, free = wrapping.example(config)
        return wrapping.with_cache(transformers.LlamaForCausalLM(config).eval()), inputs, free

    class Only(nn.Module):
        """One tensor out of a transformers model."""

        def __init__(self, model: nn.Module, output: str) -> None:
            super().__init__()
            self.model, self.output = model, output

    class Bert(Only):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))[0]  # type: ignore[no-any-return]

    class Classifier(Only):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixel_values).logits  # type: ignore[no-any-return]

    case = Case(name, name, size)
    example = {key: torch.from_numpy(array) for key, array in case.batch(2, 0).items()}
    if name == "bert":
        config = transformers.BertConfig(**BERT[size], attn_implementation="eager")  # type: ignore[call-arg]
        return Bert(transformers.BertModel(config, add_pooling_layer=False), "").eval(), example, True
    config = transformers.ResNetConfig(**RESNET[size])
    return Classifier(transformers.ResNetForImageClassification(config), "").eval(), example, True
