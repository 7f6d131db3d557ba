"""NVIDIA Nsight Systems: the command that records a program, and the kernels in its export by the range they belong to.

Ranges are those of `machine.ranges`, and those that TensorRT opens around each of its layers. Reads the SQLite form of
`nsys export`. A file from elsewhere can be hostile: it is opened read-only, only plain tables are asked, and rows and
work are bounded.
"""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.records import LayerTime

_MAGIC = b"SQLite format 3\0"
_MOST_ROWS = 2_000_000
_LONGEST_NAME = 1000
# Instructions of SQLite's machine: a table of that many rows takes some 1e8 of them.
_STEPS_A_CHECK, _MOST_CHECKS = 1_000_000, 3_000
_PUSH_POP = 59  # the kind of event in NVTX_EVENTS that is a range of one thread
_KERNELS, _LAUNCHES, _RANGES = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
_OUTSIDE = "(no range)"
_NANOSECOND = 1e-9


@dataclass(frozen=True)
class _Launch:
    """A call of CUDA's that launched kernels: when, on which thread."""

    thread: int
    start: int


def nsys_command(program: str, output: str = "profile") -> str:
    """Return the two commands that record a program with nsys and write what `read_foreign` reads.

    Child processes are recorded too. In a CUDA graph each kernel is recorded, which slows it: times are for shares, not for
    a latency. Stages have ranges where the package `nvtx` is installed.

    Args:
        program: a command line, such as `python -m workbench run digits_resnet --backend tensorrt`.
        output: name of the files to write, without a suffix.

    Raises:
        DataError: one of them is no text, or empty.
    """
    for value in (program, output):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"nsys_command takes a command line and a file name as text, got {value!r}.")
    words = [
        "nsys",
        "profile",
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",
        "--force-overwrite=true",
        f"--output={output}",
    ]
    export = [
        "nsys",
        "export",
        "--type=sqlite",
        "--force-overwrite=true",
        f"--output={output}.sqlite",
        f"{output}.nsys-rep",
    ]
    return f"{shlex.join(words)} {program.strip()}\n{shlex.join(export)}"


def is_export(file: Path) -> bool:
    """Whether a file is an SQLite database.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def kernels(file: Path) -> tuple[tuple[LayerTime, ...], tuple[str, ...]]:
    """Return the kernels of an export by the innermost range that their launch lies in, and what must be read with it.

    Returns:
        One entry a range and kernel, in the order of their first run, with the sum of their seconds; and notes.

    Raises:
        DataError: the file is damaged, too large, or holds no kernels.
    """
    try:
        with contextlib.closing(_opened(file)) as database:
            tables = _tables(database)
            if _KERNELS not in tables:
                raise DataError(
                    f"{file} holds no CUDA kernels: it is no export of nsys, or nsys did not trace CUDA. Record it as "
                    f"workbench.nsys_command says."
                )
            return _by_range(database, tables, file)
    except sqlite3.Error as error:
        raise DataError(f"{file} is damaged, or asks for too much work: {error}. Export it again.") from error


def _opened(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    checks = iter(range(_MOST_CHECKS))
    database.set_progress_handler(lambda: next(checks, None) is None, _STEPS_A_CHECK)
    database.execute("PRAGMA trusted_schema = OFF")
    return database


def _tables(database: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the columns of each plain table: a view or a virtual table is code of the file's."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%' LIMIT 1000"
    names = {str(name) for (name,) in database.execute(query)} & {_KERNELS, _LAUNCHES, _RANGES, "StringIds"}
    return {name: {str(row[1]) for row in database.execute(f"PRAGMA table_info({name})")} for name in names}


def _by_range(
    database: sqlite3.Connection, tables: dict[str, set[str]], file: Path
) -> tuple[tuple[LayerTime, ...], tuple[str, ...]]:
    strings = {}
    if "StringIds" in tables:
        query = f"SELECT id, substr(value, 1, {_LONGEST_NAME}) FROM StringIds"
        strings = {key: str(value) for key, value in _rows(database, query, file, text=True)}
    launches = _launches(database, tables, file)
    found = _kernels(database, tables, file)
    ranges = _innermost(
        _ranges(database, tables, strings, file), {launches[key] for *_, key in found if key in launches}
    )
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for start, end, name, key in found:
        if end < start:
            raise DataError(f"{file} is damaged: a kernel ends before it starts. Export it again.")
        where = ranges.get(launches[key], _OUTSIDE) if key in launches else _OUTSIDE
        sums[where, strings.get(name, "(no name)")] += (end - start) * _NANOSECOND
    outside = sum(key not in launches or launches[key] not in ranges for *_, key in found)
    notes = [
        f"Sums over {len(found)} kernels, by the innermost NVTX range that their launch lies in. Being recorded slows a "
        f"program; no ratio with a study."
    ]
    if outside:
        notes.append(f"{outside} kernels were launched in no range, or by a call that the file lacks.")
    return tuple(LayerTime(where, kernel, seconds) for (where, kernel), seconds in sums.items()), tuple(notes)


def _rows(database: sqlite3.Connection, query: str, file: Path, *, text: bool = False) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a query: whole numbers, with a text behind them where that is asked for."""
    for count, row in enumerate(database.execute(query), start=1):
        if count > _MOST_ROWS:
            raise DataError(f"{file} holds more than {_MOST_ROWS} events of a kind. Record fewer rounds.")
        if not all(isinstance(value, int) for value in (row[:-1] if text else row)):
            raise DataError(f"{file} is damaged: {row!r} should be whole numbers. Export it again.")
        yield row


