"""`explain`, the layer lens and advice on a small study: real engines, real profiles, real rounds."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net, values

import workbench as wb
from workbench import codec, datasets
from workbench.datasets import Dataset
from workbench.errors import DataError, EngineError, RecipeError, RunError, StoreError
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.reasons import KINDS, Advice, Reason
from workbench.judging.roofline import KIND
from workbench.judging.statistics import Ratio
from workbench.machine import device
from workbench.machine.store import Store
from workbench.recipes import Fuse, Quantize, Recipe
from workbench.records import Failure, StudyRecord
from workbench.study import Study, advice, lens, why
from workbench.study.subject import dataset_of, subject_of

# Six rounds have an interval where they spread by half; calls this short spread far in a process that is disturbed.
QUICK = wb.Protocol(batch=4, rounds=6, min_seconds=0.01, min_runs=10, warmup_seconds=0.0, warmup_runs=2)


def network() -> onnx.ModelProto:
    """Three products; one feature of the first is 400 times the others, and the second takes that back."""
    first, second = values((64, 64), 0, 0.2), values((64, 64), 1, 0.2)
    first[:, 5] *= 400.0
    second[5] /= 400.0
    return net(
        """(float[N,16,64] x) => (float[N,4] y) {
            [first] a = MatMul(x, w0) [second] b = MatMul(a, w1) [relu] c = Relu(b)
            [pool] p = ReduceMean<axes = [1], keepdims = 0>(c) [head] y = Gemm<transB = 1>(p, w2)
        }""",
        w0=first,
        w1=second,
        w2=values((4, 64), 2, 1.0),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    x = values((240, 16, 64), 3)
    return datasets.arrays(x, np.random.default_rng(0).integers(0, 4, 240)).split_off(calibration=40)


@pytest.fixture(scope="module")
def study(store: Store, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(network(), str(path))
    return wb.run(
        wb.load(path), data, ["fp32", "int8-max"], backend="onnxruntime-cpu", protocol=QUICK, store=store, progress=None,
        name="small",
    )  # fmt: skip


@pytest.fixture(scope="module")
def explained(study: Study, data: Dataset, store: Store) -> Explanation:
    return wb.explain(study, "int8-max", data, try_advice=True, store=store)


def test_the_planted_outlier_is_the_main_reason(explained: Explanation) -> None:
    assert (explained.main.kind, explained.main.tensors) == ("outlier_channel", ("a",))
    assert explained.main.sentence in explained.sentences


def test_layers_are_named_by_measured_error_alone_and_kept(explained: Explanation) -> None:
    rows = {row.name: row for row in explained.evidence.noise.layers}
    assert max(rows.values(), key=lambda row: row.alone_nsr).name == "second", "it reads the tensor with the outlier"
    assert rows["second"].kept_nsr < explained.evidence.noise.file_nsr / 2, "with it in FP32, most noise goes"


def test_flipped_samples_get_their_answer_back_by_the_layer_that_took_it(explained: Explanation, study: Study) -> None:
    flips = explained.evidence.noise.flips
    found = study["int8-max"].accuracy
    assert flips
    assert all(found.predictions[flip.sample] == flip.after != flip.before for flip in flips)
    assert sum(flip.layer == "second" for flip in flips) > len(flips) / 2
    assert len(explained.flips()) == len(flips)


def test_advice_was_measured_and_is_told_with_its_intervals(explained: Explanation) -> None:
    trials = {trial.recipe: trial for trial in explained.trials}
    smooth = trials["int8-max+smooth"]
    assert smooth.noise_db[1] > smooth.noise_db[0] + 10, "SmoothQuant moves the outlier into the weights"
    assert "(better," in smooth.words and " % [" in smooth.words and smooth.words in explained.sentences
    assert any(name.startswith("int8-max+keep2") for name in trials), "what makes the tensor and what reads it"
    for trial in explained.trials:
        if trial.low is None:  # a machine so restless that the rounds tell no interval
            assert trial.high is None and "rounds" in trial.words
        else:
            assert trial.low <= trial.ratio <= trial.high
        assert trial.improves is trial.words.endswith(" An improvement.")


@pytest.mark.parametrize(
    ("speed", "noise", "improves", "words"),
    [
        ("faster", (4.0, 4.0), True, "An improvement."),
        ("not distinguishable", (4.0, 1.0), True, "An improvement."),
        ("slower", (4.0, 1.0), False, "A gain with a price"),
        ("faster", (1.0, 4.0), False, "A gain with a price"),
        ("not distinguishable", (4.0, 4.0), False, "No improvement that can be told from chance."),
        ("slower", (1.0, 4.0), False, "No improvement that can be told from chance."),
    ],
)
def test_only_what_is_distinguishable_and_has_no_price_is_an_improvement(speed, noise, improves, words) -> None:
    ratio = Ratio(1.5, 1.2, 1.8, 0.99, speed, f"1.5x {speed}", 9, True)
    jitter = np.random.default_rng(0).uniform(0.9, 1.1, 64)
    before, after = (level * (jitter if noise[0] != noise[1] else np.ones(64)) for level in noise)
    trial = advice._trial(Advice("Try."), Recipe("it", (Fuse(),)), ratio, None, (before, after))
    assert trial.improves is improves
    assert words in trial.words


def test_every_table_and_figure_and_the_page_can_be_had(explained: Explanation) -> None:
    layers = explained.layers()
    assert {"module", "type", "ms", "bound ms", "share of bound %"} <= set(layers.columns)
    assert len(explained.slowest(3)) == 3
    assert {"int8-max ms", "fp32 ms", "saved ms"} <= set(explained.against_baseline().columns)
    assert explained.coverage()["time %"].sum() == pytest.approx(100)
    assert "a" in set(explained.tensors()["tensor"])
    page = explained._repr_html_()
    assert "data:image/png" in page and "<li>" in page
    for what in ("roofline", "times", "precision", "errors"):
        assert explained.figure(what).axes
    with pytest.raises(ValueError, match="allowed: roofline, times, precision, errors"):
        explained.figure("pie")
    assert repr(explained) == "Explanation('small', 'int8-max': outlier_channel)"


def test_the_study_keeps_what_was_found_here_and_in_its_store(
    explained: Explanation, study: Study, store: Store
) -> None:
    for one in (study, Study.open(study.name, store)):
        assert one.explanations["int8-max"].variant == "int8-max"
        assert one.explanations["int8-max"].evidence.variant.layers


def test_a_report_has_a_section_for_it_where_it_is_asked_for(
    explained: Explanation, study: Study, tmp_path: Path
) -> None:
    page = study.report(tmp_path / "report.html", [explained]).read_text(encoding="utf-8")
    assert '<h2 id="why">Why</h2>' in page and html.escape(explained.main.sentence) in page
    assert page.count('<figure class="drawn">') == 4 + study_figures(study, tmp_path)
    layers = page[page.index('<h2 id="layers">Layers</h2>') : page.index('<h2 id="why">')]
    assert "int8-max against fp32" in layers and layers.count('<figure class="drawn">') == 2
    assert "saved ms" in layers and "layers of fp32 and" in layers
    assert "What this machine can do at most" in page
    text = study.report(tmp_path / "report.md", [explained]).read_text(encoding="utf-8")
    assert "## Why: int8-max" in text
    assert "Why" not in study.report(tmp_path / "plain.md", ()).read_text(encoding="utf-8")
    folder = study.report(tmp_path / "all", [explained])
    assert (folder / "study.json").exists() and "## Why" in (folder / "report.md").read_text(encoding="utf-8")


def test_what_a_report_shows_layers_of_is_the_best_variant_or_else_the_fastest(
    study: Study, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(why, "explain", lambda study, variant, *rest, **options: asked.append(variant))
    why.explain_best(study, data)
    alone = Study(replace(study.record, results=study.record.results[:1]))
    assert why.explain_best(alone, data) is None
    assert asked == [study.best().best or "int8-max"]


def study_figures(study: Study, folder: Path) -> int:
    return study.report(folder / "plain.html", ()).read_text(encoding="utf-8").count('<figure class="drawn">')


def test_markup_in_names_stays_text_in_a_report(explained: Explanation, study: Study, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    layers = tuple(replace(layer, name=nasty, nodes=(nasty,)) for layer in explained.evidence.variant.layers)
    passes = replace(explained.evidence.variant, layers=layers, variant=nasty)
    told = explanation("s", replace(explained.evidence, variant=passes))
    assert nasty not in study.report(tmp_path / "nasty.html", [told]).read_text(encoding="utf-8")
    assert nasty not in told._repr_html_()


def test_layers_of_both_passes_keep_every_second(explained: Explanation) -> None:
    table = explained.against_baseline()
    assert table["int8-max ms"].sum() == pytest.approx(1e3 * explained.evidence.variant.layer_seconds)
    assert table["fp32 ms"].sum() == pytest.approx(1e3 * explained.evidence.baseline.layer_seconds)


def test_time_between_layers_is_named_and_not_shared_out(explained: Explanation) -> None:
    found = explained.evidence.variant
    assert found.between_seconds == pytest.approx(found.profiled_seconds - found.layer_seconds)
    assert "between layers" in explained.sentences[1] and "which no layer accounts for" in explained.sentences[1]


def test_the_study_holds_the_ceilings_from_then_on(explained: Explanation, study: Study, store: Store) -> None:
    assert KIND in study.record.environment
    assert KIND in Study.open("small", store).record.environment


def test_the_baseline_itself_is_explained_by_what_bounds_it(study: Study, data: Dataset, store: Store) -> None:
    found = wb.explain("small", "fp32", data, store=store)
    assert found.evidence.noise is None
    assert all(reason.aspect == "time" for reason in found.reasons)
    with pytest.raises(DataError, match="no layer to draw"):
        found.figure("errors")


def test_without_its_data_times_are_explained_and_that_is_said(study: Study, store: Store) -> None:
    found = wb.explain(study, "int8-max", store=store)
    assert found.evidence.noise is None and found.tensors().empty
    assert any("no noise was looked at" in text for text in found.sentences)
    with pytest.raises(DataError, match="measured on the study's own data"):
        wb.explain(study, "int8-max", try_advice=True, store=store)


def test_other_data_are_refused(study: Study, store: Store) -> None:
    with pytest.raises(DataError, match="are not those that the study 'small' was run with"):
        wb.explain(study, "int8-max", datasets.arrays(values((8, 16, 64), 4)), store=store)
    with pytest.raises(DataError, match="takes a Dataset"):
        wb.explain(study, "int8-max", values((8, 16, 64), 4), store=store)  # type: ignore[arg-type]


def test_what_cannot_be_explained_says_why(study: Study, data: Dataset, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study 'smell'"):
        wb.explain("smell", "int8-max", store=store)
    with pytest.raises(StoreError, match="takes a Study"):
        wb.explain(study.record, "int8-max", store=store)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no variant 'int9'"):
        wb.explain(study, "int9", store=store)
    failed = _with(study, engine=None, failure=Failure("int8-max", "build", "BuildError", "no kernel"))
    with pytest.raises(EngineError, match="was not built: no kernel"):
        wb.explain(failed, "int8-max", data, store=store)
    gone = _with(study, engine=replace(study["int8-max"].engine, path=str(tmp_path / "gone.onnx")))
    with pytest.raises(EngineError, match="is gone or damaged"):
        wb.explain(gone, "int8-max", data, store=store, layers=False)


def test_a_study_of_another_machine_is_not_explained_here_and_replaces_none_of_its_name(
    study: Study, data: Dataset, store: Store, tmp_path: Path
) -> None:
    elsewhere = Study.open(study.save(tmp_path / "small.json"))
    kept = store.get("study", "small")
    for ask in (wb.explain, lambda one, variant, data, store: one.layers(data, store)):
        with pytest.raises(EngineError, match=r"is gone or damaged .*Run the study again here"):
            ask(elsewhere, "int8-max", data, store=store)
    assert store.get("study", "small") == kept


def test_what_is_found_of_a_study_stays_out_of_another_of_its_name(study: Study, data: Dataset, store: Store) -> None:
    mine = Study(replace(study.record, name="namesake"))
    other = replace(mine.record, results=mine.record.results[:1], explanations={})
    store.put("study", "namesake", codec.to_json(other))
    wb.explain(mine, "int8-max", data, store=store, layers=False)
    assert Study.open("namesake", store).record == codec.from_json(StudyRecord, codec.to_json(other))


def _with(study: Study, **fields: object) -> Study:
    results = tuple(
        replace(item, **fields) if item.recipe.name == "int8-max" else item for item in study.record.results
    )
    return Study(replace(study.record, results=results))


def test_advice_becomes_recipes_each_once_and_the_rest_is_told(explained: Explanation) -> None:
    def of(*given: Advice, recipe: Recipe = wb.recipes.NAMED["int8-max"]) -> tuple[list[Recipe], list[str]]:
        reason = Reason("clip", "accuracy", 1.0, 2.0, "told", advice=given)
        made, left = advice.recipes(
            replace(explained, reasons=(reason,)), recipe, ["first", "second"], {"second": "body.second"}
        )
        return [one for _, one in made], left

    (kept,), left = of(Advice("Keep it.", "keep", ("second", "elsewhere")), Advice("Turn it round."))
    assert kept.step("quantize").exclude == ("^second$",)
    assert left == ["Not tried, because no recipe of this variant can follow it: Turn it round."]
    (kl,), _ = of(Advice("kl", "calibrator", value="kl"), Advice("max is what it has", "calibrator", value="max"))
    assert kl.step("quantize").calibrator == "kl"
    (smooth, weights), _ = of(Advice("s", "smooth"), Advice("w", "weights", value="int4"))
    assert smooth.step("smooth_quant") is not None and weights.step("quantize") is None
    assert weights.step("quantize_weights").to == "int4"
    left_out = wb.recipes.NAMED["int8-max"].excluding("^body", "^head$")
    (back,), _ = of(Advice("All.", "include", ("second",)), recipe=left_out)
    assert back.step("quantize").exclude == ("^head$",), "left out by its module's path"
    assert of(Advice("All.", "include", ("first",)), recipe=left_out)[0] == [], "it was not left out"
    per_tensor = Recipe("t", (Fuse("all"), Quantize(calibrator="max", per_channel=False)))
    (channels,), _ = of(Advice("p", "per_channel"), recipe=per_tensor)
    assert channels.step("quantize").per_channel
    calibrators = [Advice(name, "calibrator", value=name) for name in ("kl", "mse", "percentile-99.9")]
    many, left = of(*calibrators, Advice("s", "smooth"), Advice("k", "keep", ("first",)))
    assert len(many) == advice.MOST_TRIALS
    assert left == ["Not tried, because 4 were before it: k"]
    assert of(Advice("k", "keep", ("second",)), recipe=wb.recipes.NAMED["fp16"])[0] == [], "nothing there to keep"
    assert of(Advice("k", "keep", ("elsewhere",)))[0] == []


def test_where_nothing_is_suggested_nothing_is_tried(study: Study, data: Dataset, store: Store) -> None:
    found = replace(wb.explain(study, "fp32", data, store=store), reasons=())
    assert advice.tried(
        study.record, study["fp32"], study["fp32"], found, data, store=store, handle=advice.Handle()
    ) == (
        (),
        (),
    )


def test_a_reason_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: skip_without_pair"):
        Reason("weather", "time", 1.0, 1.0, "It rains.")
    assert all(words for words in KINDS.values())


def test_the_same_evidence_gives_the_same_reasons(explained: Explanation) -> None:
    assert explanation("again", explained.evidence).reasons == explained.reasons


def test_the_layer_lens_shows_every_variant_and_makes_a_mixed_recipe(study: Study, data: Dataset, store: Store) -> None:
    table = study.layers(data, store)
    assert {"module", "nodes", "operator", "shape", "fp32 ms", "int8-max ms", "int8-max type", "int8-max NSR"} <= set(
        table.columns
    )
    rows = table[[("second" in nodes) for nodes in table["nodes"]]]
    assert len(rows) == 1
    assert "int8" in set(table["int8-max type"])
    assert rows["int8-max NSR"].item() > 0
    mixed = study.keeping("int8-max", rows, name="mine")
    assert mixed.name == "mine" and "^second$" in mixed.step("quantize").exclude
    with pytest.raises(RecipeError, match="No row was chosen"):
        study.keeping("int8-max", table[table["fp32 ms"] > 1e9])


def test_the_lens_of_a_lone_baseline_shows_it(study: Study, data: Dataset, store: Store) -> None:
    alone = Study(replace(study.record, results=(study["fp32"],)))
    table = alone.layers(data, store)
    assert table["fp32 ms"].sum() > 0


def test_profiles_that_cannot_be_paired_take_the_faster_turn() -> None:
    from workbench.explaining.gathering import least
    from workbench.records import LayerProfile, LayerTime

    first = LayerProfile((LayerTime("a", "Conv", 3.0), LayerTime("b", "Relu", 1.0)), 5.0, 4.5)
    second = LayerProfile((LayerTime("a", "Conv", 2.0), LayerTime("b", "Relu", 2.0)), 6.0, 4.0)
    paired = least([first, second])
    assert [layer.seconds for layer in paired.layers] == [2.0, 1.0]
    assert (paired.call_seconds, paired.plain_seconds) == (5.0, 4.0)
    other = LayerProfile((LayerTime("c", "Conv", 9.0),), 4.0)
    assert least([first, other]) == other


def test_records_of_a_study_survive_the_new_fields(study: Study) -> None:
    assert codec.from_json(StudyRecord, codec.to_json(study.record)) == study.record


def test_fp16_on_a_cpu_is_stored_and_not_computed_in(store: Store) -> None:
    grown = wb.run(
        "digits_resnet", recipes=["fp32", "fp16"], backend="onnxruntime-cpu", protocol=QUICK, store=store, progress=None
    )
    found = wb.explain(grown, "fp16", store=store)
    assert found.evidence.precision == "fp16"
    assert found.main.kind == "emulated"


def test_integer_operators_without_an_exact_form_are_told(study: Study, data: Dataset, store: Store) -> None:
    grown = wb.run(
        study.record.model, data, ["int8-dynamic"], backend="onnxruntime-cpu", protocol=QUICK, store=store,
        progress=None, name="small",
    )  # fmt: skip
    found = wb.explain(grown, "int8-dynamic", data, store=store)
    assert found.evidence.precision == "int8"
    assert found.evidence.noise.file_nsr > 0


def test_random_inputs_of_a_study_are_found_again_and_shipped_data_too(store: Store) -> None:
    alone = wb.run("digits_resnet", recipes=["fp32"], protocol=QUICK, store=store, progress=None, name="random")
    assert dataset_of(alone.record, None).sha256 == alone.record.data["sha256"]
    shipped = replace(alone.record, data={**alone.record.data, "name": "digits", "kind": "shipped"})
    assert dataset_of(shipped, None) is None, "the same name with other content is other data"


@pytest.mark.skipif(wb.backends()["openvino"] is not None, reason="no OpenVINO here")
def test_openvino_is_explained_too(study: Study, data: Dataset, store: Store) -> None:
    other = wb.run(
        study.record.model, data, ["fp32", "int8-max"], backend="openvino", protocol=QUICK, store=store, progress=None
    )
    found = wb.explain(other, "int8-max", data, store=store)
    assert found.evidence.variant.layers and found.evidence.ceilings.backend == "openvino"
    assert any(layer.is_low and layer.flops for layer in found.evidence.variant.layers)
    assert found.about("accuracy")[0].kind == "outlier_channel"


def test_advice_that_fails_or_cannot_be_compared_is_told(
    explained: Explanation, study: Study, data: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(*given: Advice):
        told = replace(explained, reasons=(Reason("clip", "accuracy", 1.0, 2.0, "told", advice=given),))
        return advice.tried(
            study.record, study["int8-max"], study["fp32"], told, data, store=store, handle=advice.Handle()
        )

    trials, left = tried(Advice("Keep all.", "keep", ("first", "second", "head")))
    assert trials == ()
    assert left[0].startswith("Tried, and it failed: Keep all. ")

    def broken(*given: object, **options: object) -> None:
        raise RunError("it broke")

    monkeypatch.setattr(advice, "_noise", broken)
    (trial,), left = tried(Advice("Keep one.", "keep", ("head",)))
    assert trial.noise_db == (None, None) and "Noise against" not in trial.words
    assert left == (f"The answers of {trial.recipe!r} were not compared: it broke",)


def test_noise_is_compared_only_where_there_is_a_baseline_and_something_to_compare(study: Study, data: Dataset) -> None:
    engine, data = study["fp32"].engine, data.bound_to(study.record.model)
    assert advice._noise(engine, None, engine, data, advice.Handle()) is None
    same = advice._noise(engine, engine, engine, data, advice.Handle())
    assert same[0].max() == 0.0
    trial = advice._trial(Advice("Try."), Recipe("it", (Fuse(),)), None, None, same)
    assert "no noise after no noise, no interval" in trial.words
    assert trial.ratio is None and not trial.improves


def test_unsigned_codes_are_the_recipe_without_symmetry(explained: Explanation) -> None:
    signed = Recipe("s", (Fuse("all"), Quantize(calibrator="max", symmetric=True)))
    reason = Reason("fallback", "time", 1.0, 1.0, "told", advice=(Advice("u", "unsigned"),))
    ((_, made),), _ = advice.recipes(replace(explained, reasons=(reason,)), signed, [], {})
    assert made.step("quantize").symmetric is None


def test_seven_bit_weights_are_tried_where_the_engine_takes_eight(
    explained: Explanation, study: Study, data: Dataset, store: Store
) -> None:
    reason = Reason("saturation", "accuracy", 1.0, 2.0, "told", advice=(Advice("Write 7 bits.", "range"),))
    told = replace(explained, reasons=(reason,))
    ((_, made),), _ = advice.recipes(told, study["int8-max"].recipe, [], {})
    assert made.step("quantize").reduce_range is True and made.name == "int8-max+range"
    trials, left = advice.tried(
        study.record, study["int8-max"], study["fp32"], told, data, store=store, handle=advice.Handle()
    )
    if device.int8().saturates:  # the dialect of this CPU has 7 bits already
        assert (trials, left) == ((), ("Tried, and it changes nothing, the file is the same: Write 7 bits.",))
    else:
        assert [trial.recipe for trial in trials] == ["int8-max+range"]


def test_smoothed_recipes_are_judged_beside_the_smoothed_parent(study: Study, data: Dataset, store: Store) -> None:
    grown = wb.run(
        study.record.model, data, ["int8-smooth"], backend="onnxruntime-cpu", protocol=QUICK, store=store, progress=None,
        name="small",
    )  # fmt: skip
    found = wb.explain(grown, "int8-smooth", data, store=store, layers=False)
    assert "outlier_channel" not in [reason.kind for reason in found.reasons]
    weights = [fact for fact in found.evidence.noise.tensors if fact.role == "weight"]
    assert weights and max(fact.round_nsr for fact in weights) < 1e-2, "compared with the smoothed weights"
    assert (
        subject_of(grown.record, grown["fp32"], grown["int8-smooth"], None, store=store, handle=advice.Handle()).parent
        is None
    )


def test_a_variant_that_was_not_measured_or_checked_is_explained_by_its_profile(
    study: Study, data: Dataset, store: Store
) -> None:
    bare = _with(study, measurement=None, accuracy=None)
    found = wb.explain(bare, "int8-max", data, store=store, layers=False)
    assert found.evidence.variant.measured_seconds is None and found.evidence.noise.flips == ()
    assert "measured" in found.sentences[0], "by undisturbed calls beside the profile"


def test_layer_costs_and_errors_that_cannot_be_had_are_notes(
    study: Study, data: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **options: object) -> None:
        raise RunError("it broke")

    monkeypatch.setattr(why, "layer_costs", broken)
    found = wb.explain(study, "int8-max", data, store=store)
    assert "What each layer costs alone was not measured: it broke" in found.sentences
    assert found.evidence.noise.layers == ()
    monkeypatch.setattr(lens, "tensor_errors", broken)
    table = study.layers(data, store)
    assert table.attrs["notes"] == ["int8-max: errors were not looked at: it broke"]
    assert "int8-max NSR" not in table.columns
    assert "int8-max NSR" not in study.layers(store=store).columns, "without the data there are no errors to look at"
