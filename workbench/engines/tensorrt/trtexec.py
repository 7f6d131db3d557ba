"""The same work in trtexec's words: a command line for a build and a measurement, and back again. Pure text.

trtexec 11 has other defaults than 10 (a CUDA graph, spinning, no copies), so the same `latency` means another quantity;
the command lines written here say what differs from the defaults of the release.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.errors import DataError, expect
from workbench.recipes import Fuse, Precision, Quantize, Recipe, Sparsify, Step
from workbench.records import BuildOptions, Protocol, ShapeProfile

Shape = tuple[int, ...]
_MEBIBYTE = 2**20
_UNITS = {"": _MEBIBYTE, "B": 1, "K": 2**10, "M": _MEBIBYTE, "G": 2**30}
_HARDWARE = {"none": "none", "ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}
_VERBOSITY = {"none": "none", "names": "layer_names_only", "detailed": "detailed"}


@dataclass(frozen=True)
class Parsed:
    """What a trtexec command line asks for, in the workbench's words.

    Attributes:
        model: of `--onnx`, or None.
        engine: of `--loadEngine` or `--saveEngine`, or None.
        notes: flags without counterpart and what was assumed, one sentence each.
    """

    recipe: Recipe
    options: BuildOptions
    protocol: Protocol
    model: str | None = None
    engine: str | None = None
    notes: tuple[str, ...] = ()


def build_command(
    onnx_path: str, recipe: Recipe, options: BuildOptions, version: str, plan_path: str = "model.plan"
) -> str:
    """Return the trtexec command that builds the same engine from the variant's ONNX file.

    Args:
        version: TensorRT's, such as `8.6.0` or `11.4.0`: before 10.12 precisions are flags, later they are in the file.
    """
    words = ["trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--skipInference"]
    words += _precision_words(recipe, options, version)
    for profile in options.profiles:
        words += [f"--{end}Shapes={_shapes(profile, attribute)}" for end, attribute in _ENDS.items()]
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes / _MEBIBYTE:g}")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    return shlex.join(words + _switch_words(options.extra))


_PLUGINS = ("plugins", "staticPlugins", "dynamicPlugins")
_ENDS = {"min": "smallest", "opt": "typical", "max": "largest"}


def _precision_words(recipe: Recipe, options: BuildOptions, version: str) -> list[str]:
    precision, quantize = recipe.step("precision"), recipe.step("quantize")
    to = precision.to if isinstance(precision, Precision) else "fp32"
    words = [] if to == "tf32" else ["--noTF32"]
    release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if release < (10, 12):
        words += [f"--{to}"] if to in ("fp16", "bf16") else []
        native = options.extra.get("native_calibrator") is not None
        words += ["--int8"] if isinstance(quantize, Quantize) or native else []
    elif release < (11, 0):
        words.append("--stronglyTyped")
    if recipe.step("sparsify") is not None or options.extra.get("sparse"):
        words.append("--sparsity=enable")
    return words


def _shapes(profile: Mapping[str, ShapeProfile], attribute: str) -> str:
    return ",".join(f"{name}:{_times(getattr(shapes, attribute))}" for name, shapes in profile.items())


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) if shape else "scalar"


def _switch_words(extra: Mapping[str, Any]) -> list[str]:
    words = [f"--profilingVerbosity={_VERBOSITY.get(str(extra.get('verbosity', 'detailed')), 'detailed')}"]
    if extra.get("version_compatible"):
        words.append("--versionCompatible")
    if extra.get("hardware_compatibility", "none") != "none":
        words.append(f"--hardwareCompatibilityLevel={_HARDWARE[extra['hardware_compatibility']]}")
    if extra.get("refit"):
        words.append("--refit")
    if extra.get("calibration_cache"):
        words.append(f"--calib={extra['calibration_cache']}")
    if extra.get("auxiliary_streams") is not None:
        words.append(f"--maxAuxStreams={extra['auxiliary_streams']}")
    if extra.get("timing_iterations") is not None:
        words.append(f"--avgTiming={extra['timing_iterations']}")
    if extra.get("tactic_sources") is not None:
        words.append("--tacticSources=" + ",".join(f"+{name}" for name in extra["tactic_sources"]))
    # Those that are written in Python have no counterpart: trtexec runs none.
    words += [f"--dynamicPlugins={path}" for path in extra.get("plugins", ()) if not path.endswith(".py")]
    return words


def measure_command(plan_path: str, protocol: Protocol, shapes: Mapping[str, Shape], version: str) -> str:
    """Return the trtexec command that measures what the protocol measures, as near as trtexec can.

    `compute` is its "GPU Compute Time", `end_to_end` its "Latency", `throughput` its "Throughput". It queues one
    call ahead where the workbench waits for each.

    Args:
        shapes: input name -> shape that is fed.
    """
    words = ["trtexec", f"--loadEngine={plan_path}"]
    if shapes:
        words.append("--shapes=" + ",".join(f"{name}:{_times(shape)}" for name, shape in shapes.items()))
    words += [
        f"--warmUp={math.ceil(protocol.warmup_seconds * 1e3)}",
        f"--duration={math.ceil(protocol.min_seconds)}",
        f"--iterations={protocol.min_runs}",
        "--percentile=50,90,95,99",
    ]
    if protocol.boundary == "throughput":
        words.append(f"--infStreams={protocol.streams}")
    if int(version.split(".")[0]) < 11:
        words += ["--useCudaGraph"] if protocol.cuda_graph else []
        words += ["--noDataTransfers"] if protocol.boundary == "compute" else []
    else:
        words += [] if protocol.cuda_graph else ["--noCudaGraph"]
        words += [] if protocol.boundary == "compute" else ["--includeDataTransfers"]
        words.append("--noSpinWait")
    return shlex.join(words)


@dataclass
class _Reading:
    """What has been read so far."""

    major: int
    flags: dict[str, str] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, *names: str) -> str | None:
        """Return the value of the first of these flags that was given, and cross all of them off."""
        found = [self.flags.pop(name) for name in names if name in self.flags]
        return found[0] if found else None

    def number(self, *names: str) -> float | None:
        """Return a flag's value as a number; a value that is none becomes a note."""
        text = self.take(*names)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            self.notes.append(f"--{names[0]}={text} is no number and was left out.")
            return None
        return value


