"""A study that travels from one store to another and is run again there; and capsules that must not be opened."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import workbench as wb
from workbench import codec
from workbench.__main__ import main
from workbench.errors import BackendMissing, DataError, LoadError, StoreError
from workbench.handoff import capsule as capsules
from workbench.handoff import capsule_data, capsule_file
from workbench.handoff.capsule_file import VERSION, opened
from workbench.machine.store import Store
from workbench.records import Program, StudyRecord
from workbench.tuning.calibrating import KeptTable


@pytest.fixture
def there(tmp_path: Path) -> Store:
    return Store(tmp_path / "there")


@pytest.fixture(scope="module")
def whole(study: wb.Study, data, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.capsule(tmp_path_factory.mktemp("capsule") / "whole.zip", data, store)


def rewritten(source: Path, target: Path, change: Callable[[dict, dict[str, bytes]], None]) -> Path:
    """A capsule with other contents: `change` gets its table of contents and its parts."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    contents = json.loads(parts.pop("capsule.json"))
    change(contents, parts)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {"capsule.json": json.dumps(contents).encode(), **parts}.items():
            archive.writestr(name, content)
    return target


def untouched(store: Store) -> bool:
    return not list((store.root / "artefacts").iterdir()) and not store.keys("study") and not store.keys("kepttable")


def test_a_study_is_run_again_in_another_store_with_the_same_answers(
    whole: Path, study: wb.Study, there: Store
) -> None:
    found = wb.confirm(whole, backend="onnxruntime-cpu", store=there, progress=None)
    assert codec.portable(found.rehearsal.record).results == codec.portable(study.record).results
    assert found.study.record.model.path.startswith(str(there.root))
    for name in ("fp32", "int8-max"):
        assert found.study[name].variant.sha256 == study[name].variant.sha256
        assert found.study[name].accuracy.scores == study[name].accuracy.scores
        assert found.study[name].measurement.rounds != study[name].measurement.rounds
    assert found.notes == ()
    again = wb.confirm(whole, backend="onnxruntime-cpu", store=there, progress=None)
    assert again.study.record.results == found.study.record.results, "a finished confirmation is only read"


def test_the_calibration_table_travels_and_is_not_collected_again(
    whole: Path, study: wb.Study, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.tuning import calibrating

    def collected(*given: object, **options: object) -> None:
        raise AssertionError("activations were observed again")

    monkeypatch.setattr(calibrating, "observed", collected)
    found = wb.confirm(whole, backend="onnxruntime-cpu", store=there, progress=None)
    assert found.study["int8-max"].variant.calibration_sha256 == study["int8-max"].variant.calibration_sha256


def test_a_capsule_cannot_change_what_other_studies_remember(whole: Path, there: Store, tmp_path: Path) -> None:
    def other_key(contents: dict, parts: dict) -> None:
        for entry in contents["tables"].values():
            entry["key"] = "ab" * 32

    path = rewritten(whole, tmp_path / "x.zip", other_key)
    found = wb.confirm(path, backend="onnxruntime-cpu", store=there, progress=None)
    assert "ab" * 32 not in there.keys(KeptTable.__name__.lower())
    assert any("1 of the 1 calibration tables" in note for note in found.notes)


def test_tables_of_another_version_are_not_taken_over(whole: Path, there: Store, tmp_path: Path) -> None:
    path = rewritten(whole, tmp_path / "x.zip", lambda contents, parts: contents.update(code_sha256="0"))
    found = wb.confirm(path, backend="onnxruntime-cpu", store=there, progress=None)
    assert any("another version of the workbench" in note for note in found.notes)


def test_a_capsule_holds_no_place_of_this_machine_and_no_samples_that_were_not_given(
    study: wb.Study, store: Store, data, tmp_path: Path
) -> None:
    path = study.capsule(tmp_path / "x.zip", store=store)
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.startswith("data/")]
        text = archive.read("capsule.json").decode()
    assert str(store.root) not in text
    assert study.record.data["sha256"] in text


def test_without_samples_the_same_data_must_be_given(
    study: wb.Study, store: Store, data, there: Store, tmp_path: Path
) -> None:
    path = study.capsule(tmp_path / "x.zip", store=store)
    with pytest.raises(DataError, match=r"holds no samples, only the hash of 'arrays'.*--data FILE"):
        wb.confirm(path, backend="onnxruntime-cpu", store=there)
    others = wb.datasets.arrays(np.ones((30, 8), np.float32))
    with pytest.raises(DataError, match="are not those of the study"):
        wb.confirm(path, backend="onnxruntime-cpu", data=others, store=there)
    found = wb.confirm(path, backend="onnxruntime-cpu", data=data, store=there, progress=None)
    assert found.study["fp32"].accuracy.scores == study["fp32"].accuracy.scores


