"""Files of trtexec and ONNX Runtime become rows that say whose they are; no ratio is made of them.

Files of trtexec, trtllm-bench (bench/dataclasses/reporting.py) and Olive (its documents) are written here in their form;
those of ONNX Runtime and polygraphy are real.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import codec
from workbench.errors import DataError

OF_10 = {"startEnqMs": 1, "endEnqMs": 1.1, "startH2dMs": 1, "endH2dMs": 1.5, "startComputeMs": 1.5, "endComputeMs": 2.75,
         "startD2hMs": 2.75, "endD2hMs": 3, "h2dMs": 0.5, "computeMs": 1.25, "d2hMs": 0.25, "latencyMs": 2}  # fmt: skip
OF_7 = {"startInMs": 1, "endInMs": 1.5, "startComputeMs": 1.5, "endComputeMs": 2.75, "startOutMs": 2.75, "endOutMs": 3,
        "inMs": 0.5, "computeMs": 1.25, "outMs": 0.25, "latencyMs": 2, "endToEndMs": 2}  # fmt: skip


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("entry", [OF_10, OF_7])
def test_times_of_trtexec_are_those_of_the_gpu(tmp_path: Path, entry: dict) -> None:
    found = wb.read_foreign(written(tmp_path / "times.json", [entry, {**entry, "computeMs": 3.25}]))
    assert found.tool == "trtexec times" and found.latencies_seconds == pytest.approx((0.00125, 0.00325), rel=1e-12)
    row = wb.foreign_rows(found).iloc[0]
    assert row["Variant"] == "times.json (foreign)" and row["Latency (ms)"] == pytest.approx(2.25)
    assert row["p99 (ms)"] is None and "no ratio" in row["Notes"]


def test_a_percentile_needs_as_many_calls_as_in_a_study(tmp_path: Path) -> None:
    entries = [{**OF_10, "computeMs": 1 + index / 1000} for index in range(662)]
    row = wb.foreign_rows([wb.read_foreign(written(tmp_path / "t.json", entries))]).iloc[0]
    assert row["p99 (ms)"] == pytest.approx(1 + 0.99 * 0.661)


@pytest.mark.parametrize(("middle", "words"), [({"medianMs": 0.5}, "medians"), ({}, "means")])
def test_a_profile_of_trtexec_has_layers_and_no_latency(tmp_path: Path, middle: dict, words: str) -> None:
    entry = {"name": "conv + relu", "timeMs": 60, "averageMs": 0.6, "percentage": 75, **middle}
    other = {"name": "fc", "timeMs": 90, "averageMs": 0.9, "percentage": 25}
    found = wb.read_foreign(written(tmp_path / "p.json", [{"count": 100}, entry, other]))
    assert [layer.seconds for layer in found.layers] == pytest.approx([0.0005 if middle else 0.0006, 0.0009])
    assert words in found.notes[0] and not found.latencies_seconds
    table = found.table()
    assert list(table["Layer"]) == ["fc", "conv + relu"] and table["Share"].sum() == pytest.approx(1)
    assert wb.foreign_rows(found).iloc[0]["Latency (ms)"] is None


def test_a_real_trace_of_onnx_runtime_is_read(study: wb.Study, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    session = onnxruntime.InferenceSession(study["fp32"].engine.path, options, providers=["CPUExecutionProvider"])
    for _ in range(7):
        session.run(None, {"x": np.ones((4, 8), np.float32)})
    found = wb.read_foreign(session.end_profiling())
    assert found.tool == "ONNX Runtime profile" and len(found.latencies_seconds) == 7
    assert "ArgMax" in {layer.operator for layer in found.layers}
    assert all(layer.seconds >= 0 for layer in found.layers)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Cannot read .* as JSON"),
        ("[" * 100_000, "Cannot read .* as JSON"),
        ({"a": 1}, "of no known form"),
        ([], "of no known form"),
        ([1], "of no known form"),
        ([{"a": 1}], "of no known form"),
        ([{"computeMs": "fast"}], "an entry is damaged .'fast' is no time"),
        ([{"computeMs": -1}], "-1 is no time"),
        ([{"computeMs": 1}, {}], "an entry is damaged"),
        ([{"count": 1}, {"name": "x", "averageMs": True}], "True is no time"),
        ([{"cat": "Session", "name": "model_run"}], "an entry is damaged"),
        ("[{\"computeMs\": NaN}]", "nan is no time"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_one_sentence(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        wb.read_foreign(written(tmp_path / "x.json", content))


def test_wrong_arguments_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="read_foreign takes the path"):
        wb.read_foreign(5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Cannot read"):
        wb.read_foreign(tmp_path / "none.json")
    with pytest.raises(DataError, match="foreign_rows takes what read_foreign returned"):
        wb.foreign_rows([5])  # type: ignore[list-item]
    monkeypatch.setattr(codec, "LARGEST_FILE_BYTES", 1)
    with pytest.raises(DataError, match="at most 1 are read"):
        wb.read_foreign(written(tmp_path / "x.json", [OF_10]))


REAL = Path(__file__).parents[2] / "data" / "polygraphy_0.53.6_onnxrt.json"


def test_calls_of_polygraphy_are_read_runner_by_runner() -> None:
    found = wb.read_foreign(REAL)
    assert [part.source for part in found.parts] == ["polygraphy_0.53.6_onnxrt.json: onnxrt-runner"]
    told = [call["runtime"] for call in json.loads(REAL.read_text())["lst"][0][1]]
    assert found.parts[0].latencies_seconds == tuple(told) and len(told) == 5
    (row,) = wb.foreign_rows(found).to_dict("records")
    assert row["Latency (ms)"] == pytest.approx(1e3 * float(np.median(told))) and "first ones" in row["Notes"]


def test_olives_footprint_is_a_row_a_model_with_its_own_figures(tmp_path: Path) -> None:
    nodes = {
        "1": {"model_id": "1", "from_pass": None, "metrics": None},
        "2": {"model_id": "2", "from_pass": "OnnxQuantization", "metrics": {
            "value": {"accuracy-top1": {"value": 0.86, "priority": 1, "higher_is_better": True}, "latency-avg": 87.4},
        }},
    }  # fmt: skip
    rows = wb.foreign_rows(wb.read_foreign(written(tmp_path / "footprint.json", nodes))).to_dict("records")
    assert [row["Variant"] for row in rows] == [
        "footprint.json: input model (foreign)", "footprint.json: OnnxQuantization (foreign)",
    ]  # fmt: skip
    assert rows[1]["Its own figures"] == "accuracy-top1 0.86, latency-avg 87.4" and rows[0]["Its own figures"] == ""


BENCH = {
    "engine": {"model": "llama", "version": "1.2.0", "backend": "Pytorch", "dtype": "float16", "quantization": "FP8"},
    "machine": {"name": "NVIDIA H100"}, "request_info": {"num_requests": 256},
    "performance": {
        "request_throughput_req_s": 120.5, "system_output_throughput_tok_s": 3856.0,
        "request_latency_percentiles_ms": {"p50": 210.0, "p99": 480.0, "minimum": 100.0},
    },
    "streaming_metrics": {"avg_ttft_ms": 30.0, "avg_tpot_ms": 5.5},
}  # fmt: skip


def test_a_benchmark_of_tensorrt_llm_says_model_machine_and_form(tmp_path: Path) -> None:
    (row,) = wb.foreign_rows(wb.read_foreign(written(tmp_path / "b.json", BENCH))).to_dict("records")
    assert row["Its own figures"].startswith(
        "requests/s 120.5, output tokens/s 3856, request p50 (ms) 210, request p99 (ms) 480"
    )
    assert "mean time to first token (ms) 30" in row["Its own figures"]
    assert "Pytorch float16 FP8" in row["Notes"] and "NVIDIA H100" in row["Notes"] and row["Tool"] == "trtllm-bench"


def test_layer_information_has_names_and_nodes_and_no_times(tmp_path: Path) -> None:
    info = {
        "Layers": [{"Name": "conv0 + relu0", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}, "Reformat 1"]
    }
    found = wb.read_foreign(written(tmp_path / "layers.json", info))
    assert [layer.name for layer in found.layers] == ["conv0 + relu0", "Reformat 1"]
    assert found.table()["ms"].isna().all() and found.notes == ("Layers without times.",)


@pytest.mark.parametrize("content", [
    {**BENCH, "performance": {"request_throughput_req_s": "fast"}},
    {**BENCH, "performance": []},
    {"polygraphy_class": "RunResults", "lst": [["r", [{"runtime": -1.0}]]]},
    {"polygraphy_class": "RunResults", "lst": [1]},
    {"a": {"model_id": "a", "metrics": {"value": {"x": {}}}}},
])  # fmt: skip
def test_a_damaged_file_of_a_known_tool_is_a_sentence(tmp_path: Path, content: object) -> None:
    with pytest.raises(DataError, match="an entry is damaged"):
        wb.read_foreign(written(tmp_path / "x.json", content))
