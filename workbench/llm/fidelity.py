"""What a variant does to a language model's answers, paired with its FP32 parent on the same tokens.

Perplexity alone hides changes that cancel out; next-token agreement, the divergence of the distributions and how long
greedy answers stay the same show them. Raw values a window or prompt; scores are derived with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.datasets import Dataset, metrics
from workbench.engines import jobs
from workbench.engines.decoding import LOGITS, open_decoder
from workbench.errors import Cancelled, DataError
from workbench.judging import statistics
from workbench.llm.generation import generate
from workbench.llm.loading import LanguageModel
from workbench.machine.handle import QUIET, Handle
from workbench.records import Engine

# Logits and caches of one chunk of windows, which are held twice: the variant's and the parent's.
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Quality:
    """Raw values of a variant beside its parent.

    Attributes:
        loss, parent_loss: mean negative log-likelihood of the next token in each window, in nats.
        agreement: share of each window's places where both find the same token most probable.
        divergence: mean KL(parent || variant) over each window's places, in nats.
        match: for each prompt, how many tokens of the greedy answers are equal before the first difference.
        match_tokens: tokens that each greedy answer has.
    """

    variant: str
    parent: str
    backend: str
    data_name: str
    loss: tuple[float, ...]
    parent_loss: tuple[float, ...]
    agreement: tuple[float, ...]
    divergence: tuple[float, ...]
    match: tuple[int, ...] = ()
    match_tokens: int = 0

    @property
    def perplexity(self) -> statistics.Score | None:
        """exp(mean loss), with its interval over windows."""
        return statistics.mean_score(np.asarray(self.loss), "exp_mean")

    @property
    def perplexity_change(self) -> statistics.Change:
        """The change of perplexity against the parent, paired by window."""
        ours, theirs = np.asarray(self.loss), np.asarray(self.parent_loss)
        return statistics.score_change(ours, theirs, higher_is_better=False, display="exp_mean")

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over the parent's: 1.01 is one percent worse."""
        return float(np.exp(np.mean(self.loss) - np.mean(self.parent_loss)))

    @property
    def next_token_agreement(self) -> statistics.Score | None:
        """Mean share of places with the same most probable token, with its interval over windows."""
        return statistics.mean_score(np.asarray(self.agreement))

    @property
    def kl_divergence(self) -> statistics.Score | None:
        """Mean KL(parent || variant) in nats a token, with its interval over windows."""
        return statistics.mean_score(np.asarray(self.divergence))

    @property
    def match_length(self) -> statistics.Score | None:
        """Mean number of equal greedy tokens, with its interval over prompts; None where none were generated."""
        return statistics.mean_score(np.asarray(self.match, dtype=np.float64)) if self.match else None


def quality(
    language: LanguageModel,
    engine: Engine,
    parent: Engine,
    data: Dataset,
    *,
    prompts: Sequence[str | Sequence[int]] = (),
    new_tokens: int = 32,
    batch: int = 8,
    threads: int | None = None,
    handle: Handle = QUIET,
) -> Quality:
    """Compare a variant with its FP32 parent on held-out text, window by window, and on greedy answers.

    Args:
        data: from `workbench.llm.dataset`; its evaluation split is used.
        prompts: texts or token ids to answer greedily; none leaves the match length out.
        new_tokens: tokens of each greedy answer; end of text is ignored.
        batch: windows a call.

    Raises:
        DataError: data are not bound to a decoder, or prompts do not fit.
        RunError, ChildKilled: an engine failed; Cancelled: the caller stopped it.
    """
    evaluation = data.bound_to(language.model).evaluation
    if evaluation.labels is None:
        raise DataError(f"{data.name} has no labels, which are the token ids. Make it with workbench.llm.dataset.")
    parts: list[np.ndarray] = []
    size = _chunk_windows(language, evaluation.labels.shape[1])
    for start in range(0, len(evaluation), size):
        rows = slice(start, start + size)
        feeds = {name: array[rows] for name, array in evaluation.inputs.items()}
        ours = jobs.infer(engine, feeds, batch, threads=threads, handle=handle)[LOGITS]
        same = engine == parent
        theirs = ours if same else jobs.infer(parent, feeds, batch, threads=threads, handle=handle)[LOGITS]
        parts.append(compare_logits(ours, theirs, evaluation.labels[rows]))
    if handle.cancelled():
        raise Cancelled("Stopped as asked before greedy answers were compared.")
    match = _match_lengths(language, (engine, parent), prompts, new_tokens, threads) if prompts else ()
    return quality_of(engine, parent, data.name, parts, match, new_tokens if prompts else 0)


def quality_of(
    engine: Engine,
    parent: Engine,
    data_name: str,
    parts: Sequence[np.ndarray],
    match: tuple[int, ...],
    match_tokens: int,
) -> Quality:
    """Return the record of what `compare_logits` gave for each part of the windows, and of the greedy answers.

    Args:
        match: see `match_length`, of each prompt.
        match_tokens: tokens that each answer could match in; 0 where there were none.
    """
    loss, parent_loss, agreement, divergence = (
        tuple(float(value) for value in values) for values in np.concatenate(parts, axis=1)
    )
    return Quality(
        variant=engine.variant,
        parent=parent.variant,
        backend=engine.backend,
        data_name=data_name,
        loss=loss,
        parent_loss=parent_loss,
        agreement=agreement,
        divergence=divergence,
        match=match,
        match_tokens=match_tokens,
    )


def compare_logits(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (4, N): loss, parent's loss, agreement and KL(parent || variant), means over each window's places.

    Args:
        ours, theirs: logits (N, T, V) of variant and parent.
        labels: token ids (N, T).

    Raises:
        DataError: shapes do not fit.
    """
    if ours.shape != theirs.shape:
        raise DataError(
            f"The variant's logits are {ours.shape}, its parent's {theirs.shape}. Feed both the same tokens."
        )
    loss = metrics.perplexity().function
    values = [np.asarray(loss({LOGITS: side}, labels), dtype=np.float64) for side in (ours, theirs)]
    rows = [_row(one.astype(np.float64), other.astype(np.float64)) for one, other in zip(ours, theirs, strict=True)]
    agreement, divergence = np.array(rows).T
    return np.stack([*values, agreement, divergence])


def match_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two answers share before they first differ."""
    equal = [one == other for one, other in zip(first, second, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def _chunk_windows(language: LanguageModel, tokens: int) -> int:
    window_bytes = tokens * (4 * language.vocabulary + language.layout.token_bytes)
    return max(1, _CHUNK_BYTES // window_bytes)


def _row(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    our_log, their_log = _log_softmax(ours), _log_softmax(theirs)
    divergence = (np.exp(their_log) * (their_log - our_log)).sum(axis=-1)
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean()), float(divergence.mean())


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _match_lengths(
    language: LanguageModel,
    pair: tuple[Engine, Engine],
    prompts: Sequence[str | Sequence[int]],
    new_tokens: int,
    threads: int | None,
) -> tuple[int, ...]:
    answers = []
    for one in pair:
        with open_decoder(one, threads) as decoder:
            # One prompt at a time: dynamic scales depend on what else is in the batch.
            answers.append(
                [generate(language, decoder, [prompt], new_tokens=new_tokens, stop=()).tokens[0] for prompt in prompts]
            )
    return tuple(match_length(*both) for both in zip(*answers, strict=True))
