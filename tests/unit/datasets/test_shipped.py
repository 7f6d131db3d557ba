"""The shipped data fit the shipped models' inputs."""

import numpy as np
import pytest

from workbench import datasets
from workbench.records import Model, Origin, TensorSpec


def model(spec):
    return Model("net", "net.onnx", "0" * 64, 1, 17, (spec,), (), Origin("onnx", "net.onnx"), 1, {})


@pytest.fixture(scope="module")
def digits():
    return datasets.digits()


@pytest.fixture(scope="module")
def text():
    return datasets.stdlib_text()


def test_digits_fit_an_image_model(digits):
    bound = digits.bound_to(model(TensorSpec("image", "float32", (None, 1, 32, 32))))
    assert (len(bound.evaluation), len(bound.calibration)) == (539, 259)
    assert (bound.kind, bound.metric.name, bound.notes) == ("shipped", "top-1", ())
    assert set(bound.evaluation.labels) == set(range(10))


def test_a_digit_is_shown_dark_on_light_with_its_label(digits):
    shown = digits.show(3)
    pixels = np.array(shown["value"])
    assert (shown["kind"], shown["label"]) == ("image", str(digits.evaluation.labels[3]))
    assert pixels.shape == (8, 8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    # The first column of a digit is nearly always background.
    assert pixels[:, 0].mean() > 200


def test_stdlib_text_is_windows_of_ids_that_are_their_own_labels(text):
    bound = text.bound_to(model(TensorSpec("input_ids", "int64", (None, None))))
    assert bound.evaluation.inputs["input_ids"].shape == (320, 128)
    assert len(bound.calibration) == 128
    assert np.array_equal(bound.evaluation.labels, bound.evaluation.inputs["input_ids"])
    assert bound.metric.name == "perplexity"


def test_a_text_window_is_shown_decoded(text):
    shown = text.show(0)
    assert shown["kind"] == "text"
    assert "Ġ" not in shown["value"] and len(shown["value"]) > 128
