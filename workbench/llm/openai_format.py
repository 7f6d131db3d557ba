"""Requests and answers in OpenAI's format: read and checked, and written token by token. Knows no server.

Format: https://platform.openai.com/docs/api-reference/chat and /completions.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import Cancelled, DataError, WorkbenchError
from workbench.llm.batching import Request
from workbench.llm.generation import prompt_ids
from workbench.llm.loading import LanguageModel
from workbench.llm.sampling import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest

_NEW_TOKENS = 16  # OpenAI's default of `max_tokens`
_LARGEST_TEMPLATE = 1 << 22
# Asked for by clients, and not done here: said, never ignored.
_UNKNOWN = ("logprobs", "tools", "functions", "logit_bias", "best_of", "echo", "suffix", "response_format")


@dataclass(frozen=True)
class Asked:
    """A request as it was sent, checked."""

    model: str
    ids: tuple[int, ...]
    new_tokens: int
    sampling: Sampling
    stream: bool
    chat: bool
    stop: tuple[str, ...] = ()

    @classmethod
    def read(cls, body: dict[str, Any], language: LanguageModel, *, chat: bool) -> Asked:
        """Read a request's JSON.

        Raises:
            DataError: a field is missing, of another type, beyond the model, or asks for what is not done here.
        """
        wanted = [name for name in _UNKNOWN if body.get(name) not in (None, False, [], {}, 1)]
        if wanted or body.get("n") not in (None, 1):
            raise DataError(f"Not done here: {', '.join(wanted or ['n'])}. Leave it out of the request.")
        new_tokens = _number(body, "max_completion_tokens", _number(body, "max_tokens", _NEW_TOKENS))
        prompt = _chat_prompt(body.get("messages"), language) if chat else body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if not isinstance(prompt, str) and not (
            isinstance(prompt, list) and all(isinstance(item, int) for item in prompt)
        ):
            raise DataError("prompt must be one text, or one list of token ids.")
        stop = body.get("stop") or []
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(item, str) and item for item in stops):
            raise DataError("stop must be a text, or a list of texts.")
        if not isinstance(body.get("model"), str):
            raise DataError("model is missing: the name of a variant, see /v1/models.")
        (ids,) = prompt_ids(language, [prompt], int(new_tokens))
        sampling = _sampling(body)
        return cls(body["model"], ids, int(new_tokens), sampling, bool(body.get("stream")), chat, stops)


class Answer:
    """An answer that grows token by token in the batcher's thread, and is sent from the server's."""

    def __init__(self, asked: Asked, language: LanguageModel, loop: asyncio.AbstractEventLoop) -> None:
        self._asked, self._language, self._loop = asked, language, loop
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._tokens: list[int] = []
        self._sent, self._stopped = "", False
        self.request = Request(
            ids=asked.ids,
            new_tokens=asked.new_tokens,
            sampling=asked.sampling,
            stops=frozenset(language.end_ids),
            on_token=self._tell,
            on_end=self._tell,
        )

    def _tell(self, news: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        except RuntimeError:  # the server is gone, and nobody listens
            self.request.abandoned.set()

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events, one for each piece of text that is complete."""
        try:
            if self._asked.chat:
                yield event(self._piece({"role": "assistant", "content": ""}, None))
            async for text, ending in self._pieces():
                if text:
                    yield event(self._piece({"content": text} if self._asked.chat else text, None))
                if ending is not None:
                    yield event(self._piece({} if self._asked.chat else "", ending))
            yield "data: [DONE]\n\n"
        except WorkbenchError as error:
            yield event({"error": problem(str(error))})
        finally:
            self.request.abandoned.set()  # a client that left gives its slot to the next one

    async def whole(self, http: HttpRequest) -> dict[str, Any]:
        """Return the finished answer.

        Raises:
            WorkbenchError: the engine failed, or the server was stopped.
            Cancelled: the client left.
        """
        parts, ending = [], "length"
        try:
            async for text, end in self._pieces():
                parts.append(text)
                ending = end or ending
                if await http.is_disconnected():
                    raise Cancelled("The client left before its answer was complete.")
        finally:
            self.request.abandoned.set()
        text = "".join(parts)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": ending, **({"message": message} if self._asked.chat else {"text": text})}
        prompt, answer = len(self._asked.ids), len(self._tokens)
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return {**self._head("" if self._asked.chat else None), "choices": [choice], "usage": usage}

    async def _pieces(self) -> AsyncIterator[tuple[str, str | None]]:
        while True:
            news = await self._news.get()
            if isinstance(news, WorkbenchError):
                raise news
            if isinstance(news, str):
                yield self._new_text(last=True), news
                return
            self._tokens.append(news)
            text = self._new_text(last=False)
            yield text, None
            if self._stopped:
                yield "", "stop"
                return

    def _new_text(self, *, last: bool) -> str:
        """Return what may be sent now: nothing of a character that is half there, or of what may become a stop text."""
        text = self._language.decode(self._tokens)
        for stop in self._asked.stop:
            if stop in text:
                text, self._stopped, last = text[: text.index(stop)], True, True
        if not last:
            text = text.rstrip("\ufffd")
            begun = (size for stop in self._asked.stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
            text = text[: len(text) - max(begun, default=0)]
        new, self._sent = text[len(self._sent) :], max(text, self._sent, key=len)
        return new

    def _piece(self, delta: Any, ending: str | None) -> dict[str, Any]:
        content = {"delta": delta} if self._asked.chat else {"text": delta}
        choice = {"index": 0, "finish_reason": ending, **content}
        return {**self._head(".chunk" if self._asked.chat else None), "choices": [choice]}

    def _head(self, chat: str | None) -> dict[str, Any]:
        kind = "text_completion" if chat is None else f"chat.completion{chat}"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}


def _chat_prompt(messages: Any, language: LanguageModel) -> str:
    """Render messages with the model's own chat template; without one the texts follow each other, a line each."""
    if not isinstance(messages, list) or not messages:
        raise DataError("messages must be a list of {role, content}.")
    for item in messages:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("role"), str)
            or not isinstance(item.get("content"), str)
        ):
            raise DataError("Each of messages must be {role: text, content: text}.")
    template = _template(Path(language.folder))
    if template is None:
        return "\n".join(item["content"] for item in messages)
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        return made.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
    except TemplateError as error:
        raise DataError(f"The model's chat template refuses these messages: {error}") from error


def _template(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    if not file.is_file() or file.stat().st_size > _LARGEST_TEMPLATE:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _sampling(body: dict[str, Any]) -> Sampling:
    temperature, top_p = _number(body, "temperature", 0.0), body.get("top_p")
    try:
        return Sampling(
            temperature=float(temperature),
            top_p=None if temperature == 0 or top_p in (None, 1) else float(top_p),
            seed=int(_number(body, "seed", 0)),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"temperature, top_p and seed do not fit: {error}") from error


def _number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{name} is {str(value)[:40]!r}, and must be a number.")
    return value


def problem(words: str) -> dict[str, Any]:
    """Return an error as clients of OpenAI read it."""
    return {"message": words, "type": "invalid_request_error", "param": None, "code": None}


def event(content: dict[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
