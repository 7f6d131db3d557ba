"""The roofline: what bounds a layer, by arithmetic that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench import codec
from workbench.judging.roofline import Ceilings

MACHINE = Ceilings(
    backend="onnxruntime-cpu",
    backend_version="1",
    device="a made-up CPU",
    threads=1,
    rates={"fp32": 100e9, "int8": 400e9},
    copy_bytes=(1_000, 1_000_000, 100_000_000),
    copy_rates=(10e9, 40e9, 20e9),
    call_seconds=2e-6,
    layer_seconds=0.5e-6,
    measured_at=0.0,
    absent={"fp16": "it has none"},
)


def test_much_work_on_few_bytes_is_bound_by_the_rate_of_its_type() -> None:
    assert MACHINE.bound(1e9, 1_000, "fp32") == (pytest.approx(1e-2), "compute")
    assert MACHINE.bound(1e9, 1_000, "int8") == (pytest.approx(2.5e-3), "compute")


def test_little_work_on_many_bytes_is_bound_by_memory() -> None:
    assert MACHINE.bound(1e3, 1_000_000, "fp32") == (pytest.approx(1_000_000 / 40e9), "memory")
    assert MACHINE.bound(0, 0, "fp32") == (0.0, "compute")


def test_bandwidth_lies_between_the_sizes_that_were_measured_and_ends_with_them() -> None:
    assert MACHINE.bandwidth(10) == pytest.approx(10e9)
    assert MACHINE.bandwidth(1e12) == pytest.approx(20e9)
    # Halfway in logarithms: the geometric mean of both sides.
    assert MACHINE.bandwidth(10_000_000) == pytest.approx((40e9 * 20e9) ** 0.5)


def test_a_type_without_arithmetic_of_its_own_is_computed_as_fp32() -> None:
    assert MACHINE.rate("fp16") == MACHINE.rate("fp32")


def test_they_are_said_in_a_line_and_survive_json() -> None:
    assert MACHINE.words() == (
        "FP32 100 GFLOP/s, INT8 400 GFLOP/s; copies 20 GB/s from memory, 40 GB/s in caches; a call 2.0 µs, "
        "each layer 0.50 µs"
    )
    assert codec.from_json(Ceilings, codec.to_json(MACHINE)) == MACHINE


def test_of_two_measurements_the_best_of_each_counts() -> None:
    later = replace(
        MACHINE, rates={"fp32": 90e9, "int8": 500e9, "fp16": 7e9}, copy_rates=(20e9, 30e9, 20e9), call_seconds=3e-6,
        measured_at=5.0, absent={"bf16": "it failed"},
    )  # fmt: skip
    both = MACHINE.joined(later)
    assert both.rates == {"fp32": 100e9, "int8": 500e9, "fp16": 7e9}
    assert both.copy_rates == (20e9, 40e9, 20e9)
    assert (both.call_seconds, both.layer_seconds, both.measured_at, both.tries) == (2e-6, 0.5e-6, 5.0, 2)
    assert both.absent == {"bf16": "it failed"}
