"""Build a TensorRT engine from a variant.

Knows nothing of processes: whoever wants to survive a crash of the builder calls this in a child.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from workbench.engines.base import BuildRequest
from workbench.engines.tensorrt import (
    calibration_cache,
    calibrator,
    layers,
    log,
    parsing,
    plan,
    plugins,
    precision,
    profiles,
    progress,
    refitting,
    switches,
    targets,
    timing_cache,
)
from workbench.engines.tensorrt.capabilities import Capabilities, name_of
from workbench.engines.tensorrt.cuda import Cuda
from workbench.engines.tensorrt.targets import Targets
from workbench.errors import BuildError, CalibrationError, Cancelled, EngineError
from workbench.records import Engine

_HARDWARE = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_VERBOSITY = {"none": "NONE", "names": "LAYER_NAMES_ONLY", "detailed": "DETAILED"}


@dataclass
class Session:
    """One build, and all that must live until it is done: TensorRT keeps bare pointers to most of it."""

    caps: Capabilities
    cuda: Cuda | None
    targets: Targets
    request: BuildRequest
    journal: log.Journal
    logger: Any
    graph: onnx.ModelProto
    switches: switches.Switches
    flags: precision.Flags
    notes: list[str]
    builder: Any = None
    network: Any = None
    parser: Any = None
    config: Any = None
    calibrator: Any = None
    monitor: Any = None
    cache: Any = None
    profiles: tuple[profiles.Profile, ...] = ()
    libraries: dict[str, str] = field(default_factory=dict)
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def folder(self) -> Path:
        """Where the engine's files go."""
        return Path(self.request.folder)


def build(caps: Capabilities, cuda: Cuda | None, request: BuildRequest, sink: Callable[[str], None]) -> Engine:
    """Build an engine into the request's folder.

    Args:
        cuda: None where there is no GPU; a library that builds ahead of time needs none.
        sink: called with each line that TensorRT says, verbose ones left out, and with `progress 0.42 ...` lines
            where the release tells its progress. Raising Cancelled in it gives the build up where that is possible.

    Raises:
        BuildError, UnsupportedOperator, OutOfMemory, CalibrationError, Cancelled: see each.
        EngineError: a library of plugins is missing or cannot be opened.
    """
    started = time.perf_counter()
    wanted, notes = targets.read(caps, request.options, None if cuda is None else cuda.device())
    chosen, more = switches.read(request.options, ahead_of_time=caps.ahead_of_time)
    notes += more
    libraries = plugins.hashed(chosen.plugins)
    graph = parsing.load_graph(Path(request.variant.path))
    quantized = parsing.is_quantized(graph)
    flags = precision.decide(caps, wanted, request.variant, chosen, quantized=quantized)
    journal = log.Journal(Path(request.folder) / "build.log", sink)
    session = Session(
        caps,
        cuda,
        wanted,
        request,
        journal,
        log.logger(caps.trt, journal),
        graph,
        chosen,
        flags,
        [*notes, *flags.notes],
        libraries=libraries,
    )
    with contextlib.closing(journal), session.resources:
        _fill_network(session)
        _configure(session)
        data = _run(session)
        _keep(session, data)
        return _record(session, memoryview(data).nbytes, time.perf_counter() - started)


def new_builder(
    caps: Capabilities, logger: Any, network_flags: tuple[str, ...], libraries: Mapping[str, str] = MappingProxyType({})
) -> tuple[Any, Any]:
    """Return a builder and an empty network.

    Args:
        libraries: of plugins; see `plugins.load`.

    Raises:
        BuildError: TensorRT cannot start, mostly because of the driver.
        EngineError: a library of plugins is missing or cannot be opened.
    """
    plugins.load(caps, logger, libraries)
    try:
        builder = caps.trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise BuildError(
            f"{caps.name} cannot start on this machine: {error}. Look with nvidia-smi whether the driver is "
            f"new enough and the GPU has free memory."
        ) from error
    members = [caps.member("NetworkDefinitionCreationFlag", name) for name in network_flags]
    return builder, builder.create_network(sum(1 << int(member) for member in members if member is not None))


