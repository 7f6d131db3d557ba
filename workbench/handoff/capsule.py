"""A study in one file for another machine: model, data or their hashes, recipes, calibration tables, protocol, versions.

The record holds recipes, protocol, versions and every raw sample of the rehearsal; the file format is `capsule_file`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench import codec
from workbench.calibration.table import CalibrationTable
from workbench.datasets import Dataset
from workbench.errors import CalibrationError, LoadError, StoreError
from workbench.handoff import capsule_data, capsule_file
from workbench.handoff.capsule_file import Opened
from workbench.machine.store import Store, key_of
from workbench.models import onnx_file
from workbench.models.place import Place
from workbench.records import Model, StudyRecord
from workbench.tuning.calibrating import KeptTable, observed_of, samples_of
from workbench.version import __version__, code_sha256

_MODEL = "model"


@dataclass(frozen=True)
class Capsule:
    """What was in a capsule, unpacked into a store.

    Attributes:
        record: of the rehearsal.
        data: bound to the model; None where the capsule holds their hash alone.
        notes: what did not travel or was not taken over, one sentence each.
    """

    record: StudyRecord
    model: Model
    data: Dataset | None
    notes: tuple[str, ...]


def write(record: StudyRecord, path: Path, data: Dataset | None, store: Store) -> Path:
    """Write a study for another machine.

    Args:
        path: `.zip`; a file of that name is replaced whole.
        data: those of the study, to be put into the capsule; None puts their hash alone.
        store: where its calibration tables are.

    Raises:
        StoreError: the suffix is another, or the place cannot be written.
        LoadError: the model's file is gone or was changed.
        DataError: the data are not those of the study, or cannot travel.
    """
    if path.suffix.lower() != ".zip":
        raise StoreError(f"A capsule is a .zip, and {path.name!r} is none. Name it so, such as {path.stem}.zip.")
    onnx_file.refuse_changed(record.model)
    model_file = Path(record.model.path)
    parts: dict[str, capsule_file.Part] = {f"{_MODEL}/{model_file.name}": model_file}
    for file in onnx_file.external_files(onnx_file.parse(model_file), model_file):
        parts[f"{_MODEL}/{file.relative_to(model_file.parent.resolve()).as_posix()}"] = file
    about: dict[str, Any] | None = None
    if data is not None:
        bound = capsule_data.wanted(record, record.model, data)
        about, samples = capsule_data.described(bound)
        parts |= samples
    tables = _tables(record, store)
    parts |= {f"tables/{sha256}.npz": place for sha256, (_, place, _) in tables.items()}
    notes = []
    if record.model.program is not None:
        notes.append("The PyTorch program of the model did not travel: the torch backends cannot run this capsule.")
    contents = {
        "workbench": __version__,
        "code_sha256": code_sha256(),
        "study": codec.to_plain(codec.portable(record)),
        "model_file": model_file.name,
        "data": about,
        "tables": {sha256: {"key": key, "seconds": seconds} for sha256, (key, _, seconds) in tables.items()},
        "notes": notes,
    }
    capsule_file.write(path, contents, parts)
    return path


def read(path: Path, store: Store) -> Capsule:
    """Unpack a capsule into a store; nothing in it is executed.

    Raises:
        StoreError: no capsule, truncated, damaged, of a newer version, too large, or with a path that escapes; the store
            is as it was.
    """
    with capsule_file.opened(path) as capsule:
        record = codec.from_plain(StudyRecord, capsule.contents.get("study"))
        model = _model(capsule, record, store)
        data = capsule_data.restored(capsule)
        if data is not None:
            data = capsule_data.wanted(record, model, data)
        notes = capsule.contents.get("notes")
        notes = [str(note) for note in notes] if isinstance(notes, list) else []
        return Capsule(replace(record, model=model), model, data, tuple(notes))


def _tables(record: StudyRecord, store: Store) -> dict[str, tuple[str, Path, float]]:
    """Return the calibration tables of a study: sha256 of its file -> the key it is remembered under, its file, seconds."""
    wanted = {item.variant.calibration_sha256 for item in record.results if item.variant is not None} - {None}
    found: dict[str, tuple[str, Path, float]] = {}
    kind = KeptTable.__name__.lower()
    for key in store.keys(kind) if wanted else ():
        kept = codec.from_json(KeptTable, store.get(kind, key) or "null")
        if store.holds(kept.sha256, kept.path) and CalibrationTable.load(kept.path).sha256 in wanted:
            found[kept.sha256] = (key, Path(kept.path), kept.seconds)
    return found


def _model(capsule: Opened, record: StudyRecord, store: Store) -> Model:
    name = str(capsule.contents.get("model_file"))
    capsule.size(f"{_MODEL}/{name}")  # one of its parts: a path of its own would lead out of the folder
    with store.scratch() as scratch:
        folder = scratch / "model"
        for part in capsule.names(_MODEL):
            capsule.unpack(part, folder)
        try:
            # What must be mended is not what was put in; the copy that is made then is thrown away.
            found = onnx_file.read(folder / name, place=Place(scratch / "mended"))
        except LoadError as error:
            raise StoreError(f"The model in the capsule {capsule.path} cannot be read: {error}") from error
        if found.sha256 != record.model.sha256:
            raise StoreError(
                f"The model in the capsule {capsule.path} is another ({found.sha256[:12]}...) than the study's "
                f"({record.model.sha256[:12]}...). The capsule was put together by something else; make it again."
            )
        _, place = store.add(folder)
    return replace(found, path=str(place / name), name=record.model.name, origin=record.model.origin)


def take_over_tables(path: Path, record: StudyRecord, data: Dataset, store: Store) -> tuple[str, ...]:
    """Put the calibration tables of a capsule where studies look for them; say where that is not done.

    A table is taken only under the keys that this very model and these very data give: a capsule cannot change what
    other studies remember.

    Args:
        record: of the rehearsal.
        data: bound to its model.

    Raises:
        StoreError: a table is damaged, or none.
    """
    keys = {
        key_of(observed_of(record.model, item.recipe, item.variant.dialect, samples_of(data, item.recipe)))
        for item in record.results
        if item.variant is not None and item.recipe.needs_calibration and data.calibration is not None
    }
    with capsule_file.opened(path) as capsule:
        about = capsule.contents.get("tables")
        if not isinstance(about, dict) or not about:
            return ()
        if capsule.contents.get("code_sha256") != code_sha256():
            made_by = str(capsule.contents.get("workbench"))[:20]
            return (
                f"The calibration tables were collected by another version of the workbench ({made_by}); activations are "
                f"observed again.",
            )
        try:
            ours = {sha256: entry for sha256, entry in about.items() if entry["key"] in keys}
            for sha256, entry in ours.items():
                _take(capsule, sha256, entry, store)
        except (CalibrationError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(
                f"The capsule {path} is damaged: a calibration table is none ({error}). Copy it again."
            ) from error
    others = len(about) - len(ours)
    many = f"{others} of the {len(about)} calibration tables are for steps that are settled by running; activations are"
    return (f"{many} observed again for them.",) if others else ()


def _take(capsule: Opened, sha256: str, entry: dict[str, Any], store: Store) -> None:
    with store.scratch() as scratch:
        unpacked = capsule.unpack(f"tables/{sha256}.npz", scratch)
        CalibrationTable.load(unpacked)
        found, place = store.add(unpacked)
    kept = KeptTable(found, str(place), float(entry["seconds"]))
    store.put(KeptTable.__name__.lower(), entry["key"], codec.to_json(kept))
