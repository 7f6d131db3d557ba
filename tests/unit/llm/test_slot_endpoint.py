"""OpenAI's own client against slots of a fixed length: the text of the plain runner, streamed or whole, many at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from tiny_llama import save_tiny_llama

from workbench import datasets, llm
from workbench.__main__ import main
from workbench.errors import Cancelled, EngineError, LoadError, RecipeError, RunError
from workbench.llm import GraphSize, batching
from workbench.llm.batching import Batcher, Request
from workbench.llm.sampling import Sampling
from workbench.llm.slot_loading import write_slots

# Two lengths of the cache, so that it grows while answers are under way; three slots for more requests than that.
SIZES = [GraphSize("prefill", 1, 8), GraphSize("prefill", 2, 12), GraphSize("step", 3, 16), GraphSize("step", 3, 32)]


@pytest.fixture(scope="module")
def fixed(folder, store) -> llm.SlotModel:
    # No token ends an answer, so that all are as long as asked for and the cache has to grow.
    return replace(llm.load_slots(folder, SIZES, store=store), end_ids=())


@pytest.fixture(scope="module")
def served(fixed, slot_engines, store) -> Iterator[llm.Endpoint]:
    kinds = {"fixed": llm.build_slots(fixed, store=store), "free": slot_engines}
    kinds["int8"] = llm.build_slots(fixed, "int8-weights", store=store)
    with llm.Endpoint(fixed, kinds, token="secret", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(served: llm.Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="secret", max_retries=0)


def generated(language, engine, prompt: str, count: int, stop: tuple[int, ...] | None = ()) -> str:
    """The answer of the runner whose cache grows: another graph, and another way of keeping the past."""
    with llm.open_decoder(engine, 1) as decoder:
        return llm.generate(language, decoder, [prompt], new_tokens=count, stop=stop).texts[0]


@pytest.mark.parametrize("model", ["fixed", "free"])
@pytest.mark.parametrize("count", [1, 20])
def test_an_answer_is_the_plain_runners_whole_and_streamed(client, language, engine, model: str, count: int) -> None:
    asked = {"model": model, "prompt": "w5 w9 w2", "max_tokens": count, "temperature": 0}
    wanted = generated(language, engine, "w5 w9 w2", count)
    assert client.completions.create(**asked).choices[0].text == wanted
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == wanted
    assert len(pieces) > count // 2  # as tokens come, and not at the end


@pytest.mark.parametrize("model", ["fixed", "free"])
def test_many_streams_at_once_share_the_slots_and_each_gets_its_own_answer(client, language, engine, model) -> None:
    prompts = [f"w{2 + index} " * (1 + index) + "w40" for index in range(10)]
    counts = [6 + 2 * (index % 5) for index in range(10)]

    def ask(prompt: str, count: int) -> str:
        asked = {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}
        return "".join(piece.choices[0].text for piece in client.completions.create(**asked))

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, prompts, counts))
    assert found == [generated(language, engine, *pair) for pair in zip(prompts, counts, strict=True)]


def test_a_recipe_without_calibration_is_served_too(client) -> None:
    found = client.completions.create(model="int8", prompt="w5 w9 w2", max_tokens=4, temperature=0)
    assert found.usage.completion_tokens >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_longer_than_the_largest_bucket_is_refused_and_others_are_answered(client, stream: bool) -> None:
    def ask(tokens: int, answer: int):
        prompt = list(range(2, 2 + tokens))
        return client.completions.create(model="fixed", prompt=prompt, max_tokens=answer, temperature=0, stream=stream)

    with pytest.raises(
        openai.BadRequestError, match="prompt has 13 tokens; the longest prefill that is served takes 12"
    ):
        ask(13, 1)
    with pytest.raises(
        openai.BadRequestError, match="needs 33 columns of the cache; the longest that is served has 32"
    ):
        ask(12, 22)
    answered = ask(12, 21)  # the longest that there is room for
    last = list(answered)[-1] if stream else answered
    assert last.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="takes 128 at most"):  # free sizes take what the model takes
        client.completions.create(model="free", prompt="w2", max_tokens=200, temperature=0)


def heard_by(heard: list, ids: tuple[int, ...], count: int = 4) -> Request:
    return Request(ids, count, Sampling(), frozenset(), heard.append, heard.append)


def test_after_an_engine_failed_the_slots_are_free_again(slot_engines, monkeypatch) -> None:
    real, failures = batching.choose, [RunError("The logits are NaN.")]

    def choose(*arguments):
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(batching, "choose", choose)
    first: list = []
    heard: list[list] = [[] for _ in range(3)]
    with Batcher(slot_engines, slots=2, threads=1) as batcher:
        assert batcher.slots == 2
        batcher.submit(heard_by(first, (2, 3)))
        while not first:
            pass
        for index, mine in enumerate(heard):
            batcher.submit(heard_by(mine, (2, 3 + index)))
        while not all(mine and mine[-1] == "length" for mine in heard):
            pass
    assert isinstance(first[0], RunError) and [len(mine) for mine in heard] == [5, 5, 5]
    with pytest.raises(Cancelled):
        batcher.submit(heard_by([], (2,)))


def test_engines_that_do_not_belong_together_and_recipes_with_samples_are_named(fixed, slot_engines) -> None:
    with pytest.raises(EngineError, match="at least one prefill and one step"):
        llm.Endpoint(fixed, {"fp32": slot_engines[:1]})
    with pytest.raises(RecipeError, match="'int8-max' is calibrated on samples"):
        llm.build_slots(fixed, "int8-max")


def test_a_folder_carries_its_tokenizer_and_chat_template(folder, tmp_path: Path) -> None:
    from workbench.llm.loading import causal
    from workbench.models import sources

    source = save_tiny_llama(tmp_path / "source")
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }} w9"}))
    network = causal(sources.transformers_folder(source), source)
    sizes = [GraphSize("prefill"), GraphSize("step")]
    write_slots(network, sizes, tmp_path / "slots", tokenizer=source)
    opened = llm.open_slot_folder((tmp_path / "slots").rename(tmp_path / "elsewhere"))
    assert opened.encode("w5 w9") == (5, 9)
    from workbench.llm.openai_format import _chat_prompt

    assert _chat_prompt([{"role": "user", "content": "w5"}], opened) == "w5 w9"
    (tmp_path / "elsewhere" / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"tokenizer.json is missing or not what"):
        llm.open_slot_folder(tmp_path / "elsewhere")
    with pytest.raises(LoadError, match="There is no tokenizer at"):
        write_slots(network, sizes, tmp_path / "other", tokenizer=tmp_path / "nowhere")
    write_slots(network, sizes, tmp_path / "without")
    assert llm.open_slot_folder(tmp_path / "without").tokenizer is None


def kept(model: llm.SlotModel) -> str:
    return str(Path(model.model.path).parent)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Texts that the command's server gave for one request, before it was interrupted."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    found: list[str] = []

    def wait(endpoint: llm.Endpoint) -> None:
        body = {"model": "fp32", "prompt": "w5 w9 w2", "max_tokens": 6, "temperature": 0}
        headers = {"Authorization": f"Bearer {endpoint.token}"}
        answer = httpx.post(f"{endpoint.url}/completions", json=body, headers=headers, timeout=60)
        found.append(answer.json()["choices"][0]["text"])
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.Endpoint, "wait", wait)
    return found


def test_the_command_serves_a_folder_of_graphs_or_a_language_model(folder, fixed, language, engine, answers) -> None:
    assert main(["serve", kept(fixed), "fp32"]) == 130
    assert main(["serve", str(folder), "fp32", "--slots", "2", "--columns", "16", "32"]) == 130
    assert main(["serve", str(folder), "fp32", "--slots", "2"]) == 130
    assert answers == [generated(language, engine, "w5 w9 w2", 6, stop=None)] * 3


def test_the_command_keeps_the_cache_in_8_bits(folder, fixed, answers, tmp_path, monkeypatch) -> None:
    text = tmp_path / "read.txt"
    text.write_text(" ".join(f"w{index * index % 40}" for index in range(3000)))
    loaded: list[llm.SlotModel] = []
    load = llm.load_slots
    monkeypatch.setattr(llm, "load_slots", lambda *given, **named: loaded.append(load(*given, **named)) or loaded[-1])
    assert main(["serve", str(folder), "fp32", "--slots", "2", "--cache", "int8", "--data", str(text)]) == 130
    samples = datasets.text(text, folder).evaluation.inputs["input_ids"]
    model = load(folder, cache="int8", samples=samples)
    assert loaded[0].cache == model.cache and model.cache.token_bytes == fixed.cache.token_bytes // 4
    with llm.Endpoint(model, {"fp32": llm.build_slots(model)}, slots=2) as endpoint, pytest.raises(KeyboardInterrupt):
        endpoint.wait()
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["STUDY", "fp32", "--columns", "16"], "--columns, --cache and --backend are for slots"),
        (["STUDY", "fp32", "--backend", "onnxruntime-cpu"], "--columns, --cache and --backend are for slots"),
        (["STUDY", "fp32", "--cache", "int8"], "--columns, --cache and --backend are for slots"),
        (
            ["STUDY", "fp32", "--data", "stdlib_text"],
            "--columns, --cache and --backend are for slots, and --data is for --cache",
        ),
        (["SLOTS", "fp32", "--columns", "16"], "has graphs already"),
        (["SLOTS", "fp32", "--data", "stdlib_text"], "has graphs already"),
        (["SLOTS", "fp32", "--cache", "fp8"], "has graphs already"),
        (["stdlib_llama", "fp32", "--slots", "2", "--cache", "fp8"], "--cache and --data go together"),
        (["stdlib_llama", "fp32", "--slots", "2", "--data", "stdlib_text"], "--cache and --data go together"),
        (["stdlib_llama", "fp32", "--slots", "2", "--cache", "int8", "--data", "digits"], "token ids (N, T)"),
        (["SLOTS", "fp32", "--model", "elsewhere"], "--model is for studies"),
        (["SLOTS", "int8-max"], "is calibrated on samples"),
        (["stdlib_llama", "fp33", "--slots", "2"], "There is no recipe 'fp33'"),
    ],
)
def test_options_that_do_not_go_together_are_named(fixed, arguments, words: str, capsys) -> None:
    given = [kept(fixed) if item == "SLOTS" else item for item in arguments]
    assert main(["serve", *given]) == 1
    assert words in capsys.readouterr().err
