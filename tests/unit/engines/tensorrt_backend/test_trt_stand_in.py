"""The stand-in must catch what it is there to catch, or the contract tests prove nothing."""

from __future__ import annotations

import pathlib

import pytest
import tensorrt_stand_in
from cuda_stand_in import Runtime
from world import World


def release(version: str) -> tensorrt_stand_in.Module:
    return tensorrt_stand_in.make(version, World(Runtime()))


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("8.6.0", "IProgressMonitor"),
        ("8.6.0", "OnnxParserFlag"),
        ("8.6.0", "BuilderFlag.BF16"),
        ("8.6.0", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        ("8.6.0", "ICudaEngine.device_memory_size_v2"),
        ("10.16.1", "IBuilderConfig.max_workspace_size"),
        ("11.4.0", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"),
        ("11.4.0", "BuilderFlag.FP16"),
        ("11.4.0", "IBuilderConfig.set_calibration_profile"),
        ("11.4.0", "IInt8EntropyCalibrator2"),
        ("11.4.0", "ICudaEngine.device_memory_size"),
        ("11.4.0", "OnnxParser.supports_model"),
    ],
)
def test_a_name_that_a_release_lacks_is_an_attribute_error(version: str, path: str) -> None:
    found = release(version)
    *outer, last = path.split(".")
    for name in outer:
        found = getattr(found, name)
    with pytest.raises(AttributeError):
        getattr(found, last)


def test_a_name_that_only_an_instance_could_have_is_caught_too() -> None:
    trt = release("8.6.0")
    config = trt.world.new("IBuilderConfig", flags=set(), profiles=[], cache=None)
    with pytest.raises(AttributeError):
        config.progress_monitor = object()
    with pytest.raises(AttributeError):
        config.num_optimization_profiles = 3  # read-only in every release


@pytest.mark.parametrize(
    "call",
    [
        lambda config, trt: config.set_flag(),
        lambda config, trt: config.set_flag(0),
        lambda config, trt: config.set_flag(trt.TacticSource.CUDNN),
        lambda config, trt: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5),
        lambda config, trt: config.set_timing_cache(None),
        lambda config, trt: config.create_timing_cache("text"),
        lambda config, trt: config.set_flag(flag=trt.BuilderFlag.FP16, on=True),
    ],
)
def test_calls_that_do_not_fit_the_signature_are_type_errors(call) -> None:
    trt = release("8.6.0")
    with pytest.raises(TypeError):
        call(trt.world.new("IBuilderConfig", flags=set(), profiles=[], cache=None), trt)


def test_a_path_where_the_bindings_want_text_is_a_type_error() -> None:
    trt = release("10.16.1")
    network = trt.world.new("INetworkDefinition", graph=None, path=None)
    parser = trt.OnnxParser(network, trt.Logger())
    with pytest.raises(TypeError):
        parser.parse_from_file(pathlib.Path("model.onnx"))


def test_add_quantize_needs_its_third_argument_in_11_alone() -> None:
    for version, arguments in (("8.6.0", 2), ("11.4.0", 3)):
        trt = release(version)
        network = trt.world.new("INetworkDefinition")
        tensor = trt.world.new("ITensor")
        given = (tensor, tensor, trt.DataType.INT8)
        with pytest.raises(NotImplementedError):  # accepted: only the behaviour is not there
            network.add_quantize(*given[:arguments])
    with pytest.raises(TypeError):
        network.add_quantize(tensor, tensor)


def test_an_interface_whose_base_was_not_initialised_is_refused() -> None:
    trt = release("8.6.0")

    class Careless(trt.ILogger):
        def __init__(self) -> None:
            self.lines: list[str] = []

    with pytest.raises(TypeError, match="logger"):
        trt.Builder(Careless())


def test_enum_members_are_renumbered_between_releases() -> None:
    assert int(release("10.16.1").NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(release("11.4.0").NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0


def test_the_cuda_stand_in_refuses_copies_outside_an_allocation() -> None:
    cuda = Runtime()
    _, device = cuda.cudaMalloc(16)
    _, host = cuda.cudaHostAlloc(32, 0)
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    with pytest.raises(AssertionError, match="device"):
        cuda.cudaMemcpyAsync(device, host, 17, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
    assert cuda.live() == {"device memory": 1, "host memory": 1, "stream": 1}


def test_the_cuda_stand_in_does_work_only_when_it_is_waited_for() -> None:
    cuda, done = Runtime(), []
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    cuda.kernel(int(stream), lambda: done.append(1))
    assert done == []
    cuda.cudaStreamSynchronize(stream)
    assert done == [1]
