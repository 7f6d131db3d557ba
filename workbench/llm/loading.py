"""Load a causal language model with its tokenizer: a transformers folder, a hub id or a shipped model, exported with cache.

What comes out holds an ordinary `Model`, so recipes, engines, measuring and studies work on it as on any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench import zoo
from workbench.datasets.texts import read_tokenizer
from workbench.engines.decoding import CacheLayout, cache_layout
from workbench.errors import DataError, LoadError
from workbench.llm import wrapping
from workbench.llm.heads import untied
from workbench.machine.store import Store
from workbench.models import naming, sources
from workbench.models.exporting import ExportOptions, export
from workbench.models.place import Place
from workbench.records import Model, Origin

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its cache as ONNX, and what is needed to talk to it.

    Attributes:
        model: inputs `input_ids`, `attention_mask`, `position_ids`, `past_key_values.*`; outputs `logits`, `present.*`.
        folder: the transformers folder that it came from.
        vocabulary: number of token ids.
        largest_length: tokens that a sequence may have, prompt and answer together.
        end_ids: tokens that end an answer.
        tokenizer: the `tokenizer.json`, or None where the folder has none: prompts are token ids then.
    """

    model: Model
    folder: str
    vocabulary: int
    largest_length: int
    end_ids: tuple[int, ...]
    tokenizer: str | None = None

    @property
    def layout(self) -> CacheLayout:
        """The layout of the key/value cache."""
        return cache_layout(self.model.inputs, self.model.outputs)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text.

        Raises:
            DataError: there is no tokenizer.
        """
        return tuple(self._tokens.encode(text).ids)

    def decode(self, tokens: Any) -> str:
        """Return the text of token ids; special tokens are left out.

        Raises:
            DataError: there is no tokenizer.
        """
        return str(self._tokens.decode([int(token) for token in tokens]))

    @cached_property
    def _tokens(self) -> Any:
        if self.tokenizer is None:
            raise DataError(
                f"{self.model.name} came without a tokenizer.json, so it reads no text. Pass prompts as token ids, or put "
                f"a tokenizer.json into {self.folder} and load it again."
            )
        return read_tokenizer(Path(self.tokenizer))


def load(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    name: str | None = None,
    store: Store | None = None,
    opset: int | None = None,
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto",
    untie_head: bool = False,
) -> LanguageModel:
    """Load a causal language model and export it with a key/value cache; batch and lengths stay free.

    Args:
        source: a transformers folder (config.json and safetensors), a Hugging Face id, or a shipped model's name.
        tokenizer: another tokenizer.json, or a folder with one; None takes the source's own.
        name: in tables and reports; None takes the folder's.
        opset: None takes 17, which every engine from TensorRT 8.6 on reads.
        exporter: `auto` tries torch's dynamo exporter first; `torchscript` writes what TensorRT 8.6 is known to build.
        untie_head: store the head's weights apart from the embeddings they are tied to, so that recipes can lower them.

    Raises:
        LoadError: the source is missing, damaged or unsafe, has no causal head, or its tokenizer does not match.
        ExportError: no exporter can turn it into ONNX.
    """
    found, folder = _source(str(source))
    network = causal(found, folder)
    place = place_of_tokenizer(folder, tokenizer)
    config = network.config
    if place is not None:
        check_tokenizer(place, int(config.vocab_size))
    inputs, free = wrapping.example(config)
    model = export(
        wrapping.with_cache(network),
        inputs,
        ExportOptions(opset, free, exporter),
        origin=Origin(found.kind, found.reference, notes=found.notes),
        place=Place(store=store),
        name=name or folder.resolve().name,
    )
    if untie_head:
        model = untied(model, store)
    if place is None:
        note = "The folder has no tokenizer.json: prompts are token ids."
        model = replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))
    return LanguageModel(
        model=model,
        folder=str(folder),
        vocabulary=int(config.vocab_size),
        largest_length=int(config.max_position_embeddings),
        end_ids=_end_ids(network),
        tokenizer=None if place is None else str(place),
    )


def causal(found: sources.ModuleSource, folder: Path) -> Any:
    """Return the transformers model inside a loaded source.

    Raises:
        LoadError: it has no causal language modelling head.
    """
    network: nn.Module = getattr(found.module, naming.WRAPPER, found.module)
    kind = type(network).__name__
    if not kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise LoadError(
            f"{folder} holds a {kind}, which has no causal language modelling head and so cannot generate. Pass the folder "
            f"of a model whose config.json names an architecture that ends in ForCausalLM."
        )
    return network


def place_of_tokenizer(folder: Path, tokenizer: str | Path | None) -> Path | None:
    """Return the tokenizer.json to use, or None where the folder has none and no other was named.

    Raises:
        LoadError: the named one is not there.
    """
    chosen = folder if tokenizer is None else Path(tokenizer)
    file = chosen / "tokenizer.json" if chosen.is_dir() else chosen
    if file.is_file():
        return file
    if tokenizer is not None:
        raise LoadError(f"There is no tokenizer at {file}. Pass a tokenizer.json, or a folder with one.")
    return None


def check_tokenizer(file: Path, vocabulary: int) -> None:
    """Compare a tokenizer with the number of token ids of its model.

    Raises:
        LoadError: it is damaged, or gives ids that the model does not have.
    """
    try:
        ids = read_tokenizer(file).get_vocab(with_added_tokens=True).values()
    except DataError as error:
        raise LoadError(str(error)) from error
    largest = max(ids, default=-1)
    if largest >= vocabulary:
        raise LoadError(
            f"The tokenizer {file} gives token ids up to {largest}, the model has {vocabulary} (0 to {vocabulary - 1}): "
            f"they do not belong together. Pass the model's own with tokenizer=."
        )


def _source(reference: str) -> tuple[sources.ModuleSource, Path]:
    path = Path(reference).expanduser()
    if path.is_dir():
        return sources.transformers_folder(path), path
    if reference in zoo.models():
        entry = zoo.path(reference)
        if not entry.is_dir():
            raise LoadError(f"{reference!r} is no language model but an ONNX file. Load it with workbench.load.")
        return replace(sources.transformers_folder(entry, reference), kind="shipped"), entry
    if reference.count("/") == 1 and not path.suffix:
        found = sources.hub(reference)
        return found, Path(str(getattr(found.module, naming.WRAPPER, found.module).name_or_path))
    raise LoadError(
        f"Cannot load a language model from {reference!r}: no such folder in {Path.cwd()}, nor a shipped model. Pass a "
        f"transformers folder, a Hugging Face id `org/name`, or 'stdlib_llama'."
    )


def _end_ids(network: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer; generation_config.json, which transformers has read, has the say."""
    given = getattr(network.generation_config, "eos_token_id", None)
    listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    return tuple(int(token) for token in listed)