def _fill_network(session: Session) -> None:
    caps = session.caps
    session.builder, session.network = new_builder(caps, session.logger, session.flags.network, session.libraries)
    path = Path(session.request.variant.path)
    session.parser = parsing.parse(caps, session.network, session.logger, path, session.graph)
    if session.flags.hold_fp32:
        _hold_fp32(session)
    for index in range(session.network.num_inputs):
        tensor = session.network.get_input(index)
        spec = next((item for item in session.request.variant.inputs if item.name == tensor.name), None)
        if spec is not None and spec.dtype == "int64" and name_of(tensor.dtype) == "INT32":
            session.notes.append(
                f"{caps.name} has no INT64: the input {spec.name!r} is INT32 inside, values are checked."
            )


def _hold_fp32(session: Session) -> None:
    """Keep the excluded layers of a weakly typed network in FP32."""
    trt = session.caps.trt
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    without_arithmetic = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE)
    for index in range(session.network.num_layers):
        layer = session.network.get_layer(index)
        sources = {layer.name, *layers.source_nodes(layer.metadata or "")}
        if layer.type in without_arithmetic or not sources & session.flags.hold_fp32:
            continue
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        if not outputs or any(tensor.is_shape_tensor or tensor.dtype not in floats for tensor in outputs):
            continue
        layer.precision = trt.DataType.FLOAT
        for number in range(layer.num_outputs):
            layer.set_output_type(number, trt.DataType.FLOAT)


