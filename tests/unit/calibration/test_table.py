"""Calibration tables: exact whatever the batching, honest about problems, and distrustful of files."""

import io
import json
import math
import zipfile

import numpy as np
import pytest

from workbench.calibration import table_file
from workbench.calibration.table import CalibrationTable, Convergence, Problem, Provenance
from workbench.calibration.thresholds import threshold
from workbench.errors import CalibrationError

PROVENANCE = Provenance("ab" * 32, "cd" * 32, "digits")


def activations(samples=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, 3, 4)).astype(np.float32)
    return {"x": x, "relu/out": np.maximum(x, 0) * rng.lognormal(size=(samples, 1, 1)).astype(np.float32)}


def table_of(arrays, batch=8, order=None):
    samples = len(next(iter(arrays.values())))
    order = np.arange(samples) if order is None else order
    table = CalibrationTable(arrays, PROVENANCE)
    for start in range(0, samples, batch):
        chosen = order[start : start + batch]
        table.update({name: array[chosen] for name, array in arrays.items()}, len(chosen))
    return table


def members(path):
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def rewrite(path, **changes):
    """Save the archive again with some members replaced; None leaves one out."""
    kept = {name: array for name, array in (members(path) | changes).items() if array is not None}
    with path.open("wb") as file:
        np.savez(file, **kept)


def rewrite_text(path, **changes):
    text = json.loads(members(path)["text"].tobytes())
    rewrite(path, text=np.frombuffer(json.dumps(text | changes).encode(), np.uint8))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "table.npz"
    table_of(activations()).save(path)
    return path


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_batch_size_and_order_change_no_byte_of_the_exact_part(batch):
    arrays = activations()
    order = np.random.default_rng(batch).permutation(64)
    one, other = table_of(arrays), table_of(arrays, batch, order)
    assert one == other and one.sha256 == other.sha256
    assert {name: threshold(one[name], "kl") for name in one} == {name: threshold(other[name], "kl") for name in other}


def test_merging_two_halves_equals_seeing_all():
    arrays = activations()
    halves = [table_of({name: array[part] for name, array in arrays.items()}) for part in (slice(40), slice(40, None))]
    halves[0].merge(halves[1])
    assert halves[0] == table_of(arrays)
    assert halves[0].samples == 64
    assert halves[0].convergence() == ()


@pytest.mark.parametrize(
    ("tensors", "provenance"),
    [(("a", "b"), Provenance("ab" * 32, "cd" * 32, "other")), (("a", "c"), PROVENANCE), (("b", "a"), PROVENANCE)],
)
def test_tables_of_other_origin_or_tensors_refuse_to_merge_and_differ(tensors, provenance):
    table, other = CalibrationTable(("a", "b"), PROVENANCE), CalibrationTable(tensors, provenance)
    assert table != other
    with pytest.raises(CalibrationError, match="cannot be merged"):
        table.merge(other)


def test_a_table_is_a_mapping_in_the_order_given():
    table = CalibrationTable(("b", "a"), PROVENANCE)
    assert list(table) == ["b", "a"] and len(table) == 2
    assert table["a"].elements == 0 and "c" not in table
    assert table != {"b": table["b"], "a": table["a"]}


@pytest.mark.parametrize("names", [("a", "a"), tuple(map(str, range(table_file.MOST_TENSORS + 1)))])
def test_names_that_repeat_or_are_too_many_are_refused(names):
    with pytest.raises(CalibrationError, match="each once"):
        CalibrationTable(names, PROVENANCE)


