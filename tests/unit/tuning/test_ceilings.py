"""The ceiling of a model on a device: counted work over the data sheet's rates."""

from __future__ import annotations

import pytest

import workbench as wb

# 3x3, 1x1 and stride-2 convolutions of a ResNet-20 on 32x32 images come to about 81.6 million operations a sample.
RESNET_FLOPS = 81_600_000


@pytest.fixture(scope="module")
def model():
    return wb.load("digits_resnet")


def test_operations_and_weights_bound_a_pass_on_a_known_gpu(model) -> None:
    found = wb.ceiling(model, "fp16", batch=8, device_name="NVIDIA H200")
    assert found.flops == pytest.approx(8 * RESNET_FLOPS, rel=0.02)
    assert found.compute_seconds == pytest.approx(found.flops / 989e12)
    assert found.memory_seconds == pytest.approx(2 * model.parameters / 4.8e12)
    assert found.seconds == max(found.compute_seconds, found.memory_seconds)
    assert found.share(10 * found.seconds) == pytest.approx(0.1)
    int8 = wb.ceiling(model, "int8", batch=8, device_name="NVIDIA H200")
    assert int8.compute_seconds == pytest.approx(found.compute_seconds / 2)


def test_what_is_not_known_has_no_bound(model) -> None:
    found = wb.ceiling(model, device_name="Someone's accelerator")
    assert found.seconds is None and found.share(1.0) is None and "no rates" in found.source
    with pytest.raises(ValueError, match="fp61"):
        wb.ceiling(model, "fp61")