def test_data_that_everyone_has_need_not_travel(model, store: Store, there: Store, tmp_path: Path) -> None:
    random = wb.datasets.random(model)
    protocol = wb.Protocol(batch=2, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0, warmup_runs=1)
    options = {"backend": "onnxruntime-cpu", "progress": None}
    study = wb.run(model, random, ["fp32"], protocol=protocol, store=store, **options)
    found = wb.confirm(study.capsule(tmp_path / "x.zip", store=store), store=there, **options)
    assert found.study.record.data == study.record.data
    resnet = wb.load("digits_resnet")
    digits = wb.datasets.digits().bound_to(resnet)
    record = replace(study.record, data={"name": "digits", "kind": "shipped", "sha256": digits.sha256})
    assert capsule_data.wanted(record, resnet, None).sha256 == digits.sha256


def test_another_backend_is_put_beside_the_rehearsal(
    whole: Path, there: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    report = tmp_path / "both.md"
    arguments = ["confirm", str(whole), "--backend", "openvino", "--store", str(there.root), "--report", str(report)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "mine confirmed on openvino" in printed and f"report: {report}" in printed
    text = report.read_text()
    assert "onnxruntime-cpu on" in text and "openvino on" in text and "## What changed" in text
    assert "| int8-max | done | done |" in text


def test_the_command_line_takes_the_samples_that_did_not_travel(
    model, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    np.savez(tmp_path / "mine.npz", input=rng.normal(size=(8, 8)).astype(np.float32))
    protocol = wb.Protocol(batch=2, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0, warmup_runs=1)
    options = {"backend": "onnxruntime-cpu", "progress": None, "protocol": protocol, "store": store}
    study = wb.run(model, wb.datasets.npz(tmp_path / "mine.npz"), ["fp32"], **options)
    path = study.capsule(tmp_path / "x.zip", store=store)
    arguments = ["confirm", str(path), "--backend", "onnxruntime-cpu", "--store", str(tmp_path / "there")]
    assert main(arguments) == 1
    assert "--data FILE" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path / "mine.npz")]) == 0, capsys.readouterr().err
    (tmp_path / "text.txt").write_text("words")
    assert main([*arguments, "--data", str(tmp_path / "text.txt")]) == 1
    assert "--tokenizer FOLDER" in capsys.readouterr().err


def test_build_options_of_another_backend_are_left_out_and_that_is_said(
    study: wb.Study, store: Store, there: Store, data, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    options = replace(study.record.options, extra={"refit": True})
    changed = wb.Study(replace(study.record, options=options))
    path = changed.capsule(tmp_path / "x.zip", data, store)
    found = wb.confirm(path, backend="openvino", store=there, progress=None, name="named")
    assert found.study.name == "named"
    assert any("['refit'] are for onnxruntime-cpu" in note for note in found.notes)


def test_plugins_that_a_capsule_names_are_not_opened(
    study: wb.Study, store: Store, there: Store, data, tmp_path: Path
) -> None:
    options = replace(study.record.options, extra={"plugins": ["/lib/x.so"], "mine": 3})
    path = wb.Study(replace(study.record, options=options)).capsule(tmp_path / "x.zip", data, store)
    found = wb.confirm(path, backend="onnxruntime-cpu", store=there, progress=None)
    assert found.study.record.options.extra == {"mine": 3}
    assert any("/lib/x.so" in note and "left out" in note for note in found.notes)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["confirm", str(tmp_path / "none.zip"), "--store", str(tmp_path / "store")]) == 1
    assert "There is no file" in capsys.readouterr().err


def test_a_backend_that_is_not_here_is_told_before_anything_is_read(whole: Path, there: Store) -> None:
    with pytest.raises(BackendMissing, match="cannot be used here"):
        wb.confirm(whole, backend="tensorrt", store=there)
    with pytest.raises(DataError, match=r"confirm\(data=...\) takes a Dataset"):
        wb.confirm(whole, data=[1], store=there)  # type: ignore[arg-type]
    assert untouched(there)


def truncated(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes()[:-200])
    return target


def flipped(source: Path, target: Path) -> Path:
    raw = bytearray(source.read_bytes())
    place = raw.find(b"data/evaluation_0.bin") + 200
    raw[place] ^= 0xFF
    target.write_bytes(raw)
    return target