@pytest.mark.parametrize(
    ("arrays", "samples", "message"),
    [
        ({"a": np.ones(2, np.float32)}, 1, r"missing \['b'\] \(1\)"),
        (dict.fromkeys("abc", np.ones(2, np.float32)), 1, r"unknown \['c'\] \(1\)"),
        (dict.fromkeys("ab", np.ones(2, np.float32)), 0, "at least 1 sample"),
        (
            {"a": np.ones(2, np.float32), "b": np.ones(2, np.int64)},
            1,
            "Tensor 'b': Cannot calibrate an array of type int64",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_nothing_is_counted(arrays, samples, message):
    table = CalibrationTable("ab", PROVENANCE)
    with pytest.raises(CalibrationError, match=message):
        table.update(arrays, samples)
    assert table == CalibrationTable("ab", PROVENANCE)


def test_problems_name_tensor_kind_and_counts():
    arrays = {
        "fine": [1.0, 2.0, 3.0],
        "nan": [1.0, math.nan, math.nan],
        "both": [math.inf, math.nan, 2.0],
        "dead": [0.0, -0.0, 0.0],
        "constant": [5.0, 5.0, 5.0],
        "one": [5.0],
        "empty": [],
    }
    table = CalibrationTable(arrays, PROVENANCE)
    table.update({name: np.array(values, np.float32) for name, values in arrays.items()}, 3)
    assert table.problems() == (
        Problem("nan", "nan", 2, 3),
        Problem("both", "nan", 1, 3),
        Problem("both", "infinite", 1, 3),
        Problem("dead", "dead", 3, 3),
        Problem("constant", "constant", 3, 3),
        Problem("empty", "empty", 0, 0),
    )


def test_convergence_follows_the_sample_count_and_ends_with_the_whole_table():
    arrays = activations(100)
    table = table_of(arrays, batch=1)
    record = table.convergence()[1]
    assert record.tensor == "relu/out"
    assert record.samples[:6] == (1, 2, 3, 4, 5, 7) and record.samples[-1] == 100
    assert all(later >= earlier for earlier, later in zip(record.abs_max, record.abs_max[1:], strict=False))
    assert record.abs_max[3] == np.abs(arrays["relu/out"][:4]).max()
    assert record.thresholds[-1] == threshold(table["relu/out"], record.method)


def test_convergence_depends_on_the_order_but_equality_does_not():
    arrays = activations()
    one, other = table_of(arrays), table_of(arrays, order=np.arange(64)[::-1])
    assert one.convergence() != other.convergence() and one == other


def test_convergence_starts_at_zero_for_a_tensor_that_came_late():
    table = CalibrationTable(["a"], PROVENANCE)
    table.update({"a": np.empty(0, np.float32)}, 1)
    table.update({"a": np.ones(4, np.float32)}, 1)
    assert table.convergence() == (Convergence("a", "percentile-99.99", (1, 2), (0.0, 1.0), (0.0, 1.0)),)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((1.0, 2.0, 1.995, 2.0), 2),
        ((1.0, 1.5, 1.99, 2.0), 3),
        ((2.0, 2.0, 2.0, 2.0), 1),
        ((2.0, 2.0, 1.5, 2.0), None),
        ((1.0, 2.0, 1.0, 2.0), None),
    ],
)
def test_stable_after_is_the_first_count_from_which_one_percent_was_never_left(thresholds, expected):
    assert Convergence("a", "max", (1, 2, 3, 4), thresholds, thresholds).stable_after(0.01) == expected


def test_one_snapshot_is_no_evidence_of_stability():
    assert Convergence("a", "max", (8,), (1.0,), (1.0,)).stable_after() is None


def test_saving_and_loading_keeps_everything(tmp_path):
    table = table_of(activations() | {"ünïcode/名": np.full((64, 1), math.nan, np.float32)})
    table.save(tmp_path / "table.npz")
    loaded = CalibrationTable.load(tmp_path / "table.npz")
    assert loaded == table and list(loaded) == list(table)
    assert loaded.convergence() == table.convergence()
    assert (loaded.samples, loaded.provenance) == (64, PROVENANCE)
    loaded.update(activations() | {"ünïcode/名": np.zeros((64, 1), np.float32)}, 64)
    assert loaded.samples == 128


@pytest.mark.parametrize("tensors", [[], ["a"]])
def test_an_empty_table_can_be_saved_and_loaded(tmp_path, tensors):
    table = CalibrationTable(tensors, PROVENANCE)
    table.save(tmp_path / "table.npz")
    assert CalibrationTable.load(tmp_path / "table.npz") == table


def test_equal_tables_make_equal_files_and_no_part_is_left_behind(tmp_path):
    for name in ("one.npz", "two.npz"):
        table_of(activations()).save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_part(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(self, target):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        table_of(activations(8)).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"gone\.npz: it cannot be read \(FileNotFoundError"):
        CalibrationTable.load(tmp_path / "gone.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"TRT-8601-EntropyCalibration2\nx: 3c000000\n"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"BadZipFile"):
        CalibrationTable.load(path)


def test_every_truncation_and_every_flipped_byte_is_refused_or_harmless(saved):
    """The archive's checksums see most damage; what they do not cover (zip flags, dates) must not change the table."""
    good, table = saved.read_bytes(), CalibrationTable.load(saved)
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(good), 300):
        damaged = bytearray(good)
        damaged[position] ^= int(rng.integers(1, 256))
        for content in (bytes(damaged), good[:position]):
            saved.write_bytes(content)
            try:
                assert CalibrationTable.load(saved) == table
            except CalibrationError:
                refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": None}, "instead of"),
        ({"surplus": np.zeros(1)}, "instead of"),
        ({"counts": np.zeros((2, 2047), np.int64)}, r"member 'counts' has shape \(2, 2047\), expected \(2, 2048\)"),
        ({"counts": np.zeros((3, 2048), np.int64)}, r"'counts' has shape \(3, 2048\)"),
        ({"counts": np.zeros((2, 2048), np.float64)}, "'counts' has type float64, expected int64"),
        ({"counts": np.zeros((2048, 2), np.int64).T}, "'counts' has type int64, expected int64 in C order"),
        ({"counts": np.zeros((2, 2048), ">i8")}, "'counts' has type >i8"),
        ({"counts": np.full((2, 2048), -1, np.int64)}, "tensor 'x': Damaged histogram: counts from -1"),
        ({"extrema": np.full((2, 2), np.nan)}, "tensor 'x': Damaged histogram: minimum nan"),
        ({"tallies": np.full((2, 4), -1, np.int64)}, "tensor 'x': Damaged histogram: tallies"),
        ({"text": np.frombuffer(b"[1]", np.uint8)}, "its version is None"),
        ({"text": np.frombuffer(b"{", np.uint8)}, r"'text' is not JSON \(JSONDecodeError"),
        ({"text": np.frombuffer(b"\xff\xfe{", np.uint8)}, "'text' is not JSON"),
        ({"text": np.frombuffer(b"[" * 100_000, np.uint8)}, r"'text' is not JSON \(RecursionError"),
        ({"text": np.zeros((2, 2), np.uint8)}, "'text' has shape"),
        ({"text": np.zeros(2)}, "'text' has type float64"),
        ({"snapshot_samples": np.arange(1, 300)}, "at most 256 snapshots"),
        ({"snapshot_samples": np.zeros((2, 2), np.int64)}, "at most 256 snapshots"),
    ],
)
def test_members_of_another_kind_are_refused_and_named(saved, change, message):
    rewrite(saved, **change)
    with pytest.raises(CalibrationError, match=message):
        CalibrationTable.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "its version is 2, this code reads version 1"),
        ({"version": "1"}, "its version is '1'"),
        ({"tensors": "xy"}, "'tensors' is not a list"),
        ({"tensors": [""] * (table_file.MOST_TENSORS + 1)}, "'tensors' is not a list of at most"),
        ({"tensors": ["x"]}, r"expected \(1, 2048\)"),
        ({"tensors": ["x", 3]}, "a tensor name is 3"),
        ({"tensors": ["x", ""]}, "a tensor name is ''"),
        ({"tensors": ["x", "x"]}, "more than once: 'x'"),
        ({"samples": -1}, "samples is -1"),
        ({"samples": True}, "samples is True"),
        ({"samples": 2**60}, "samples is 1152921504606846976"),
        ({"samples": 5}, "do not grow from 1 to 5"),
        ({"model_sha256": None}, "model_sha256 is None"),
        ({"dataset_name": ["digits"]}, "dataset_name is"),
    ],
)
def test_text_that_contradicts_itself_is_refused_and_named(saved, change, message):
    rewrite_text(saved, **change)
    with pytest.raises(CalibrationError, match=message):
        CalibrationTable.load(saved)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("member", ["snapshot_abs_max", "snapshot_thresholds"])
