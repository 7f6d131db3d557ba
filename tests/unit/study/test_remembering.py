"""What studies remember: nothing shown before is lost or changed by what is run later, and nothing is taken for another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_studies import QUICK

import workbench as wb
from workbench import version
from workbench.engines import jobs
from workbench.errors import RecipeError, StoreError
from workbench.machine.store import Store
from workbench.measuring import answers, latency
from workbench.recipes import NAMED, Fuse, Recipe
from workbench.records import Accuracy, BuildOptions, Engine, Round
from workbench.study.rounds import Rounds, selected
from workbench.study.stages import Stages
from workbench.transformation import steps

AGAIN = Recipe("fp32-again", NAMED["fp32"].steps)
OTHERS = ["fp32-unfused", "fp32-basic", AGAIN]


class FlaggedBackend:
    """A builder whose flags, not the file, decide what an engine computes; as TensorRT 8.6 is."""

    plan = "plan"

    def build(self, variant, backend, options, *, store, **rest) -> Engine:
        return Engine(
            variant=variant.name, variant_sha256=variant.sha256, fusion="all", backend="onnxruntime-cpu",
            backend_version="1", device="here", path=variant.path, inputs=variant.inputs, outputs=variant.outputs,
            build_seconds=0.0, size_bytes=1, options=options, sha256=f"{self.plan} of {variant.name}",
        )  # fmt: skip

    def check(self, engine, parent, data, **rest) -> Accuracy:
        return Accuracy(engine.variant, engine.variant_sha256, "", 1, "", "user", "", notes=(engine.sha256,))


@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FlaggedBackend()
    monkeypatch.setattr(jobs, "build", fake.build)
    monkeypatch.setattr("workbench.study.stages.check", fake.check)


def shown(study: wb.Study) -> dict[str, tuple[object, ...]]:
    return {item.recipe.name: (item.measurement, item.accuracy, item.failure) for item in study.record.results}


def test_variants_of_the_same_file_have_rounds_of_their_own_and_keep_them(model, data, store, made_up_rounds) -> None:
    recipes = ["fp32", AGAIN, "fp32-unfused"]
    first = wb.run(model, data, recipes, protocol=QUICK, store=store)
    assert first["fp32"].variant.sha256 == first["fp32-again"].variant.sha256
    starts = {name: {one.started_at for one in first[name].measurement.rounds} for name in ("fp32", "fp32-again")}
    assert not starts["fp32"] & starts["fp32-again"]
    assert shown(wb.run(model, data, recipes, protocol=QUICK, store=store)) == shown(first)


def test_another_set_of_recipes_is_another_study_and_measures_only_what_is_new(
    model, data, store, made_up_rounds
) -> None:
    first = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store)
    del made_up_rounds[:]
    second = wb.run(model, data, ["fp32", "int8-max", "fp16"], protocol=QUICK, store=store)
    assert second.name != first.name
    assert sorted(set(made_up_rounds)) == ["fp16", "fp32"]
    assert second["int8-max"].measurement == first["int8-max"].measurement
    assert shown(wb.Study.open(first.name, store)) == shown(first)


def test_a_named_study_grows_and_refuses_another_recipe_of_a_name_that_it_has(
    model, data, store, made_up_rounds
) -> None:
    first = wb.run(model, data, ["fp32", "fp32-unfused"], protocol=QUICK, store=store, name="mine")
    second = wb.run(model, data, ["fp32", "fp16"], protocol=QUICK, store=store, name="mine")
    assert [item.recipe.name for item in second.record.results] == ["fp32", "fp16", "fp32-unfused"]
    assert second["fp32-unfused"] == first["fp32-unfused"]
    assert all(one in second["fp32"].measurement.rounds for one in first["fp32"].measurement.rounds)
    with pytest.raises(RecipeError, match="other steps"):
        wb.run(model, data, [Recipe("fp16", (Fuse("off"),))], protocol=QUICK, store=store, name="mine")
    with pytest.raises(StoreError, match="build options"):
        wb.run(model, data, protocol=QUICK, store=store, name="mine", options=BuildOptions(threads=2))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.sampled_from(["fp32-unfused", "fp32-basic", AGAIN]), unique=True, min_size=1),
        min_size=2,
        max_size=4,
    )
)
def test_every_number_ever_shown_is_still_there_and_unchanged(
    model, data, made_up_rounds, tmp_path_factory, runs
) -> None:
    store = Store(tmp_path_factory.mktemp("property"))
    seen: dict[str, dict[str, tuple[object, ...]]] = {}
    for recipes in [*runs, *runs]:
        study = wb.run(model, data, recipes, protocol=QUICK, store=store)
        assert seen.setdefault(study.name, shown(study)) == shown(study)
        assert {name: shown(wb.Study.open(name, store)) for name in seen} == seen


def test_engines_that_differ_while_their_files_are_equal_are_never_taken_for_each_other(
    model,
    data,
    store,
    made_up_rounds,
    monkeypatch,
) -> None:
    fake = FlaggedBackend()
    monkeypatch.setattr(jobs, "build", fake.build)
    monkeypatch.setattr("workbench.study.stages.check", fake.check)
    study = wb.run(model, data, ["fp32", AGAIN], protocol=QUICK, store=store)
    assert [item.accuracy.notes for item in study.record.results] == [("plan of fp32",), ("plan of fp32-again",)]
    assert len({one.started_at for item in study.record.results for one in item.measurement.rounds}) == 2 * QUICK.rounds


def test_what_an_edited_step_makes_replaces_nothing_that_was_shown_before(
    model, data, store, made_up_rounds, flagged, monkeypatch
) -> None:
    before = wb.run(model, data, ["fp32"], protocol=QUICK, store=store, name="mine")
    monkeypatch.setattr(version, "code_sha256", lambda: "edited")
    monkeypatch.setattr(FlaggedBackend, "plan", "another plan")
    after = wb.run(model, data, ["fp32"], protocol=QUICK, store=store, name="mine")
    assert after["fp32"].engine.sha256 == "another plan of fp32"
    assert before["fp32"].measurement.rounds != after["fp32"].measurement.rounds
    kept = [name for name in store.keys("study") if name != "mine"]
    assert len(kept) == 1 and shown(wb.Study.open(kept[0], store)) == shown(before)


def test_a_variant_of_another_version_of_a_library_is_made_anew(model, data, store, monkeypatch) -> None:
    made = []
    real = steps.transform
    monkeypatch.setattr("workbench.study.stages.transform", lambda *a, **k: made.append(1) or real(*a, **k))
    stages = Stages(store, model, data.bound_to(model), "onnxruntime-cpu", BuildOptions(), 8)
    for versions in (version.libraries(), {"onnx": "another"}, {"onnx": "another"}):
        monkeypatch.setattr(version, "libraries", lambda versions=versions: versions)
        stages.variant(NAMED["fp32"])
    assert len(made) == 2


def test_a_users_metric_is_computed_anew_and_a_shipped_one_is_remembered(model, data, store, monkeypatch) -> None:
    calls = []
    real = answers.check
    monkeypatch.setattr("workbench.study.stages.check", lambda *a, **k: calls.append(1) or real(*a, **k))
    own = replace(data, metric=wb.metrics.Metric("top-1", lambda outputs, labels: np.ones(len(labels))))
    for dataset, expected in ((data, 1), (own, 2)):
        del calls[:]
        for _ in range(2):
            stages = Stages(store, model, dataset.bound_to(model), "onnxruntime-cpu", BuildOptions(), 8)
            engine = stages.engine(stages.variant(NAMED["fp32"]))
            stages.accuracy(engine, engine)
        assert len(calls) == expected


def test_raw_samples_are_never_replaced(store) -> None:
    engine = Engine("fp32", "", "all", "x", "1", "here", "", (), (), 0.0, 1)
    rounds = Rounds(store, "model", "data", QUICK)
    rounds.keep(engine, Round(0, (1.0,), 0.1, 1.0))
    with pytest.raises(StoreError, match="not replaced"):
        rounds.keep(engine, Round(0, (2.0,), 0.1, 2.0))
    assert [taken.latencies_seconds for taken in rounds.of(engine)] == [(1.0,)]
    assert rounds.of(replace(engine, sha256="another plan")) == []
    assert Rounds(store, "model", "data", replace(QUICK, rounds=9)).of(engine)
    assert not Rounds(store, "model", "data", replace(QUICK, batch=1)).of(engine)


def test_turns_are_numbered_without_gaps_for_everybody(store) -> None:
    first, second = (Rounds(store, "model", "data", QUICK) for _ in range(2))
    assert [first.next_turn(), second.next_turn(), first.next_turn()] == [0, 1, 2]
    assert Rounds(store, "another model", "data", QUICK).next_turn() == 0


def taken(*indices: int) -> list[Round]:
    return [Round(index, (1.0,), 0.1, float(index)) for index in indices]


def indices(found: dict[str, tuple[Round, ...]]) -> dict[str, list[int]]:
    return {name: [one.index for one in rounds] for name, rounds in found.items()}


def test_a_variant_gets_rounds_that_the_baseline_took_too() -> None:
    found = selected(taken(0, 1, 2, 3), {"a": taken(0, 1), "b": taken(2, 3, 9)}, 2, {}, "fp32")
    assert indices(found) == {"fp32": [0, 1, 2, 3], "a": [0, 1], "b": [2, 3]}
    assert indices(selected(taken(0, 1, 2, 3), {"b": taken(2, 3)}, 2, {}, "fp32")) == {"fp32": [2, 3], "b": [2, 3]}
    assert indices(selected(taken(0, 1, 2), {}, 2, {}, "fp32")) == {"fp32": [0, 1]}


def test_what_a_study_has_shown_stays_whatever_was_measured_since() -> None:
    pinned = {"fp32": taken(4, 5), "a": taken(4, 5)}
    found = selected(taken(0, 4, 5, 6), {"a": taken(0, 4, 5, 6), "b": taken(6)}, 2, pinned, "fp32")
    assert indices(found) == {"fp32": [4, 5, 6], "a": [4, 5], "b": [6]}


def test_a_store_and_a_saved_study_of_the_version_before_still_open(tmp_path: Path) -> None:
    saved = wb.Study.open(Path(__file__).parent / "study_0.1.json")
    assert len(saved.table()) == 2 and saved.report(tmp_path / "report.html").exists()
    shutil.copytree(Path(__file__).parent / "store_0.1", tmp_path / "store")
    old = Store(tmp_path / "store")
    (name,) = old.keys("study")
    study = wb.Study.open(name, old)
    assert [item.recipe.name for item in study.record.results] == ["fp32", "int8-max"]
    assert len(study.table()) == 2 and study["int8-max"].measurement.rounds


def test_turns_put_the_baseline_next_to_whoever_lacks_a_round() -> None:
    have = {"fp32": 2, "a": 2, "b": 1}
    numbers = iter(range(10, 20))
    seen = []
    turns = latency.turns(
        lambda: [one for one, count in have.items() if count < 3], lambda: next(numbers), seed=0, beside="fp32"
    )
    for index, name in turns:
        have[name] += 1
        seen.append((index, name))
    assert sorted(seen) == [(10, "a"), (10, "b"), (10, "fp32"), (11, "b"), (11, "fp32")]


@pytest.mark.parametrize("given", [["libmine.so"], "libmine.so", None, [3]])
def test_an_engine_depends_on_what_is_in_its_libraries_of_plugins(
    model, data, store, tmp_path, monkeypatch, flagged, given: object
) -> None:
    monkeypatch.chdir(tmp_path)
    builds: list[str] = []
    stages = Stages(store, model, data, "onnxruntime-cpu", BuildOptions(extra={"plugins": given}), batch=8)
    make = jobs.build
    monkeypatch.setattr(jobs, "build", lambda *given, **more: builds.append("") or make(*given, **more))
    monkeypatch.setattr("workbench.engines.intact", lambda engine: True)
    variant = stages.variant(NAMED["fp32"])
    for content in ("first", "first", "second"):
        (tmp_path / "libmine.so").write_text(content)
        stages.engine(variant)
    assert len(builds) == (2 if given == ["libmine.so"] else 1)