def changing(change: Callable[[dict, dict[str, bytes]], None]) -> Callable[[Path, Path], Path]:
    return lambda source, target: rewritten(source, target, change)


def add(name: str) -> Callable[[dict, dict[str, bytes]], None]:
    def change(contents: dict, parts: dict[str, bytes]) -> None:
        parts[name] = b"x"
        contents["parts"][name] = {"sha256": "", "bytes": 1}

    return change


def patched(*keys: object, value: object) -> Callable[[dict, dict[str, bytes]], None]:
    def change(contents: dict, parts: dict[str, bytes]) -> None:
        inner = contents
        for key in keys[:-1]:
            inner = inner[key]  # type: ignore[index]
        inner[keys[-1]] = value  # type: ignore[index]

    return change


def other_model(contents: dict, parts: dict[str, bytes]) -> None:
    """A valid part with its right sha256 that is another model than the study's."""
    import hashlib

    name = next(name for name in parts if name.startswith("model/"))
    proto = onnx.ModelProto.FromString(parts[name])
    proto.producer_name = "another"
    parts[name] = proto.SerializeToString()
    contents["parts"][name] = {"sha256": hashlib.sha256(parts[name]).hexdigest(), "bytes": len(parts[name])}


def no_model(contents: dict, parts: dict[str, bytes]) -> None:
    import hashlib

    name = next(name for name in parts if name.startswith("model/"))
    parts[name] = b"no model"
    contents["parts"][name] = {"sha256": hashlib.sha256(b"no model").hexdigest(), "bytes": 8}


DATA = ("data", "splits", "evaluation", 0)
WRONG = {
    "truncated": (truncated, "is no capsule, or is truncated"),
    "a flipped byte": (flipped, "is damaged: data/evaluation_0.bin"),
    "newer": (changing(patched("version", value=VERSION + 1)), "of version 2; this code reads up to 1. Update"),
    "no version": (changing(patched("version", value="one")), "of version one"),
    "another zip": (changing(patched("format", value="mine")), "is a zip, and no capsule"),
    "no contents": (changing(patched("parts", value=None)), "are not those of its table of contents"),
    "an unlisted part": (changing(lambda contents, parts: parts.update(more=b"x")), "are not those of its table"),
    "escaping": (changing(add("model/../../../escaped")), "leads out of the folder"),
    "absolute": (changing(add("/escaped")), "leads out of the folder"),
    "a drive": (changing(add("model/C:escaped")), "leads out of the folder"),
    "a backslash": (changing(add("model/..\\escaped")), "leads out of the folder"),
    "loose": (changing(add("escaped")), "leads out of the folder or is none"),
    "a wrong size": (changing(patched("parts", "data/evaluation_0.bin", "bytes", value=3)), "wrong about data/evaluation_0"),
    "a wrong hash": (changing(patched("parts", "data/evaluation_0.bin", "sha256", value="0")), "is not what was put into it"),
    "an object array": (changing(patched(*DATA, "dtype", value="object")), "the type 'object'"),
    "a huge shape": (changing(patched(*DATA, "shape", value=[10**9, 8])), "does not fill"),
    "a negative shape": (changing(patched(*DATA, "shape", value=[-40, -8])), "does not fill"),
    "an unknown part": (changing(patched(*DATA, "part", value="data/none")), "has no part 'data/none'"),
    "an unknown kind": (changing(patched("data", "kind", value="stolen")), "kind 'stolen'"),
    "an unknown metric": (changing(patched("data", "metric", "name", value="os.system")), "its data cannot be read"),
    "data of another type": (changing(patched("data", value=5)), "its data cannot be read"),
    "another model": (changing(other_model), "is another"),
    "no model": (changing(no_model), "cannot be read"),
    "no study": (changing(patched("study", value=5)), "Cannot read a StudyRecord"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_capsule_that_is_none_is_not_opened_and_nothing_is_lost(
    whole: Path, there: Store, tmp_path: Path, name: str
) -> None:
    make, words = WRONG[name]
    path = make(whole, tmp_path / "x.zip")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=words.replace("(", r"\(")):
        wb.confirm(path, backend="onnxruntime-cpu", store=there)
    assert not there.keys("study") and not there.keys("kepttable")
    assert path.read_bytes() == before
    assert not list(tmp_path.parent.rglob("*escaped*"))


def test_a_table_that_is_none_is_told(whole: Path, there: Store, tmp_path: Path) -> None:
    def damage(contents: dict, parts: dict[str, bytes]) -> None:
        import hashlib

        name = next(name for name in parts if name.startswith("tables/"))
        parts[name] = b"no table"
        contents["parts"][name] = {"sha256": hashlib.sha256(b"no table").hexdigest(), "bytes": 8}

    with pytest.raises(StoreError, match="a calibration table is none"):
        wb.confirm(rewritten(whole, tmp_path / "x.zip", damage), backend="onnxruntime-cpu", store=there)
    assert not there.keys("kepttable") and not there.keys("study")


def test_sizes_are_bounded(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capsule_file, "LARGEST_BYTES", 1000)
    with pytest.raises(StoreError, match="more than the 1000"), opened(whole):
        pass
    monkeypatch.setattr(capsule_file, "MOST_PARTS", 2)
    with pytest.raises(StoreError, match="a capsule has at most 2"), opened(whole):
        pass


def test_a_part_that_unpacks_to_more_than_it_says_is_refused(whole: Path) -> None:
    with opened(whole) as capsule:
        name = capsule.names("model")[0]
        capsule._parts[name]["bytes"] -= 1
        with pytest.raises(StoreError, match="longer than its table of contents says"):
            capsule.read(name)


def test_contents_that_are_no_json_and_zips_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine.txt", "mine")
    with pytest.raises(StoreError, match=r"it has no capsule\.json"), opened(path):
        pass
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("capsule.json", "[" * 100_000)
    with pytest.raises(StoreError, match=r"its capsule\.json cannot be read"), opened(path):
        pass


def test_what_cannot_be_put_into_a_capsule(study: wb.Study, model, data, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"A capsule is a \.zip"):
        study.capsule(tmp_path / "x.tar", data, store)
    with pytest.raises(DataError, match="capsule takes a Dataset"):
        study.capsule(tmp_path / "x.zip", [1], store)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="are not those of the study"):
        study.capsule(tmp_path / "x.zip", wb.datasets.random(model), store)
    gone = wb.Study(replace(study.record, model=replace(study.record.model, path=str(tmp_path / "gone.onnx"))))
    with pytest.raises(LoadError, match=r"gone\.onnx\) is gone, or was changed since it was loaded"):
        gone.capsule(tmp_path / "x.zip", data, store)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="Cannot write"):
        study.capsule(tmp_path / "file" / "x.zip", data, store)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file"]