def from_trtexec(line: str, major: int = 10) -> Parsed:
    """Read a pasted trtexec command line; what has no counterpart is named in the notes.

    Args:
        major: release whose defaults hold where the line says nothing (10 or earlier, or 11 and later).

    Raises:
        DataError: the line is no text.
    """
    expect(line, str, "from_trtexec", "Paste the command line as text: 'trtexec --onnx=m.onnx --fp16'.", DataError)
    reading = _Reading(major)
    try:
        words = shlex.split(line.replace("\\\n", " "))
    except ValueError as error:
        words = line.split()
        reading.notes.append(f"The line's quotes do not match ({error}); it was split at spaces.")
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in _PLUGINS:  # may be given several times
            reading.plugins.append(value)
        elif word.startswith("--") and name:
            reading.flags[name] = value
        elif not re.search(r"(^|[/\\])trtexec(\.exe)?$", word):
            reading.notes.append(f"{word!r} is no flag and was left out.")
    model, engine = reading.take("onnx"), reading.take("loadEngine", "saveEngine")
    options, shapes = _options(reading)
    options = replace(options, extra={**options.extra, **_native(reading)})
    recipe = _recipe(reading)
    protocol = _protocol(reading, shapes)
    for name in reading.flags.keys() & _WITHOUT_EFFECT.keys():
        reading.flags.pop(name)
    reading.notes += [f"--{name} has no counterpart here and was left out." for name in sorted(reading.flags)]
    return Parsed(recipe, options, protocol, model, engine, tuple(reading.notes))


# Flags that only say what trtexec prints, or what the workbench does in any case.
_WITHOUT_EFFECT = dict.fromkeys(
    ("skipInference", "buildOnly", "verbose", "explicitBatch", "percentile", "avgRuns", "dumpProfile", "dumpLayerInfo",
     "separateProfileRun", "exportTimes", "exportProfile", "exportLayerInfo", "exportOutput", "dumpOutput")
)  # fmt: skip


def _recipe(reading: _Reading) -> Recipe:
    asked = [name for name in ("bf16", "fp16") if reading.take(name) is not None]
    best, int8, fp8 = (reading.take(name) is not None for name in ("best", "int8", "fp8"))
    strong, no_tf32 = reading.take("stronglyTyped") is not None, reading.take("noTF32") is not None
    if best:
        asked, int8 = asked or ["fp16"], True
        reading.notes.append("--best lets TensorRT choose any precision; FP16 with INT8 was taken for it.")
    if len(asked) > 1:
        reading.notes.append("--bf16 and --fp16 together let TensorRT choose; a recipe has one, BF16 was taken.")
    if strong or reading.major >= 11:
        reading.notes.append(
            "Precisions are in the ONNX file of a strongly typed network; the recipe changes no types."
        )
    steps: list[Step] = [Fuse("all")]
    if reading.take("sparsity") in ("enable", "force"):
        steps.append(Sparsify())
        reading.notes.append("--sparsity uses zeros that are there; the recipe prunes the weights to 2:4 first.")
    if int8 or fp8:
        steps.append(Quantize(to="int8" if int8 else "fp8", calibrator="kl" if int8 else "max"))
        reading.notes.append(
            "Without a calibration cache trtexec invents scales; the recipe calibrates with your data instead."
        )
    if asked:
        steps.append(Precision("bf16" if asked[0] == "bf16" else "fp16"))
    elif not no_tf32:
        steps.append(Precision("tf32"))
        reading.notes.append("trtexec allows TF32 unless --noTF32 says otherwise; the recipe does so too.")
    return Recipe("trtexec", tuple(steps))


