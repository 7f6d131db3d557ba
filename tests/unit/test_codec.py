from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from workbench import codec
from workbench.errors import StoreError
from workbench.recipes import NAMED
from workbench.records import (
    SCHEMA_VERSION,
    Failure,
    Model,
    Origin,
    Program,
    Protocol,
    Round,
    StepReport,
    StudyRecord,
    TensorSpec,
    VariantResult,
)


@pytest.mark.parametrize("recipe", NAMED.values(), ids=lambda recipe: recipe.name)
def test_every_named_recipe_survives_json(recipe) -> None:
    result = VariantResult(recipe)
    assert codec.from_json(VariantResult, codec.to_json(result)) == result


def test_floats_keep_their_exact_value() -> None:
    values = (0.1, 1e-300, 3.0000000000000004, float("inf"))
    taken = Round(0, values, 0.5, 1.0)
    assert codec.from_json(Round, codec.to_json(taken)).latencies_seconds == values


def test_dynamic_axes_and_nested_data_survive_json() -> None:
    spec = TensorSpec("x", "float32", (None, 3))
    assert codec.from_json(TensorSpec, codec.to_json(spec)) == spec
    report = StepReport("fuse", 0.5, details={"a": [1, {"b": None}]})
    assert codec.from_json(StepReport, codec.to_json(report)) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"name": 1, "dtype": "float32", "shape": []}', "TensorSpec.name is 1, expected str"),
        ('{"name": "x", "dtype": "float32", "shape": [true]}', "shape"),
        ('{"name": "x", "dtype": "float32"}', "shape"),
        ('{"name": "x", "dtype": "float32", "shape": [], "evil": 1}', "unknown fields evil"),
        ('{"name": "x", "dtype": "float32", "shape": {}}', "expected a list"),
    ],
)
def test_damaged_text_is_refused_and_named(text: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        codec.from_json(TensorSpec, text)


def test_values_that_a_record_refuses_are_refused_when_read() -> None:
    plain = codec.to_plain(Protocol())
    with pytest.raises(StoreError, match="rounds is 0"):
        codec.from_plain(Protocol, {**plain, "rounds": 0})
    with pytest.raises(StoreError, match="expected one of"):
        codec.from_plain(Protocol, {**plain, "boundary": "somewhere"})


def test_an_unknown_step_is_refused() -> None:
    plain = codec.to_plain(VariantResult(NAMED["fp32"]))
    plain["recipe"]["steps"][0]["kind"] = "explode"
    with pytest.raises(StoreError, match="no known step"):
        codec.from_plain(VariantResult, plain)


def test_a_newer_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(StoreError, match="Update trt-workbench"):
        codec.from_json(StudyRecord, json.dumps({"schema_version": SCHEMA_VERSION + 1}))


def test_dictionaries_must_be_objects() -> None:
    plain = codec.to_plain(Origin("onnx", "x"))
    assert codec.from_plain(Origin, plain) == Origin("onnx", "x")
    with pytest.raises(StoreError, match="expected an object"):
        codec.from_plain(StepReport, {"kind": "fuse", "seconds": 1.0, "details": []})


def test_a_portable_record_names_no_place_of_this_machine() -> None:
    program = Program("/home/somebody/m.pt2", "s", ("x",), ("y",))
    model = Model("m", "/home/somebody/m.onnx", "s", 1, 17, (), (), Origin("onnx", "m.onnx"), 0, {}, program=program)
    kept = codec.portable((model, 3))
    assert kept[0].path == "m.onnx" and kept[0].program.path == "m.pt2" and kept[1] == 3
    assert kept[0].sha256 == "s" and model.path == "/home/somebody/m.onnx"


def test_logs_and_messages_of_a_portable_record_name_no_place_either() -> None:
    model = Model("m", "/home/somebody/m.onnx", "s", 1, 17, (), (), Origin("onnx", "m.onnx"), 0, {})
    said = "reading /home/somebody/m.onnx, node /layer1/conv1/Conv; 3/4 done"
    failure = Failure("v", "build", "BuildError", said, f"{said}\nagain /home/somebody/m.onnx.data")
    _, kept = codec.portable((model, failure))
    assert kept.message == "reading m.onnx, node /layer1/conv1/Conv; 3/4 done"
    assert kept.log == f"{kept.message}\nagain m.onnx.data"


def test_a_packed_file_is_read_like_the_other(tmp_path: Path) -> None:
    text = codec.to_json(Protocol(rounds=7))
    (tmp_path / "record.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    assert codec.from_file(Protocol, tmp_path / "record.json.gz") == Protocol(rounds=7)


@pytest.mark.parametrize(
    "data", [b"", b"no gzip", gzip.compress(b'{"rounds": 7}', mtime=0)[:-9], gzip.compress(b"\xff\xfe", mtime=0)]
)
def test_a_damaged_packed_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "record.json.gz").write_bytes(data)
    with pytest.raises(StoreError, match=r"record\.json\.gz|no JSON|not JSON"):
        codec.from_file(Protocol, tmp_path / "record.json.gz")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_has(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(codec, "LARGEST_FILE_BYTES", 1 << 20)
    (tmp_path / "record.json.gz").write_bytes(gzip.compress(b" " * (8 << 20)))
    with pytest.raises(StoreError, match="unpacks to more than 1048576 bytes"):
        codec.from_file(Protocol, tmp_path / "record.json.gz")
