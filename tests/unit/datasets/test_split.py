"""Splits and datasets refuse data that do not fit, and name the remedy."""

import numpy as np
import pytest

from workbench.datasets import Dataset, Split
from workbench.errors import DataError
from workbench.records import Model, Origin, TensorSpec


def model(*inputs):
    return Model("net", "net.onnx", "0" * 64, 1, 17, inputs, (), Origin("onnx", "net.onnx"), 1, {})


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 1, 4, 4)).astype(np.float32)


IMAGE = TensorSpec("image", "float32", (None, 1, 4, 4))


def test_batches_come_in_order_and_the_last_is_smaller():
    split = Split({"": images(5)})
    batches = list(split.batches(2))
    assert [len(batch[""]) for batch in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate([batch[""] for batch in batches]), split.inputs[""])


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(DataError, match="batch size is 0"):
        next(Split({"": images(1)}).batches(0))


def test_take_keeps_inputs_and_labels_together():
    split = Split({"": images(5)}, np.arange(5))
    taken = split.take([3, 1])
    assert taken.labels.tolist() == [3, 1]
    assert np.array_equal(taken.inputs[""], split.inputs[""][[3, 1]])


@pytest.mark.parametrize(("indices", "words"), [([], "No samples were chosen"), ([5], "run from 5 to 5"), ([-1], "-1")])
def test_take_refuses_positions_that_are_not_there(indices, words):
    with pytest.raises(DataError, match=words):
        Split({"": images(5)}).take(indices)


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        ({}, None, "at least one input array"),
        ({"x": np.zeros((0, 3))}, None, "no samples"),
        ({"x": np.float32(1)}, None, "expected a numpy array"),
        ({"x": np.array(1.0)}, None, "no samples"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 3))}, None, "x has 2, y has 3"),
        ({"x": np.zeros((2, 3))}, np.zeros(4), "labels has 4"),
        ({"x": np.array([[1, 2], None], dtype=object)}, None, "Python objects"),
        ({"x": np.array([[1.0, 2.0], [np.nan, 1.0]])}, None, "in 1 of 2 samples .first: sample 1"),
        ({"x": np.array([[np.inf, 2.0]])}, None, "NaN or infinite"),
        ({"x": [1, 2]}, None, "x is a list"),
    ],
)
def test_a_split_refuses_arrays_that_are_no_samples(inputs, labels, words):
    with pytest.raises(DataError, match=words):
        Split(inputs, labels)


def test_the_hash_of_a_split_changes_with_values_names_types_and_labels():
    base = images(3)
    splits = [
        Split({"x": base}),
        Split({"y": base}),
        Split({"x": base + 1}),
        Split({"x": base.astype(np.float64)}),
        Split({"x": base}, np.zeros(3)),
        Split({"x": base.reshape(3, 16)}),
    ]
    assert len({split.sha256 for split in splits}) == len(splits)
    assert Split({"x": base.copy()}).sha256 == splits[0].sha256
    assert Split({"x": np.asfortranarray(base)}).sha256 == splits[0].sha256


def test_samples_shared_by_calibration_and_evaluation_are_counted_and_named():
    data = images(6)
    with pytest.raises(DataError, match=r"2 of 4 evaluation samples.*indices 2, 3"):
        Dataset("d", "user", Split({"": data[:4]}), Split({"": data[2:]}))


def test_more_than_ten_shared_samples_are_abbreviated():
    data = images(12)
    with pytest.raises(DataError, match=r"12 of 12 .* 9, \.\.\.\)"):
        Dataset("d", "user", Split({"": data}), Split({"": data}))


def test_calibration_with_other_inputs_is_refused():
    with pytest.raises(DataError, match=r"inputs \['y'\], evaluation data \['x'\]"):
        Dataset("d", "user", Split({"x": images(1)}), Split({"y": images(1, 1)}))


