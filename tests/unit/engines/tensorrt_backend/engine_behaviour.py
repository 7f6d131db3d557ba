"""What the stand-in's engines and contexts do: tell their tensors, run with ONNX's own evaluator, take new weights."""

# ruff: noqa: N802 - the names are those of the real libraries
from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from network_behaviour import NUMPY, TYPES, Buffer
from onnx.reference import ReferenceEvaluator


class EngineBehaviour:
    """Mixed into the world; a context reads and writes the addresses it was given when its stream is waited for."""

    def do_Runtime___init__(self, runtime: Any, logger: Any) -> None:
        runtime.state.logger = logger

    def do_Runtime_deserialize_cuda_engine(self, runtime: Any, data: Any) -> Any:
        if self.refuses_plan:
            return None
        plan = json.loads(bytes(data))
        model = onnx.load(plan["onnx"])
        values = [*model.graph.input, *model.graph.output]
        return self.new("ICudaEngine", plan=plan, model=model, values={value.name: value for value in values},
                        names=[value.name for value in values], weights={}, logger=runtime.state.logger)  # fmt: skip

    def do_ICudaEngine_num_io_tensors(self, engine: Any) -> int:
        return len(engine.state.names)

    def do_ICudaEngine_get_tensor_name(self, engine: Any, index: int) -> str:
        return engine.state.names[index]

    def do_ICudaEngine_get_tensor_dtype(self, engine: Any, name: str) -> Any:
        return self.member("DataType", self._type(engine.state.values[name]))

    def do_ICudaEngine_get_tensor_mode(self, engine: Any, name: str) -> Any:
        is_input = name in [value.name for value in engine.state.model.graph.input]
        return self.member("TensorIOMode", "INPUT" if is_input else "OUTPUT")

    def do_ICudaEngine_get_tensor_location(self, engine: Any, name: str) -> Any:
        return self.module.TensorLocation.DEVICE

    def do_ICudaEngine_num_optimization_profiles(self, engine: Any) -> int:
        return len(engine.state.plan["profiles"])

    def do_ICudaEngine_get_tensor_profile_shape(self, engine: Any, name: str, profile_index: int) -> Any:
        return engine.state.plan["profiles"][profile_index][name]

    def do_ICudaEngine_device_memory_size(self, engine: Any) -> int:
        return 4096

    def do_ICudaEngine_device_memory_size_v2(self, engine: Any) -> int:
        return 4096

    def do_ICudaEngine_create_engine_inspector(self, engine: Any) -> Any:
        return self.new("EngineInspector", engine=engine)

    def do_ICudaEngine_get_tensor_shape(self, engine: Any, name: str) -> Any:
        sizes = engine.state.values[name].type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)

    def do_EngineInspector_get_engine_information(self, inspector: Any, format: Any) -> str:
        engine, context = inspector.state.engine, getattr(inspector.state, "execution_context", None)
        inputs = [value.name for value in engine.state.model.graph.input]
        given = {} if context is None else context.state.shapes
        known = all(name in given or -1 not in self.do_ICudaEngine_get_tensor_shape(engine, name) for name in inputs)
        kind = "Row major linear FP32" if known else "N/A due to dynamic shapes"
        tensor = {"Name": "h", "Dimensions": [1, 3], "Format/Datatype": kind}
        layer = {"Name": "/fc/MatMul + /relu/Relu", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor],
                 "Metadata": "[ONNX Layer: /fc/MatMul]\x1e[ONNX Layer: /relu/Relu]"}  # fmt: skip
        return json.dumps({"Layers": [layer]}).replace("\\u001e", "\x1e")  # raw, as 8.6 writes it

    # Where an engine is finished: TensorRT for RTX

    def do_Runtime_get_engine_validity(self, runtime: Any, buffer: Any) -> tuple[Any, int]:
        return self.member("EngineValidity", self.validity[0]), self.validity[1]

    def do_ICudaEngine_create_runtime_config(self, engine: Any) -> Any:
        return self.new("IRuntimeConfig", cache=None)

    def do_IRuntimeConfig_create_runtime_cache(self, config: Any) -> Any:
        return self.new("IRuntimeCache", data=b"")

    def do_IRuntimeConfig_set_runtime_cache(self, config: Any, cache: Any) -> bool:
        config.state.cache = cache
        return "set_runtime_cache" not in self.refused

    def do_IRuntimeCache_deserialize(self, cache: Any, blob: bytes) -> bool:
        cache.state.data = bytes(blob) if blob.startswith(b"kernels") else b""
        return bool(cache.state.data)

    def do_IRuntimeCache_serialize(self, cache: Any) -> Buffer:
        return Buffer(cache.state.data or b"kernels")

    def do_ICudaEngine_create_execution_context(self, engine: Any, config: Any = None) -> Any:
        logger = engine.state.logger
        if self.context_fails:
            logger.log(logger.Severity.ERROR, self.context_fails)
            return None
        if self.data_dependent and not engine.state.plan["profiles"] and self.module.__version__.startswith("8."):
            logger.log(logger.Severity.ERROR, "1: Unexpected exception vector<bool>::_M_range_check: __n (which is 0)")
            return None  # seen on a GPU with 8.6.0
        return self.new(
            "IExecutionContext",
            engine=engine,
            shapes={},
            addresses={},
            allocators={},
            profiler=None,
            profile=0,
            config=config,
        )

    def do_ICudaEngine_serialize(self, engine: Any) -> Buffer:
        return Buffer(json.dumps({**engine.state.plan, "refitted": sorted(engine.state.weights)}).encode())

    def do_IExecutionContext_set_optimization_profile_async(self, context: Any, index: int, stream: int) -> bool:
        context.state.profile = index
        return True

    def do_IExecutionContext_set_input_shape(self, context: Any, name: str, shape: Any) -> bool:
        context.state.shapes[name] = tuple(shape)
        return True

    def do_IExecutionContext_infer_shapes(self, context: Any) -> list[str]:
        wanted = [value.name for value in context.state.engine.state.model.graph.input]
        return [name for name in wanted if name not in context.state.shapes]

    def do_IExecutionContext_get_tensor_shape(self, context: Any, name: str) -> Any:
        if name in self.data_dependent:
            return (-1, 3)
        first = next(iter(context.state.shapes.values()))
        sizes = context.state.engine.state.values[name].type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else first[0] for size in sizes)

    def do_IExecutionContext_set_tensor_address(self, context: Any, name: str, address: int) -> bool:
        context.state.addresses[name] = address
        return True

    def do_IExecutionContext_set_output_allocator(self, context: Any, name: str, allocator: Any) -> bool:
        context.state.allocators[name] = allocator
        return True

    def do_IExecutionContext_execute_async_v3(self, context: Any, stream: int) -> bool:
        if self.run_fails:
            return False
        state = context.state
        frozen = SimpleNamespace(shapes=dict(state.shapes), addresses=dict(state.addresses), context=state)
        return self.cuda.kernel(stream, lambda: self._execute(frozen))

    def _execute(self, call: SimpleNamespace) -> None:
        engine = call.context.engine
        feeds = {}
        for value in engine.state.model.graph.input:
            dtype = np.dtype(NUMPY[self._type(value)])
            array = self._array(call.addresses[value.name], call.shapes[value.name], dtype)
            feeds[value.name] = array.astype(NUMPY[TYPES[value.type.tensor_type.elem_type]])
        results = ReferenceEvaluator(engine.state.model).run(None, feeds)
        for value, result in zip(engine.state.model.graph.output, results, strict=True):
            result = np.ascontiguousarray(result, NUMPY[self._type(value)])
            address = call.addresses.get(value.name)
            if value.name in call.context.allocators:
                allocator = call.context.allocators[value.name]
                address = allocator.reallocate_output(value.name, 0, result.nbytes, 256)
                allocator.notify_shape(value.name, result.shape)
            self._array(address, result.shape, result.dtype)[...] = result
        if call.context.profiler is not None:
            for name, milliseconds in self.layer_times.items():
                call.context.profiler.report_layer_time(name, milliseconds)

    def _array(self, address: int, shape: Any, dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        self.cuda.device_bytes(address, size)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    # Refitting

    def do_Refitter___init__(self, refitter: Any, engine: Any, logger: Any) -> None:
        refitter.state.engine = engine

    def do_OnnxParserRefitter___init__(self, parser: Any, refitter: Any, logger: Any) -> None:
        parser.state.refitter = refitter

    def do_OnnxParserRefitter_refit_from_file(self, parser: Any, path: str) -> bool:
        stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
        parser.state.refitter.state.engine.state.weights.update(dict.fromkeys(stored))
        return True

    def do_Weights___init__(self, weights: Any, array: Any) -> None:
        if isinstance(array, np.ndarray) and array.dtype == np.int64 and not hasattr(self.module.DataType, "INT64"):
            raise ValueError("Could not implicitly convert NumPy data type: i64 to TensorRT.")

    def do_Refitter_get_all_weights(self, refitter: Any) -> list[str]:
        return [tensor.name for tensor in refitter.state.engine.state.model.graph.initializer]

    def do_Refitter_set_named_weights(self, refitter: Any, name: str, weights: Any) -> bool:
        refitter.state.engine.state.weights[name] = weights
        return True

    def do_Refitter_get_missing_weights(self, refitter: Any) -> list[str]:
        return self.missing_weights

    def do_Refitter_refit_cuda_engine(self, refitter: Any) -> bool:
        return True
