"""OpenAI's own client against variants of a tiny LLaMA: the same tokens as `generate`, streamed or whole, many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from tiny_llama import build

from workbench import llm
from workbench.errors import BackendMissing, Cancelled, DataError, EngineError, RunError
from workbench.llm import batching, endpoint
from workbench.llm.batching import Batcher, Request
from workbench.llm.sampling import Sampling

PROMPT = "w5 w9 w2"


@pytest.fixture(scope="module")
def served(language, engine, store) -> Iterator[llm.Endpoint]:
    engines = {"fp32": engine, "int8-dynamic": build(language, store, "int8-dynamic")}
    with llm.Endpoint(language, engines, token="secret", slots=3, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(served: llm.Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="secret", max_retries=0)


def generated(language, engine, prompt: str, count: int) -> str:
    with llm.open_decoder(engine, 1) as decoder:
        return llm.generate(language, decoder, [prompt], new_tokens=count).texts[0]


def test_models_are_listed(client) -> None:
    assert [model.id for model in client.models.list()] == ["fp32", "int8-dynamic"]


@pytest.mark.parametrize("count", [1, 12])
def test_an_answer_is_what_generate_gives(client, language, engine, count: int) -> None:
    found = client.completions.create(model="fp32", prompt=PROMPT, max_tokens=count, temperature=0)
    assert found.choices[0].text == generated(language, engine, PROMPT, count)
    assert found.usage.prompt_tokens == 3 and found.usage.completion_tokens <= count
    assert found.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_answer_comes_in_pieces_and_is_the_same(client, language, engine) -> None:
    pieces = list(client.completions.create(model="fp32", prompt=PROMPT, max_tokens=12, temperature=0, stream=True))
    assert len(pieces) > 3
    assert "".join(piece.choices[0].text for piece in pieces) == generated(language, engine, PROMPT, 12)
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_a_chat_joins_its_messages_where_the_model_has_no_template(client, language, engine) -> None:
    messages = [{"role": "system", "content": "w5 w9"}, {"role": "user", "content": "w2"}]
    whole = client.chat.completions.create(model="fp32", messages=messages, max_tokens=8, temperature=0)
    assert whole.choices[0].message.content == generated(language, engine, "w5 w9\nw2", 8)
    stream = client.chat.completions.create(model="fp32", messages=messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in stream) == whole.choices[0].message.content


def test_many_at_once_are_batched_and_each_gets_its_own_answer(client, language, engine) -> None:
    prompts = [f"w{2 + index} w{20 + index}" for index in range(9)]

    def ask(prompt: str) -> str:
        return client.completions.create(model="fp32", prompt=prompt, max_tokens=10, temperature=0).choices[0].text

    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(ask, prompts)) == [generated(language, engine, prompt, 10) for prompt in prompts]


def test_drawing_is_repeated_with_the_same_seed_and_differs_with_another(client) -> None:
    def draw(seed: int) -> str:
        options = {"model": "fp32", "prompt": PROMPT, "max_tokens": 16, "temperature": 1.5, "top_p": 0.95, "seed": seed}
        return client.completions.create(**options).choices[0].text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_a_stop_text_ends_the_answer_and_is_not_sent(client, language, engine) -> None:
    whole = generated(language, engine, PROMPT, 12)
    words = whole.split()
    stop = next(word for word in words[1:] if whole.index(word) > 0)
    expected = whole[: whole.index(stop)]
    found = client.completions.create(model="fp32", prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected, "stop")
    stream = client.completions.create(
        model="fp32", prompt=PROMPT, max_tokens=12, temperature=0, stop=stop, stream=True
    )
    assert "".join(piece.choices[0].text for piece in stream) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "fp23"}, "no model 'fp23'.*fp32"),
        ({"prompt": ""}, "empty"),
        ({"prompt": ["a", "b"]}, "one text"),
        ({"max_tokens": 500}, "500 new"),
        ({"max_tokens": 0}, "at least 1"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 3, "temperature": 1}, "top_p"),
        ({"n": 2}, "Not done here: n"),
        ({"logprobs": 5}, "Not done here: logprobs"),
        ({"stop": [""]}, "stop must be"),
        ({"max_tokens": "many"}, "must be a number"),
    ],
)
def test_what_cannot_be_answered_is_said(client, changes, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(**{"model": "fp32", "prompt": PROMPT, "max_tokens": 4, **changes})


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["w2"], None])
def test_messages_of_another_form_are_refused(served, messages) -> None:
    answer = httpx.post(
        f"{served.url}/chat/completions",
        json={"model": "fp32", "messages": messages},
        headers={"Authorization": "Bearer secret"},
    )
    assert answer.status_code == 400 and "messages" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"no json", b"[1]", b"[" * 100_000, b'{"prompt": "' + b"w2 " * 2_000_000 + b'"}'])
def test_any_bytes_are_answered_with_an_error(served, content: bytes) -> None:
    answer = httpx.post(f"{served.url}/completions", content=content, headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_without_the_token_nothing_is_told(served) -> None:
    for key in ("", "Bearer wrong", "Bearer secretly", "Bearer sécret".encode()):
        assert httpx.get(f"{served.url}/models", headers={"Authorization": key}).status_code == 401
    with pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
        openai.OpenAI(base_url=served.url, api_key="other", max_retries=0).chat.completions.create(
            model="fp32", messages=[]
        )


def test_a_chat_template_of_the_model_is_rendered_and_its_refusal_told(language, tmp_path: Path) -> None:
    own = replace(language, folder=str(tmp_path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"}')
    from workbench.llm.openai_format import _chat_prompt

    messages = [{"role": "user", "content": "w2"}]
    assert _chat_prompt(messages, own) == "user:w2;"
    config.write_text('{"chat_template": "{{ messages[0].__class__.__mro__ }}"}')
    with pytest.raises(DataError, match="chat template refuses"):
        _chat_prompt(messages, own)
    for text in ("no json", "[]", '{"chat_template": 5}'):
        config.write_text(text)
        assert _chat_prompt(messages, own) == "w2"


def test_a_client_that_leaves_gives_its_slot_to_the_next(client) -> None:
    for _ in range(6):  # more than there are slots
        with client.completions.create(
            model="fp32", prompt=PROMPT, max_tokens=100, temperature=0, stream=True
        ) as stream:
            next(iter(stream))
    assert (
        client.completions.create(model="fp32", prompt=PROMPT, max_tokens=2, temperature=0).choices[0].text is not None
    )


def request(ids: tuple[int, ...], heard: list, count: int = 4) -> Request:
    return Request(ids, count, Sampling(), frozenset(), heard.append, heard.append)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_an_engine_that_fails_is_told_to_its_batch_and_the_next_request_is_answered(engine, monkeypatch) -> None:
    real, failed, heard, after = batching.choose, threading.Event(), [], []

    def choose(*arguments):
        if not failed.is_set():
            failed.set()
            raise RunError("The logits are NaN.")
        return real(*arguments)

    monkeypatch.setattr(batching, "choose", choose)
    with Batcher(engine, threads=1) as batcher:
        batcher.submit(request((2, 3), heard))
        until(lambda: heard)
        assert isinstance(heard[0], RunError)
        batcher.submit(request((2, 3), after))
        until(lambda: after and after[-1] == "length")
    assert len(after) == 5


def test_closing_tells_those_who_wait_and_takes_no_more(engine) -> None:
    heard: list = []
    batcher = Batcher(engine, slots=1, threads=1)
    for _ in range(3):
        batcher.submit(request((2, 3), heard, count=120))
    batcher.close()
    assert sum(isinstance(item, Cancelled) for item in heard) >= 2
    with pytest.raises(Cancelled, match="shutting down"):
        batcher.submit(request((2, 3), heard))


def test_nothing_to_serve_a_port_that_is_taken_and_absent_packages_are_named(
    language, engine, served, monkeypatch
) -> None:
    with pytest.raises(EngineError, match="no engine to serve"):
        llm.Endpoint(language, {})
    with pytest.raises(DataError, match=r"Port \d+ cannot be taken"):
        llm.Endpoint(language, {"fp32": engine}, port=int(served.url.split(":")[2].split("/")[0]))
    with pytest.raises(DataError, match="without a tokenizer"):
        llm.Endpoint(replace(language, tokenizer=None), {"fp32": engine})

    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(endpoint.importlib, "import_module", absent)
    opened = llm.Endpoint(language, {"fp32": engine})
    with pytest.raises(BackendMissing, match=r"trt-workbench\[serve\]"):
        opened.__enter__()
    opened.__exit__()
