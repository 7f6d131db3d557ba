"""What nsys exports, read back. The files are made here, in the form that NVIDIA's reference of the export states."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import workbench as wb
from workbench.errors import DataError
from workbench.handoff import nsys
from workbench.handoff.foreign import Foreign

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
    category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, graphNodeId INTEGER);
"""
STRINGS = ["cudaLaunchKernel", "gemm", "relu", "void gemm<float>(...)", "/fc/MatMul", "round 0 of fp32"]
ONE, OTHER = 7 << 24, 8 << 24  # processes, as nsys writes them into ids of threads


def call(number: int, start: int, thread: int = ONE + 1) -> tuple[object, ...]:
    return (start, start + 5, 1, thread, number, 0, 0)


def kernel(number: int, start: int, end: int, name: int, process: int = ONE) -> tuple[object, ...]:
    return (start, end, 0, 1, 7, number, process, 3, name, None)


def span(start: int, end: int | None, text: str | None, text_id: int | None = None, thread: int = ONE + 1,
         kind: int = 59) -> tuple[object, ...]:  # fmt: skip
    return (start, end, kind, None, None, None, text, thread, None, text_id, 0)


RANGES = [
    span(0, 1000, None, 5),  # round 0 of fp32
    span(100, 200, "profiled call"),
    span(110, 150, None, 4),  # /fc/MatMul
    span(160, 190, "/act/Relu"),
    span(0, 10_000, "of another thread", thread=ONE + 2),
    span(0, 10_000, "of another process", thread=OTHER + 1),
    span(50, None, "never closed"),
    span(0, 10_000, "a mark or a range between threads", kind=60),
]
CALLS = [call(1, 120), call(2, 170), call(3, 195), call(4, 600), call(5, 1200), call(1, 130, OTHER + 1)]
KERNELS = [
    kernel(1, 2000, 2300, 1),
    kernel(1, 9000, 9100, 1, OTHER),  # the other process numbers its calls from 1, too
    kernel(2, 2400, 2450, 2),
    kernel(3, 2500, 2510, 2),
    kernel(4, 3000, 3300, 1),  # a graph's launch: two kernels of one call
    kernel(4, 3300, 3400, 2),
    kernel(5, 3500, 3600, 1),
    kernel(6, 3700, 3800, 1),  # whose call is not in the file
]


def export(path: Path, schema: str = SCHEMA, **rows: list[tuple[object, ...]]) -> Path:
    """Write an export; `rows` are in place of those above."""
    path.unlink(missing_ok=True)
    tables = {
        "StringIds": list(enumerate(STRINGS)), "NVTX_EVENTS": RANGES, "CUPTI_ACTIVITY_KIND_RUNTIME": CALLS,
        "CUPTI_ACTIVITY_KIND_KERNEL": KERNELS, **rows,
    }  # fmt: skip
    with sqlite3.connect(path) as database:
        database.executescript(schema)
        for name, values in tables.items():
            if f"CREATE TABLE {name} " in schema:
                database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values[0]))})", values)
    database.close()
    return path


def sums(found: Foreign) -> dict[tuple[str, str], int]:
    return {(layer.name, layer.operator): round(layer.seconds * 1e9) for layer in found.layers}


def test_kernels_are_summed_by_the_innermost_range_of_their_launch(tmp_path: Path) -> None:
    found = wb.read_foreign(export(tmp_path / "profile.sqlite"))
    assert (found.tool, found.boundary) == ("nsys", "kernels, by NVTX range")
    assert sums(found) == {
        ("/fc/MatMul", "gemm"): 300,
        ("/act/Relu", "relu"): 50,
        ("profiled call", "relu"): 10,
        ("round 0 of fp32", "gemm"): 300,
        ("round 0 of fp32", "relu"): 100,
        ("(no range)", "gemm"): 200,
        ("of another process", "gemm"): 100,
    }
    assert "8 kernels" in found.notes[0] and found.notes[1].startswith("2 kernels were launched in no range")
    assert found.table().iloc[0]["ms"] == pytest.approx(300e-6)
    assert wb.foreign_rows(found).iloc[0]["Tool"] == "nsys"