def _native(reading: _Reading) -> dict[str, Any]:
    cache = reading.take("calib")
    if cache is None:
        return {}
    reading.take("int8")  # TensorRT's own calibrator works on a graph without Q/DQ, so no Quantize step
    return {"native_calibrator": "entropy", "calibration_cache": cache}


def _options(reading: _Reading) -> tuple[BuildOptions, dict[str, Shape]]:
    ends = {end: _read_shapes(reading, f"{end}Shapes") for end in _ENDS}
    fed = _read_shapes(reading, "shapes") or ends["opt"]
    typical = ends["opt"] or fed
    profile = {
        name: ShapeProfile(ends["min"].get(name, shape), shape, ends["max"].get(name, shape))
        for name, shape in typical.items()
    }
    extra: dict[str, Any] = {"plugins": list(reading.plugins)} if reading.plugins else {}
    if reading.take("versionCompatible", "vc") is not None:
        extra["version_compatible"] = True
    if reading.take("refit") is not None:
        extra["refit"] = True
    for flag, name, words in (
        ("hardwareCompatibilityLevel", "hardware_compatibility", _HARDWARE),
        ("profilingVerbosity", "verbosity", _VERBOSITY),
    ):
        value = reading.take(flag)
        known = {theirs.lower(): ours for ours, theirs in words.items()}
        if value is not None and value.lower() in known:
            extra[name] = known[value.lower()]
        elif value is not None:
            reading.notes.append(f"--{flag}={value} is not known and was left out.")
    for flag, name in (("maxAuxStreams", "auxiliary_streams"), ("avgTiming", "timing_iterations")):
        number = reading.number(flag)
        if number is not None:
            extra[name] = int(number)
    if reading.take("timingCacheFile") is not None:
        reading.notes.append("--timingCacheFile: the workbench keeps a timing cache of its own.")
    level = reading.number("builderOptimizationLevel")
    options = BuildOptions(
        profiles=(profile,) if profile else (),
        workspace_bytes=_workspace(reading),
        optimization_level=None if level is None else int(level),
        extra=extra,
    )
    return options, fed


def _workspace(reading: _Reading) -> int | None:
    old = reading.number("workspace")
    pools = reading.take("memPoolSize")
    for pool in (pools or "").split(",") if pools else ():
        found = re.fullmatch(r"workspace:([0-9.]+)([BKMG]?)", pool.strip())
        try:
            if found:
                return int(float(found[1]) * _UNITS[found[2]])
        except ValueError:
            pass  # said below, like every other pool
        reading.notes.append(f"--memPoolSize={pool} is not known and was left out.")
    return None if old is None else int(old * _MEBIBYTE)


def _read_shapes(reading: _Reading, flag: str) -> dict[str, Shape]:
    text = reading.take(flag)
    shapes: dict[str, Shape] = {}
    for part in (text or "").split(",") if text else ():
        name, _, sizes = part.rpartition(":")
        if name and re.fullmatch(r"\d{1,9}(x\d{1,9})*", sizes):
            shapes[name.strip("'\"")] = tuple(int(size) for size in sizes.split("x"))
        elif name and sizes in ("scalar", ""):
            shapes[name.strip("'\"")] = ()
        else:
            reading.notes.append(f"--{flag}: {part!r} is no shape and was left out.")
    return shapes


def _protocol(reading: _Reading, shapes: Mapping[str, Shape]) -> Protocol:
    modern = reading.major >= 11
    graph = reading.take("useCudaGraph") is not None or (modern and "noCudaGraph" not in reading.flags)
    copies = reading.take("includeDataTransfers") is not None or (
        not modern and not {"noDataTransfers", "noDataTransfer"} & set(reading.flags)
    )
    for name in ("noCudaGraph", "noDataTransfers", "noDataTransfer"):
        reading.take(name)
    spins = reading.take("useSpinWait") is not None or (modern and "noSpinWait" not in reading.flags)
    reading.take("noSpinWait")
    if spins:
        reading.notes.append("trtexec spins while it waits; the workbench waits as CUDA's default says.")
    streams = int(reading.number("infStreams", "streams") or 1)
    warmup, seconds, runs = (reading.number(name) for name in ("warmUp", "duration", "iterations"))
    first = next((shape for shape in shapes.values() if shape), (1,))
    return Protocol(
        boundary="throughput" if streams > 1 else "end_to_end" if copies else "compute",
        batch=max(first[0], 1),
        rounds=1,
        min_seconds=3.0 if seconds is None else seconds,
        min_runs=max(10 if runs is None else int(runs), 1),
        warmup_seconds=0.2 if warmup is None else warmup / 1e3,
        streams=max(streams, 1),
        cuda_graph=graph,
    )
