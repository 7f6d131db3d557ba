"""Attention in two pieces over a cache that is only read, in any transformers decoder that uses its attention interface.

The cache's `update` hands the new keys and values on and keeps nothing else; the attention function, registered with
transformers, takes the past from that cache by the layer's index. Scores over the past and the score of the new key are
made apart and only they are joined, so the past is never copied. Grouped queries are a reshape: no head is repeated.
Torch and transformers are imported where they are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME = "workbench_two_pieces"
_PAST = "workbench_past"


@dataclass
class Past:
    """What transformers takes as the cache of one call.

    Attributes:
        keys, values: of each layer, (slots, heads, columns, width), keys with their last two axes swapped where
            `keys_transposed`; None in a prefill, which has no past.
        new: layer -> keys and values of the tokens of this call, as the cache lies.
        scales: of each layer's keys and values, (heads, width), where the cache holds codes: `keys`, `values` and `new` are
            codes in floating point then, not yet rounded, and what they stand for is them times the scale.
    """

    keys_transposed: bool
    keys: list[Tensor] | None = None
    values: list[Tensor] | None = None
    new: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    attended: set[int] = field(default_factory=set)
    scales: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    is_compileable = False

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values for the caller; attention gets them as they are."""
        if self.keys is not None:  # slots are fed as the tokens of one sequence: (1, heads, slots, width)
            mine = keys.permute(2, 1, 3, 0) if self.keys_transposed else keys.permute(2, 1, 0, 3)
            theirs = values.permute(2, 1, 0, 3)
        else:
            mine, theirs = keys.transpose(2, 3) if self.keys_transposed else keys, values
        if self.scales is not None:  # last of all, so that engines round behind it and nothing else
            key_scale, value_scale = (kind[layer_idx] for kind in self.scales)
            mine = mine / (key_scale[:, :, None] if self.keys_transposed else key_scale[:, None])
            theirs = theirs / value_scale[:, None]
        self.new[layer_idx] = (mine, theirs)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always given."""
        return 0


@contextlib.contextmanager
def attending(network: nn.Module) -> Iterator[None]:
    """Let a transformers model attend in two pieces within the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    configs: dict[int, Any] = {
        id(module.config): module.config for module in network.modules() if hasattr(module, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = _NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def call(network: nn.Module, past: Past, **inputs: Any) -> Tensor:
    """Run the model with this cache; returns its logits.

    Raises:
        ExportError: a layer of the model does not use transformers' attention interface and cache.
    """
    logits: Tensor = network(**inputs, **{_PAST: past}, past_key_values=past, use_cache=True, return_dict=True).logits
    layers = int(network.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    silent = sorted(set(range(layers)) - (past.attended & set(past.new)))
    if silent:
        raise ExportError(
            f"{type(network).__name__} does not take its attention from transformers' AttentionInterface in layer "
            f"{silent[0]} (and {len(silent) - 1} others), so its cache cannot have a fixed length. Export it with "
            f"workbench.llm.load, whose cache grows."
        )
    return logits


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Be the attention function: query (N, H, S, D), key and value (N, KV, S, D); returns (N, S, H, D)."""
    past: Past | None = options.get(_PAST)
    if past is None:
        raise ExportError(
            f"{type(module).__name__} drops the keyword arguments of its model's call, so its attention cannot find the "
            f"cache. Export it with workbench.llm.load, whose cache grows."
        )
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise ExportError(
            f"{type(module).__name__} adds attention sinks or a bias of its own to the scores, which a cache of fixed "
            f"length does not know. Export it with workbench.llm.load, whose cache grows."
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    past.attended.add(layer)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if past.keys is None or past.values is None:
        return _over_the_prompt(query, key, value, attention_mask, softcap), None
    return _over_the_cache(query, key, value, attention_mask, softcap, (past, layer)), None


def _over_the_prompt(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # the prompt's own keys are small beside the scores
        # Not expand: exporters write shape arithmetic for that.
        key, value = (torch.cat([item[:, :, None]] * groups, dim=2).reshape(query.shape) for item in (key, value))
    scores = _capped(torch.matmul(query, key.transpose(2, 3)), softcap)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2)


def _over_the_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    place: tuple[Past, int],
) -> Tensor:
    """Attend from one token of every slot: query (1, H, slots, D)."""
    import torch

    past, layer = place
    assert past.keys is not None and past.values is not None
    heads, width = key.shape[1], query.shape[3]
    grouped = query[0].transpose(0, 1).reshape(-1, heads, query.shape[1] // heads, width)
    old = past.keys[layer] if past.keys_transposed else past.keys[layer].transpose(2, 3)
    new_key = key.permute(2, 1, 3, 0)  # (slots, KV, D, 1)
    # Codes are only widened: their scales, a channel each, are put on the one query and the one mix of values instead.
    asking = grouped if past.scales is None else grouped * past.scales[0][layer][:, None]
    before = _capped(torch.matmul(asking, old), softcap)
    own = _capped(torch.matmul(grouped, new_key), softcap)
    if mask is not None:
        before = before + mask
    weights = torch.softmax(torch.cat([before, own], dim=-1).float(), dim=-1).to(query.dtype)
    mixed = torch.matmul(weights[..., :-1], past.values[layer])
    if past.scales is not None:
        mixed = mixed * past.scales[1][layer][:, None]
    mixed = mixed + weights[..., -1:] * value.permute(2, 1, 0, 3)
    return mixed.reshape(1, -1, query.shape[1], width)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    import torch

    return scores if softcap is None else torch.tanh(scores / softcap) * softcap
