"""What `llm_h200.py` measures: a decoder of TinyLlama's shape with random weights, at several depths and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.llm import GraphSize

TINYLLAMA = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2304,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
CHECKED_SEQUENCES, CHECKED_STEPS = 3, 8


@dataclass(frozen=True)
class Case:
    """Sizes of everything; `tiny` is the rehearsal.

    Attributes:
        depths: numbers of layers, the smallest first.
        slots: sequences at once where many are served.
        columns: of the cache.
        few: slots of a step for one sequence where that of one slot cannot be built.
        prompt, long_prompt: tokens of a prefill.
        together, wait_seconds: newcomers that start together while others run, and how long the first waits for them.
    """

    config: dict[str, object]
    depths: tuple[int, ...]
    slots: int
    few: int
    columns: int
    prompt: int
    long_prompt: int
    prompts_at_once: int
    answer: int
    requests: int
    together: int = 8
    wait_seconds: float = 0.1

    def graphs(self, depth: int, layout: str) -> list[GraphSize]:
        """Return the graphs of a depth with keys `turned` (heads, width, columns) or `plain` (heads, columns, width)."""
        found = [
            GraphSize("prefill", 1, self.prompt),
            GraphSize("step", self.slots, self.columns),
            GraphSize("step", 1, self.columns),
            GraphSize("step", self.few, self.columns),
        ]
        if depth == self.depths[-1]:
            found += [
                GraphSize("prefill", 1, self.long_prompt),
                GraphSize("prefill", self.prompts_at_once, self.prompt),
            ]
        return found

    def folder(self, root: Path, depth: int, layout: str) -> Path:
        """Return where the graphs of a depth and layout lie."""
        return root / "models" / f"{depth}-{layout}"

    def checked_tokens(self) -> np.ndarray:
        """Return the token ids that both halves run through prefill and steps."""
        shape = (CHECKED_SEQUENCES, self.prompt + CHECKED_STEPS)
        return np.random.default_rng(7).integers(0, int(str(self.config["vocab_size"])), shape)

    def layer_weights(self) -> int:
        """Return the weights of one layer that a token is multiplied with."""
        size, inner, heads, groups = (
            int(str(self.config[name]))
            for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        )
        return 2 * size * size + 2 * size * (size // heads) * groups + 3 * size * inner

    def head_weights(self) -> int:
        """Return the weights of the head."""
        return int(str(self.config["vocab_size"])) * int(str(self.config["hidden_size"]))

    def step_bytes(self, depth: int, slots: int, weight_bytes: int = 2) -> int:
        """Return the bytes that a step must read: weights and cache."""
        width = int(str(self.config["hidden_size"])) // int(str(self.config["num_attention_heads"]))
        cache = 2 * depth * slots * int(str(self.config["num_key_value_heads"])) * self.columns * width * 2
        return depth * self.layer_weights() * weight_bytes + self.head_weights() * 2 + cache

    def prefill_flops(self, depth: int, tokens: int) -> float:
        """Return the operations of a prefill: products with weights, and attention's two, of what is not hidden."""
        attention = 2 * 2 * tokens * tokens / 2 * int(str(self.config["hidden_size"]))
        return depth * (2.0 * tokens * self.layer_weights() + attention) + 2.0 * self.head_weights()


FULL = Case(TINYLLAMA, (2, 8, 22), 64, 16, 256, 128, 2048, 8, 32, 662)
REHEARSAL = Case(TINY, (1, 2, 3), 4, 2, 32, 8, 64, 2, 8, 662, 2, 0.02)
