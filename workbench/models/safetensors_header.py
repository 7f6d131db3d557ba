"""What a folder's safetensors files hold, from their headers alone, and whether a configuration asks for more.

A configuration of a few bytes can ask for more memory than there is; the weights beside it say what the model really has.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import LoadError

LARGEST_HEADER_BYTES = 100 << 20
_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "n_embd",
    "n_inner",
    "d_model",
    "d_ff",
    "dim",
    "hidden_dim",
)
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_attention_heads", "n_head")
_LARGEST_VOCABULARY = 1 << 20
_NESTED = ("text_config", "vision_config")


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name -> shape of a safetensors file, without its weights.

    Raises:
        LoadError: it is truncated, or no safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > min(LARGEST_HEADER_BYTES, file.stat().st_size):
                raise ValueError(f"its header claims {size} bytes")
            header = json.loads(stream.read(size))
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        RecursionError,
    ) as error:
        raise LoadError(
            f"Cannot read {file}: {error}. It is truncated, or no safetensors file: copy it again."
        ) from error


def refuse_what_the_weights_lack(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a configuration that asks for a wider or deeper network than the weights beside it.

    Raises:
        LoadError: it does, or the weights cannot be read.
    """
    held = [shape for file in sorted(folder.glob("*.safetensors")) for shape in shapes(file).values()]
    widest = max((size for shape in held for size in shape), default=0)
    limits = {
        **dict.fromkeys(_WIDTHS, widest),
        **dict.fromkeys(_COUNTS, max(len(held), widest)),
        "vocab_size": max(widest, _LARGEST_VOCABULARY),  # some networks name one that they do not have
    }
    for part in (config, *(config[name] for name in _NESTED if isinstance(config.get(name), dict))):
        for name, most in limits.items():
            asked = part.get(name)
            if isinstance(asked, int) and asked > most:
                raise LoadError(
                    f"{folder / 'config.json'} asks for {name} = {asked}, but the weights beside it allow for {most} at most "
                    f"({len(held)} tensors, the widest axis has {widest}). Configuration and weights do not belong "
                    f"together; download the model again."
                )
