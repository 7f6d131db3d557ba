"""A model for Triton's python backend that continues a text: tokenizer, a decoder on the same server, and back to text.

Copied as it is into a model repository, as `model.py`, with `triton_tensors.py`, `tokenizer.json` and `served.json`. It calls
the decoder step by step (business logic scripting); its keys and values stay the server's tensors and only logits are
read. It needs numpy and tokenizers on the server and nothing of the workbench.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_tensors import exchange, renamed


class TritonPythonModel:
    """One instance of the model, as the server makes it; it answers one request after the other."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the tokenizer; the server calls this once, before any request.

        Args:
            args: from the server; `model_repository` is the model's folder.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        self.settings: dict[str, Any] = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        self.tokenizer: Any = importlib.import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.read, self.written = exchange()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, one response each in their order."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        try:
            prompt, asked = (
                self.read(pb_utils.get_input_tensor_by_name(request, name)) for name in ("text", "new_tokens")
            )
            tokens = self._generated(self._tokens(prompt.tobytes(), int(asked[0])), int(asked[0]))
            answer = np.frombuffer(self.tokenizer.decode(tokens).encode(), np.uint8).copy()
            return pb_utils.InferenceResponse(output_tensors=[self.written("answer", answer)])
        except Exception as error:  # noqa: BLE001 - whatever went wrong goes to the client; the server lives on
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))

    def _tokens(self, prompt: bytes, new_tokens: int) -> list[int]:
        """Return the prompt's token ids.

        Raises:
            ValueError: it is empty, is no text, or needs more tokens than the model takes.
        """
        try:
            found: list[int] = self.tokenizer.encode(prompt.decode()).ids
        except UnicodeDecodeError as error:
            raise ValueError(f"text is not UTF-8: {error}") from error
        most = self.settings["largest_length"]
        if not found:
            raise ValueError("text is empty: there is nothing to continue. Send at least one token of text.")
        if new_tokens < 1:
            raise ValueError(f"new_tokens is {new_tokens}; ask for at least 1.")
        if len(found) + new_tokens > most:
            raise ValueError(
                f"text of {len(found)} tokens with {new_tokens} new ones needs {len(found) + new_tokens} tokens; this model "
                f"takes {most} at most. Shorten the text or ask for fewer new tokens."
            )
        return found

    def _generated(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Return the most probable continuation, with the token that ended it."""
        past = [self.written(name, np.zeros(shape, dtype)) for name, shape, dtype in self.settings["empty"]]
        fed, length, found = np.array([prompt], np.int64), 0, []
        while True:
            start, length = length, length + fed.shape[1]
            arrays = (fed, np.ones((1, length), np.int64), np.arange(start, length, dtype=np.int64)[None])
            named = zip(self.settings["arrays"], arrays, strict=True)
            logits, past = self._step([*(self.written(name, array) for name, array in named), *past])
            if not np.isfinite(logits).all():
                raise ValueError("The logits are NaN or infinite, so no token can be chosen: the variant overflows.")
            found.append(int(logits.argmax()))
            if found[-1] in self.settings["end_ids"] or len(found) == new_tokens:
                return found
            fed = np.array([[found[-1]]], np.int64)

    def _step(self, inputs: list[Any]) -> tuple[np.ndarray, list[Any]]:
        """Call the decoder once; return the last token's logits, and keys and values as the next call takes them."""
        logits, present = self.settings["logits"], self.settings["present"]
        called = pb_utils.InferenceRequest(
            model_name=self.settings["decoder"], requested_output_names=[logits, *present], inputs=inputs
        ).exec()
        if called.has_error():
            raise RuntimeError(called.error().message())
        tensors = {tensor.name(): tensor for tensor in called.output_tensors()}
        past = [renamed(tensors[name], empty[0]) for name, empty in zip(present, self.settings["empty"], strict=True)]
        return self.read(tensors[logits])[0, -1].astype(np.float32), past
