"""The real server, its python backend and its client: answers are the runner's bit for bit, batches are formed.

Skipped where the package with the server is missing; nothing here looks at times.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from triton_server import MISSING, WHY, serving

import workbench as wb
from workbench import llm

pytestmark = [pytest.mark.triton, pytest.mark.skipif(bool(MISSING), reason=WHY)]
QUICK = wb.Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


def ask(host: str, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    import tritonclient.http as http

    types = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
    with http.InferenceServerClient(host) as client:
        sent = [http.InferInput(key, list(value.shape), types[value.dtype.name]) for key, value in feeds.items()]
        for one, value in zip(sent, feeds.values(), strict=True):
            one.set_data_from_numpy(value)
        reply = client.infer(name, sent)
        return {item["name"]: reply.as_numpy(item["name"]) for item in reply.get_response()["outputs"]}


def statistics(host: str, name: str) -> dict:
    import tritonclient.http as http

    with http.InferenceServerClient(host) as client:
        return client.get_inference_statistics(name)["model_stats"][0]


def test_answers_are_those_of_the_runner_and_requests_are_gathered(
    study: wb.Study, data, model, tmp_path: Path
) -> None:
    made = study.deploy("int8-max", tmp_path / "repository", at_most_seconds=10.0, backend="python")
    x = data.bound_to(model).evaluation.inputs["x"]
    with serving(tmp_path / "repository", tmp_path) as host, wb.open_runner(study["int8-max"].engine) as runner:
        for size in (1, 2, 4):
            expected = runner.infer({"x": x[:size]})
            answered = ask(host, made.name, x=x[:size])
            assert answered["logits"].tobytes() == expected["logits"].tobytes()
            assert answered["best"].shape == (size, 1)
            assert answered["best"].tobytes() == expected["best"].tobytes()
        before = statistics(host, made.name)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda index: ask(host, made.name, x=x[index : index + 1]), range(32)))
        after = statistics(host, made.name)
        for index, answer in enumerate(answers):
            # Integer kernels add exactly, so that a sample's answer does not depend on its company.
            assert answer["best"].ravel() == runner.infer({"x": x[index : index + 1]})["best"]
    answered_count = after["inference_count"] - before["inference_count"]
    assert answered_count == 32
    assert after["execution_count"] - before["execution_count"] < answered_count, "no two requests shared a call"


def test_a_request_at_fault_gets_the_error_alone(store, tmp_path: Path) -> None:
    import onnx
    import tritonclient.utils

    text = '<ir_version: 8, opset_import: ["" : 17]> g (int64[N,S] ids) => (float[N,S,4] y) {y = Gather(table, ids)}'
    proto = onnx.parser.parse_model(text)
    table = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    model = wb.load(proto, name="lookup", store=store)
    data = wb.datasets.arrays({"ids": np.arange(24).reshape(8, 3) % 10})
    options = {"store": store, "progress": None, "backend": "onnxruntime-cpu", "protocol": QUICK}
    study = wb.run(model, data, ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository", at_most_seconds=10.0, backend="python")
    with serving(tmp_path / "repository", tmp_path) as host:

        def answer(index: int) -> np.ndarray | str:
            ids = np.array([[index, 1, 2]] if index % 4 else [[99, 1, 2]])
            try:
                return ask(host, made.name, ids=ids)["y"]
            except tritonclient.utils.InferenceServerException as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(answer, range(8)))
        assert np.array_equal(ask(host, made.name, ids=np.array([[7, 1]]))["y"], table[[[7, 1]]])
    for index, found in enumerate(answers):
        if index % 4:
            assert np.array_equal(found, table[[[index, 1, 2]]])
        else:
            assert isinstance(found, str) and "idx=99" in found


def test_an_engine_that_needs_the_workbench_is_served_too(model, data, store, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = {"store": store, "progress": None, "backend": "openvino", "protocol": QUICK}
    study = wb.run(model, data, ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository")
    x = data.bound_to(model).evaluation.inputs["x"][:4]
    with serving(tmp_path / "repository", tmp_path) as host, wb.open_runner(study["fp32"].engine) as runner:
        assert ask(host, made.name, x=x)["logits"].tobytes() == runner.infer({"x": x})["logits"].tobytes()


def test_a_provider_that_the_server_lacks_is_an_error_and_not_another_speed(study: wb.Study, tmp_path: Path) -> None:
    made = study.deploy("fp32", tmp_path / "repository", backend="python")
    settings = tmp_path / "repository" / made.name / "1" / "served.json"
    settings.write_text(
        settings.read_text().replace('"CPUExecutionProvider"', '"CUDAExecutionProvider", "CPUExecutionProvider"')
    )
    with (
        pytest.raises(AssertionError, match="cannot use CUDAExecutionProvider"),
        serving(tmp_path / "repository", tmp_path),
    ):
        pass


def test_a_language_model_takes_text_and_gives_the_text_that_the_runner_gives(
    text_study: wb.Study, language: llm.LanguageModel, tmp_path: Path
) -> None:
    import tritonclient.utils

    made = text_study.deploy("fp32", tmp_path / "repository", backend="python", name="llama", language=language)
    prompts = ["class Stack:\n    def __init__(self", "import ", "# Grüße\n"]
    with llm.open_decoder(text_study["fp32"].engine) as decoder:
        # One by one, as the server does: in a batch FP32 sums in another order.
        expected = [llm.generate(language, decoder, [prompt], new_tokens=24).texts[0] for prompt in prompts]
    with serving(tmp_path / "repository", tmp_path) as host:

        def continued(text: bytes, new_tokens: int = 24) -> str:
            sent = {"text": np.frombuffer(text, np.uint8), "new_tokens": np.array([new_tokens])}
            return ask(host, made.name, **sent)["answer"].tobytes().decode()

        assert [continued(prompt.encode()) for prompt in prompts] == expected
        for text, new_tokens, words in (
            (b"", 4, "text is empty"),
            (b"import " * 2000, 4, "at most. Shorten the text"),
        ):
            with pytest.raises(tritonclient.utils.InferenceServerException, match=words):
                continued(text, new_tokens)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda prompt: continued(prompt.encode()), prompts)) == expected