def test_metrics_that_are_code_and_labels_that_are_no_numbers_do_not_travel() -> None:
    x = np.ones((4, 2), np.float32) * np.arange(4, dtype=np.float32)[:, None]
    own = wb.datasets.arrays(x, np.arange(4), metric=lambda outputs, labels: 1.0)
    with pytest.raises(DataError, match="is code, or has options, and does not travel"):
        capsule_data.described(own)
    words = wb.datasets.arrays(x, np.array(["a", "b", "c", "d"]), metric=None)
    with pytest.raises(DataError, match=r"'labels' of type <U1, which a capsule does not hold"):
        capsule_data.described(words)


def test_a_torch_program_stays_and_that_is_said(study: wb.Study, store: Store, there: Store, tmp_path: Path) -> None:
    program = Program("net.pt2", "ab", ("x",), ("y",))
    record = replace(study.record, model=replace(study.record.model, program=program))
    path = wb.Study(record).capsule(tmp_path / "x.zip", store=store)
    assert any("program of the model did not travel" in note for note in capsules.read(path, there).notes)


def test_weights_beside_the_model_travel_with_it(store: Store, there: Store, tmp_path: Path, proto) -> None:
    large = tmp_path / "large" / "large.onnx"
    (large.parent / "weights").mkdir(parents=True)
    named = onnx.ModelProto.FromString(proto.SerializeToString())
    for index, node in enumerate(named.graph.node):
        node.name = f"node {index}"  # a model that needs no mending is not copied
    onnx.save(named, str(large), save_as_external_data=True, location="weights/all.data", size_threshold=0)
    model = wb.load(large)
    protocol = wb.Protocol(batch=2, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0, warmup_runs=1)
    options = {"backend": "onnxruntime-cpu", "progress": None, "protocol": protocol}
    study = wb.run(model, None, ["fp32"], store=store, **options)
    found = capsules.read(study.capsule(tmp_path / "x.zip", store=store), there)
    assert found.model.sha256 == model.sha256 and (Path(found.model.path).parent / "weights" / "all.data").is_file()


def test_equal_studies_make_equal_capsules(study: wb.Study, store: Store, data, tmp_path: Path) -> None:
    first, second = (study.capsule(tmp_path / f"{name}.zip", data, store).read_bytes() for name in "ab")
    assert first == second
    assert isinstance(codec.from_plain(StudyRecord, codec.to_plain(study.record)), StudyRecord)
