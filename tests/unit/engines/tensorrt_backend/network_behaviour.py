"""What the stand-in's parser and builder do: read an ONNX file, and "build" a plan that names it and its flags."""

# ruff: noqa: N802 - the names are those of the real libraries
from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
          "BOOL": np.bool_, "UINT8": np.uint8}  # fmt: skip


class Buffer(bytes):
    """IHostMemory: bytes with a size."""

    @property
    def nbytes(self) -> int:
        return len(self)


class NetworkBehaviour:
    """Mixed into the world: parser, network, builder, config and caches."""

    # Functions

    def do_init_libnvinfer_plugins(self, _: Any, logger: Any, namespace: str) -> bool:
        return True

    def do_nptype(self, _: Any, dtype: Any) -> Any:
        if dtype.name not in NUMPY:
            raise TypeError(f"Could not resolve TensorRT datatype to an equivalent numpy datatype: {dtype}")
        return NUMPY[dtype.name]

    # Plugins

    def do_get_plugin_registry(self, _: Any) -> Any:
        return self.new("IPluginRegistry")

    def do_IPluginRegistry_plugin_creator_list(self, registry: Any) -> list[Any]:
        return [*(self.new("IPluginCreator", name=name) for name in sorted(self.plugins)), *self.creators]

    def do_IPluginRegistry_all_creators(self, registry: Any) -> list[Any]:
        return self.do_IPluginRegistry_plugin_creator_list(registry)

    def do_IPluginRegistry_register_creator(self, registry: Any, creator: Any, plugin_namespace: str = "") -> bool:
        taken = creator.name in {known.name for known in self.do_IPluginRegistry_plugin_creator_list(registry)}
        self.creators += [] if taken else [creator]
        return not taken

    def do_PluginField___init__(self, field: Any, name: str, data: Any, kind: Any) -> None:
        field.state.__dict__.update(name=name, data=np.frombuffer(data, data.dtype), type=kind)

    def do_PluginFieldCollection___init__(self, collection: Any, fields: Any) -> None:
        collection.state.fields = list(fields)

    def do_IPluginRegistry_load_library(self, registry: Any, path: str) -> Any:
        self.plugins |= self.libraries.get(Path(path).name, set())
        return None

    # Building

    def do_Builder___init__(self, builder: Any, logger: Any) -> None:
        if self.builder_fails:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        builder.state.logger = logger

    def do_Builder_create_network(self, builder: Any, flags: int = 0) -> Any:
        return self.new("INetworkDefinition", flags=flags, graph=None, path=None)

    def do_Builder_create_builder_config(self, builder: Any) -> Any:
        flags = {self.module.BuilderFlag.TF32}  # on by default in every release
        return self.new("IBuilderConfig", flags=flags, profiles=[], cache=None)

    def do_Builder_create_optimization_profile(self, builder: Any) -> Any:
        return self.new("IOptimizationProfile", shapes={})

    def do_IOptimizationProfile_set_shape(self, profile: Any, name: str, low: Any, typical: Any, high: Any) -> None:
        profile.state.shapes[name] = (tuple(low), tuple(typical), tuple(high))

    def do_IBuilderConfig_set_flag(self, config: Any, flag: Any) -> None:
        config.state.flags.add(flag)

    def do_IBuilderConfig_clear_flag(self, config: Any, flag: Any) -> None:
        config.state.flags.discard(flag)

    def do_IBuilderConfig_add_optimization_profile(self, config: Any, profile: Any) -> int:
        config.state.profiles.append(profile)
        return len(config.state.profiles) - 1

    def do_IBuilderConfig_set_compute_capability(self, config: Any, capability: Any, index: int) -> bool:
        config.state.__dict__.setdefault("capabilities", {})[index] = capability.name
        return True

    def do_IBuilderConfig_set_calibration_profile(self, config: Any, profile: Any) -> bool:
        config.state.calibration_profile = profile
        return "set_calibration_profile" not in self.refused

    def do_IBuilderConfig_set_tactic_sources(self, config: Any, mask: int) -> bool:
        return "set_tactic_sources" not in self.refused

    def do_IBuilderConfig_create_timing_cache(self, config: Any, data: Any) -> Any:
        return self.new("ITimingCache", entries={line for line in bytes(data).decode().split("\n") if line})

    def do_IBuilderConfig_set_timing_cache(self, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        config.state.cache = cache
        return self.cache_fits or not cache.state.entries

    def do_ITimingCache_combine(self, cache: Any, other: Any, ignore_mismatch: bool) -> bool:
        cache.state.entries |= other.state.entries
        return True

    def do_ITimingCache_serialize(self, cache: Any) -> Buffer:
        return Buffer("\n".join(sorted(cache.state.entries)).encode())

    def do_Builder_build_serialized_network(self, builder: Any, network: Any, config: Any) -> Buffer | None:
        logger = builder.state.logger
        for severity, message in self.build_lines:
            logger.log(getattr(self.module.ILogger.Severity, severity), message)
        monitor = getattr(config.state, "progress_monitor", None)
        if monitor is not None and self.steps:
            monitor.phase_start("Building", None, self.steps)
            for step in range(self.steps):
                self.monitor_answers.append(monitor.step_complete("Building", step))
                if not self.monitor_answers[-1]:
                    return None
            monitor.phase_finish("Building")
        calibrator = getattr(config.state, "int8_calibrator", None)
        if calibrator is not None:
            self._calibrate(calibrator, network)
        if self.build_fails:
            return None
        if config.state.cache is not None:
            config.state.cache.state.entries.add(f"tactic of {Path(network.state.path).name}")
        plan = {
            "onnx": str(network.state.path),
            "profiles": [profile.state.shapes for profile in config.state.profiles],
            "flags": self.flags(config),
            "capabilities": list(getattr(config.state, "capabilities", {}).values()),
        }
        return Buffer(json.dumps(plan).encode())

    def _calibrate(self, calibrator: Any, network: Any) -> None:
        self.batches = []
        stored = calibrator.read_calibration_cache()
        names = [item.name for item in network.state.graph.input]
        while stored is None:
            addresses = calibrator.get_batch(names)
            if addresses is None:
                break
            first = ctypes.cast(self.cuda.device_bytes(addresses[0], 4), ctypes.POINTER(ctypes.c_float))
            self.batches.append(first[0])
        version = "".join(part.zfill(1) for part in self.module.__version__.split(".")[:3]).ljust(4, "0")
        calibrator.write_calibration_cache(
            memoryview(f"TRT-{version}-EntropyCalibration2\n{names[0]}: 3c010a14\n".encode())
        )

    # Parsing

    def do_OnnxParser___init__(self, parser: Any, network: Any, logger: Any) -> None:
        parser.state.network = network

    def do_OnnxParser_parse_from_file(self, parser: Any, path: str) -> bool:
        if self.parser_errors:
            return False
        parser.state.network.state.graph = onnx.load(path).graph
        parser.state.network.state.path = path
        return True

    def do_OnnxParser_parse(self, parser: Any, model: bytes, path: str | None = None) -> bool:
        parser.state.network.state.graph = onnx.load_from_string(model).graph
        parser.state.network.state.path = path
        return True

    def do_OnnxParser_num_errors(self, parser: Any) -> int:
        return len(self.parser_errors)

    def do_OnnxParser_get_error(self, parser: Any, index: int) -> Any:
        code, node, words = self.parser_errors[index]
        return self.new("ParserError", code_name=code, index=node, words=words)

    def do_ParserError_code(self, error: Any) -> Any:
        return self.member("ErrorCode", error.state.code_name)

    def do_ParserError_node(self, error: Any) -> int:
        return error.state.index

    def do_ParserError_desc(self, error: Any) -> str:
        return error.state.words

    def do_ParserError_node_name(self, error: Any) -> str:
        return "/custom/Special"

    def do_ParserError_node_operator(self, error: Any) -> str:
        return "Special"

    def do_OnnxParser_supports_operator(self, parser: Any, name: str) -> bool:
        return name not in self.unsupported

    def _bad(self, data: bytes) -> list[int]:
        nodes = onnx.load_from_string(data).graph.node
        return [index for index, node in enumerate(nodes) if node.op_type in self.unsupported]

    def do_OnnxParser_supports_model(self, parser: Any, data: bytes, path: str) -> Any:
        bad = self._bad(data)
        return not bad, [([0], True), (bad, False)] if bad else [([0], True)]

    def do_OnnxParser_supports_model_v2(self, parser: Any, data: bytes, path: str) -> bool:
        parser.state.bad = self._bad(data)
        return not parser.state.bad

    def do_OnnxParser_num_subgraphs(self, parser: Any) -> int:
        return 2

    def do_OnnxParser_is_subgraph_supported(self, parser: Any, index: int) -> bool:
        return index == 0

    def do_OnnxParser_get_subgraph_nodes(self, parser: Any, index: int) -> list[int]:
        return parser.state.bad

    # The network, as the parser filled it

    def _type(self, value: Any) -> str:
        name = TYPES[value.type.tensor_type.elem_type]
        return "INT32" if name == "INT64" and not hasattr(self.module.DataType, "INT64") else name

    def do_INetworkDefinition_num_inputs(self, network: Any) -> int:
        return len(network.state.graph.input)

    def do_INetworkDefinition_get_input(self, network: Any, index: int) -> Any:
        value = network.state.graph.input[index]
        return self.new(
            "ITensor", name=value.name, dtype=self.member("DataType", self._type(value)), is_shape_tensor=False
        )

    def do_INetworkDefinition_num_layers(self, network: Any) -> int:
        return len(network.state.graph.node)

    def do_INetworkDefinition_get_layer(self, network: Any, index: int) -> Any:
        node = network.state.graph.node[index]
        layers = network.state.__dict__.setdefault("layers", {})
        if index not in layers:
            layers[index] = self.new(
                "ILayer", name=node.name, metadata=f"[ONNX Layer: {node.name}]", num_outputs=1, output_types={},
                type=self.module.LayerType.MATRIX_MULTIPLY,
            )  # fmt: skip
        return layers[index]

    def do_ILayer_get_output(self, layer: Any, index: int) -> Any:
        return self.new(
            "ITensor", name=f"{layer.state.name}_out", dtype=self.module.DataType.FLOAT, is_shape_tensor=False
        )

    def do_ILayer_set_output_type(self, layer: Any, index: int, dtype: Any) -> None:
        layer.state.output_types[index] = dtype.name
