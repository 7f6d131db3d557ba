"""An OpenAI-compatible endpoint in front of variants of a language model, to be tried by hand or by any load generator.

`/v1/models`, `/v1/completions` and `/v1/chat/completions`, streamed or whole, on this machine alone and behind a token. Each
variant has a `Batcher`, over a cache that grows or over slots of a fixed length, opened when it is first asked for. Needs
starlette and uvicorn (the extra `serve`).
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines.slot_decoding import check_engines
from workbench.errors import BackendMissing, DataError, EngineError, WorkbenchError, nearest
from workbench.llm.batching import Batcher
from workbench.llm.loading import LanguageModel
from workbench.llm.openai_format import Answer, Asked, problem
from workbench.records import Engine

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

_LARGEST_BODY = 1 << 22


class Endpoint:
    """Variants of one language model behind one address; a context manager that starts and stops the server.

    Args:
        language: from `workbench.llm.load`, or for slots from `load_slots` or `open_slot_folder`.
        engines: name, under which clients ask for it -> engine of a variant of this model, or for slots its prefills and
            steps (`build_slots`).
        port: 0 takes a free one.
        token: what clients must send; None makes one.
        slots: requests that one variant answers at a time; None takes as many as its steps were exported for, else 8.

    Attributes:
        url: such as `http://127.0.0.1:8000/v1`, what clients take as base URL.

    Raises:
        BackendMissing: starlette or uvicorn is not installed.
        EngineError: there are no engines, or prefills and steps do not belong together.
        DataError: the model has no tokenizer, or the port is taken.
    """

    def __init__(
        self,
        language: LanguageModel,
        engines: Mapping[str, Engine | Sequence[Engine]],
        *,
        port: int = 0,
        token: str | None = None,
        slots: int | None = None,
        threads: int | None = None,
    ) -> None:
        if not engines:
            raise EngineError("There is no engine to serve. Pass {name: engine}, such as those of a study's variants.")
        for engine in engines.values():
            if not isinstance(engine, Engine):
                check_engines(engine)
        self.language, self.engines = language, dict(engines)
        language.encode(" ")  # says what to do where there is no tokenizer
        self.token = token or secrets.token_urlsafe(24)
        self.slots, self.threads = slots, threads
        self._batchers: dict[str, Batcher] = {}
        self._lock = threading.Lock()
        self._socket = _bound(port)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Endpoint:
        uvicorn = _imported("uvicorn")
        config = uvicorn.Config(self.app(), log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="endpoint", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            batchers = list(self._batchers.values())
        for batcher in batchers:  # first: answers under way end, and the server need not wait for them
            batcher.close()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()

    def wait(self) -> None:
        """Serve until the server ends or the caller is interrupted."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.2)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        _imported("starlette")
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def batcher(self, name: str) -> Batcher:
        """Return what answers for a variant, opened when it is first asked for.

        Raises:
            DataError: no variant has that name; EngineError: it cannot be opened.
        """
        if name not in self.engines:
            raise DataError(f"There is no model {name[:80]!r} here. {nearest(name[:80], self.engines)}")
        with self._lock:
            if name not in self._batchers:
                self._batchers[name] = Batcher(self.engines[name], self.slots, self.threads)
            return self._batchers[name]

    async def _models(self, http: HttpRequest) -> Response:
        if refusal := self._refused(http):
            return refusal
        found = [{"id": name, "object": "model", "created": 0, "owned_by": "workbench"} for name in self.engines]
        return _json({"object": "list", "data": found})

    async def _completions(self, http: HttpRequest) -> Response:
        return await self._answered(http, chat=False)

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._answered(http, chat=True)

    async def _answered(self, http: HttpRequest, *, chat: bool) -> Response:
        from starlette.responses import StreamingResponse

        if refusal := self._refused(http):
            return refusal
        try:
            asked = Asked.read(await _body(http), self.language, chat=chat)
            batcher = await asyncio.to_thread(self.batcher, asked.model)
            answer = Answer(asked, self.language, asyncio.get_running_loop())
            batcher.submit(answer.request)
        except WorkbenchError as error:
            return _error(str(error), 400 if isinstance(error, DataError) else 503)
        if asked.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        try:
            return _json(await answer.whole(http))
        except WorkbenchError as error:
            return _error(str(error), 500)

    def _refused(self, http: HttpRequest) -> Response | None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if hmac.compare_digest(given.encode(), self.token.encode()):
            return None
        return _error("The token is missing or wrong. Pass the one that was printed at the start as API key.", 401)


async def _body(http: HttpRequest) -> dict[str, Any]:
    content = b""
    async for part in http.stream():
        content += part
        if len(content) > _LARGEST_BODY:
            raise DataError(f"The request has more than {_LARGEST_BODY} bytes.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The request is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError("The request must be a JSON object.")
    return found


def _json(content: dict[str, Any]) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(content)


def _error(words: str, status: int) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": problem(words)}, status_code=status)


def _bound(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        found.close()
        raise DataError(
            f"Port {port} cannot be taken: {str(error).rstrip('.')}. Pass another, or 0 for any that is free."
        ) from error
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendMissing(
            f'Serving needs {name}, which is not installed. Run: pip install "trt-workbench[serve]"'
        ) from error
