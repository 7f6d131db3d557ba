from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_nets import copied, net, run, values

from workbench.graph import precision
from workbench.graph.editing import Context
from workbench.graph.half import half_type, rounded_form
from workbench.recipes import Precision


def in_fp16(scale: float = 1.0, inputs: str = "float16") -> onnx.ModelProto:
    kind = np.float16 if inputs == "float16" else np.float32
    return net(
        f"({inputs}[N,16] x) => ({inputs}[N,5] y) {{ a = MatMul(x, w) r = Relu(a) n = Neg(r) y = MatMul(n, w2) }}",
        w=values((16, 64), 1, scale).astype(kind),
        w2=values((64, 5), 2, scale).astype(kind),
    )


def by_hand(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """numpy, each result rounded to FP16, sums in FP32."""
    w, w2 = (values(shape, seed, scale).astype(np.float16) for shape, seed in (((16, 64), 1), ((64, 5), 2)))
    with np.errstate(over="ignore", invalid="ignore"):
        a = (x.astype(np.float32) @ w.astype(np.float32)).astype(np.float16)
        return (-np.maximum(a, 0).astype(np.float32) @ w2.astype(np.float32)).astype(np.float16).astype(np.float32)


def test_results_are_those_of_numpy_with_every_one_rounded() -> None:
    x = values((32, 16)).astype(np.float16)
    form = rounded_form(in_fp16())
    assert form is not None
    onnx.checker.check_model(form, full_check=True)
    have = run(form, {"x": x})["y"]
    assert have.dtype == np.float32
    # Sums in another order may round to the neighbouring FP16 number, once or twice.
    np.testing.assert_allclose(have, by_hand(x), rtol=4e-3, atol=0.1)


@pytest.mark.parametrize("scale", [3000.0, 500.0])
def test_what_overflows_between_operators_shows(scale: float) -> None:
    x = values((32, 16)).astype(np.float16)
    form = rounded_form(in_fp16(scale))
    assert form is not None
    have, want = run(form, {"x": x})["y"], by_hand(x, scale)
    assert not np.isfinite(want).all()
    assert (np.isfinite(have) == np.isfinite(want)).mean() > 0.98  # sums in another order may just fit


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("dialect", ["ort-cpu", "strong"])
def test_files_of_the_precision_step_are_rounded_as_its_rehearsal_is(to: str, dialect: str) -> None:
    model = in_fp16(inputs="float")
    precision.apply(model, Precision(to), Context(dialect=dialect))
    x = values((32, 16))
    if to == "bf16" and dialect == "ort-cpu":
        assert half_type(model) is None  # a rehearsal: FP32 already, with the roundings written out
        return
    assert half_type(model) == to
    form = rounded_form(model)
    assert form is not None
    rehearsed = in_fp16(inputs="float")
    precision.apply(rehearsed, Precision("bf16"), Context(dialect="ort-cpu"))
    have = run(form, {"x": x})["y"]
    if to == "bf16":
        np.testing.assert_array_equal(have, run(rehearsed, {"x": x})["y"])
    else:
        np.testing.assert_allclose(have, by_hand(x.astype(np.float16)), rtol=4e-3, atol=0.1)


def test_nothing_half_and_subgraphs_give_no_form() -> None:
    plain = in_fp16(inputs="float")
    assert half_type(plain) is None and rounded_form(plain) is None
    branching = net(
        """(float16[N,4] x, bool c) => (float16[N,4] y) {
            r = Relu(x)
            y = If(c) <then_branch = then () => (float16[N,4] a) { a = Neg(r) },
                       else_branch = other () => (float16[N,4] b) { b = Abs(r) }>
        }"""
    )
    assert half_type(branching) == "fp16" and rounded_form(copied(branching)) is None
