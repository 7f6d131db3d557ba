"""What explanations do where something is missing, fails, or is not finite; and engines that do not compute their file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from planted import Pairs, quantized, save
from small_nets import copied, net, values

import workbench as wb
from workbench import engines, zoo
from workbench.engines import jobs
from workbench.errors import EngineError, RunError
from workbench.explaining import gathering, noise
from workbench.explaining.accuracy_rules import accuracy_reasons, decibels
from workbench.explaining.coverage import limit, sentences
from workbench.explaining.evidence import Evidence, Layer, LayerNoise, Noise, Pass, TensorFact
from workbench.explaining.explanation import explanation
from workbench.explaining.gathering import Side, Subject, gather
from workbench.explaining.noise import Noises
from workbench.explaining.pairs import Grid, activation_pairs, dequantized_weights
from workbench.explaining.structure import facts_of
from workbench.judging.roofline import Ceilings
from workbench.judging.statistics import Ratio
from workbench.machine.store import Store
from workbench.models import load
from workbench.recipes import Fuse, Recipe
from workbench.transformation.steps import transform

X = values((16, 16), 3)
MACHINE = Ceilings("onnxruntime-cpu", "1", "d", 1, {"fp32": 1e9, "int8": 2e9}, (1, 1000), (1e9, 1e9), 0.0, 0.0, 0.0)


def two() -> onnx.ModelProto:
    return net(
        "(float[N,16] x) => (float[N,4] y) { [first] a = MatMul(x, w1) [act] b = Relu(a) [last] y = MatMul(b, w2) }",
        w1=values((16, 16), 1),
        w2=values((16, 4), 2),
    )


def side(model: onnx.ModelProto, name: str, store: Store, folder) -> Side:
    recipe = Recipe(name, (Fuse("all"),))
    variant = transform(load(save(folder, name, model), store=store), recipe, store=store)
    return Side(jobs.build(variant, "onnxruntime-cpu", store=store), variant.path)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("files")
    store = Store(folder / "store")
    before = side(two(), "before", store, folder)
    after = side(quantized(two(), {"x": X}, Pairs("xb")), "after", store, folder)
    return Subject("onnxruntime-cpu", before, after, {"x": X[:4]}, {}, samples={"x": X})


def evidence(**fields: object) -> Evidence:
    layers = (Layer("first", "MatMul", "compute", "int8", 1.0, ("first",)),)
    given = {"backend": "onnxruntime-cpu", "baseline": Pass("fp32", layers), "variant": Pass("int8", layers)}
    return Evidence(**{**given, "ceilings": None, "precision": "int8", **fields})


def tensor(**fields: object) -> TensorFact:
    given = {
        "name": "t",
        "role": "activation",
        "readers": ("r",),
        "clip_nsr": 0.0,
        "round_nsr": 1e-5,
        "clipped_share": 0.0,
    }
    more = {"largest": 1.0, "outlier_ratio": 1.0, "outlier_channels": (), "median_levels": 100.0, "noise_share": 0.9}
    return TensorFact(**{**given, **more, **fields})


def test_an_engine_that_does_not_compute_its_file_is_seen_by_running_it(subject: Subject, tmp_path) -> None:
    other = copied(onnx.load(subject.variant.file))
    for item in other.graph.initializer:
        if item.name == "w1_codes":  # what saturating kernels do to the largest sums
            codes = onnx.numpy_helper.to_array(item)
            item.CopyFrom(onnx.numpy_helper.from_array(np.clip(codes, -16, 16), "w1_codes"))
    wrong = side(other, "after", Store(tmp_path / "store"), tmp_path)
    found = gather(replace(subject, variant=replace(subject.variant, engine=wrong.engine)), None)
    assert found.noise.engine_nsr > 2 * found.noise.file_nsr
    assert explanation("s", found).about("accuracy")[0].kind == "saturation"
    right = gather(subject, None)
    assert right.noise.engine_nsr == right.noise.file_nsr


def test_files_that_are_gone_are_said(subject: Subject) -> None:
    gone = replace(subject, variant=replace(subject.variant, file="/nowhere/model.onnx"))
    with pytest.raises(EngineError, match=r"/nowhere/model\.onnx"):
        gather(gone, None)


def test_noise_that_cannot_be_looked_at_is_a_note(subject: Subject, monkeypatch) -> None:
    monkeypatch.setattr(noise, "is_large", lambda proto: True)
    found = gather(subject, None)
    assert found.noise is None
    assert found.notes == (
        "Where noise comes in was not looked at: Files beyond 2 GB are not run with single tensors left in FP32. Look at the "
        "times alone.",
    )
    with pytest.raises(RunError, match="beyond 2 GB"):
        Noises(two(), two(), {"x": X})


def with_outputs(wanted: str, more: str) -> onnx.ModelProto:
    return net(
        f"""(float[N,16] x) => ({wanted}) {{
            [first] a = MatMul(x, w1) [act] b = Relu(a) [last] y = MatMul(b, w2) {more}
        }}""",
        w1=values((16, 16), 1),
        w2=values((16, 4), 2),
        flat=np.array([-1], np.int64),
        zero=np.array(0, np.float32),
    )


def test_outputs_of_one_number_or_of_a_size_that_depends_on_the_data_do_not_end_the_look_at_noise() -> None:
    wanted = "float[N,4] y, float total, float[K] found"
    more = """total = ReduceSum<keepdims = 0>(y) large = Greater(y, zero) mask = Reshape(large, flat)
        found = Compress(y, mask)"""
    parent = with_outputs(wanted, more)
    x = values((32, 16), 3)
    told = Noises(parent, quantized(parent, {"x": x}, Pairs("xb", scales={"x": 0.2})), {"x": x}).found()
    assert 0 < told.file_nsr < 1 and told.tensors

    parent = with_outputs("int64[N,1] i", "i = ArgMax<axis = 1>(y)")
    with pytest.raises(RunError, match="noise has nothing to show in"):
        Noises(parent, quantized(parent, {"x": x}, Pairs("xb")), {"x": x}).found()


def test_a_flipped_answer_is_looked_for_in_the_output_that_it_was_read_from() -> None:
    parent = with_outputs("float[N,4] opposite, float[N,4] y", "opposite = Neg(y)")
    x = values((64, 16), 3)
    lowered = quantized(parent, {"x": x}, Pairs("xb", scales={"x": 0.3}))
    noises = Noises(parent, lowered, {"x": x[:32]})
    before, after = (noises.run(one, {"x": x})["y"].argmax(axis=1) for one in (parent, lowered))
    places = np.flatnonzero(before != after)
    flipped = [(int(place), int(before[place]), int(after[place])) for place in places]
    assert flipped
    told = noises.found(flipped, {"x": x[places]}).flips
    assert any(flip.layer == "first" for flip in told), "with the coarse input in FP32 answers come back"


def test_an_exact_form_that_does_not_exist_is_a_note(subject: Subject, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "exact_form", lambda proto: None)
        found = gather(subject, None)
    assert found.noise.engine_nsr is None
    assert any("exact result is not defined" in note for note in found.noise.notes)


def test_answers_that_are_not_finite_are_infinite_noise() -> None:
    broken = copied(two())
    for item in broken.graph.initializer:
        if item.name == "w2":
            item.CopyFrom(onnx.numpy_helper.from_array(np.full((16, 4), np.inf, np.float32), "w2"))
    noises = Noises(two(), broken, {"x": X})
    assert noises.nsr(noises.run(broken)) == float("inf")
    assert decibels(float("inf")) == "values that are not finite"
    assert decibels(0.0) == "no noise"


def test_a_tensor_that_is_zero_throughout_has_no_channels_that_stand_out() -> None:
    assert noise._outliers(np.zeros(4), Grid(-127.0, 127.0)) == (1.0, (), 0.0)


def test_layers_that_lead_in_noise_are_named_where_no_tensor_is_to_blame() -> None:
    rows = tuple(
        LayerNoise(f"layer{index}", (f"n{index}",), nsr) for index, nsr in enumerate((8e-3, 1e-3, 1e-3, 1e-4, 1e-4))
    )
    found = accuracy_reasons(evidence(noise=Noise(0.02, None, 32, layers=rows)))
    assert [reason.kind for reason in found] == ["noisy_layers"]
    assert "layer0 (78%)" in found[0].sentence and found[0].nodes == ("n0", "n1", "n2")
    even = tuple(LayerNoise(f"layer{index}", (), 1e-3) for index in range(10))
    assert accuracy_reasons(evidence(noise=Noise(0.02, None, 32, layers=even))) == [], "none of them leads"
    assert accuracy_reasons(evidence(noise=Noise(0.02, None, 32, layers=rows[:2]))) == []


def test_a_wide_range_is_named_where_rounding_alone_is_much() -> None:
    wide = tensor(round_nsr=0.01, largest=50.0)
    (reason,) = accuracy_reasons(evidence(noise=Noise(0.05, None, 32, (wide,))))
    assert (reason.kind, reason.advice[0].value) == ("wide_range", "mse")
    assert accuracy_reasons(evidence(noise=Noise(0.05, None, 32, (tensor(),)))) == [], (
        "an even tensor has no known trouble"
    )


def test_noise_ranks_by_how_near_it_is_to_hurting_and_first_where_the_score_is_worse() -> None:
    fact = tensor(clip_nsr=1.0)
    (mild,) = accuracy_reasons(evidence(noise=Noise(1e-4, None, 32, (fact,))))
    assert mild.score == pytest.approx(0.9 * 1e-4 / 0.01)
    (grave,) = accuracy_reasons(evidence(noise=Noise(1e-4, None, 32, (fact,)), worse=True))
    assert grave.score == pytest.approx(1.9)


def test_more_than_the_limit_is_explained_and_without_a_rate_there_is_none() -> None:
    base = evidence(ceilings=MACHINE)
    faster = replace(
        base, baseline=replace(base.baseline, plain_seconds=3.0), variant=replace(base.variant, plain_seconds=1.0)
    )
    assert limit(faster).most == pytest.approx(2.0)
    assert "measured 3x, which is more" in sentences(faster)[0]
    assert limit(replace(base, precision="fp16")) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict", "beyond"),
    [(0.9, 9.0, "not distinguishable", False), (1.5, 6.0, "faster", False), (2.5, 3.6, "faster", True)],
)
def test_only_what_is_surely_beyond_the_limit_is_called_so(low, high, verdict, beyond) -> None:
    speed = Ratio(3.0, low, high, 0.99, verdict, f"{verdict} [{low}, {high}]", 3, True)
    said = sentences(replace(evidence(ceilings=MACHINE), speed=speed))[0]
    assert f"measured: {verdict} [{low}, {high}]" in said
    assert ("which is more" in said) is beyond


def test_pairs_that_cannot_be_read_are_left_out() -> None:
    model = quantized(two(), {"x": X}, Pairs("xb"))
    for item in model.graph.initializer:
        if item.name == "x_scale":
            item.CopyFrom(onnx.numpy_helper.from_array(np.float32(0), "x_scale"))
    assert [pair.tensor for pair in activation_pairs(model)] == ["b"]
    other = copied(two())
    for item in other.graph.initializer:
        if item.name == "w1":
            item.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 16), np.float32), "w1"))
    assert [item.name for item in dequantized_weights(model, other)] == ["w2"], "another shape is another weight"


def test_a_pair_without_a_zero_point_has_unsigned_codes() -> None:
    model = net(
        """(float[N,4] x) => (float[N,4] y) {
            [q] c = QuantizeLinear(x, scale) [d] z = DequantizeLinear(c, scale) [r] y = Relu(z)
        }""",
        scale=np.array(0.5, np.float32),
    )
    (pair,) = activation_pairs(model)
    assert (pair.scale, pair.grid) == (0.5, Grid(0.0, 255.0))


def test_float8_has_most_of_its_numbers_near_zero_and_whole_codes_none_between() -> None:
    whole, float8 = Grid(-127.0, 127.0), Grid(-448.0, 448.0, True)
    assert (whole.levels(127.0), float8.levels(448.0), float8.levels(1.0)) == (127.0, 126.0, 56.0)
    given = np.array([-500.0, 0.3, 1.06, 2.0**-9, 2.0**-11, 447.0])
    assert whole.nearest(given).tolist() == [-127.0, 0.0, 1.0, 0.0, 0.0, 127.0]
    assert float8.nearest(given).tolist() == [-448.0, 0.3125, 1.0, 2.0**-9, 0.0, 448.0]
    assert (whole.beyond(np.array([127.4, 127.6])), float8.beyond(np.array([463.0, -465.0]))) == (1, 1)


def test_weights_whose_scales_are_made_at_run_time_are_left_out() -> None:
    model = net(
        """(float[N,4] x, float[4] s) => (float[N,4] y) {
            [d] w = DequantizeLinear<axis = 1>(codes, s) [m] y = MatMul(x, w)
        }""",
        codes=np.ones((4, 4), np.int8),
    )
    parent = net("(float[N,4] x) => (float[N,4] y) { [m] y = MatMul(x, w) }", w=values((4, 4), 1))
    assert list(dequantized_weights(model, parent)) == []


def test_a_copy_between_product_and_pair_hides_no_pair() -> None:
    model = net(
        """(float[N,4] x) => (float[N,4] y) {
            [m] a = MatMul(x, w) [f] b = Flatten(a) [q] c = QuantizeLinear(b, scale, zero)
            [d] z = DequantizeLinear(c, scale, zero) [r] y = Relu(z)
        }""",
        w=values((4, 4), 1),
        scale=np.array(0.5, np.float32),
        zero=np.array(128, np.uint8),
    )
    assert {fact.name: fact.behind_pair_of for fact in facts_of(model)}["r"] == "m"
    joined = net(
        "(uint8[N,4] c) => (float[N,4] y) { [d] z = DequantizeLinear(c, scale, zero) [r] y = Relu(z) }",
        scale=np.array(0.5, np.float32),
        zero=np.array(128, np.uint8),
    )
    assert facts_of(joined)[0].behind_pair_of == "", "codes that come from outside have no product before them"


def test_signed_codes_are_told_apart_and_suggest_unsigned_ones() -> None:
    model = quantized(two(), {"x": X}, Pairs("xb"))
    for item in model.graph.initializer:
        if item.name.endswith("_zero") and item.data_type == onnx.TensorProto.UINT8:
            item.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.int8), item.name))
    assert {fact.name: fact.signed for fact in facts_of(model)}["first"]
    ours = tuple(fact for fact in facts_of(model) if fact.name == "first")
    layer = Layer("first", "MatMul", "compute", "fp32", 1.0, ("first",))
    found = explanation("s", evidence(facts=ours, variant=Pass("int8", (layer,))))
    assert found.main.kind == "fallback" and "with signed codes" in found.main.sentence
    assert found.advice[0].change == "unsigned"


def test_a_fallback_that_costs_nothing_is_not_named() -> None:
    model = quantized(two(), {"x": X}, Pairs("xb"))
    layers = (
        Layer("first", "MatMul", "compute", "fp32", 1e-4, ("first",)),
        Layer("last", "MatMul", "compute", "int8", 1.0, ("last",)),
    )
    found = explanation("s", evidence(facts=facts_of(model), variant=Pass("int8", layers)))
    assert "fallback" not in [reason.kind for reason in found.reasons]


def test_what_an_engine_sets_aside_is_read_from_its_builders_log(subject: Subject) -> None:
    """By the engines of a study that was recorded on an H200, with TensorRT 8.6's own words."""
    study = wb.Study.open(Path(zoo.data_folder()) / "studies" / "digits_resnet-h200-why.json.gz")
    told = {name: engines.planned_memory(study[name].engine) for name in ("fp32", "int8-kl-fp16")}
    assert {name: (found["activation"], found["scratch"]) for name, found in told.items()} == {
        "fp32": (6_296_064, 4_608), "int8-kl-fp16": (3_145_728, 0),
    }  # fmt: skip
    assert engines.planned_memory(subject.variant.engine) == {}, "ONNX Runtime tells nothing of its plan"
    found = gather(subject, None)
    assert not any("sets" in text for text in explanation("s", found).sentences)
    before, after = (
        replace(memory, planned=one["activation"], workspace=one["scratch"])
        for memory, one in zip(found.memory, told.values(), strict=True)
    )
    assert (
        "The engine sets 3.15 MB aside for activations and workspace, 0 of it workspace (6.3 and 0.00461 in the baseline)."
    ) in explanation("s", replace(found, memory=(before, after))).sentences
