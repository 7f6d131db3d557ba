"""What TensorRT says while it works: captured whole, digested, and turned into the right error.

`digest` and `failure` are pure text; `logger` is the only thing here that touches the tensorrt module.
"""

from __future__ import annotations

import collections
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import BuildError, Cancelled, OutOfMemory

# What goes into Engine.log: enough to judge a build by, little enough for a report.
_KEPT_CHARACTERS = 20_000
_KEPT_LINES = 4000

_FUSION = re.compile(r"^(\w*Fus\w*|Quantize\w*|\w*Quantize\w*|\w*Merg\w*): [Ff]us(?:ing|ed) (.+?) (?:with|into) (.+)$")
_SKIPPED = re.compile(r"[Ss]kipping tactic\s*(\S+)\s+due to (.+)$")
_RUNNER = re.compile(r"-{5,} Timing Runner: (.+?) \(")
_NO_IMPLEMENTATION = re.compile(r"Could not find any implementation for node (.+?)(?:\.\)|\)$|\.$|$)")
_TOTAL = re.compile(r"Total (Host Persistent|Device Persistent|Scratch|Activation|Weights) Memory: (\d+)")
_PEAK = re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: CPU (\d+) MiB, GPU (\d+) MiB")
_LAYERS = re.compile(r"^(Original|After final dead-layer removal): (\d+) layers")
_MEMORY_WORDS = re.compile(
    r"insuf+icient memory|out of memory|OutOfMemory|could not be allocated|MEM_ALLOC_FAILED|Device memory is insuf+icient"
)
# What TensorRT for RTX says of a target: it compiles for GPUs that are not here.
_NO_FP32_PRODUCTS = re.compile(r"Cannot compile operation '([^']*)' for Turing \((SM\d+)\): FP32 GEMM is not supported")
_NO_SUCH_TYPES = re.compile(r"Cannot compile for target\(s\) ([\w, ]+), because the model contains HW-specific datatypes: "
                            r"([\w, ]+)")  # fmt: skip
# Said by every call on a machine without a driver, whatever else is the matter.
NO_DRIVER = "catchCudaError"
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Tactic:
    """A tactic that the builder did not try, for which node and why."""

    node: str
    tactic: str
    reason: str


@dataclass(frozen=True)
class Digest:
    """What a build log says.

    Attributes:
        fusions: one sentence each, such as `ConvReluFusion: /conv1/Conv + /relu/Relu`.
        skipped: tactics left out; with `insufficient memory` more workspace may make the engine faster.
        memory_bytes: `activation`, `weights`, `scratch`, `device_persistent`, `host_persistent`, and the builder's
            `peak_device` and `peak_host`; what the log does not say is absent.
        layers_before, layers_after: fusion, as the log counts them, or None.
        without_implementation: the node for which nothing could be found, or None.
    """

    fusions: tuple[str, ...] = ()
    skipped: tuple[Tactic, ...] = ()
    memory_bytes: dict[str, int] = field(default_factory=dict)
    layers_before: int | None = None
    layers_after: int | None = None
    without_implementation: str | None = None
    out_of_memory: bool = False

    @property
    def summary(self) -> str:
        """The digest in a few lines, for the head of an engine's log."""
        lines = [f"fusions: {len(self.fusions)}"]
        if self.layers_before is not None and self.layers_after is not None:
            lines.append(f"layers: {self.layers_before} before fusion, {self.layers_after} after")
        if self.skipped:
            lines.append(f"skipped tactics: {len(self.skipped)}, the first because of {self.skipped[0].reason}")
        lines += [f"{name} memory: {size:,} bytes" for name, size in self.memory_bytes.items()]
        return "\n".join(lines)


def digest(lines: Iterable[str]) -> Digest:
    """Read a verbose build log, one message an item, without severity marks."""
    fusions, skipped, memory, counts = [], [], {}, {}
    node, without, out_of_memory = "", None, False
    for line in lines:
        out_of_memory = out_of_memory or short_of_memory(line)
        if found := _RUNNER.search(line):
            node = found[1]
        elif found := _FUSION.match(line):
            fusions.append(f"{found[1]}: {found[2]} + {found[3]}")
        elif found := _SKIPPED.search(line):
            skipped.append(Tactic(node, found[1], found[2]))
        elif found := _TOTAL.search(line):
            memory[found[1].lower().replace(" ", "_")] = int(found[2])
        elif found := _PEAK.search(line):
            memory["peak_host"], memory["peak_device"] = int(found[1]) * _MEBIBYTE, int(found[2]) * _MEBIBYTE
        elif found := _LAYERS.match(line):
            counts[found[1]] = int(found[2])
        if found := _NO_IMPLEMENTATION.search(line):
            without = found[1]
    return Digest(
        fusions=tuple(fusions),
        skipped=tuple(skipped),
        memory_bytes=memory,
        layers_before=counts.get("Original"),
        layers_after=counts.get("After final dead-layer removal"),
        without_implementation=without,
        out_of_memory=out_of_memory,
    )


def short_of_memory(words: str) -> bool:
    """Return whether a message of TensorRT complains of too little memory."""
    return _MEMORY_WORDS.search(words) is not None


