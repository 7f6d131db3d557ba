"""Datasets from arrays, .npz files, loaders and random generators."""

import io
import zipfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from workbench import datasets
from workbench.datasets import from_arrays as module
from workbench.errors import DataError
from workbench.records import Model, Origin, TensorSpec


def model(*inputs):
    return Model("net", "net.onnx", "0" * 64, 1, 17, inputs, (), Origin("onnx", "net.onnx"), 1, {})


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def test_arrays_guess_top_1_for_class_labels_and_perplexity_for_the_fed_tokens():
    assert datasets.arrays(rows(4), np.arange(4)).metric.name == "top-1"
    assert datasets.arrays(np.ones((2, 5), np.int64), np.ones((2, 5), np.int64)).metric.name == "perplexity"
    assert datasets.arrays(rows(4)).metric is None


def test_labels_without_a_default_metric_are_noted():
    data = datasets.arrays(rows(4), rows(4, 1))
    assert data.metric is None
    assert "no default metric" in data.notes[0]


def test_a_metric_of_one_s_own_is_kept():
    metric = datasets.Metric("error", lambda outputs, labels: 0.0)
    assert datasets.arrays(rows(4), rows(4, 1), metric=metric).metric is metric


def test_a_function_is_a_metric_and_which_way_is_better_is_told():
    def spread(outputs, labels):
        return 0.0

    data = datasets.arrays(rows(4), rows(4, 1), metric=spread)
    assert (data.metric.name, data.metric.function, data.metric.key) == ("spread", spread, None)
    assert "Higher is taken to be better for the metric 'spread'" in data.notes[0]
    assert datasets.arrays(rows(4), rows(4, 1), metric=lambda outputs, labels: 0.0).metric.name == "your function"


def test_a_metric_is_named_and_so_is_the_output_that_it_scores():
    data = datasets.arrays(rows(4), np.arange(4), metric="recall@1", output="embedding")
    assert (data.metric.name, data.metric.output) == ("recall@1", "embedding")
    with pytest.raises(DataError, match=r"There is no metric 'top1'\. Did you mean 'top-1'"):
        datasets.arrays(rows(4), np.arange(4), metric="top1")
    with pytest.raises(DataError, match="metric is a int, expected a name, a Metric, a function or None"):
        datasets.arrays(rows(4), np.arange(4), metric=3)


def test_a_dataset_shows_shapes_and_not_its_arrays():
    data = datasets.arrays(rows(4), np.arange(4), calibration=rows(2, 1))
    shown = "Split(input float32 (4, 3), labels int64 (4,)), calibration=Split(input float32 (2, 3)), metric='top-1'"
    assert shown in repr(data)


def test_a_metric_without_labels_is_refused():
    with pytest.raises(DataError, match="top-1 needs labels, got none"):
        datasets.arrays(rows(4), metric=datasets.top1())


def test_tensors_and_lists_are_taken_as_arrays():
    data = datasets.arrays({"x": torch.ones(2, 3, requires_grad=True), "y": [[1.0], [2.0]]}, torch.tensor([0, 1]))
    assert data.evaluation.inputs["x"].dtype == np.float32
    assert data.evaluation.inputs["y"].shape == (2, 1)
    assert datasets.arrays(torch.ones(2, 3, dtype=torch.bfloat16)).evaluation.inputs[""].dtype == np.float32


@pytest.mark.parametrize(
    ("value", "words"), [([[1], [1, 2]], "no array"), ({1, 2}, "is a set, which gives no numbers")]
)
def test_values_that_are_no_arrays_are_refused(value, words):
    with pytest.raises(DataError, match=words):
        datasets.arrays(value)


def test_labels_are_one_entry_a_sample():
    with pytest.raises(DataError, match=r"labels is one value \(3\)"):
        datasets.arrays(np.ones((2, 3)), 3)


