"""Operators that TensorRT does not know: libraries of plugins, opened once a process and told apart by their content.

A library is a shared one, or a Python file (see `python_plugins`). It is code, as a plan is: the engine remembers its
sha256, and another one is not opened for it. TensorRT's parser looks up a node of any domain by its operator type, so
that nothing else is needed to use one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.engines.tensorrt import python_plugins
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import EngineError
from workbench.machine.store import digest

# What this process opened: path -> sha256. A library cannot be taken back: engines and TensorRT point into it.
_opened: dict[str, str] = {}


def hashed(paths: Iterable[str]) -> dict[str, str]:
    """Return the absolute path of each library -> its sha256.

    Raises:
        EngineError: one is missing.
    """
    absolute = [str(Path(path).resolve()) for path in paths]
    return {path: _sha256(path) for path in absolute}


def load(caps: Capabilities, logger: Any, libraries: Mapping[str, str]) -> None:
    """Register TensorRT's own plugins and those of the libraries; what is registered already is left alone.

    Args:
        libraries: path -> the sha256 that its content must have.

    Raises:
        EngineError: a library is missing, changed, cannot be opened, or registers nothing.
    """
    caps.trt.init_libnvinfer_plugins(logger, "")
    for path, sha256 in libraries.items():
        if (found := _sha256(path)) != sha256:
            raise EngineError(
                f"The library of plugins {path} changed: its sha256 is {found[:12]}..., expected {sha256[:12]}.... It is "
                f"code and is not opened. Rebuild the engine, or put the library back."
            )
        if _opened.get(path, sha256) != sha256:
            raise EngineError(f"This process opened an earlier {path}, which stays. Open the engine in a new process.")
        if path not in _opened:
            _open(caps, path)
            _opened[path] = sha256


def registered(caps: Capabilities) -> frozenset[str]:
    """Return the names of all plugins that the parser can find: operator types."""
    if not caps.plugins:
        return frozenset()
    registry = caps.trt.get_plugin_registry()
    every = registry.all_creators if caps.has("IPluginRegistry", "all_creators") else registry.plugin_creator_list
    return frozenset(creator.name for creator in every)


def _sha256(path: str) -> str:
    if not Path(path).is_file():
        raise EngineError(f"The library of plugins {path} is missing. Compile it, or mend the path.")
    try:
        return digest(Path(path))
    except OSError as error:
        raise EngineError(f"Cannot read the library of plugins {path}: {error}. Mend its permissions.") from error


def _open(caps: Capabilities, path: str) -> None:
    """Open a library, which may register its plugins itself; else have TensorRT ask it for them."""
    if path.endswith(".py"):
        python_plugins.register(caps, path)
        return
    before = registered(caps)
    try:
        ctypes.CDLL(path)
        if registered(caps) == before:
            caps.trt.get_plugin_registry().load_library(path)
    except (OSError, RuntimeError, TypeError) as error:
        raise EngineError(
            f"The library of plugins {path} cannot be opened: {error}. Was it built for this machine, and linked with all "
            f"that it uses (libnvinfer where it registers itself)?"
        ) from error
    if registered(caps) == before:
        raise EngineError(
            f"{path} registers no plugin that {caps.name} did not have: it neither does so when it is opened "
            f"(REGISTER_TENSORRT_PLUGIN) nor exports getPluginCreators or getCreators, or its plugins are there already."
        )