def _process(column: str, columns: set[str]) -> str:
    """Return the process in a serialized id, as SQL: calls are numbered anew in each."""
    return f"({column} / 0x1000000 % 0x1000000)" if column in columns else "0"


def _kernels(
    database: sqlite3.Connection, tables: dict[str, set[str]], file: Path
) -> list[tuple[int, int, int, tuple[int, int]]]:
    """Return start, end, id of the name, and (process, number) of the call that launched it, in the order of time."""
    columns = tables[_KERNELS]
    name = "shortName" if "shortName" in columns else "demangledName"
    process = _process("globalPid" if "globalTid" in tables.get(_LAUNCHES, ()) else "", columns)
    query = f'SELECT start, "end", {name}, {process}, correlationId FROM {_KERNELS} ORDER BY start'
    return [(start, end, name, (pid, number)) for start, end, name, pid, number in _rows(database, query, file)]


def _launches(database: sqlite3.Connection, tables: dict[str, set[str]], file: Path) -> dict[tuple[int, int], _Launch]:
    """Return the call that launched kernels by (process, number)."""
    if _LAUNCHES not in tables:
        return {}
    process = _process("globalTid" if "globalPid" in tables[_KERNELS] else "", tables[_LAUNCHES])
    query = (
        f"SELECT {process}, correlationId, globalTid, start FROM {_LAUNCHES} "
        f"WHERE correlationId IN (SELECT correlationId FROM {_KERNELS})"
    )
    return {(pid, number): _Launch(tid, start) for pid, number, tid, start in _rows(database, query, file)}


def _ranges(
    database: sqlite3.Connection, tables: dict[str, set[str]], strings: dict[int, str], file: Path
) -> dict[int, list[tuple[int, int, str]]]:
    """Return start, end and name of the ranges of each thread, outer ones first."""
    found: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    if _RANGES not in tables:
        return found
    text = f"substr(coalesce(text, ''), 1, {_LONGEST_NAME})" if "text" in tables[_RANGES] else "''"
    text_id = "coalesce(textId, -1)" if "textId" in tables[_RANGES] else "-1"
    query = (
        f'SELECT globalTid, start, "end", {text_id}, {text} FROM {_RANGES} '
        f'WHERE eventType = {_PUSH_POP} AND "end" IS NOT NULL ORDER BY start, "end" DESC'
    )
    for thread, start, end, shared, own in _rows(database, query, file, text=True):
        found[thread].append((start, end, str(own) or strings.get(shared, "(no name)")))
    return found


def _innermost(ranges: dict[int, list[tuple[int, int, str]]], launches: set[_Launch]) -> dict[_Launch, str]:
    """Return the innermost range around each launch that has one: ranges of a thread lie in each other or apart."""
    found = {}
    by_thread: dict[int, list[_Launch]] = defaultdict(list)
    for launch in launches:
        by_thread[launch.thread].append(launch)
    for thread, its in by_thread.items():
        waiting, around = iter(ranges.get(thread, ())), list[tuple[int, int, str]]()
        following = next(waiting, None)
        for launch in sorted(its, key=lambda launch: launch.start):
            while following is not None and following[0] <= launch.start:
                around = [one for one in around if one[1] > following[0]]
                around.append(following)
                following = next(waiting, None)
            around = [one for one in around if one[1] > launch.start]
            if around:
                found[launch] = around[-1][2]
    return found
