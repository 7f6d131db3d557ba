"""Kinds of CPUs, simulated by their flags, and the arithmetic of those without VNNI, by hand in numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from quantization_nets import IMAGES, attention, bottleneck, constant, table_of
from small_nets import copied, net, operators, run, values

from workbench.graph import cpu_fit, dialects, dynamic, quantization
from workbench.graph.dialects import SEVEN_BITS, dialect
from workbench.graph.editing import Context
from workbench.machine import device
from workbench.machine.device import Int8
from workbench.recipes import Quantize

TOKENS = {"x": values((32, 6, 16), 3)}
EXACT, SATURATING = Int8(False, "it adds in 32 bits"), Int8(True, "it adds in 16 bits")


def quantized(model: onnx.ModelProto, feeds: dict[str, np.ndarray], name: str, **options: object):
    result = copied(model)
    step = Quantize(**{"calibrator": "max", **options})  # type: ignore[arg-type]
    if step.activations == "dynamic":
        report = dynamic.apply(result, step, Context(dialect=name))
    else:
        report = quantization.apply(result, step, Context(dialect=name, table=table_of(model, feeds)))
    cpu_fit.write_origin(result, dialect(name).ranged(step.reduce_range))
    onnx.checker.check_model(result, full_check=True)
    return result, report


def exactly(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output as onnx's own reference computes it: no kernel of any CPU in the way."""
    newer = copied(model)
    # It knows Q/DQ from opset 19 on only; nothing else in these nets means another thing there.
    newer.opset_import[0].version = 19
    return np.asarray(ReferenceEvaluator(newer).run(None, feeds)[0], np.float64)


def noise_db(right: np.ndarray, have: np.ndarray) -> float:
    return float(10 * np.log10((right**2).sum() / max(((have.astype(np.float64) - right) ** 2).sum(), 1e-30)))


def largest_codes(model: onnx.ModelProto) -> list[int]:
    """Of every int8 constant with more than one axis."""
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [int(np.abs(one.astype(int)).max()) for one in arrays if one.dtype == np.int8 and one.ndim > 1]