def test_npz_reads_inputs_labels_and_calibration(tmp_path):
    file = tmp_path / "mine.npz"
    np.savez(file, input=rows(4), labels=np.arange(4), calibration_input=rows(2, 1))
    data = datasets.npz(file)
    assert (data.name, data.kind, len(data.evaluation), len(data.calibration)) == ("mine", "user", 4, 2)
    assert list(data.evaluation.inputs) == [""]
    np.savez(file, left=rows(4), right=rows(4, 1))
    assert list(datasets.npz(file).evaluation.inputs) == ["left", "right"]
    assert datasets.npz(file).calibration is None


def test_npz_with_pickled_objects_is_refused_without_running_them(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    np.savez(tmp_path / "bad.npz", input=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="pickled objects, which are never loaded"):
        datasets.npz(tmp_path / "bad.npz")
    assert not ran.exists()


def test_damaged_npz_files_are_refused(tmp_path):
    file = tmp_path / "d.npz"
    np.savez(file, input=rows(400))
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04", b"plain text", whole.replace(b"NUMPY", b"NUMPI")):
        file.write_bytes(content)
        with pytest.raises(DataError, match="Cannot read"):
            datasets.npz(file)


def test_an_npz_whose_header_promises_more_than_it_holds_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("input.npy", buffer.getvalue())
    with pytest.raises(DataError, match="Cannot read"):
        datasets.npz(tmp_path / "d.npz")


def test_an_npz_that_unpacks_to_too_much_is_refused_before_unpacking(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "d.npz", input=np.zeros((1000, 100)))
    monkeypatch.setattr(module, "LARGEST_NPZ_BYTES", 100_000)
    with pytest.raises(DataError, match="unpacks to 800128 bytes"):
        datasets.npz(tmp_path / "d.npz")


def test_npz_without_inputs_or_without_a_file_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", labels=np.arange(3))
    with pytest.raises(DataError, match="no input array"):
        datasets.npz(tmp_path / "d.npz")
    with pytest.raises(DataError, match="There is no file"):
        datasets.npz(tmp_path / "missing.npz")


def test_a_data_loader_gives_inputs_and_labels_up_to_the_limit():
    source = DataLoader(TensorDataset(torch.from_numpy(rows(10)), torch.arange(10)), batch_size=4)
    data = datasets.loader(source, samples=6)
    assert np.array_equal(data.evaluation.inputs[""], rows(10)[:6])
    assert data.evaluation.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.notes == ("The first 6 samples of the loader were taken; it has more.",)
    assert datasets.loader(source, samples=8).notes == ("The first 8 samples of the loader were taken; it has more.",)
    assert datasets.loader(source).notes == ()
    assert len(datasets.loader(source).evaluation) == 10


def test_an_endless_loader_ends_at_the_limit():
    def endless():
        while True:
            yield rows(3)

    assert len(datasets.loader(endless(), samples=7).evaluation) == 7


def test_a_loader_of_dicts_keeps_the_names():
    data = datasets.loader([{"ids": np.ones((2, 3), np.int64), "labels": np.array([0, 1])}])
    assert list(data.evaluation.inputs) == ["ids"]
    assert data.evaluation.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "gave no batches"),
        ([(rows(2), rows(2), rows(2))], "A batch has 3 fields"),
        ([rows(2), rows(2)[:, :2]], "do not fit together"),
        ([(rows(2), np.arange(2)), (rows(2),)], "the first had"),
        ([{}], "A batch is an empty dict"),
    ],
)
def test_loaders_with_odd_batches_are_refused(batches, words):
    with pytest.raises(DataError, match=words):
        datasets.loader(batches)


def test_a_sample_limit_below_one_is_refused():
    with pytest.raises(DataError, match="samples is 0"):
        datasets.loader([rows(2)], samples=0)


INPUTS = (
    TensorSpec("x", "float32", (None, 3)),
    TensorSpec("half", "float16", (None, 2)),
    TensorSpec("brain", "bfloat16", (None, 2)),
    TensorSpec("ids", "int64", (None, None)),
    TensorSpec("attention_mask", "int64", (None, None)),
    TensorSpec("flag", "bool", (None, 2)),
)


