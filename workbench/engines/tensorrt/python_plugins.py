"""Operators written in Python as plugins of TensorRT 10 and later (`IPluginV3`).

A file gives a list PLUGINS of classes. The name of a class is the operator type of its nodes; it has

- `attributes`: name -> default, a number or a list of numbers: what nodes may say, handed to `__init__` by name;
- `run(inputs, outputs, stream)`: puts the work on a CUDA stream and does not wait for it. Inputs and outputs lie on the
  device; `torch.as_tensor(one, device="cuda")`, `cupy.asarray(one)` or `numba.cuda.as_cuda_array(one)` makes an array of
  each without a copy;
- `outputs`, how many there are, where it is not one; and `shapes(inputs, expressions)`, where they are not all shaped as
  the first input: TensorRT's DimsExprs of the outputs, made of those of the inputs with its IExprBuilder.

All tensors are row-major and of one type, FP32 or FP16. TensorRT calls this code while it builds and while it runs, so
that an engine with such a plugin runs in Python alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import EngineError

_VERSION = "1"  # of a plugin, which the parser asks for where a node does not name another
# TensorRT keeps bare pointers to creators.
_creators: list[Any] = []


@dataclass(frozen=True)
class DeviceArray:
    """Memory of TensorRT's as an array of the CUDA Array Interface, which PyTorch, CuPy and Numba read without a copy."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where it lies, its shape and type; row-major."""
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}


def register(caps: Capabilities, path: str) -> None:
    """Register the classes of a file with TensorRT.

    Raises:
        EngineError: this release takes none, or the file does not give classes that can be registered.
    """
    if not hasattr(caps.trt, "IPluginV3"):
        raise EngineError(
            f"{caps.name} takes no plugin in Python, so {path} is of no use; TensorRT 10 does. Write it in C++ "
            f"(IPluginV2DynamicExt), or define the operator by others."
        )
    registry = caps.trt.get_plugin_registry()
    for kind in _classes(path):
        creator = _creator(caps.trt, kind)
        if not registry.register_creator(creator, ""):
            raise EngineError(
                f"TensorRT refuses the plugin {kind.__name__} of {path}: is one of this name there already?"
            )
        _creators.append(creator)


def _classes(path: str) -> list[type]:
    spec = importlib.util.spec_from_file_location(f"workbench_plugins_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EngineError(f"The file of plugins {path} cannot be run: {type(error).__name__}: {error}.") from error
    found = getattr(module, "PLUGINS", None)
    if not isinstance(found, list) or not found or not all(isinstance(kind, type) for kind in found):
        raise EngineError(f"{path} gives no list PLUGINS of classes; it is {found!r}.")
    for kind in found:
        if not callable(getattr(kind, "run", None)) or not isinstance(getattr(kind, "attributes", None), dict):
            raise EngineError(
                f"{kind.__name__} in {path} needs a method run(inputs, outputs, stream) and attributes = {{}}."
            )
    return found


def _field(trt: Any, name: str, value: Any) -> Any:
    """Return a field of a plugin: whole numbers as INT32, others as FLOAT32."""
    array = np.atleast_1d(np.asarray(value))
    whole = array.dtype.kind in "iub"
    kind = trt.PluginFieldType.INT32 if whole else trt.PluginFieldType.FLOAT32
    return trt.PluginField(name, array.astype(np.int32 if whole else np.float32), kind)


def _value(field: Any, default: Any) -> Any:
    """Return what a field holds, in the form of the attribute's default."""
    values = np.asarray(field.data).reshape(-1).tolist()
    return values if isinstance(default, (list, tuple)) else type(default)(values[0])


def _creator(trt: Any, kind: Any) -> Any:
    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = kind.__name__, _VERSION, ""
            fields = [_field(trt, name, default) for name, default in kind.attributes.items()]
            self.field_names = trt.PluginFieldCollection(fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name: field for field in fields}
            values = {
                name: _value(given[name], default) if name in given else default
                for name, default in kind.attributes.items()
            }
            return _plugin(trt, kind, values)

    return Creator()


def _plugin(trt: Any, kind: Any, values: dict[str, Any]) -> Any:
    """Return a plugin that has an object of the user's class do the work."""
    interfaces = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class Plugin(*interfaces):  # type: ignore[misc]
        def __init__(self) -> None:
            for interface in interfaces:
                interface.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = kind.__name__, _VERSION, ""
            self.num_outputs = getattr(kind, "outputs", 1)
            self.timing_cache_id = ""  # equal plugins on equal shapes are timed once
            self._operator = kind(**values)

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def clone(self) -> Any:
            return _plugin(trt, kind, values)

        # When the engine is built

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0]] * self.num_outputs

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expressions: Any) -> list[Any]:
            if hasattr(self._operator, "shapes"):
                return list(self._operator.shapes(inputs, expressions))
            return [inputs[0]] * self.num_outputs

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            one, first = in_out[pos].desc, in_out[0].desc
            known = one.type in (trt.DataType.FLOAT, trt.DataType.HALF)
            return bool(known and one.type == first.type and one.format == trt.TensorFormat.LINEAR)

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []  # TensorRT then knows one way to run it

        # When it runs

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([_field(trt, name, value) for name, value in values.items()])

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def set_tactic(self, tactic: int) -> None:
            pass

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            self._operator.run(_arrays(trt, input_desc, inputs), _arrays(trt, output_desc, outputs), int(stream))

    return Plugin()


def _arrays(trt: Any, descriptions: Sequence[Any], addresses: Sequence[int]) -> list[DeviceArray]:
    return [
        DeviceArray(int(address), tuple(one.dims), np.dtype(trt.nptype(one.type)))
        for one, address in zip(descriptions, addresses, strict=True)
    ]
