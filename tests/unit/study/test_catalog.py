"""All studies of a store in one table, and a study's numbers as numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_study
from small_studies import QUICK

import workbench as wb
from workbench import codec
from workbench.errors import Cancelled, DataError, StoreError
from workbench.machine.store import Store
from workbench.study import catalog


def test_studies_are_listed_the_latest_first_with_what_they_found(model, data, store, made_up_rounds) -> None:
    protocol = replace(QUICK, rounds=3)
    wb.run(model, data, ["fp32", "int8-max"], protocol=protocol, store=store, name="first")
    wb.run(model, data, ["fp32", "fp8"], protocol=protocol, store=store, name="second")
    found = wb.studies(store)
    assert list(found["name"]) == ["second", "first"]
    assert list(found["state"]) == ["finished", "finished"]
    assert list(found["variants"]) == [2, 2] and set(found["model"]) == {"classifier"}
    assert set(found["backend"]) == {"onnxruntime-cpu"} and found["device"].notna().all()
    assert found["date"].is_monotonic_decreasing


def test_a_study_that_was_stopped_is_unfinished_and_one_that_cannot_be_read_is_damaged(
    model, data, store, made_up_rounds
) -> None:
    stop = {"now": False}

    def progress(step) -> None:
        stop["now"] = step.stage == "measure" and step.variant == "int8-max"

    with pytest.raises(Cancelled):
        wb.run(
            model, data, ["fp32", "int8-max"], protocol=replace(QUICK, rounds=3), store=store, name="cut",
            progress=progress, cancel=lambda: stop["now"],
        )  # fmt: skip
    store.put("study", "odd", "{}")
    found = wb.studies(store).set_index("name")
    assert found.loc["cut", "state"] == "unfinished" and found["best"].isna().all()
    assert found.loc["odd", "state"] == "damaged"


def test_an_empty_store_gives_an_empty_table_with_its_columns(store) -> None:
    found = wb.studies(store)
    assert found.empty and "state" in found.columns


def test_a_frame_holds_numbers_and_not_words(model, data, store, made_up_rounds) -> None:
    study = wb.run(model, data, ["fp32", "int8-max"], protocol=replace(QUICK, rounds=3), store=store)
    frame = study.frame().set_index("variant")
    summary = study.latency("int8-max")
    assert frame.loc["int8-max", "latency_median_seconds"] == summary.median == study["int8-max"].latency
    assert frame.loc["int8-max", "latency_low_seconds"] == summary.low
    assert np.isnan(frame.loc["fp32", "speedup_ratio"])
    assert 0 <= frame.loc["int8-max", "score"] <= 1
    numbers = [
        name for name in frame if name.endswith(("_seconds", "_bytes")) or name in ("score", "sqnr_db", "change")
    ]
    assert all(frame[name].dtype == float for name in numbers) and len(numbers) > 8


def test_a_variant_that_was_not_measured_has_no_latency(model, data, store, made_up_rounds) -> None:
    broken = wb.Recipe("broken", (wb.Quantize(calibrator="max", exclude=("first", "head")),))
    study = wb.run(model, data, ["fp32", broken], protocol=replace(QUICK, rounds=3), store=store)
    failed = replace(study["broken"], measurement=None)
    record = replace(study.record, results=(study["fp32"], failed))
    assert np.isnan(failed.latency)
    with pytest.raises(DataError, match="'broken' was not measured"):
        wb.Study(record).latency("broken")
    with pytest.raises(KeyError, match="fp32"):
        study.latency("fp23")


def test_remarks_pin_and_deletion_are_kept_beside_the_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = synthetic_study.study()
    store.put("study", record.name, codec.to_json(record))
    catalog.remark(record.name, catalog.Remarks(("paper",), "first try"), store)
    catalog.pin(record.name, store)
    row = wb.studies(store).iloc[0]
    assert (row["tags"], row["note"], bool(row["pinned"])) == ("paper", "first try", True)
    with pytest.raises(StoreError, match="no study 'nothing'"):
        catalog.pin("nothing", store)
    catalog.delete(record.name, store)
    assert catalog.pinned(store) is None and wb.studies(store).empty
    with pytest.raises(StoreError, match="nothing to delete"):
        catalog.delete(record.name, store)
    catalog.undelete(record.name, store)
    assert catalog.pinned(store) == record.name
    with pytest.raises(StoreError, match="was deleted"):
        catalog.undelete(record.name, store)
    catalog.delete(record.name, store)
    store.put("study", record.name, codec.to_json(record))
    with pytest.raises(StoreError, match="cannot take its place"):
        catalog.undelete(record.name, store)
    store.put("remarks", record.name, "{damaged")
    assert catalog.remarks(record.name, store) == catalog.Remarks()
    catalog.pin(None, store)
    assert catalog.pinned(store) is None
