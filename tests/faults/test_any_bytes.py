"""Any bytes in a file become a value or a WorkbenchError: never another exception, and within bounded time."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import workbench as wb
from workbench import codec, datasets
from workbench.calibration.table import CalibrationTable
from workbench.datasets import ImagePreprocessing
from workbench.errors import WorkbenchError
from workbench.records import StudyRecord

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))


def onnx_bytes() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"), helper.make_node("Softmax", ["h"], ["y"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def image_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(buffer, kind)
    return buffer.getvalue()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(12, dtype=np.float32).reshape(4, 3), labels=np.arange(4))
    return buffer.getvalue()


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """The valid bytes with some replaced, inserted or cut away; or bytes of no meaning."""

    def apply(edits: list[tuple[int, bytes, int]]) -> bytes:
        found = valid
        for place, piece, cut in edits:
            start = place % (len(found) + 1)
            found = found[:start] + piece + found[start + cut :]
        return found

    edit = st.tuples(st.integers(0, 1 << 20), st.binary(max_size=4), st.integers(0, 4))
    return st.one_of(st.lists(edit, min_size=1, max_size=6).map(apply), st.binary(max_size=200))


def read(load, *arguments) -> None:
    try:
        load(*arguments)
    except WorkbenchError as error:
        assert str(error)


@FEW
@given(mutated(onnx_bytes()))
def test_onnx_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    read(wb.load, tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
@FEW
@given(data=st.data())
def test_images(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    folder = tmp_path / "data" / "cat"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.png").write_bytes(data.draw(mutated(image_bytes(kind))))
    small = ImagePreprocessing(height=4, width=4)
    read(datasets.image_folder, tmp_path / "data", small)


@FEW
@given(mutated(npz_bytes()))
def test_npz_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    read(datasets.npz, tmp_path / "d.npz")


@FEW
@given(mutated(npz_bytes()))
def test_calibration_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    read(CalibrationTable.load, tmp_path / "t.npz")


def export_bytes() -> bytes:
    """A database of the kind that nsys exports, with one kernel in one range."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript("""
            PRAGMA page_size = 512;
            CREATE TABLE StringIds (id INTEGER, value TEXT);
            CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, eventType INTEGER, text TEXT, globalTid INTEGER);
            CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, globalTid INTEGER, correlationId INTEGER);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, correlationId INTEGER, shortName INTEGER);
            INSERT INTO StringIds VALUES (1, 'gemm');
            INSERT INTO NVTX_EVENTS VALUES (0, 100, 59, 'call', 1);
            INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (10, 1, 7);
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (200, 300, 7, 1);
        """)
        return database.serialize()


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "serialize"), reason="from Python 3.11 on")
def test_an_export_of_nsys_is_read(tmp_path: Path) -> None:
    (tmp_path / "e.sqlite").write_bytes(export_bytes())
    assert wb.read_foreign(tmp_path / "e.sqlite").layers[0].name == "call"


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "serialize"), reason="from Python 3.11 on")
@FEW
@given(data=st.data())
def test_exports_of_nsys(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "e.sqlite").write_bytes(data.draw(mutated(export_bytes())))
    read(wb.read_foreign, tmp_path / "e.sqlite")


KEYS = ["name", "model", "results", "schema_version", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@FEW
@given(st.one_of(st.binary(max_size=100), JSON.map(lambda plain: json.dumps(plain).encode())))
def test_studies(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.json").write_bytes(content)
    read(wb.Study.open, tmp_path / "s.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"schema_version": "9"}', '{"schema_version": 99}', "1e999"]
)
def test_json_of_an_odd_kind_is_no_study(text: str) -> None:
    read(codec.from_json, StudyRecord, text)


def test_a_file_too_large_for_a_record_is_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(codec, "LARGEST_FILE_BYTES", 3)
    (tmp_path / "s.json").write_text("1234")
    with pytest.raises(WorkbenchError, match="has 4 bytes, and a record has at most 3"):
        wb.Study.open(tmp_path / "s.json")


def test_the_unchanged_bytes_are_read(tmp_path: Path) -> None:
    """Otherwise the tests above would be about nothing."""
    (tmp_path / "m.onnx").write_bytes(onnx_bytes())
    (tmp_path / "d.npz").write_bytes(npz_bytes())
    assert wb.load(tmp_path / "m.onnx").opset == 17
    assert len(datasets.npz(tmp_path / "d.npz").evaluation) == 4
    assert onnx.load(tmp_path / "m.onnx").graph.name == "g"
