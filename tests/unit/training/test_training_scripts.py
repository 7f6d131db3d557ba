"""What the training scripts compute and refuse, without training anything."""

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("transformers")

SCRIPTS = Path(__file__).resolve().parents[3] / "data" / "training"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def many_images():
    """60 images of two classes, of which each third is a copy of the one before."""
    images = np.random.default_rng(0).integers(0, 17, (60, 8, 8), dtype=np.uint8)
    images[2::3] = images[1::3]
    labels = np.repeat([0, 1], 30)
    return images, labels


def test_the_digit_split_keeps_identical_images_together():
    import make_digits

    images, labels = many_images()
    parts = make_digits.split_indices(images, labels)
    make_digits.check_split(images, parts)
    assert all(len(part) for part in parts.values())


def test_the_digit_split_stops_when_identical_images_are_in_two_parts():
    import make_digits

    images, _ = many_images()
    with pytest.raises(SystemExit, match="Identical images"):
        make_digits.check_split(images, {"train_index": np.arange(2), "evaluation_index": np.arange(2, 60)})


def test_the_digit_split_stops_when_an_image_is_left_out():
    import make_digits

    images, _ = many_images()
    with pytest.raises(SystemExit, match="exactly once"):
        make_digits.check_split(images, {"train_index": np.arange(0, 30), "evaluation_index": np.arange(30, 59)})


def test_other_pixels_than_the_normalisation_was_made_for_are_refused():
    import make_digits

    with pytest.raises(SystemExit, match="mean, std"):
        make_digits.check_normalisation(np.full((3, 8, 8), 8, np.uint8))


def test_standard_library_files_are_dealt_to_the_parts_in_the_stated_shares():
    import make_stdlib_text

    names = [f"module_{i}.py" for i in range(2000)]
    parts = [make_stdlib_text.part_of(name) for name in names]
    # md5 is uniform: 5 % and 10 % of 2000 are 100 and 200, with a standard deviation of 10 and 13.
    assert 50 < parts.count("calibration") < 150
    assert 135 < parts.count("evaluation") < 265


def test_too_little_text_for_the_windows_is_refused(monkeypatch):
    import make_stdlib_text

    monkeypatch.setattr(make_stdlib_text, "read_part", lambda part: {"a.py": "x" * 300})

    def tokenizer(text):
        return {"input_ids": list(text.encode())}

    with pytest.raises(SystemExit, match="1 windows in the standard library, 128 needed"):
        make_stdlib_text.windows(tokenizer, "calibration")


def test_a_window_in_both_calibration_and_evaluation_stops_the_script(monkeypatch, tmp_path):
    import make_stdlib_text

    window = (np.zeros((1, 128), np.int32), np.ones(1, np.int32))
    monkeypatch.setattr(make_stdlib_text, "DATA_DIR", tmp_path)
    monkeypatch.setattr(make_stdlib_text, "windows", lambda tokenizer, part: (*window, [f"{part}.py"]))
    with pytest.raises(SystemExit, match="share a window or a file"):
        make_stdlib_text.write_windows(None)
    assert not list(tmp_path.iterdir())


def test_wilson_interval_of_a_known_case():
    from training import wilson_interval

    # 81 of 263: Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_constants_and_merged_weights_become_initializers():
    from training import _constants_to_initializers

    helper = onnx.helper
    weight = helper.make_tensor("weight", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    one = helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Identity", ["weight"], ["same_weight"]),
        helper.make_node("Identity", ["x"], ["kept"]),
        helper.make_node("Sum", ["kept", "weight", "same_weight", "one"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    _constants_to_initializers(graph)
    assert [node.op_type for node in graph.node] == ["Identity", "Sum"]
    assert {t.name: onnx.numpy_helper.to_array(t).tolist() for t in graph.initializer} == {
        "weight": [1.0, 2.0],
        "same_weight": [1.0, 2.0],
        "one": [1.0],
    }
    onnx.checker.check_model(helper.make_model(graph))


def test_augmentation_fills_with_background():
    import torch
    from training import ClassifierRecipe, augment

    from workbench.datasets.digits_images import PIXEL_MEAN, PIXEL_STD

    torch.manual_seed(0)
    background = torch.full((4, 1, 32, 32), -PIXEL_MEAN / PIXEL_STD)
    recipe = ClassifierRecipe(epochs=1, peak_learning_rate=1.0, shift_pixels=8.0)
    # Nothing but background stays background wherever it is moved; float32 rounding of one addition.
    torch.testing.assert_close(augment(background, recipe), background, atol=1e-6, rtol=0)


def test_captions_pull_every_image_to_all_captions_of_its_digit():
    import torch
    from train_digits_captions import contrastive_loss

    digits = torch.tensor([0, 1, 1])
    right = 20 * (digits[:, None] == torch.arange(2)[None, :]).float()
    # Image to caption has one answer (loss 0); caption 1 has two equal answers (log 2), caption 0 one: (0 + log(2)/2)/2.
    expected = torch.log(torch.tensor(2.0)) / 4
    torch.testing.assert_close(contrastive_loss(right, digits, torch.arange(2)), expected, atol=1e-4, rtol=0)
    assert contrastive_loss(-right, digits, torch.arange(2)) > 5