def test_a_file_without_ranges_calls_or_names_still_gives_its_kernels(tmp_path: Path) -> None:
    only = SCHEMA[SCHEMA.index("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL") :]
    found = wb.read_foreign(export(tmp_path / "profile.sqlite", only))
    assert sums(found) == {("(no range)", "(no name)"): 1060}


def test_older_exports_without_processes_and_short_names_are_read(tmp_path: Path) -> None:
    older = SCHEMA.replace(" globalPid INTEGER,", "").replace(", shortName INTEGER NOT NULL", "").replace(
        " textId INTEGER,", ""
    )  # fmt: skip
    file = export(
        tmp_path / "profile.sqlite", older, CUPTI_ACTIVITY_KIND_RUNTIME=[call(1, 120)],
        CUPTI_ACTIVITY_KIND_KERNEL=[(2000, 2300, 0, 1, 7, 1, 3, None)],
        NVTX_EVENTS=[(0, 1000, 59, None, None, None, "mine", ONE + 1, None, 0)],
    )  # fmt: skip
    assert sums(wb.read_foreign(file)) == {("mine", "void gemm<float>(...)"): 300}


def test_a_range_without_a_name_is_said_to_have_none(tmp_path: Path) -> None:
    file = export(tmp_path / "profile.sqlite", NVTX_EVENTS=[span(0, 10_000, None)])
    assert ("(no name)", "gemm") in sums(wb.read_foreign(file))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"CUPTI_ACTIVITY_KIND_KERNEL": [kernel(1, "soon", 2300, 1)]}, "should be whole numbers"),
        ({"CUPTI_ACTIVITY_KIND_KERNEL": [kernel(None, 2000, 2300, 1)]}, "should be whole numbers"),
        ({"CUPTI_ACTIVITY_KIND_KERNEL": [kernel(1, 2300, 2000, 1)]}, "ends before it starts"),
        ({"NVTX_EVENTS": [span(0, "late", "x")]}, "should be whole numbers"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, rows: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        wb.read_foreign(export(tmp_path / "profile.sqlite", **rows))


def test_a_damaged_file_or_another_database_is_refused(tmp_path: Path) -> None:
    file = export(tmp_path / "profile.sqlite")
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    with pytest.raises(DataError, match="is damaged"):
        wb.read_foreign(file)
    with pytest.raises(DataError, match="holds no CUDA kernels"):
        wb.read_foreign(export(tmp_path / "other.sqlite", "CREATE TABLE mine (x INTEGER);"))
    with pytest.raises(DataError, match="is damaged"):
        wb.read_foreign(export(tmp_path / "bare.sqlite", "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL(start INTEGER);"))
    with pytest.raises(DataError, match="Cannot read"):
        wb.read_foreign(tmp_path / "none.sqlite")


def test_a_view_in_place_of_a_table_is_not_asked(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS start FROM n"
    schema = f"CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS {endless};"
    with pytest.raises(DataError, match="holds no CUDA kernels"):
        wb.read_foreign(export(tmp_path / "hostile.sqlite", schema))


def test_rows_and_work_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export(tmp_path / "profile.sqlite")
    monkeypatch.setattr(nsys, "_MOST_ROWS", 7)
    with pytest.raises(DataError, match="more than 7 events"):
        wb.read_foreign(file)
    monkeypatch.setattr(nsys, "_MOST_CHECKS", 0)
    monkeypatch.setattr(nsys, "_STEPS_A_CHECK", 10)
    with pytest.raises(DataError, match="too much work"):
        wb.read_foreign(file)


def test_the_file_is_not_changed(tmp_path: Path) -> None:
    file = export(tmp_path / "profile.sqlite")
    before = file.read_bytes()
    wb.read_foreign(file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["profile.sqlite"]


def test_the_commands_record_children_and_graphs_and_write_what_is_read() -> None:
    record, write = wb.nsys_command("python -m workbench run digits_resnet", "my profile").splitlines()
    assert record == (
        "nsys profile --trace=cuda,nvtx --cuda-graph-trace=node --force-overwrite=true '--output=my profile' "
        "python -m workbench run digits_resnet"
    )
    assert write.startswith("nsys export --type=sqlite") and write.endswith("'my profile.nsys-rep'")
    for wrong in ("", 3):
        with pytest.raises(DataError, match="as text"):
            wb.nsys_command(wrong)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="as text"):
            wb.nsys_command("python x.py", wrong)  # type: ignore[arg-type]
