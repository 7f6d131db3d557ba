"""NVIDIA's own builder for RTX cards takes the graphs with slots of the shipped model, without a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

import workbench as wb
from workbench import llm
from workbench.engines.slots import slot_layout
from workbench.engines.tensorrt import kernels, layer_table
from workbench.errors import BackendMissing, BuildError
from workbench.llm import GraphSize
from workbench.machine.store import Store
from workbench.records import BuildOptions

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX has wheels for x86-64 alone (extra rtx)")

SIZES = [GraphSize("prefill", 1, 64), GraphSize("step", 4, 128)]
ADA = BuildOptions(target="sm89")
LAYERS = 4


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA, whatever this machine has."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("slots-rtx"))


# What a cache is kept in -> kernels that read codes: one widens each layer's keys, one its values, before attention.
@pytest.mark.parametrize(
    ("cache", "kept", "widening"),
    [(None, "float16", {}), ("int8", "int8", {"int8": 2 * LAYERS}), ("fp8", "float8_e4m3fn", {"fp8": 2 * LAYERS})],
)
def test_a_prefill_and_a_step_are_built_for_an_rtx_card(store: Store, cache: Any, kept: str, widening: dict) -> None:
    samples = None if cache is None else wb.datasets.stdlib_text().calibration.inputs[""][:16]
    model = llm.load_slots("stdlib_llama", SIZES, dtype="float16", cache=cache, samples=samples, store=store)
    prefill, step = llm.build_slots(model, "fp32", "tensorrt-rtx", ADA, store=store)
    assert (prefill.device, step.device, prefill.notes, step.notes) == ("sm89", "sm89", (), ())
    assert slot_layout(step.inputs, step.outputs).dtype == kept == slot_layout(prefill.inputs, prefill.outputs).dtype
    found, _ = layer_table(step)
    # Seven products a layer and the head, counted from the architecture; attention's own two are in fused regions.
    assert Counter(layer.kind for layer in found)["matmul"] == 7 * LAYERS + 1
    reading = Counter(
        tensor.precision
        for layer in found
        for tensor in layer.inputs
        if tensor.name.startswith(("keys", "values")) and tensor.precision in ("int8", "fp8") and "." in tensor.name
    )
    assert reading == widening
    assert {kernels.operands(layer) for layer in found if layer.kind == "matmul"} == {"fp16 x fp16"}


def test_weights_in_8_bits_go_with_it_and_free_sizes_are_refused_with_what_to_do(store: Store) -> None:
    model = llm.load_slots("stdlib_llama", SIZES, dtype="float16", store=store)
    engines = llm.build_slots(model, "int8-weights", "tensorrt-rtx", ADA, store=store)
    assert [engine.device for engine in engines] == ["sm89", "sm89"]
    free = llm.load_slots("stdlib_llama", store=store)
    with pytest.raises(BuildError, match=r"leaves its batch or columns free.*GraphSize\('step', 8, 256\)"):
        llm.build_slots(free, "fp32", "tensorrt-rtx", ADA, store=store)
    with pytest.raises(BackendMissing, match="needs cuda-python"):
        llm.open_slots(engines)