def _configure(session: Session) -> None:
    caps, options = session.caps, session.request.options
    config = session.config = session.builder.create_builder_config()
    for name in session.flags.set:
        config.set_flag(getattr(caps.trt.BuilderFlag, name))
    for name in session.flags.clear:
        config.clear_flag(getattr(caps.trt.BuilderFlag, name))
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(caps.trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    for index, name in enumerate(session.targets.members):
        config.num_compute_capabilities = len(session.targets.members)
        config.set_compute_capability(getattr(caps.trt.ComputeCapability, name), index)
    config.profiling_verbosity = getattr(caps.trt.ProfilingVerbosity, _VERBOSITY[session.switches.verbosity])
    _set_switches(session)
    inputs = session.request.variant.inputs
    session.profiles = profiles.choose(inputs, options, session.switches.batch)
    profiles.add(session.builder, session.network, config, session.profiles)
    _attach_timings(session)
    if session.switches.native_calibrator is not None:
        _attach_calibrator(session, session.switches.native_calibrator)
    if caps.progress_monitor:
        session.monitor = progress.monitor(caps.trt, session.journal.tell, lambda: session.journal.cancelled)
        config.progress_monitor = session.monitor


def _set_switches(session: Session) -> None:
    caps, config, chosen = session.caps, session.config, session.switches
    if chosen.hardware_compatibility != "none":
        name = _HARDWARE[chosen.hardware_compatibility]
        level = caps.member("HardwareCompatibilityLevel", name)
        if level is None:
            raise BuildError(f"{caps.name} has no hardware compatibility {name}. Use 'none' or 'ampere+'.")
        config.hardware_compatibility_level = level
    if chosen.auxiliary_streams is not None:
        config.max_aux_streams = chosen.auxiliary_streams
    if chosen.timing_iterations is not None:
        config.avg_timing_iterations = chosen.timing_iterations
    if chosen.tactic_sources is not None:
        mask = 0
        for name in chosen.tactic_sources:
            member = caps.member("TacticSource", name)
            if member is None:
                raise BuildError(f"{caps.name} has no tactic source {name!r}. Leave it out.")
            mask |= 1 << int(member)
        if not config.set_tactic_sources(mask):
            raise BuildError(f"TensorRT refuses the tactic sources {chosen.tactic_sources}. Leave the option out.")


def _attach_timings(session: Session) -> None:
    if not session.switches.timing_cache or session.request.cache_folder is None:
        return
    path = timing_cache.place(Path(session.request.cache_folder), session.caps, session.targets.devices[0])
    session.cache, notes = timing_cache.attach(session.config, path)
    session.notes += notes


def _attach_calibrator(session: Session, kind: str) -> None:
    cached = session.switches.calibration_cache
    stored = None if cached is None else calibration_cache.render(calibration_cache.read(Path(cached)))
    inputs = session.request.variant.inputs
    feeder = None
    if session.request.calibration_path is not None:
        tensors = [session.network.get_input(index) for index in range(session.network.num_inputs)]
        dtypes = {tensor.name: np.dtype(session.caps.trt.nptype(tensor.dtype)) for tensor in tensors}
        feeds = calibrator.samples(Path(session.request.calibration_path), dtypes)
        count = len(next(iter(feeds.values())))
        first = inputs[0]
        fixed = first.shape[0] if first.shape else 1
        batch = fixed or min(count, session.profiles[0][first.name].typical[0])
        if session.cuda is None:
            raise CalibrationError("TensorRT's own calibrators run on a GPU, and there is none here.")
        feeder = calibrator.Feeder(session.cuda, feeds, batch)
        session.resources.callback(feeder.free)
        _check_batches(feeder, batch, session.notes)
        shapes = profiles.calibration_shapes(inputs, session.profiles, batch)
        if not session.config.set_calibration_profile(profiles.create(session.builder, shapes)):
            raise CalibrationError(f"TensorRT refuses {shapes} as the shapes to calibrate with. Give other profiles.")
    elif stored is None:
        raise CalibrationError(
            f"The option native_calibrator={kind!r} needs calibration samples, and none were passed. Pass the data's "
            f"calibration split, or the option calibration_cache."
        )
    session.calibrator = calibrator.create(session.caps.trt, kind, feeder, stored)
    session.config.int8_calibrator = session.calibrator


def _check_batches(feeder: calibrator.Feeder, batch: int, notes: list[str]) -> None:
    if feeder.batches == 0:
        raise CalibrationError(
            f"Calibration needs at least {batch} samples, the batch of the engine; there are {feeder.count}."
        )
    if feeder.left_out:
        notes.append(f"{feeder.left_out} calibration samples were left out: they do not fill a batch of {batch}.")


def _run(session: Session) -> Any:
    """Build, and turn a failure into the error it deserves."""
    data = session.builder.build_serialized_network(session.network, session.config)
    if session.journal.cancelled:
        raise Cancelled("The TensorRT build was cancelled.")
    if session.calibrator is not None:
        calibrator.finish(session.calibrator, session.folder / "calibration.cache")
    if data is not None:
        return data
    found = session.journal.digest()
    text = session.journal.text(found)
    raise log.failure(found, session.journal.errors, text, session.request.options.workspace_bytes)


def _keep(session: Session, data: Any) -> None:
    """Write the plan, the timings and what the engine tells of its layers."""
    caps, chosen = session.caps, session.switches
    plan.write(
        session.folder / plan.PLAN_NAME,
        data,
        tensorrt=caps.version,
        device=session.targets.words,
        compute_capability=session.targets.capability,
        structure_sha256=refitting.structure_sha256(session.graph),
        version_compatible=chosen.version_compatible,
        hardware_compatibility=_runs_on(session),
        refittable=chosen.refit,
        plugins=session.libraries,
    )
    if session.cache is not None and session.request.cache_folder is not None:
        path = timing_cache.place(Path(session.request.cache_folder), caps, session.targets.devices[0])
        session.notes += timing_cache.save(session.config, session.cache, path)
    if caps.ahead_of_time:
        return  # the log tells of the layers (see `kernels`), and loading would need one of the targets here
    try:
        runtime, engine = plan.deserialize(
            caps,
            session.logger,
            data,
            version_compatible=chosen.version_compatible,
            libraries=session.libraries,
        )
    except EngineError as error:
        session.notes.append(f"The layers of the new engine could not be read: {error}")
        return
    context = layers.typical_context(engine, [spec.name for spec in session.request.variant.inputs])
    (session.folder / layers.FILE_NAME).write_text(layers.information(caps, engine, context), encoding="utf-8")
    del context, engine, runtime


def _runs_on(session: Session) -> str:
    """Return the sidecar's `hardware_compatibility`."""
    if not session.caps.ahead_of_time:
        return session.switches.hardware_compatibility
    return "listed" if session.targets.members else "ampere+"


def _record(session: Session, size_bytes: int, seconds: float) -> Engine:
    found = session.journal.digest()
    variant = session.request.variant
    short_of_memory = [tactic for tactic in found.skipped if "memory" in tactic.reason]
    if short_of_memory:
        session.notes.append(
            f"{len(short_of_memory)} tactics were skipped for lack of workspace memory; more may make it faster."
        )
    return Engine(
        variant=variant.name,
        variant_sha256=variant.sha256,
        fusion="all",
        backend=session.request.backend,
        backend_version=session.caps.version,
        device=session.targets.words,
        path=str(session.folder / plan.PLAN_NAME),
        inputs=variant.inputs,
        outputs=variant.outputs,
        build_seconds=seconds,
        size_bytes=size_bytes,
        options=session.request.options,
        log=session.journal.text(found),
        notes=tuple(session.notes),
        folder=str(session.folder),
    )
