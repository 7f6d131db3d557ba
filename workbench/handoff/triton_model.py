"""A model for Triton's python backend: opens the engine beside it and answers requests, many in one call.

Copied as it is into a model repository, as `model.py`, with `triton_tensors.py`; `served.json` beside it says what to open
and how. It needs numpy and onnxruntime on the server and nothing of the workbench, unless `served.json` names an engine
that only the workbench can open. Interface: https://github.com/triton-inference-server/python_backend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_tensors import exchange

Arrays = dict[str, np.ndarray]


class TritonPythonModel:
    """One instance of the model, as the server makes it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine; the server calls this once, before any request.

        Args:
            args: from the server; `model_repository` is the model's folder.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        self.inputs: list[str] = settings["inputs"]
        self.outputs: list[str] = settings["outputs"]
        self.batched: bool = settings["batched"]
        self.read, self.written = exchange()
        opener = {"onnxruntime": _onnxruntime, "workbench": _workbench}[settings["opened_with"]]
        self.infer, self.close = opener(folder, settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, one response each in their order: all in one call of the engine where it takes batches."""
        feeds = [
            {name: self.read(pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs}
            for request in requests
        ]
        if self.batched and len(feeds) > 1:
            try:
                return [self._response(outputs) for outputs in self._together(feeds)]
            except Exception:  # noqa: BLE001 - one request may be at fault: below, it alone gets the error
                pass
        return [self._alone(one) for one in feeds]

    def finalize(self) -> None:
        """Close the engine; the server calls this once, at the end."""
        self.close()

    def _together(self, feeds: list[Arrays]) -> list[Arrays]:
        # The server gathers requests of one shape only, so that they can be joined along the samples.
        joined = {name: np.concatenate([one[name] for one in feeds]) for name in self.inputs}
        outputs = self.infer(joined)
        ends = np.cumsum([len(one[self.inputs[0]]) for one in feeds])
        return [
            {name: outputs[name][end - len(one[self.inputs[0]]) : end] for name in self.outputs}
            for one, end in zip(feeds, ends, strict=True)
        ]

    def _alone(self, feeds: Arrays) -> Any:
        try:
            return self._response(self.infer(feeds))
        except Exception as error:  # noqa: BLE001 - whatever the engine says goes to the client; the server lives on
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))

    def _response(self, outputs: Arrays) -> Any:
        tensors = []
        for name in self.outputs:
            array = np.ascontiguousarray(outputs[name])
            # The configuration has no tensors without axes: a single value (of each sample) has one axis of 1.
            lacking = 1 + self.batched - array.ndim
            tensors.append(self.written(name, array.reshape(*array.shape, 1) if lacking == 1 else array))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _onnxruntime(folder: Path, settings: dict[str, Any]) -> tuple[Callable[[Arrays], Arrays], Callable[[], None]]:
    """Open an ONNX file the way the study did."""
    import importlib
    import os

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would report the model to its makers
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, settings["session"]["level"])
    options.log_severity_level = 3  # errors
    if settings["session"]["threads"] is not None:
        options.intra_op_num_threads = settings["session"]["threads"]
    for key, value in settings["session"]["entries"].items():
        options.add_session_config_entry(key, value)
    providers = settings["session"]["providers"]
    if providers[0] != "CPUExecutionProvider" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    session = runtime.InferenceSession(
        str(folder / settings["file"]), options, providers=providers,
        provider_options=settings["session"]["provider_options"],
    )  # fmt: skip
    if session.get_providers()[0] != providers[0]:
        # ONNX Runtime goes on without a provider that it cannot use, at another speed.
        raise RuntimeError(f"ONNX Runtime on this server cannot use {providers[0]}, only {session.get_providers()}.")
    names = settings["outputs"]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)), lambda: None


def _workbench(folder: Path, settings: dict[str, Any]) -> tuple[Callable[[Arrays], Arrays], Callable[[], None]]:
    """Open an engine whose backend only the workbench knows to open."""
    from dataclasses import replace

    from workbench import codec, engines
    from workbench.records import Engine

    engine = codec.from_json(Engine, json.dumps(settings["engine"]))
    left = None if engine.folder is None else str(folder / engine.folder)
    runner = engines.open_runner(replace(engine, path=str(folder / engine.path), folder=left)).__enter__()
    return runner.infer, lambda: runner.__exit__(None, None, None)
