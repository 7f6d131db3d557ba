"""What is read of other people's JSON, texts, configurations and capsules: a value or a WorkbenchError, and nothing else."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_any_bytes import mutated, onnx_bytes, read
from tokenizers import Tokenizer

import workbench as wb
from workbench import codec, datasets, zoo
from workbench.calibration.table import CalibrationTable
from workbench.datasets.texts import read_tokenizer
from workbench.engines.tensorrt import layers, plan
from workbench.errors import StoreError, WorkbenchError
from workbench.handoff import capsule
from workbench.handoff.foreign import read_foreign
from workbench.machine.store import Store
from workbench.models import safetensors_header, sources

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=50, deadline=None, suppress_health_check=SHARED)
FEWER = settings(max_examples=5, deadline=None, suppress_health_check=SHARED)
LLAMA = Path(zoo.data_folder(), "models", "stdlib_llama")
DEEP = "[" * 100_000
DEEPLY: Any = json.loads("[" * 200 + "]" * 200)

# A number beyond every type, one that is none, half a letter, a name with a zero in it.
ODD = st.sampled_from([10**400, -(10**400), 1e308 * 10, float("nan"), -1, 2**63, 1e12, "\ud800", "a\0b", "../x", "/x"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | ODD,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))


def changed(plain: Any) -> st.SearchStrategy[Any]:
    """The same JSON with other values in one or two places, near its root as often as deep in it."""

    def apply(edits: list[tuple[list[int], Any]]) -> Any:
        found = [copy.deepcopy(plain)]
        for path, value in edits:
            place, key = found, 0
            for choice in path:
                inner = place[key]
                if not isinstance(inner, (dict, list)) or not inner:
                    break
                place, key = inner, (list(inner) if isinstance(inner, dict) else range(len(inner)))[choice % len(inner)]
            place[key] = value
        return found[0]

    edit = st.tuples(st.lists(st.integers(0, 1000), min_size=1, max_size=8), PLAIN)
    return st.lists(edit, min_size=1, max_size=2).map(apply)


def everywhere(plain: Any) -> Iterator[Any]:
    """The same JSON with each value that is odd in each of its places, one at a time."""
    odd = (None, True, 10**400, float("inf"), float("nan"), -1, 2**63, "\ud800", "a\0b", [], [[]], {}, "", DEEPLY)

    def places(inner: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            yield from places(inner[key], (*path, key))

    for path in places(plain, ()):
        for value in odd:
            found = [copy.deepcopy(plain)]
            place: Any = found
            for key in (0, *path)[:-1]:
                place = place[key]
            place[(0, *path)[-1]] = value
            yield found[0]


def texts(plain: Any) -> st.SearchStrategy[bytes]:
    """JSON that is changed in its meaning, or in its bytes; or nested too deeply."""
    written = json.dumps(plain).encode()
    return st.one_of(changed(plain).map(lambda one: json.dumps(one).encode()), mutated(written), st.just(DEEP.encode()))


TRTEXEC_TIMES = [{"startComputeMs": 0.1, "computeMs": 1.5, "latencyMs": 1.7}] * 2
TRTEXEC_PROFILE = [{"count": 10}, {"name": "conv", "timeMs": 5.0, "averageMs": 0.5, "medianMs": 0.5, "percentage": 99}]
TRACE = [
    {"cat": "Session", "name": "model_run", "dur": 100, "ts": 0},
    {"cat": "Node", "name": "fc_kernel_time", "dur": 50, "ts": 0, "args": {"op_name": "MatMul"}},
]
LAYERS = {
    "Layers": [{"Name": "conv", "LayerType": "Conv", "Inputs": [{"Name": "x", "Dimensions": [1, 3]}], "Outputs": []}]
}


@pytest.mark.parametrize("plain", [TRTEXEC_TIMES, TRTEXEC_PROFILE, TRACE], ids=["times", "profile", "trace"])
@FEW
@given(data=st.data())
def test_files_of_other_tools(tmp_path: Path, plain: Any, data: st.DataObject) -> None:
    (tmp_path / "f.json").write_bytes(data.draw(texts(plain)))
    read(lambda: read_foreign(tmp_path / "f.json").table())


@FEW
@given(texts(LAYERS))
def test_layers_as_tensorrt_tells_them(content: bytes) -> None:
    read(layers.parse, content.decode("utf-8", "replace"))


@FEW
@given(texts({"tensorrt": "10.1", "gpu": "H100"}))
def test_sidecars_of_plans(tmp_path: Path, content: bytes) -> None:
    plan.sidecar_path(tmp_path / "engine.plan").write_bytes(content)
    read(plan.read_sidecar, tmp_path / "engine.plan")


LINE = {"text": "a few words of a document that is long enough"}


MANY_LINES = st.lists(changed(LINE).map(json.dumps), max_size=3).map(lambda lines: "\n".join(lines).encode())


@FEW
@given(st.one_of(texts(LINE), MANY_LINES))
def test_texts(tmp_path: Path, content: bytes) -> None:
    for ending in (".jsonl", ".txt"):
        (tmp_path / f"t{ending}").write_bytes(content)
        read(datasets.text, tmp_path / f"t{ending}", LLAMA, 2)


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


TOKENS = Tokenizer.from_str(json.dumps(TOKENIZER))


@FEW
@given(texts(TOKENIZER))
def test_tokenizers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "t.txt").write_text("a b c " * 10)
    read(datasets.text, tmp_path / "t.txt", tmp_path, 2)


HEADER = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {}}


@FEW
@given(texts(HEADER))
def test_headers_of_safetensors(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    read(safetensors_header.shapes, tmp_path / "m.safetensors")


@FEWER
@given(texts(json.loads((LLAMA / "config.json").read_text())))
def test_configurations_of_transformers(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "llama"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(LLAMA / "model.safetensors", folder)
    (folder / "config.json").write_bytes(content)
    read(sources.transformers_folder, folder)


STUDY = sorted(Path(zoo.data_folder(), "studies").rglob("*-cpu-*.json"))[0]


SMALL_STUDY = codec.to_plain(replace(record := wb.Study.open(STUDY).record, results=record.results[1:2]))
SMALL_STUDY["results"][0]["measurement"]["rounds"] = []


@FEW
@given(changed(SMALL_STUDY))
def test_studies_with_other_values(tmp_path: Path, plain: Any) -> None:
    (tmp_path / "s.json").write_text(json.dumps(plain))
    read(wb.Study.open, tmp_path / "s.json")


@FEW
@given(mutated(sorted(Path(zoo.data_folder(), "studies").rglob("*.json.gz"))[0].read_bytes()[:20_000]))
def test_packed_studies(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.json.gz").write_bytes(content)
    read(wb.Study.open, tmp_path / "s.json.gz")


def table_bytes(folder: Path) -> bytes:
    """A real calibration table of a small network."""
    (folder / "m.onnx").write_bytes(onnx_bytes())
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    found = wb.calibrate(wb.load(folder / "m.onnx", folder=folder), x, "int8-max")
    assert found.table is not None
    found.table.save(folder / "t.npz")
    return (folder / "t.npz").read_bytes()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return table_bytes(tmp_path_factory.mktemp("table"))


@FEW
@given(data=st.data())
def test_real_calibration_tables(table: bytes, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "t.npz").write_bytes(data.draw(mutated(table)))
    read(CalibrationTable.load, tmp_path / "t.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The contents and the parts of a capsule with a small model and its data."""
    folder = tmp_path_factory.mktemp("capsule")
    (folder / "m.onnx").write_bytes(onnx_bytes())
    store = Store(folder / "store")
    model, data = wb.load(folder / "m.onnx", store=store), datasets.arrays(np.ones((4, 4), np.float32))
    about = {"name": data.name, "kind": data.kind, "sha256": data.bound_to(model).sha256}
    record = replace(wb.Study.open(STUDY).record, model=model, results=(), data=about)
    with zipfile.ZipFile(capsule.write(record, folder / "c.zip", data, store)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(parts.pop("capsule.json")), parts


def packed(path: Path, contents: Any, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"capsule.json": json.dumps(contents).encode(), **parts}.items():
            archive.writestr(name, content)
    return path


@FEW
@given(data=st.data())
def test_capsules(whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path, data: st.DataObject) -> None:
    contents, parts = whole
    store = Store(tmp_path / "store")
    there = Path("/x").exists()
    assert capsule.read(packed(tmp_path / "c.zip", contents, parts), store).data is not None
    read(capsule.read, packed(tmp_path / "c.zip", data.draw(changed(contents)), parts), store)
    (tmp_path / "c.zip").write_bytes(data.draw(mutated(packed(tmp_path / "d.zip", contents, parts).read_bytes())))
    read(capsule.read, tmp_path / "c.zip", store)
    assert not list(tmp_path.parent.glob("x*")) and Path("/x").exists() == there


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_may_never_end_is_not_read(kind: str, tmp_path: Path) -> None:
    readers = {
        "m.onnx": wb.load, "d.npz": datasets.npz, "t.npz": CalibrationTable.load, "s.json": wb.Study.open,
        "s.json.gz": wb.Study.open, "f.json": read_foreign, "c.zip": lambda path: capsule.read(path, Store(tmp_path / "s")),
        "t.txt": lambda path: datasets.text(path, TOKENS, 2), "tokenizer.json": read_tokenizer,
    }  # fmt: skip
    for name, call in readers.items():
        place = tmp_path / name
        os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
        with pytest.raises(WorkbenchError):
            call(place)


def test_the_model_of_a_capsule_lies_in_the_capsule(
    whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    contents, parts = whole
    outside = tmp_path / "m.onnx"
    outside.write_bytes(onnx_bytes())
    with pytest.raises(StoreError, match="has no part"):
        changed_place = packed(tmp_path / "c.zip", {**contents, "model_file": str(outside)}, parts)
        capsule.read(changed_place, Store(tmp_path / "store"))


def test_an_odd_value_in_any_place(tmp_path: Path, whole: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    def header(plain: Any) -> None:
        text = json.dumps(plain).encode()
        (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
        safetensors_header.refuse_what_the_weights_lack({"hidden_size": 4}, tmp_path)

    def foreign(plain: Any) -> None:
        (tmp_path / "f.json").write_text(json.dumps(plain))
        read_foreign(tmp_path / "f.json").table()

    def document(plain: Any) -> None:
        (tmp_path / "t.jsonl").write_text(json.dumps(plain))
        datasets.text(tmp_path / "t.jsonl", TOKENS, 2)

    def opened(plain: Any) -> None:
        capsule.read(packed(tmp_path / "c.zip", {**plain, "study": contents["study"]}, parts), store)

    contents, parts = whole
    store = Store(tmp_path / "store")
    small = {key: value for key, value in contents.items() if key not in ("study", "parts")}
    for call, plain in (
        (header, HEADER),
        (foreign, TRTEXEC_TIMES),
        (foreign, TRTEXEC_PROFILE),
        (foreign, TRACE),
        (document, LINE),
        (lambda one: layers.parse(json.dumps(one)), LAYERS),
        (lambda one: opened({**one, "parts": contents["parts"]} if isinstance(one, dict) else {}), small),
    ):
        for one in everywhere(plain):
            read(call, one)


@pytest.mark.parametrize("call", [layers.parse, lambda text: plan.read_sidecar(Path(text))])
def test_the_readers_above_refuse_what_they_should(call: Callable[[str], object]) -> None:
    with pytest.raises(WorkbenchError):
        call("nothing")


def test_the_unchanged_files_are_read(table: bytes, tmp_path: Path) -> None:
    """Otherwise the tests above would be about nothing."""
    for plain in (TRTEXEC_TIMES, TRTEXEC_PROFILE, TRACE):
        (tmp_path / "f.json").write_text(json.dumps(plain))
        assert read_foreign(tmp_path / "f.json").tool
    assert layers.parse(json.dumps(LAYERS))
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert read_tokenizer(tmp_path).encode("a b c").ids == [0, 1, 2]
    (tmp_path / "t.jsonl").write_text(json.dumps(LINE))
    assert len(datasets.text(tmp_path / "t.jsonl", LLAMA, 2).evaluation)
    (tmp_path / "t.npz").write_bytes(table)
    assert CalibrationTable.load(tmp_path / "t.npz").sha256
    assert sources.transformers_folder(LLAMA).module