def failure(found: Digest, errors: Iterable[str], log: str, workspace_bytes: int | None) -> BuildError:
    """Return the error that a failed build deserves, from what its log says."""
    errors = list(errors)
    said = "; ".join(errors[-3:]) or "nothing"
    lacking = _lacking(said)
    if lacking is not None:
        return BuildError(lacking, log)
    if found.out_of_memory:
        where = f" for {found.without_implementation}" if found.without_implementation else ""
        limit = "the device's memory" if workspace_bytes is None else f"a workspace of {workspace_bytes:,} bytes"
        return OutOfMemory(
            f"TensorRT ran out of memory while building{where}: {len(found.skipped)} tactics were skipped within {limit}. "
            f"Raise BuildOptions.workspace_bytes, lower the largest shape of the profile, or free memory of the GPU. "
            f"TensorRT said: {said}",
            log,
        )
    if found.without_implementation:
        return BuildError(
            f"TensorRT has no implementation for {found.without_implementation} with the asked-for types and shapes. "
            f"Exclude it from quantization or low precision. TensorRT said: {said}",
            log,
        )
    return BuildError(
        f"TensorRT built no engine. It said: {said}. The log of the error holds the rest; a recipe with fewer steps "
        f"tells which one is to blame.",
        log,
    )


def _lacking(said: str) -> str | None:
    """Return what a target lacks, in a sentence with the way out, or None where that is not why a build failed."""
    if product := _NO_FP32_PRODUCTS.search(said):
        return (
            f"There are no FP32 matrix products on {product[2].lower()} in TensorRT for RTX, and {product[1]!r} is one. "
            f"Use a recipe that computes them in FP16, such as 'fp16' or 'int8-kl-fp16', or a target from sm80 on."
        )
    if types := _NO_SUCH_TYPES.search(said):
        return (
            f"The target {types[1]} has no arithmetic in a type of this file: {types[2].strip()}. Use a recipe without it, "
            f"or a later target (FP8 needs sm89, BF16 and INT4 sm80)."
        )
    return None


class Journal:
    """The lines of one piece of work: all of them in a file, the last ones in memory, problems apart."""

    def __init__(self, path: Path | None = None, sink: Callable[[str], None] = lambda line: None) -> None:
        """Start a journal.

        Args:
            path: the file for the whole log, verbose lines included; None keeps no file.
            sink: called with each line that is not verbose. It may raise Cancelled, from any thread.
        """
        self.errors: list[str] = []
        self.cancelled = False
        self._file = path.open("w", encoding="utf-8", errors="replace") if path else None
        self._path = path
        self._sink = sink
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()  # TensorRT logs from several threads

    def add(self, severity: str, message: str) -> None:
        """Take one message; never raises, because the caller may be TensorRT's own thread."""
        with self._lock:
            if self._file is not None and not self._file.closed:
                self._file.write(f"[{severity[:1]}] {message}\n")
            if severity == "VERBOSE":
                return
            self._lines.append(f"[{severity[:1]}] {message}")
            if severity in ("ERROR", "INTERNAL_ERROR") and NO_DRIVER not in message:
                self.errors.append(message)
        self.tell(f"[{severity[:1]}] {message}")

    def tell(self, line: str) -> None:
        """Pass a line on to the sink; a sink that raises Cancelled cancels, any other failure is kept as a line."""
        try:
            self._sink(line)
        except Cancelled:
            self.cancelled = True
        except Exception as error:  # noqa: BLE001 - must not reach TensorRT's thread, where it would end the process
            with self._lock:
                self._lines.append(f"[W] the log's reader failed: {error!r}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def digest(self) -> Digest:
        """Digest the whole log, from the file where there is one."""
        if self._path is None:
            return digest(line[4:] for line in self._lines)
        with self._lock:
            if self._file is not None and not self._file.closed:
                self._file.flush()
        with self._path.open(encoding="utf-8", errors="replace") as stream:
            return digest(line[4:].rstrip("\n") for line in stream)

    def text(self, found: Digest | None = None) -> str:
        """Return the digest's summary and the last lines, shortened from the front."""
        lines = "\n".join(self._lines)
        if len(lines) > _KEPT_CHARACTERS:
            lines = "...\n" + lines[-_KEPT_CHARACTERS:]
        return f"{found.summary}\n{lines}" if found is not None else lines


# TensorRT keeps a bare pointer to the first logger of a process and sends it what belongs to no object; so the first
# stays, and passes on to the journal that was begun last once its own is gone.
_first: list[Any] = []
_begun_last: list[weakref.ref[Journal]] = []


def logger(trt: Any, journal: Journal) -> Any:
    """Return an ILogger that writes into a journal; it must outlive all that was made with it."""
    begun = weakref.ref(journal)

    class JournalLogger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # without this call of the base, the first message ends the process

        def log(self, severity: Any, msg: str) -> None:
            target = begun() or (_begun_last[0]() if _begun_last else None)
            if target is not None:
                target.add(getattr(severity, "name", str(severity)), str(msg))

    made = JournalLogger()
    if not _first:
        _first.append(made)
    _begun_last[:] = [begun]
    return made
