"""Make a transformers causal language model exportable with its key/value cache as flat tensors.

The wrapper fills a cache from flat inputs, calls the model once and returns the cache's layers, so no loop and no
Python object reaches the exporter. It builds the attention mask itself: the older exporter cannot write transformers'
own (it needs aten::diff). Torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.engines.decoding import LOGITS, MASK, PAST, POSITIONS, PRESENT, TOKENS
from workbench.models import naming

if TYPE_CHECKING:
    from torch import Tensor, nn

# Added to the scores of hidden columns. Finite, because a row of -inf alone would make Softmax NaN; small enough for
# FP16, where exp(-3e4) is 0 as well.
HIDDEN_SCORE = -3.0e4
_EXAMPLE_BATCH, _EXAMPLE_NEW, _EXAMPLE_PAST = 2, 5, 3


def with_cache(model: nn.Module) -> nn.Module:
    """Return a module from tokens, mask, positions and past to logits and present.

    Its forward takes `input_ids` (N, S), `attention_mask` (N, P + S), `position_ids` (N, S) and, by keyword,
    `past_key_values.<i>.key` and `.value` (N, heads, P, width); P may be 0.
    """
    import torch
    from torch import nn
    from transformers import DynamicCache

    class DecoderWithCache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, naming.WRAPPER, model)

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **past: Tensor
        ) -> dict[str, Tensor]:
            cache = DynamicCache()
            layers = len(past) // 2
            for index in range(layers):
                cache.update(past[f"{PAST}{index}.key"], past[f"{PAST}{index}.value"], index)
            # A new token sees the columns up to its own, as far as they hold tokens.
            own = torch.arange(input_ids.shape[1]) + past[f"{PAST}0.key"].shape[2]
            columns = torch.arange(attention_mask.shape[1])
            seen = (columns[None, :] <= own[:, None])[None, None] & (attention_mask[:, None, None, :] > 0)
            outputs = getattr(self, naming.WRAPPER)(
                input_ids=input_ids,
                attention_mask=torch.where(seen, 0.0, HIDDEN_SCORE),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
            present = {LOGITS: outputs.logits}
            for index in range(layers):
                layer: Any = cache.layers[index]
                present[f"{PRESENT}{index}.key"], present[f"{PRESENT}{index}.value"] = layer.keys, layer.values
            return present

    return DecoderWithCache().eval()


def example(config: Any) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Return example inputs of `with_cache` for a model of this configuration, and the axes that stay free."""
    import torch

    generator = torch.Generator().manual_seed(0)
    columns = _EXAMPLE_PAST + _EXAMPLE_NEW
    positions = torch.arange(_EXAMPLE_PAST, columns).repeat(_EXAMPLE_BATCH, 1)
    inputs = {
        TOKENS: torch.randint(0, config.vocab_size, (_EXAMPLE_BATCH, _EXAMPLE_NEW), generator=generator),
        MASK: torch.ones(_EXAMPLE_BATCH, columns, dtype=torch.long),
        POSITIONS: positions,
    }
    free = {
        TOKENS: {0: "batch", 1: "new"},
        MASK: {0: "batch", 1: "columns"},
        POSITIONS: {0: "batch", 1: "new"},
    }
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            name = f"{PAST}{index}.{kind}"
            inputs[name] = torch.randn(_EXAMPLE_BATCH, heads, _EXAMPLE_PAST, width, generator=generator)
            free[name] = {0: "batch", 2: "past"}
    return inputs, free