def test_random_inputs_fit_the_model_and_state_their_ranges():
    data = datasets.random(model(*INPUTS), samples=6, seed=3, dynamic_size=5, integers=(10, 20)).bound_to(
        model(*INPUTS)
    )
    drawn = data.evaluation.inputs
    assert {name: (array.shape, array.dtype.name) for name, array in drawn.items()} == {
        "x": ((6, 3), "float32"),
        "half": ((6, 2), "float16"),
        "brain": ((6, 2), "bfloat16"),
        "ids": ((6, 5), "int64"),
        "attention_mask": ((6, 5), "int64"),
        "flag": ((6, 2), "bool"),
    }
    assert drawn["ids"].min() >= 10 and drawn["ids"].max() < 20
    assert (drawn["attention_mask"] == 1).all()
    assert (data.kind, len(data.calibration), data.metric) == ("random", 3, None)
    assert "integers from 10 to 19" in data.notes[0] and "length 5" in data.notes[1]


def test_random_inputs_depend_on_the_seed_alone():
    one, same, other = (datasets.random(model(INPUTS[0]), seed=seed).sha256 for seed in (1, 1, 2))
    assert one == same != other


def test_random_inputs_too_few_for_two_disjoint_splits_have_no_calibration():
    data = datasets.random(model(TensorSpec("flag", "bool", (None,))), samples=8)
    assert data.calibration is None
    assert "too few different random samples" in data.notes[-1]


@pytest.mark.parametrize(
    ("spec", "words"),
    [(TensorSpec("s", "float32", ()), "scalar"), (TensorSpec("s", "str", (None,)), "type str")],
)
def test_random_refuses_inputs_it_cannot_draw(spec, words):
    with pytest.raises(DataError, match=words):
        datasets.random(model(spec))


def test_random_refuses_an_empty_range():
    with pytest.raises(DataError, match="at least 1 sample"):
        datasets.random(model(INPUTS[0]), integers=(2, 2))


class Indexed:
    """A data set in torch's manner without being torch's; like many, it never says where it ends."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return rows(5)[index % 5], index % 5


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(torch.from_numpy(rows(5)), torch.arange(5)),
        torch.utils.data.Subset(TensorDataset(torch.from_numpy(rows(5)), torch.arange(5)), range(5)),
        Indexed(),
        [(rows(5)[index], index) for index in range(5)],
    ],
)
def test_a_source_of_single_samples_gives_one_sample_an_item(source):
    data = datasets.loader(source)
    assert np.array_equal(data.evaluation.inputs[""], rows(5))
    assert data.evaluation.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(datasets.loader(source, samples=3).evaluation) == 3


def test_a_stream_of_single_samples_is_read_to_the_limit():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.ones(3), torch.tensor(1)

    data = datasets.loader(Stream(), samples=4)
    assert data.evaluation.inputs[""].shape == (4, 3) and data.evaluation.labels.tolist() == [1] * 4


def test_an_empty_batch_is_refused_and_does_not_go_on_for_ever():
    with pytest.raises(DataError, match="a batch without samples"):
        datasets.loader(rows(1)[:0] for _ in range(10_000))


def test_a_mask_of_minus_infinity_is_refused_with_a_way_to_go_on():
    mask = np.array([[0, -np.inf], [0, 0]], np.float32)
    with pytest.raises(
        DataError, match=r"infinite values in 1 of 2 samples.*large negative number instead, such as -1e4"
    ):
        datasets.arrays({"mask": mask})
    for other in (np.nan, np.inf):
        with pytest.raises(DataError, match="Clean the data"):
            datasets.arrays({"mask": np.where(np.isinf(mask), np.float32(other), mask)})


def test_an_input_without_axes_is_refused_in_the_same_words_everywhere():
    scalar = model(TensorSpec("x", "float32", (None, 3)), TensorSpec("t", "float32", ()))
    words = "write the value into the model"
    with pytest.raises(DataError, match=words):
        datasets.random(scalar)
    with pytest.raises(DataError, match=words):
        datasets.arrays({"x": rows(4), "t": np.float32(1)})
    with pytest.raises(DataError, match=words):
        datasets.arrays({"x": rows(4), "t": np.ones(4, np.float32)}).bound_to(scalar)
