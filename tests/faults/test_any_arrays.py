"""Any dict of images, or batches of such dicts, becomes a dataset that fits a model or a WorkbenchError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as any_numpy
from PIL import Image

import workbench as wb
from workbench import datasets
from workbench.errors import WorkbenchError
from workbench.records import Model

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PICTURE = st.builds(
    lambda mode, size: Image.new(mode, size), st.sampled_from(["1", "L", "RGB", "RGBA", "F", "I;16"]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)  # fmt: skip
ARRAY = st.one_of(
    any_numpy.arrays(
        any_numpy.scalar_dtypes(),
        any_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    # Images as they should be, so that more than refusals is tried.
    st.builds(
        lambda kind, count: np.zeros((count, 3, 4, 4), kind),
        st.sampled_from(["float32", "uint8", "float16", "float64", "int64"]), st.integers(0, 3),
    ),
)  # fmt: skip
ANYTHING = st.one_of(
    ARRAY, PICTURE, st.lists(PICTURE, max_size=3), st.lists(ARRAY, max_size=3), st.none(), st.binary(max_size=20),
    st.text(max_size=5), st.integers(), st.floats(), st.lists(st.lists(st.integers(), max_size=2), max_size=3),
    st.binary(max_size=48).map(lambda content: np.frombuffer(content, np.uint8)),
    st.just(np.array([{"a": 1}, None], object)), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
NAME = st.one_of(st.sampled_from(["image", "mask", "labels", ""]), st.text(max_size=4), st.integers(), st.none())
DICT = st.dictionaries(NAME, ANYTHING, max_size=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    import onnx

    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,4,4] image) => (float[N,3,4,4] y) {y = Relu(image)}'
    store = wb.Store(tmp_path_factory.mktemp("store"))
    return wb.load(onnx.parser.parse_model(text), name="g", store=store)


def made(make: Any, model: Model) -> None:
    try:
        found = make().bound_to(model)
    except WorkbenchError as error:
        assert str(error)
    else:
        assert len(found.evaluation) and found.evaluation.inputs["image"].dtype == np.float32


@FEW
@given(inputs=DICT, labels=ANYTHING, calibration=st.one_of(st.none(), DICT))
def test_dicts_of_images(model: Model, inputs: Any, labels: Any, calibration: Any) -> None:
    made(lambda: datasets.arrays(inputs, labels, calibration=calibration), model)
    made(lambda: datasets.as_dataset(inputs, "run"), model)


@FEW
@given(batches=st.lists(st.one_of(DICT, ANYTHING, st.tuples(ANYTHING, ANYTHING)), max_size=3))
def test_batches_of_dicts_of_images(model: Model, batches: Any) -> None:
    made(lambda: datasets.loader(batches), model)


@FEW
@given(feeds=DICT)
def test_a_runner_is_fed_a_dict_of_images(model: Model, engine: Any, feeds: Any) -> None:
    with wb.open_runner(engine) as runner:
        try:
            found = runner.infer(feeds)
        except WorkbenchError as error:
            assert str(error)
        else:
            assert found["y"].shape[1:] == (3, 4, 4)


@pytest.fixture(scope="module")
def engine(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = wb.Store(tmp_path_factory.mktemp("built"))
    return wb.engines.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store)


def test_images_as_they_should_be_are_taken(model: Model) -> None:
    """Otherwise the tests above would be about nothing."""
    images = np.arange(3 * 48, dtype=np.float64).reshape(3, 3, 4, 4)
    assert len(datasets.arrays({"image": images}, [0, 1, 2], metric=None).bound_to(model).evaluation) == 3
    assert (
        len(datasets.loader([{"image": images, "labels": [0, 1, 2]}] * 2, metric=None).bound_to(model).evaluation) == 6
    )
