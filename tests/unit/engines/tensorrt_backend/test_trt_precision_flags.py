"""Which flags and calls a build makes, for every release: the contract that correctness rests on without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from releases import only_8, only_10, only_11
from tiny_variants import network, variant

from workbench.engines.tensorrt import precision
from workbench.errors import BuildError
from workbench.recipes import NAMED, Fuse, Precision, Quantize, Recipe
from workbench.records import StepReport


def set_flags(machine) -> list[str]:
    return [flag.name for (flag,) in machine.trt.called("IBuilderConfig.set_flag")]


def cleared(machine) -> list[str]:
    return [flag.name for (flag,) in machine.trt.called("IBuilderConfig.clear_flag")]


def network_flags(machine) -> int:
    ((flags,),) = machine.trt.called("Builder.create_network")
    return flags


def expected_network(machine) -> int:
    version = machine.trt.__version__
    if version.startswith("8."):
        return 1 << int(machine.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if version.startswith("10."):
        return 1 << int(machine.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0  # always strongly typed, and the flag is deprecated


# recipe -> flags set in the weak dialect of 8.6; strong releases take types from the graph
WEAK = {
    "fp32": [],
    "tf32": ["TF32"],
    "fp16": ["FP16"],
    "int8-kl": ["INT8"],
    "int8-kl-fp16": ["FP16", "INT8"],
    "sparse-2:4": ["SPARSE_WEIGHTS"],
    "sparse-2:4-fp16": ["FP16", "SPARSE_WEIGHTS"],
    "sparse-2:4-int8": ["INT8", "SPARSE_WEIGHTS"],
}


@pytest.mark.parametrize("recipe", WEAK)
def test_flags_follow_recipe_and_release(machine, tmp_path: Path, recipe: str) -> None:
    machine.build(variant(tmp_path, recipe, machine.dialect))
    weak = machine.dialect == "trt-8.6"
    kept = [name for name in WEAK[recipe] if weak or name in ("TF32", "SPARSE_WEIGHTS")]
    assert set_flags(machine) == kept
    assert cleared(machine) == ([] if recipe == "tf32" else ["TF32"])
    assert network_flags(machine) == expected_network(machine)


@pytest.mark.parametrize("recipe", ["bf16", "fp8", "int4-weights"])
def test_what_8_6_lacks_is_refused_by_name_and_later_releases_build_it(machine, tmp_path: Path, recipe: str) -> None:
    model = network(quantized=recipe != "bf16")
    made = variant(tmp_path, recipe, machine.dialect, model)
    if machine.dialect == "trt-8.6":
        with pytest.raises(BuildError, match=recipe.split("-")[0].upper()):
            machine.build(made)
        assert machine.trt.called("Builder.create_network") == []
    else:
        machine.build(made)
        assert set_flags(machine) == []


def test_a_precision_that_the_device_lacks_is_refused(machine, tmp_path: Path) -> None:
    machine.cuda.name, machine.cuda.capability = "Tesla T4", (7, 5)
    with pytest.raises(BuildError, match=r"TF32 needs compute capability 8\.0; Tesla T4 has 7\.5"):
        machine.build(variant(tmp_path, "tf32", machine.dialect))


def test_int8_without_scales_is_refused(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="holds no Q/DQ nodes"):
        machine.build(variant(tmp_path, "int8-kl", machine.dialect, network(quantized=False)))


def test_scales_found_at_run_time_are_refused(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="found at run time"):
        machine.build(variant(tmp_path, "int8-dynamic", machine.dialect))


@pytest.mark.parametrize("recipe", ["int8-kl", "fp16"])
def test_a_file_of_another_dialect_is_refused(machine, tmp_path: Path, recipe: str) -> None:
    with pytest.raises(BuildError, match=f"Transform the model again with dialect='{machine.dialect}'"):
        machine.build(variant(tmp_path, recipe, "ort-cpu"))


@only_8
def test_the_strong_dialect_is_refused_by_8_6(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="dialect 'strong'"):
        machine.build(variant(tmp_path, "fp16", "strong"))


@only_10
def test_the_weak_dialect_still_builds_with_flags_on_10(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path, "int8-kl-fp16", "trt-8.6"))
    assert set_flags(machine) == ["FP16", "INT8"]
    assert network_flags(machine) == 0


@only_11
def test_the_weak_dialect_is_refused_by_11(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"dialect 'trt-8\.6'"):
        machine.build(variant(tmp_path, "fp16", "trt-8.6"))


def test_an_fp32_file_builds_whatever_its_dialect(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path, "fp32", "ort-cpu"))
    assert cleared(machine) == ["TF32"]


PART = Recipe("fp16-part", (Fuse("all"), Precision("fp16", exclude=("MatMul",))))
LISTED = StepReport("precision", 0.0, details={"keep_fp32": ["/fc/MatMul", "/relu/Relu", "/gone/Conv"]})


@only_8
def test_nodes_that_the_precision_step_lists_are_held_in_fp32_on_8_6(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path, PART, "trt-8.6", reports=(LISTED,)))
    assert set_flags(machine) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    held = machine.trt.called("ILayer.precision=")
    assert [dtype.name for (dtype,) in held] == ["FLOAT", "FLOAT"]
    assert [arguments[1].name for arguments in machine.trt.called("ILayer.set_output_type")] == ["FLOAT", "FLOAT"]


@only_11
def test_nodes_left_out_are_in_the_graph_where_types_are(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path, PART, "strong"))
    assert set_flags(machine) == []


@pytest.mark.parametrize("kind", ["entropy", "minmax"])
def test_the_native_calibrator_sets_int8_before_11(machine, tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.zeros((8, 4), np.float32))
    made = variant(tmp_path, "fp32", machine.dialect)
    if machine.trt.__version__.startswith("11."):
        with pytest.raises(BuildError, match="no calibrators of its own any more"):
            machine.build(made, extra={"native_calibrator": kind}, calibration=tmp_path / "feeds.npz")
        return
    machine.build(made, extra={"native_calibrator": kind}, calibration=tmp_path / "feeds.npz")
    assert set_flags(machine) == ["INT8"]
    assert network_flags(machine) == (expected_network(machine) if machine.dialect == "trt-8.6" else 0)


@only_8
def test_the_native_calibrator_is_not_mixed_with_scales_in_the_file(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="without Q/DQ nodes"):
        machine.build(variant(tmp_path, "int8-kl"), extra={"native_calibrator": "entropy"})


@only_10
def test_the_native_calibrator_needs_fp32_types_in_the_file(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="needs an FP32 graph"):
        machine.build(variant(tmp_path, "fp16", "strong"), extra={"native_calibrator": "entropy"})


def test_a_recipe_without_fusion_is_noted(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path, "fp32-unfused", machine.dialect))
    assert engine.fusion == "all"
    assert any("always fuses" in note for note in engine.notes)


@pytest.mark.parametrize(("recipe", "said"), [("int8-kl", "INT8 tensor cores"), ("sparse-2:4", "sparse tensor cores")])
def test_a_device_that_gains_nothing_is_noted(machine, tmp_path: Path, recipe: str, said: str) -> None:
    machine.cuda.name, machine.cuda.capability = "Tesla V100", (7, 0)
    engine = machine.build(variant(tmp_path, recipe, machine.dialect))
    assert any(said in note for note in engine.notes)


@pytest.mark.parametrize(("recipe", "said"), [("sparse-2:4", True), ("sparse-2:4-fp16", False), ("fp32", False)])
def test_zeros_that_gain_nothing_in_fp32_are_noted(machine, tmp_path: Path, recipe: str, said: bool) -> None:
    notes = machine.build(variant(tmp_path, recipe, machine.dialect)).notes
    assert any("no sparse tensor cores for FP32" in note and "sparse-2:4-fp16" in note for note in notes) is said


def test_the_formats_of_a_recipe() -> None:
    assert precision.wanted(NAMED["int8-kl-fp16"]) == ("fp16", "int8")
    assert precision.wanted(NAMED["int4-weights"]) == ("fp32", "int4")
    assert precision.wanted(Recipe("q", (Quantize(to="fp8"),))) == ("fp32", "fp8")


def test_weights_alone_of_which_none_could_be_quantized_set_no_flag_for_integers(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path, "int8-weights", dialect=machine.dialect))
    assert not {"INT8", "FP8"} & {flag.name for (flag,) in machine.trt.called("IBuilderConfig.set_flag")}
