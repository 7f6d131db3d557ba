"""Plans on disk, and new weights in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from releases import only_8, only_10
from tiny_variants import feeds, network, variant

from workbench import engines
from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import plan
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import EngineError
from workbench.machine.store import Store, digest
from workbench.recipes import NAMED


def rewrite(engine, **changes: object) -> None:
    path = plan.sidecar_path(Path(engine.path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_plan_whose_bytes_changed_is_not_loaded(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    loaded = len(machine.trt.called("Runtime.deserialize_cuda_engine"))
    Path(engine.path).write_bytes(b"x" + Path(engine.path).read_bytes()[1:])
    with pytest.raises(EngineError, match="damaged"):
        backend.open_runner(engine, None)
    assert len(machine.trt.called("Runtime.deserialize_cuda_engine")) == loaded


@only_8
def test_recipes_that_share_one_file_are_different_engines(machine, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = variant(tmp_path, "fp32")
    found = [
        engines.build(replace(made, recipe=NAMED[name]), "tensorrt", store=store) for name in ("fp32", "tf32", "fp16")
    ]
    assert len({engine.variant_sha256 for engine in found}) == 1
    assert len({engine.sha256 for engine in found}) == 3
    assert all(engines.intact(engine) for engine in found)


def test_a_plan_and_what_says_how_to_load_it_belong_together_and_caches_do_not(machine, tmp_path: Path) -> None:
    engine = engines.build(variant(tmp_path, "fp32"), "tensorrt", store=Store(tmp_path / "store"))
    folder, sidecar = Path(engine.path).parent, plan.sidecar_path(Path(engine.path))
    (folder / "kernels.cache").write_bytes(b"made by a runner")
    assert engines.intact(engine)
    whole = sidecar.read_text()
    sidecar.write_text(whole.replace("8.", "9.", 1) if "8." in whole else whole + " ")
    assert not engines.intact(engine)
    sidecar.write_text(whole)
    assert engines.intact(engine)
    sidecar.unlink()
    assert not engines.intact(engine)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensorrt": "9.3.0"}, r"built by TensorRT 9\.3\.0"),
        ({"tensorrt": "99.0", "version_compatible": True}, "later TensorRT 99"),
        ({"device": "NVIDIA L4", "compute_capability": "8.9"}, r"built for NVIDIA L4 \(compute capability 8\.9\)"),
        ({"device": "NVIDIA H100"}, "built for NVIDIA H100"),
        ({"compute_capability": "8.0", "hardware_compatibility": "same-compute-capability"}, "built for"),
        ({"sha256": 3}, "sha256 is 3"),
        ({"refittable": "yes"}, "refittable is 'yes'"),
        ({"surprise": 1}, "does not say what"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(machine, tmp_path: Path, changes: dict, said: str) -> None:
    engine = machine.build(variant(tmp_path))
    rewrite(engine, **changes)
    with pytest.raises(EngineError, match=said):
        backend.open_runner(engine, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorrt": "8.5.3", "version_compatible": True},
        {"device": "NVIDIA A100", "compute_capability": "8.0", "hardware_compatibility": "ampere+"},
        {"device": "NVIDIA H100", "hardware_compatibility": "same-compute-capability"},
    ],
)
def test_a_plan_built_to_be_portable_is_loaded(machine, tmp_path: Path, changes: dict) -> None:
    engine = machine.build(variant(tmp_path))
    rewrite(engine, **changes)
    with backend.open_runner(engine, None) as runner:
        assert runner.infer(feeds(1))["y"].shape == (1, 3)
    allowed = machine.trt.called("Runtime.engine_host_code_allowed=")
    assert allowed == ([(True,)] if changes.get("version_compatible") else [])


@pytest.mark.parametrize("content", ["{", "[]", "x" * 70_000])
def test_a_sidecar_that_is_none_is_refused(machine, tmp_path: Path, content: str) -> None:
    engine = machine.build(variant(tmp_path))
    plan.sidecar_path(Path(engine.path)).write_text(content)
    with pytest.raises(EngineError, match="what the plan was built with"):
        backend.open_runner(engine, None)


def test_a_plan_that_is_gone_is_refused(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    Path(engine.path).unlink()
    with pytest.raises(EngineError, match="Cannot read the plan"):
        backend.open_runner(engine, None)
    plan.sidecar_path(Path(engine.path)).unlink()
    with pytest.raises(EngineError, match="Cannot read"):
        backend.open_runner(engine, None)


def test_a_plan_that_tensorrt_refuses_is_an_engine_error(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    machine.world.refuses_plan = True
    with pytest.raises(EngineError, match="although its sidecar fits"):
        backend.open_runner(engine, None)


def test_bytes_that_the_bindings_refuse_are_an_engine_error(machine) -> None:
    caps = Capabilities(machine.trt)
    with pytest.raises(EngineError, match="cannot load the plan"):
        plan.deserialize(caps, machine.trt.Logger(), "text", version_compatible=False, libraries={})


# New weights


def other_weights(model=None):
    model = model or network()
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    return model


def test_new_weights_make_a_new_engine_of_the_same_structure(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path), extra={"refit": True})
    made = replace(variant(tmp_path, model=other_weights()), recipe=replace(engine_recipe(), name="other"))
    fresh = backend.refit(engine, made, machine.new_folder())
    assert fresh.variant == "other" and fresh.path != engine.path
    assert json.loads(Path(fresh.path).read_bytes())["refitted"] == ["b", "w"]
    assert plan.read_sidecar(Path(fresh.path)).refittable
    assert fresh.sha256 == digest(Path(fresh.path)) != engine.sha256
    assert "Refitted" in fresh.notes[-1]
    with backend.open_runner(fresh, None) as runner:
        assert runner.infer(feeds(2))["y"].shape == (2, 3)


def engine_recipe():
    from workbench.recipes import NAMED

    return NAMED["fp32"]


@only_8
def test_8_6_gets_its_weights_by_name(machine, tmp_path: Path) -> None:
    model = network(integer_input=True)  # holds an INT64 constant, which 8.6 has no type for
    engine = machine.build(variant(tmp_path, model=model), extra={"refit": True})
    backend.refit(engine, variant(tmp_path, model=other_weights(network(integer_input=True))), machine.new_folder())
    assert {name for name, _ in machine.trt.called("Refitter.set_named_weights")} == {"w", "b", "one"}


@only_10
def test_10_reads_the_weights_from_the_file_itself(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path), extra={"refit": True})
    backend.refit(engine, variant(tmp_path, model=other_weights()), machine.new_folder())
    assert len(machine.trt.called("OnnxParserRefitter.refit_from_file")) == 1


def test_an_engine_built_without_refit_is_refused(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    with pytest.raises(EngineError, match="without refit=True"):
        backend.refit(engine, variant(tmp_path), machine.new_folder())


def test_a_graph_that_differs_in_more_than_weights_is_refused(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path), extra={"refit": True})
    with pytest.raises(EngineError, match="more than its weights"):
        backend.refit(engine, variant(tmp_path, model=network(quantized=True)), machine.new_folder())


def test_weights_that_are_missing_or_refused_are_an_engine_error(machine, tmp_path: Path, monkeypatch) -> None:
    engine = machine.build(variant(tmp_path), extra={"refit": True})
    made = variant(tmp_path, model=other_weights())
    machine.world.missing_weights = ["conv.weight_folded"]
    with pytest.raises(EngineError, match=r"conv\.weight_folded"):
        backend.refit(engine, made, machine.new_folder())
    machine.world.missing_weights = []
    monkeypatch.setattr(machine.world, "do_Refitter_refit_cuda_engine", lambda refitter: False)
    with pytest.raises(EngineError, match="refused the new weights"):
        backend.refit(engine, made, machine.new_folder())


@only_8
def test_a_value_that_8_6_refuses_is_an_engine_error(machine, tmp_path: Path, monkeypatch) -> None:
    engine = machine.build(variant(tmp_path), extra={"refit": True})
    monkeypatch.setattr(machine.world, "do_Refitter_set_named_weights", lambda refitter, name, weights: False)
    with pytest.raises(EngineError, match="refused the new values of 'w'"):
        backend.refit(engine, variant(tmp_path), machine.new_folder())
