"""What a release of TensorRT, or what it builds for, cannot do: said before anything is built."""

from __future__ import annotations

import pytest
import tensorrt_stand_in
from cuda_stand_in import Runtime
from world import World

from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import offering
from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.engines.tensorrt.targets import Targets
from workbench.errors import BuildError
from workbench.study.offers import refusals

HOPPER, TURING = Device("NVIDIA H200", (9, 0)), Device("NVIDIA T4", (7, 5))


def of(version: str) -> Capabilities:
    return Capabilities(tensorrt_stand_in.make(version, World(Runtime())))


@pytest.mark.parametrize(
    ("version", "device", "refused"),
    [
        ("8.6.0", HOPPER, {"int8-dynamic", "bf16", "fp8", "int4-weights"}),
        ("10.16.1", HOPPER, {"int8-dynamic"}),
        ("11.4.0", HOPPER, {"int8-dynamic"}),
        ("11.4.0", TURING, {"int8-dynamic", "tf32", "bf16", "fp8", "int4-weights"}),
    ],
)
def test_each_release_and_gpu_refuse_what_they_lack(version: str, device: Device, refused: set[str]) -> None:
    assert set(offering.refused(of(version), Targets((device,)))) == refused


def test_a_release_whose_files_are_those_of_8_6_has_no_bf16_to_build() -> None:
    caps = of("10.16.1")
    caps.release = (10, 3)
    assert "from 10.12 on; this is 10.16.1" in offering.refused(caps, Targets((HOPPER,)))["bf16"]


def test_several_targets_can_do_what_all_of_them_can() -> None:
    both = Targets((Device("sm89", (8, 9)), Device("sm86", (8, 6))))
    assert "sm86 has 8.6" in offering.refused(of("rtx-1.7.1"), both)["fp8"]
    assert "fp8" not in offering.refused(of("rtx-1.7.1"), Targets(()))


def test_the_app_asks_by_target(rtx) -> None:
    assert ("quantization", "fp8") not in refusals("tensorrt-rtx")
    assert "needs compute capability 8.9" in refusals("tensorrt-rtx", target="sm86")["quantization", "fp8"]
    with pytest.raises(BuildError, match="does not compile for 'sm55'"):
        refusals("tensorrt-rtx", target="sm55")


def test_dynamic_scales_are_refused_by_name_and_version(machine) -> None:
    why = backend.refuses("tensorrt")["int8-dynamic"]
    assert machine.trt.__version__ in why and "onnxruntime-cpu" in why
