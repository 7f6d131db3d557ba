"""A layer that ran beyond a ceiling proves the ceiling too low."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from planted import save
from small_nets import net, values

from workbench import codec
from workbench.explaining.evidence import Evidence, Layer, Pass
from workbench.explaining.files import explain_files
from workbench.explaining.reached import within
from workbench.judging.roofline import KIND, Ceilings
from workbench.machine.store import Store
from workbench.tuning import machine_ceilings

MACHINE = Ceilings("b", "1", "d", 1, {"fp32": 10e9, "int8": 20e9}, (1, 1000), (1e9, 1e9), 0.0, 0.0, 0.0)


def evidence(rate: float, ceilings: Ceilings = MACHINE, share: float = 0.5) -> Evidence:
    """A layer that multiplies at a rate for a share of the call, and one that does something else."""
    busy = Layer("conv", "Conv", "compute", "fp32", 1e-3 * share, flops=rate * 1e-3 * share)
    rest = Layer("softmax", "Softmax", "other", "fp32", 1e-3 * (1 - share))
    found = Pass("fp32", (busy, rest))
    return Evidence("b", found, replace(found, variant="int8"), ceilings, "int8")


def never() -> Ceilings:
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    "under", [evidence(9e9), evidence(10.5e9), evidence(50e9, share=0.01), replace(evidence(9e9), ceilings=None)]
)
def test_ceilings_that_nothing_went_beyond_stay(under: Evidence) -> None:
    assert within(under, never) == under


def test_ceilings_that_a_layer_went_beyond_are_measured_again_and_bounds_follow() -> None:
    better = MACHINE.joined(replace(MACHINE, rates={"fp32": 40e9, "int8": 90e9}))
    found = within(evidence(30e9), lambda: better)
    assert found.ceilings == better and found.notes == ()
    for one in (found.baseline, found.variant):
        assert one.layers[0].bound_seconds == pytest.approx(30e9 * 0.5e-3 / 40e9)
        assert one.layers[0].bound_by == "compute"


def test_a_layer_that_stays_beyond_is_named_and_not_for_ever_measured_again() -> None:
    found = within(evidence(30e9), lambda: MACHINE.joined(MACHINE))
    (said,) = found.notes
    assert said.startswith(
        "conv ran at 30 GFLOP/s in FP32, beyond this machine's ceiling of 10 that was measured 2 times"
    )
    (said,) = within(evidence(30e9, replace(MACHINE, tries=3)), never).notes
    assert "measured 3 times" in said


def test_ceilings_in_a_store_that_are_far_too_low_do_not_stay(tmp_path) -> None:
    model: onnx.ModelProto = net(
        "(float[N,64,64] x) => (float[N,64,64] y) { [first] a = MatMul(x, w1) [last] y = MatMul(a, w2) }",
        w1=values((64, 64), 1),
        w2=values((64, 64), 2),
    )
    store = Store(tmp_path / "store")
    sizes = machine_ceilings.ON_CPU.copy_bytes
    low = replace(MACHINE, rates={"fp32": 1e3, "int8": 1e3}, copy_bytes=sizes, copy_rates=(1.0,) * len(sizes))
    store.put(KIND, machine_ceilings._key("onnxruntime-cpu", 1), codec.to_json(low))
    path = save(tmp_path, "net", model)
    found = explain_files(path, path, values((8, 64, 64), 3), backend="onnxruntime-cpu", store=store)
    assert found.evidence.ceilings is not None
    assert found.evidence.ceilings.tries == 2 and min(found.evidence.ceilings.rates.values()) > 1e6
    assert machine_ceilings.kept("onnxruntime-cpu", store=store) == found.evidence.ceilings
    assert not [said for said in found.sentences if "beyond this machine's ceiling" in said]
