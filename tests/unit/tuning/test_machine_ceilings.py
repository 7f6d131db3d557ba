"""Ceilings of this machine: measured once, kept, found by studies and by the doctor. Their size is nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
from workbench import codec, doctor
from workbench.errors import BackendMissing, BuildError
from workbench.judging.roofline import KIND, Ceilings
from workbench.machine.handle import QUIET
from workbench.machine.store import Store
from workbench.reports.details import environment_rows
from workbench.tuning import machine_ceilings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def measured(store: Store) -> Ceilings:
    return wb.ceilings("onnxruntime-cpu", store=store)


def test_every_type_has_a_rate_or_a_reason(measured: Ceilings) -> None:
    assert set(measured.rates) == {"fp32", "int8"}
    assert set(measured.absent) == {"tf32", "fp16", "bf16"}
    assert all(rate > 0 for rate in (*measured.rates.values(), *measured.copy_rates))
    assert measured.call_seconds > 0 and measured.layer_seconds >= 0


def test_they_are_measured_once(measured: Ceilings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_ceilings, "_Probes", None)  # measuring again would fail
    assert wb.ceilings("onnxruntime-cpu", store=store) == measured
    assert machine_ceilings.kept("onnxruntime-cpu", threads=2, store=store) is None, "other threads, other ceilings"


def test_damaged_ones_count_as_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KIND, machine_ceilings._key("onnxruntime-cpu", 1), '{"rates": 3}')
    assert machine_ceilings.kept("onnxruntime-cpu", store=store) is None


def test_a_type_that_fails_has_the_failure_as_reason_and_fp32_must_not(tmp_path: Path, monkeypatch) -> None:
    def refused(self, precision: str, net: tuple) -> float:
        # Launches and copies are probed in FP32 too: only the products fail.
        if precision in failing and net[1].shape[1] == 128:
            raise BuildError("no kernel")
        return 1.0

    monkeypatch.setattr(machine_ceilings._Probes, "_seconds", refused)
    failing = {"int8"}
    found = wb.ceilings("onnxruntime-cpu", store=Store(tmp_path / "a"))
    assert found.absent["int8"] == "no kernel"
    failing = {"fp32"}
    with pytest.raises(BuildError, match="no kernel"):
        wb.ceilings("onnxruntime-cpu", store=Store(tmp_path / "b"))


def test_probes_on_a_gpu_are_larger_than_its_caches_and_keep_it_busy(tmp_path: Path, monkeypatch) -> None:
    class Module:
        device = staticmethod(lambda name: "NVIDIA H200")
        version = staticmethod(lambda name: "8.6.0")

    def noted(self, precision: str, net: tuple) -> float:
        proto, x = net
        probed.append((proto.graph.node[0].op_type, len(proto.graph.node), x.nbytes))
        return 1e-3

    probed: list[tuple[str, int, int]] = []
    monkeypatch.setattr(machine_ceilings.engines, "backend", lambda name: Module)
    monkeypatch.setattr(machine_ceilings._Probes, "_seconds", noted)
    found = machine_ceilings._Probes("tensorrt", 1, Store(tmp_path), QUIET).measured()
    assert [kind for kind, _, _ in probed] == ["Conv", "Conv", *["MatMul"] * 5, *["Relu"] * 4]
    assert found.device == "NVIDIA H200" and set(found.rates) == {"fp32", "tf32", "fp16", "bf16", "int8"}
    assert max(size for kind, _, size in probed if kind == "Relu") * 2 >= 4 * 60 * 2**20  # its second-level cache
    work = found.rates["fp16"] * 0.5e-3  # half of the millisecond counts as launch
    assert work / 1e15 > 20 * 5e-6  # at 1,000 TFLOP/s still twenty times a launch


def test_bf16_on_a_cpu_without_it_is_no_rate_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_ceilings.device, "cpu_flags", lambda: ("avx2",))
    assert not machine_ceilings._has("openvino", "bf16")
    assert machine_ceilings._has("openvino", "int8")
    monkeypatch.setattr(machine_ceilings.device, "cpu_flags", lambda: ("avx512_bf16",))
    assert machine_ceilings._has("openvino", "bf16")


def test_a_backend_that_is_not_here_has_none(tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match="no backend 'onnxruntime-gpu'"):
        wb.ceilings("onnxruntime-gpu", store=Store(tmp_path))


def test_a_study_holds_them_and_its_report_says_them(measured: Ceilings, store: Store) -> None:
    protocol = wb.Protocol(rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0.0, warmup_runs=1)
    study = wb.run("digits_resnet", recipes=["fp32"], protocol=protocol, store=store, progress=None)
    assert codec.from_plain(Ceilings, study.record.environment[KIND]) == measured
    assert KIND not in study["fp32"].measurement.environment, "once a study is enough"
    assert dict(environment_rows(study.record))["ceilings"] == measured.words()
    edited = codec.from_json(type(study.record), codec.to_json(study.record).replace('"layer_seconds"', '"seconds"'))
    assert "call_seconds" in dict(environment_rows(edited))["ceilings"], "what cannot be read is shown as it stands"


def test_the_doctor_shows_them_or_says_how_to_have_them(
    measured: Ceilings, store: Store, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(store.root))
    assert [one.text for one in doctor._ceilings()] == [f"onnxruntime-cpu: {measured.words()}"]
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "empty"))
    (missing,) = doctor._ceilings()
    assert (missing.state, "doctor --measure" in missing.remedy) == ("note", True)