def added_in_16_bits(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The product as VPMADDUBSW makes it: neighbouring products added in 16 bits, saturating."""
    products = activations.astype(np.int64)[:, :, None] * weights.astype(np.int64)[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        (("avx2",), "x86_64", True),
        (("avx2", "avx512f"), "x86_64", True),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", False),
        (("avx2", "avx_vnni"), "AMD64", False),
        (("avx2", "avx512f", "avx512_vnni", "amx_int8"), "x86_64", False),
        ((), "x86_64", True),  # a system that does not tell: the careful answer
        ((), "arm64", False),
        (("asimddp",), "aarch64", False),
        (("asimddp", "i8mm"), "aarch64", False),
        ((), "riscv64", False),
    ],
)
def test_the_dialect_follows_the_kind_of_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], machine: str, saturates: bool
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    assert device.int8().saturates is saturates
    assert device.int8().reason
    assert dialects.of_this_cpu() == ("ort-cpu-7bit" if saturates else "ort-cpu") == Context().dialect
    assert dialects.of_this_cpu("strong") == ("openvino-7bit" if saturates else "strong")


def test_pairs_of_the_largest_codes_fit_16_bits_with_seven_bits_and_not_with_eight() -> None:
    activations = np.full((1, 2), 255, np.uint8)
    for sign in (1, -1):
        for largest, exact in ((SEVEN_BITS, True), (SEVEN_BITS + 1, False), (127, False)):
            weights = np.full((2, 1), sign * largest, np.int8)
            right = activations.astype(int) @ weights.astype(int)
            assert (added_in_16_bits(activations, weights) == right).all() == exact


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("make", [bottleneck, attention])
def test_weights_have_as_many_bits_as_the_cpu_adds_up(make, activations: str) -> None:
    feeds = IMAGES if make is bottleneck else TOKENS
    for name, largest in (("ort-cpu", 127), ("ort-cpu-7bit", SEVEN_BITS)):
        model, report = quantized(make(), feeds, name, activations=activations)
        assert largest_codes(model) and set(largest_codes(model)) == {largest}
        narrow = name == "ort-cpu-7bit"
        assert bool(report.details["seven_bit_weights"]) is narrow
        assert any("7 bits" in note and "saturate" in note for note in report.notes) is narrow
        # Exact arithmetic: half the levels of the weights cost at most the 6 dB of one bit.
        assert noise_db(exactly(make(), feeds), exactly(model, feeds)) > (20 if narrow else 25)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("make", [bottleneck, attention])
@pytest.mark.parametrize("symmetric", [None, True])
def test_what_is_written_for_saturating_cpus_is_computed_alike_by_every_cpu(make, activations: str, symmetric) -> None:
    if activations == "dynamic" and symmetric:
        pytest.skip("dynamic activations are unsigned")
    feeds = IMAGES if make is bottleneck else TOKENS
    model, _ = quantized(make(), feeds, "ort-cpu-7bit", activations=activations, symmetric=symmetric)
    kernels = next(iter(run(model, feeds, "all").values()))
    # They differ where one rounds a half the other way, by one code here and there.
    assert noise_db(exactly(model, feeds), kernels) > 35


def depthwise() -> onnx.ModelProto:
    return net(
        """(float[N,4,8,8] x) => (float[N,5,6,6] y) {
            [apart] a = Conv<group = 4, pads = [1,1,1,1]>(x, w0)
            [mixed] b = Conv<pads = [1,1,1,1]>(a, w1)
            r = Relu(b)
            [grouped] c = Conv<group = 4>(r, w2)
            s = Relu(c)
            [head] y = Conv(s, w3)
        }""",
        w0=values((4, 1, 3, 3), 1), w1=values((40, 4, 3, 3), 2), w2=values((40, 10, 3, 3), 3), w3=values((5, 40, 1, 1), 4),
    )  # fmt: skip


def test_depthwise_weights_keep_8_bits_and_other_groups_do_not() -> None:
    model, report = quantized(depthwise(), IMAGES, "ort-cpu-7bit", op_types=("Conv",))
    largest = {name: int(np.abs(constant(model, f"{name}_quantized").astype(int)).max()) for name in ("w0", "w1", "w2")}
    assert largest == {"w0": 127, "w1": SEVEN_BITS, "w2": SEVEN_BITS}
    assert report.details["seven_bit_weights"] == ["mixed", "grouped"]
    assert any("others keep 8 bits" in note for note in report.notes)
    assert noise_db(exactly(model, IMAGES), run(model, IMAGES, "all")["y"]) > 35


def test_products_of_signed_activations_stay_in_floating_point_where_openvino_saturates() -> None:
    _, report = quantized(attention(), TOKENS, "openvino-7bit")
    kept = {item.name: item.reason for item in report.skipped}
    assert set(kept) == {"scores", "mix"} and all("saturate" in reason for reason in kept.values())
    _, report = quantized(attention(), TOKENS, "strong")
    assert not report.skipped


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("name", "reduce_range", "largest"), [("ort-cpu", True, SEVEN_BITS), ("ort-cpu-7bit", False, 127)]
)
def test_a_recipe_may_choose_the_range_of_weights(activations, name, reduce_range, largest) -> None:
    model, report = quantized(attention(), TOKENS, name, activations=activations, reduce_range=reduce_range)
    assert set(largest_codes(model)) == {largest}
    assert any("as the recipe asks" in note for note in report.notes)
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert "as the recipe asks" in written["workbench.weights"] and written["workbench.dialect"] == name
    told = cpu_fit.fit_note(model, SATURATING)
    if reduce_range:
        assert told is None and cpu_fit.fit_note(model, EXACT) is None
    else:
        assert told is not None and "as its recipe asks" in told and cpu_fit.fit_note(model, EXACT) is None


def test_a_range_that_the_dialect_has_anyway_is_not_told_as_the_recipes() -> None:
    for name, reduce_range in (("ort-cpu", False), ("ort-cpu-7bit", True)):
        asked = quantized(attention(), TOKENS, name, reduce_range=reduce_range)[1]
        assert asked.notes == quantized(attention(), TOKENS, name)[1].notes
    with pytest.raises(ValueError, match="fp8 has no such form"):
        Quantize(to="fp8", reduce_range=True)


@pytest.mark.parametrize("name", ["ort-cpu", "ort-cpu-7bit", "trt-8.6", "strong", "openvino-7bit"])
def test_the_file_says_what_it_was_written_for(name: str) -> None:
    model, _ = quantized(bottleneck(), IMAGES, name)
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert written["workbench.dialect"] == name == cpu_fit.written_for(model)
    assert ("7 bits" in written["workbench.weights"]) is dialect(name).narrow
    cpu_fit.write_origin(model, dialect("ort-cpu"))
    assert [entry.value for entry in model.metadata_props if entry.key == "workbench.dialect"] == ["ort-cpu"]


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_file_for_another_kind_of_cpu_says_so(activations: str) -> None:
    full, _ = quantized(attention(), TOKENS, "ort-cpu", activations=activations)
    narrow, _ = quantized(attention(), TOKENS, "ort-cpu-7bit", activations=activations)
    assert cpu_fit.fit_note(full, EXACT) is None
    assert cpu_fit.fit_note(narrow, SATURATING) is None
    note = cpu_fit.fit_note(full, SATURATING)
    assert note and "another kind of CPU" in note and "4 layers" in note and SATURATING.reason in note
    note = cpu_fit.fit_note(narrow, EXACT)
    assert note and "7 bits" in note and EXACT.reason in note


@pytest.mark.parametrize("name", ["trt-8.6", "strong"])
def test_weights_behind_pairs_are_looked_at_too(name: str) -> None:
    model, _ = quantized(bottleneck(), IMAGES, name)
    assert len(cpu_fit.saturating_nodes(model)) == 4


def test_files_of_other_tools_are_looked_at_in_their_own_form(tmp_path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([IMAGES])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    source = tmp_path / "model.onnx"
    onnx.save(bottleneck(), source)
    for form in (QuantFormat.QOperator, QuantFormat.QDQ):
        for kind, narrow, found in (
            (QuantType.QInt8, False, 4),
            (QuantType.QInt8, True, 0),
            (QuantType.QUInt8, False, 0),
        ):
            place = tmp_path / "quantized.onnx"
            quantize_static(
                source,
                place,
                Samples(),
                quant_format=form,
                activation_type=QuantType.QUInt8,
                weight_type=kind,
                reduce_range=narrow,
            )
            model = onnx.load(place)
            assert len(cpu_fit.saturating_nodes(model)) == found, (form, kind, narrow, operators(model))
            note = cpu_fit.fit_note(model, SATURATING)
            assert (note is not None and "not made for this kind of CPU" in note) is bool(found)


def test_weights_that_were_computed_or_never_coded_are_passed_over() -> None:
    assert cpu_fit.saturating_nodes(bottleneck()) == []
    assert cpu_fit.fit_note(bottleneck(), SATURATING) is None
    assert cpu_fit.written_for(bottleneck()) is None
