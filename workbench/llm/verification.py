"""Does the exported decoder say what PyTorch says? Compared step by step, at other sizes than it was exported with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.engines.decoding import Decoder
from workbench.llm import feeding
from workbench.llm.generation import Sequences
from workbench.llm.loading import LanguageModel, causal
from workbench.models import sources

# Both sides sum the same FP32 products in another order; over the layers of a decoder the difference stays within
# this share of the largest logit (seen on the shipped model: 2e-6; a wrong position or mask gives 1e-1).
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verification:
    """How far the engine's logits lie from PyTorch's.

    Attributes:
        prefill_difference, decode_difference: largest `|difference|` of a logit, after the prompt and in the steps.
        largest_logit: largest magnitude among PyTorch's logits.
        batch, input_tokens, steps: what was run; the shortest prompt of the batch is half as long.
    """

    prefill_difference: float
    decode_difference: float
    largest_logit: float
    batch: int
    input_tokens: int
    steps: int

    @property
    def passed(self) -> bool:
        """Whether both differences lie within `TOLERANCE` of the largest logit."""
        return max(self.prefill_difference, self.decode_difference) <= TOLERANCE * self.largest_logit


def verify(
    language: LanguageModel, decoder: Decoder, *, batch: int = 3, input_tokens: int = 11, steps: int = 32, seed: int = 0
) -> Verification:
    """Feed random tokens to the decoder, and the whole sequences to the PyTorch model, and compare the logits.

    Prompts have different lengths, so padding is tried as well. PyTorch runs each sequence alone, without cache.

    Raises:
        DataError: the sequences would be longer than the model takes.
        LoadError: the transformers folder is gone.
    """
    feeding.check_length(language, input_tokens + steps, "The comparison")
    folder = Path(language.folder)
    network = causal(sources.transformers_folder(folder), folder)
    generator = np.random.default_rng(seed)
    lengths = np.linspace(max(1, input_tokens // 2), input_tokens, batch).round().astype(int)
    tokens = [generator.integers(0, language.vocabulary, length + steps) for length in lengths]
    wanted = [_eager(network, row) for row in tokens]
    sequences = Sequences(decoder)
    found = sequences.add([row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)])
    differences = [_difference(found, wanted, lengths - 1)]
    for step in range(steps):
        sequences.accept(np.array([row[length + step] for row, length in zip(tokens, lengths, strict=True)]))
        differences.append(_difference(sequences.step(), wanted, lengths + step))
    largest = max(float(np.abs(logits).max()) for logits in wanted)
    return Verification(differences[0], max(differences[1:], default=0.0), largest, batch, input_tokens, steps)


def _eager(network: object, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        ids = torch.from_numpy(tokens[None])
        outputs = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)  # type: ignore[operator]
    return np.asarray(outputs.logits[0].numpy())


def _difference(found: np.ndarray, wanted: list[np.ndarray], places: np.ndarray) -> float:
    pairs = zip(found, wanted, places, strict=True)
    return max(float(np.abs(ours - theirs[place]).max()) for ours, theirs, place in pairs)