def test_splitting_off_moves_identical_samples_together():
    data = np.concatenate([images(10), images(10)])  # every sample twice
    shown = []
    whole = Dataset("d", "user", Split({"": data}, np.arange(20)), show=lambda index: shown.append(index) or {})
    parts = whole.split_off(3, seed=1)
    assert (len(parts.evaluation), len(parts.calibration)) == (14, 6)
    assert sorted([*parts.evaluation.labels, *parts.calibration.labels]) == list(range(20))
    assert "6 samples were taken out" in parts.notes[0]
    parts.show(2)
    assert shown == [parts.evaluation.labels[2]]
    assert parts.sha256 != whole.sha256


@pytest.mark.parametrize("count", [0, 4, 9])
def test_splitting_off_leaves_at_least_one_distinct_sample(count):
    with pytest.raises(DataError, match=f"Cannot take {count} of 4 distinct"):
        Dataset("d", "user", Split({"": images(4)})).split_off(count)


def test_splitting_off_twice_is_refused():
    parts = Dataset("d", "user", Split({"": images(4)})).split_off(1)
    with pytest.raises(DataError, match="has 1 calibration samples already"):
        parts.split_off(1)


def test_an_unnamed_array_takes_the_name_of_the_only_input():
    data = Dataset("d", "user", Split({"": images(4)}), Split({"": images(2, 1)})).bound_to(model(IMAGE))
    assert list(data.evaluation.inputs) == list(data.calibration.inputs) == ["image"]
    assert data.notes == ()


def test_float64_becomes_float32_and_the_dataset_says_so():
    data = Dataset("d", "user", Split({"": images(4).astype(np.float64)}), Split({"": images(2, 1)}))
    bound = data.bound_to(model(IMAGE))
    assert bound.evaluation.inputs["image"].dtype == np.float32
    assert bound.notes == ("Input 'image' was converted from float64 to float32.",)
    assert bound.bound_to(model(IMAGE)).notes == bound.notes


def test_int32_becomes_int64_and_float32_becomes_bfloat16():
    ids = TensorSpec("ids", "int64", (None, None))
    bound = Dataset("d", "user", Split({"ids": np.ones((2, 3), np.int32)})).bound_to(model(ids))
    assert bound.evaluation.inputs["ids"].dtype == np.int64
    half = TensorSpec("image", "bfloat16", (None, 1, 4, 4))
    bound = Dataset("d", "user", Split({"": images(2)})).bound_to(model(half))
    assert bound.evaluation.inputs["image"].dtype.name == "bfloat16"


def test_samples_equal_only_in_the_model_s_type_are_found_when_bound():
    data = Dataset("d", "user", Split({"": images(4)}), Split({"": images(2).astype(np.float64)}))
    with pytest.raises(DataError, match="2 of 4 evaluation samples"):
        data.bound_to(model(IMAGE))


@pytest.mark.parametrize(
    ("inputs", "specs", "words"),
    [
        ({"": images(2)}, (IMAGE, TensorSpec("mask", "int64", (None,))), "has 2 inputs .image, mask."),
        ({"imgae": images(2)}, (IMAGE,), "Did you mean 'image'"),
        ({"image": images(2)}, (IMAGE, TensorSpec("mask", "int64", (None,))), "needs the inputs mask"),
        ({"": images(2)[..., :3]}, (IMAGE,), r"shape \(2, 1, 4, 3\), the model wants \(samples, 1, 4, 4\)"),
        ({"": images(2)[:, 0]}, (IMAGE,), r"shape \(2, 4, 4\)"),
        ({"": images(2).astype(np.uint8)}, (IMAGE,), "type uint8, the model wants float32"),
        ({"": np.full((1, 2), -1)}, (TensorSpec("ids", "uint8", (None, 2)),), "values that do not fit"),
        ({"": np.full((1, 1, 4, 4), 1e300)}, (IMAGE,), "values that do not fit"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_data_that_do_not_fit_the_model_are_refused(inputs, specs, words):
    with pytest.raises(DataError, match=words):
        Dataset("d", "user", Split(inputs)).bound_to(model(*specs))
