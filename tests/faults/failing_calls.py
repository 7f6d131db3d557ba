"""Run in a process of its own, with failing_calls.c loaded: the n-th call of a kind fails, for every n, each in a fork.

python failing_calls.py KIND FOLDER MOST: prints how many calls a clean run makes, and how many of the faults were told.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import traceback
from pathlib import Path

from store_work import STEPS, check, work

from workbench.errors import StoreError

TOLD, UNNOTICED, OTHER = 1, 2, 3


def forked(kind: str, number: int, root: Path) -> tuple[int, int, list[str]]:
    """Let the call of that number fail; returns what came of it, the calls that were made, and the steps that were done."""
    shared, calls = mmap.mmap(-1, 64), ctypes.CDLL(None)
    pid = os.fork()
    if pid == 0:
        outcome, error = UNNOTICED, None
        calls.faults_begin(kind.encode(), ctypes.c_long(number))
        try:
            work(root, lambda step: shared.__setitem__(8 + STEPS.index(step), 1))
        except (StoreError, MemoryError) as told:
            error, outcome = told, TOLD
        except BaseException as other:  # noqa: BLE001 - what is looked for
            error, outcome = other, OTHER
        made = calls.faults_end()
        if outcome == OTHER and kind != "malloc":
            traceback.print_exception(error)
        shared[:8] = made.to_bytes(8, "little")
        os._exit(outcome)
    status = os.waitpid(pid, 0)[1]
    done = [step for place, step in enumerate(STEPS) if shared[8 + place]]
    return os.waitstatus_to_exitcode(status), int.from_bytes(shared[:8], "little"), done


def main(kind: str, folder: Path, most: int) -> None:
    """Try each call, or as many of them as asked, evenly spread."""
    _, made, done = forked(kind, 0, folder / "whole")
    assert done == list(STEPS)
    told = tried = 0
    for number in range(1, made + 1, max(made // most, 1)):
        root = folder / str(number)
        outcome, seen, done = forked(kind, number, root)
        # Without memory libraries raise what they like (OpenSSL: ValueError), or end the process; and how often it is asked
        # for differs a little from run to run.
        if kind != "malloc":
            assert outcome != OTHER, f"{kind} {number}"
            assert seen >= number, f"{kind} {number} was not reached"
        check(root, done)
        work(root)
        check(root)
        assert not list((root / "scratch").iterdir()), f"{kind} {number} left something"
        told, tried = told + (outcome == TOLD), tried + 1
    print(made, tried, told)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
