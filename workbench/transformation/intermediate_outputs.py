"""Run an FP32 graph over samples with chosen tensors as its outputs, one batch at a time.

Memory does not grow with the number of samples: two batches are alive at most, the one that is looked at and the next,
which runs meanwhile. Where they would exceed a limit, the tensors are taken in groups, one pass over the samples each.
The graph runs in another process. Knows nothing of what is done with the values.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from workbench.engines.isolated import IsolatedRunner, open_file
from workbench.errors import CalibrationError
from workbench.graph.files import fixed_batch, is_large, save
from workbench.graph.tensor_types import tensor_types
from workbench.machine import disk
from workbench.machine.handle import QUIET, Handle
from workbench.records import Progress

Samples = Mapping[str, NDArray[Any]]

# The engine fuses around exposed tensors, not across them, so that their values stay; measured, `all` is the fastest.
_FUSION = "all"
# Observed values that may be held at a time.
LARGEST_HELD_BYTES = 512 << 20
_BATCHES_ALIVE = 2
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Observation:
    """How to observe.

    Attributes:
        batch: samples in a run.
        samples: how many to take, from the front; None takes all.
        threads: of the engine; None leaves the choice to it.
        largest_held_bytes: observed values held at a time.
        progress: called after each batch; None calls the handle's.
        handle: the caller's; asked while the graph runs whether to stop.
    """

    batch: int = 8
    samples: int | None = None
    threads: int | None = None
    largest_held_bytes: int = LARGEST_HELD_BYTES
    progress: Callable[[Progress], None] | None = None
    handle: Handle = QUIET


@dataclass(frozen=True)
class Batch:
    """What one run showed.

    Attributes:
        first: index of its first sample.
        samples: how many it holds.
        group: number of the pass, from 0.
        groups: how many passes there are.
        arrays: observed tensor of the group -> values.
    """

    first: int
    samples: int
    group: int
    groups: int
    arrays: dict[str, NDArray[Any]]


def batches(proto: onnx.ModelProto, names: Sequence[str], inputs: Samples, how: Observation) -> Iterator[Batch]:
    """Hand out the batches, group of tensors by group, while the next one runs.

    A graph whose first axis is fixed is run at that size; samples that do not fill a run are left out then.

    Args:
        proto: the graph; not changed.
        names: tensors of the main graph to observe, graph inputs among them if wanted.
        inputs: input name -> array with samples on axis 0.

    Raises:
        CalibrationError: there are no samples, or they do not fit the graph's inputs.
        Cancelled: the caller stopped it.
        RunError, BuildError: ONNX Runtime cannot run the graph.
    """
    count, size = _sizes(proto, inputs, how)
    taken = {name: array[:count] for name, array in inputs.items()}
    stop = threading.Event()
    stream = _run(proto, list(names), taken, how, size, Handle(cancelled=stop.is_set))
    with ThreadPoolExecutor(1, "calibrate") as pool:
        try:
            running = pool.submit(next, stream, None)
            while (batch := _waited(running, how.handle)) is not None:
                running = pool.submit(next, stream, None)
                yield batch
                done = batch.first + batch.samples
                share = (batch.group + done / count) / batch.groups
                (how.progress or how.handle.progress)(Progress("calibrate", "", share, f"{done} of {count} samples"))
                del batch
        finally:
            stop.set()  # a run that is under way, and may never end, is not waited for
    stream.close()


def _waited(running: Future[Batch | None], handle: Handle) -> Batch | None:
    handle.check(" during calibration")
    while not running.done():
        wait([running], _POLL_SECONDS)
        handle.check(" during calibration")
    return running.result()


def _run(
    proto: onnx.ModelProto, names: list[str], inputs: Samples, how: Observation, size: int, handle: Handle
) -> Generator[Batch, None, None]:
    count = len(next(iter(inputs.values())))
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(_opened(proto, names, how.threads, handle))
        few = {name: array[: fixed_batch(proto) or 1] for name, array in inputs.items()}
        limit = how.largest_held_bytes * len(next(iter(few.values()))) // size
        shown = _observed(runner, names, few)
        groups = grouped({name: _BATCHES_ALIVE * array.nbytes for name, array in shown.items()}, limit)
        for number, group in enumerate(groups):
            if len(groups) > 1:
                stack.close()
                runner = stack.enter_context(_opened(proto, group, how.threads, handle))
            for first in range(0, count, size):
                feeds = {name: array[first : first + size] for name, array in inputs.items()}
                arrays = _observed(runner, group, feeds)
                yield Batch(first, min(size, count - first), number, len(groups), arrays)
                del arrays


def _observed(runner: IsolatedRunner | None, group: Sequence[str], feeds: Samples) -> dict[str, NDArray[Any]]:
    values = runner.infer(feeds) if runner is not None else {}
    return {name: feeds[name] if name in feeds else values[name] for name in group}


def _sizes(proto: onnx.ModelProto, inputs: Samples, how: Observation) -> tuple[int, int]:
    """Return how many samples are run, and how many at a time."""
    if how.batch < 1:
        raise CalibrationError(f"Calibration in batches of {how.batch}: a batch needs at least 1 sample.")
    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise CalibrationError(
            f"Calibration needs at least 1 sample, and equally many for each input; got {lengths or 'no inputs'}. "
            f"Add calibration data, or take a recipe without static quantization."
        )
    count = min(lengths.values())
    count = count if how.samples is None else min(how.samples, count)
    fixed = fixed_batch(proto)
    if fixed is None:
        return count, min(how.batch, count)
    if count < fixed:
        raise CalibrationError(
            f"The model takes {fixed} samples at a time, and {count} are given for calibration. Give at least {fixed}."
        )
    return count - count % fixed, fixed


def grouped(sizes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    """Split names into groups, in their order, each within a limit unless one name alone is beyond it.

    Args:
        sizes: name -> bytes that are held while its group is worked on.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name, needed in sizes.items():
        if groups[-1] and held + needed > limit_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += needed
    return groups


@contextlib.contextmanager
def _opened(
    proto: onnx.ModelProto, names: Sequence[str], threads: int | None, handle: Handle
) -> Iterator[IsolatedRunner | None]:
    """Open the graph with these tensors as its only outputs; None where all of them are graph inputs."""
    given = {value.name for value in proto.graph.input}
    wanted = [name for name in names if name not in given]
    if not wanted:
        yield None
        return
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    elements = tensor_types(proto).elements
    del exposed.graph.output[:]
    for name in wanted:
        element = elements.get(name, onnx.TensorProto.FLOAT)
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    with disk.temporary() as folder:
        source = _source(exposed, folder)
        del exposed
        with open_file(source, _FUSION, threads, handle=handle) as runner:
            yield runner


def _source(exposed: onnx.ModelProto, folder: Path) -> Path | bytes:
    return save(exposed, folder / "exposed.onnx") if is_large(exposed) else exposed.SerializeToString()
