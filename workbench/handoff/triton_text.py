"""The model beside a decoder that makes text of it on a Triton server: tokenizer, steps of the decoder, and back to text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol, runtime_checkable

from workbench.engines import decoding
from workbench.errors import DataError, EngineError
from workbench.handoff import triton_config, triton_program
from workbench.handoff.triton_config import Served
from workbench.machine.store import write_text
from workbench.records import Engine, Model, TensorSpec

_INPUTS = (TensorSpec("text", "uint8", (None,)), TensorSpec("new_tokens", "int64", (1,)))
_OUTPUTS = (TensorSpec("answer", "uint8", (None,)),)
NOTES = (
    "Text travels as its UTF-8 bytes (TYPE_UINT8): a server built for numpy 1 cannot exchange strings with numpy 2. The most "
    "probable token is taken each time.",
    "The server's python needs numpy and tokenizers for the model that reads text.",
)


@runtime_checkable
class Language(Protocol):
    """What is needed to talk to a decoder, as `workbench.llm.load` gives it."""

    @property
    def model(self) -> Model:
        """The decoder that was exported."""

    @property
    def largest_length(self) -> int:
        """Tokens that a sequence may have, prompt and answer together."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def tokenizer(self) -> str | None:
        """The `tokenizer.json`."""


def check(language: object, model: Model, engine: Engine) -> Language:
    """Return the language model if its texts can go through this engine.

    Raises:
        EngineError: it is no language model, or another one than the study's; the engine is no decoder.
        DataError: it has no tokenizer, or the tokenizer is gone.
    """
    if not isinstance(language, Language):
        raise EngineError(
            f"language is a {type(language).__name__}; pass what workbench.llm.load(...) gave, whose .model was studied."
        )
    decoding.cache_layout(engine.inputs, engine.outputs)
    if language.model.sha256 != model.sha256:
        raise EngineError(
            f"The study is of {model.name} ({model.sha256[:12]}), language is {language.model.name} "
            f"({language.model.sha256[:12]}). Pass the language model whose .model was studied."
        )
    if language.tokenizer is None or not Path(language.tokenizer).is_file():
        raise DataError(
            f"{language.model.name} has no tokenizer ({language.tokenizer}), so it reads no text. Load it again with "
            f"workbench.llm.load(..., tokenizer=file), or deploy it without language= to be fed token ids."
        )
    return language


def write(folder: Path, name: str, decoder: Served, engine: Engine, language: Language) -> None:
    """Write the model that reads text beside its decoder."""
    layout = decoding.cache_layout(engine.inputs, engine.outputs)
    place = folder / name / "1"
    place.mkdir(parents=True)
    # No request is made up for warm-up: the decoder may not be there yet.
    config = triton_config.text(
        Served(name, "python", _INPUTS, _OUTPUTS, {}, None, decoder.instances, False, comments=NOTES)
    )
    settings = {
        "decoder": decoder.name,
        "arrays": [decoding.TOKENS, decoding.MASK, decoding.POSITIONS],
        "empty": [(past, (1, layout.heads, 0, layout.width), layout.dtype) for past in layout.past],
        "logits": decoding.LOGITS,
        "present": layout.present,
        "largest_length": language.largest_length,
        "end_ids": language.end_ids,
    }
    triton_config.check(config)
    write_text(folder / name / "config.pbtxt", config)
    triton_program.write(place, "triton_text_model.py", settings)
    shutil.copyfile(str(language.tokenizer), place / "tokenizer.json")
