"""Written models are whole, in the asked-for place, and leave nothing else behind."""

import onnx
import pytest
from onnx import numpy_helper
from small_onnx import small_model

from workbench.errors import LoadError
from workbench.graph import files
from workbench.machine.store import Store
from workbench.models.place import Place


def test_a_folder_gets_the_file_and_nothing_else(tmp_path):
    file = Place(folder=tmp_path / "deep" / "out").keep(small_model(), "net")
    assert [item.name for item in file.parent.iterdir()] == ["net.onnx"]
    assert onnx.load(str(file)) == small_model()


@pytest.mark.parametrize(
    ("name", "expected"), [("a b/c", "a_b_c"), ("../up", "up"), ("...", "model"), ("v1.2-x", "v1.2-x")]
)
def test_names_become_safe_file_names(tmp_path, name, expected):
    assert Place(folder=tmp_path).keep(small_model(), name).name == f"{expected}.onnx"


def test_the_store_gets_the_file_by_its_content(tmp_path):
    store = Store(tmp_path / "store")
    first, again = (Place(store=store).keep(small_model(), "net") for _ in range(2))
    assert first == again
    assert first.is_relative_to(store.root)
    assert not any((store.root / "scratch").iterdir())


def test_without_a_place_the_default_store_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    assert Place().keep(small_model(), "net").is_relative_to(tmp_path / "home")


@pytest.mark.parametrize("in_store", [True, False])
def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch, in_store):
    monkeypatch.setattr(files, "INLINE_LIMIT_BYTES", 10)
    big = small_model()
    big.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(big.graph.initializer[0]).repeat(1000, 0), "w")
    )
    place = Place(store=Store(tmp_path / "store")) if in_store else Place(folder=tmp_path / "out")
    file = place.keep(big, "net")
    assert sorted(item.name for item in file.parent.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert numpy_helper.to_array(onnx.load(str(file)).graph.initializer[0]).shape == (2000, 3)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(LoadError, match="Cannot write into"):
        Place(folder=tmp_path / "taken").keep(small_model(), "net")