def test_snapshots_that_are_no_ranges_are_refused(saved, member, value):
    array = members(saved)[member]
    array[0, 0] = value
    rewrite(saved, **{member: array})
    with pytest.raises(CalibrationError, match="negative or infinite range"):
        CalibrationTable.load(saved)


def test_snapshots_that_go_backwards_are_refused(saved):
    rewrite(saved, snapshot_samples=members(saved)["snapshot_samples"][::-1].copy())
    with pytest.raises(CalibrationError, match="do not grow"):
        CalibrationTable.load(saved)


def npy(array, version=(1, 0)):
    member = io.BytesIO()
    np.lib.format.write_array(member, np.asarray(array), version=version, allow_pickle=True)
    return member.getvalue()


def replace_member(path, name, content):
    with zipfile.ZipFile(path) as archive:
        kept = {item: archive.read(item) for item in archive.namelist()}
    kept[f"{name}.npy"] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for item, raw in kept.items():
            archive.writestr(item, raw)


def header(shape, dtype="<i8"):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
    return member.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([{}], object)), "'counts' has type object"),
        (npy(np.zeros((2, 2048), np.int64), (2, 0)), r"'counts' is in .npy format \(2, 0\)"),
        (header((10**15, 2048)), r"'counts' has shape \(1000000000000000, 2048\)"),
        (header((-2, 2048)), "'counts'"),
        (header((2, 2048)) + bytes(100), "'counts' holds 100 bytes, expected 32768"),
        (header((2, 2048)) + bytes(32769), "'counts' holds more bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535, "cannot be read"),
        (header((2, 2048)).replace(b"}", b" "), "cannot be read"),
        (b"hello", "cannot be read"),
        (
            b"\x93NUMPY\x01\x00\x60\xea" + header((2, 2048))[10:].ljust(60_000) + bytes(32768),
            r"\(ValueError: Header info length \(60000\) is large and may not be safe to load securely\.\)\. Calib",
        ),
    ],
)
def test_members_that_lie_about_their_size_or_type_are_refused_without_taking_the_memory(saved, content, message):
    replace_member(saved, "counts", content)
    with pytest.raises(CalibrationError, match=message):
        CalibrationTable.load(saved)


def test_a_text_that_claims_to_be_huge_is_refused_before_it_is_read(saved):
    replace_member(saved, "text", header((2**40,), "|u1"))
    with pytest.raises(CalibrationError, match="'text' has shape"):
        CalibrationTable.load(saved)


def test_two_members_of_one_name_are_refused(saved):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("counts.npy", npy(np.zeros((2, 2048), np.int64)))
    with pytest.raises(CalibrationError, match="instead of"):
        CalibrationTable.load(saved)
