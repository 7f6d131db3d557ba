"""The committed data and models are what data/README.md and the cards say."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from workbench.datasets.digits_images import upsample_digits

DATA = Path(__file__).resolve().parents[2] / "data"
CLASSIFIERS = ["digits_resnet", "digits_vit"]
ONNX_FILES = [
    "digits_resnet.onnx",
    "digits_vit.onnx",
    "digits_captions/image_tower.onnx",
    "digits_captions/text_tower.onnx",
]
PARTS = ["train", "calibration", "evaluation"]


@pytest.fixture(scope="module")
def digits():
    with np.load(DATA / "digits.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def text():
    with np.load(DATA / "stdlib_text.npz") as stored:
        return dict(stored)


def card(name):
    return json.loads((DATA / "models" / f"{name}.card.json").read_text())


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def script(name, *arguments):
    command = [sys.executable, str(DATA / "training" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_file_has_the_committed_checksum():
    done = script("checksums.py", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_checksums_name_a_changed_a_missing_and_an_unknown_file(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_bytes(b"before")
    assert script("checksums.py", "--data", str(tmp_path)).returncode == 0
    (tmp_path / "a.npz").write_bytes(b"after")
    (tmp_path / "b.npz").unlink()
    (tmp_path / "models" / "c.onnx").write_bytes(b"new")
    done = script("checksums.py", "--verify", "--data", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.split("\n")[:3] == [
        "changed: a.npz",
        "missing: b.npz",
        "not in checksums.json: models/c.onnx",
    ]


def test_the_readme_tables_are_those_of_the_cards():
    done = script("readme.py", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_tables_that_are_out_of_date_are_reported_and_then_rewritten(tmp_path):
    (tmp_path / "checksums.json").write_text("{}")
    (tmp_path / "README.md").write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    stale = script("readme.py", "--verify", "--data", str(tmp_path))
    assert stale.returncode == 1
    assert "out of date" in stale.stderr
    assert script("readme.py", "--data", str(tmp_path)).returncode == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert script("readme.py", "--verify", "--data", str(tmp_path)).returncode == 0


def test_a_readme_without_marks_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("no marks here\n")
    done = script("readme.py", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "lacks the lines <!-- measured: begin -->" in done.stderr


def test_all_data_stay_below_15_megabytes():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 15_000_000


def test_digits_are_8_by_8_pixels_of_0_to_16(digits):
    assert digits["images"].shape == (1797, 8, 8)
    assert digits["images"].dtype == np.uint8
    assert (digits["images"].min(), digits["images"].max()) == (0, 16)
    assert digits["labels"].shape == (1797,)
    assert set(digits["labels"]) == set(range(10))


def test_no_digit_image_is_in_two_parts_of_the_split(digits):
    hashes = [
        {hashlib.sha256(image.tobytes()).hexdigest() for image in digits["images"][digits[f"{part}_index"]]}
        for part in PARTS
    ]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])


def test_the_split_covers_every_digit_once_in_equal_shares_of_each_class(digits):
    indices = [digits[f"{part}_index"] for part in PARTS]
    assert sorted(np.concatenate(indices)) == list(range(1797))
    for index, share in zip(indices, [0.555, 0.145, 0.3], strict=True):
        counts = np.bincount(digits["labels"][index]) / np.bincount(digits["labels"])
        # Each class holds about 180 images and its share is rounded to a whole image.
        assert np.abs(counts - share).max() < 0.01


@pytest.mark.parametrize("name", ONNX_FILES)
def test_onnx_files_pass_the_checker_with_opset_17_and_a_dynamic_batch(name):
    model = onnx.load(DATA / "models" / name)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "Constant" not in {node.op_type for node in model.graph.node}


def test_the_resnet_file_keeps_one_batchnorm_behind_every_convolution():
    kinds = [node.op_type for node in onnx.load(DATA / "models/digits_resnet.onnx").graph.node]
    assert kinds.count("BatchNormalization") == kinds.count("Conv") == 21
    assert "Identity" not in kinds


def test_the_vit_file_shows_its_blocks_as_matmul_softmax_layernorm_and_erf():
    kinds = [node.op_type for node in onnx.load(DATA / "models/digits_vit.onnx").graph.node]
    assert (kinds.count("Softmax"), kinds.count("Erf"), kinds.count("LayerNormalization")) == (4, 4, 9)
    assert kinds.count("MatMul") == 4 * 8
    assert not {"Shape", "Gather", "Expand", "If"} & set(kinds)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_accuracy_on_evaluation_images_is_the_one_of_the_card(name, digits):
    index = digits["evaluation_index"]
    images, labels = upsample_digits(digits["images"][index]), digits["labels"][index]
    (logits,) = session(DATA / "models" / f"{name}.onnx").run(["logits"], {"image": images})
    correct = int((logits.argmax(axis=1) == labels).sum())
    stated = card(name)["metrics"]["evaluation_accuracy"]
    assert stated["total"] == len(labels)
    # Another processor may round differently and tip one image that lies on the border.
    assert abs(correct - stated["correct"]) <= 1
    assert correct / len(labels) >= 0.98


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_onnx_and_eager_weights_agree_at_a_batch_of_five(name, digits):
    torch = pytest.importorskip("torch")
    import architectures
    from safetensors.torch import load_file

    model = {"digits_resnet": architectures.DigitsResNet, "digits_vit": architectures.DigitsViT}[name]()
    model.load_state_dict(load_file(DATA / "models" / f"{name}.safetensors"))
    images = upsample_digits(digits["images"][digits["evaluation_index"][:5]])
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    (logits,) = session(DATA / "models" / f"{name}.onnx").run(None, {"image": images})
    # Logits reach 7 in size; FP32 sums in another order differ in the sixth digit.
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_onnx_node_is_named_after_an_existing_pytorch_module(name):
    pytest.importorskip("torch")
    import architectures

    model = {"digits_resnet": architectures.DigitsResNet, "digits_vit": architectures.DigitsViT}[name]()
    modules = {path for path, _ in model.named_modules()}
    for node in onnx.load(DATA / "models" / f"{name}.onnx").graph.node:
        if node.op_type in {"Conv", "BatchNormalization", "Gemm", "LayerNormalization"}:
            # /layer1/layer1.0/conv1/Conv: a container's child repeats the container's name.
            parts = node.name.strip("/").split("/")[:-1]
            kept = [p for p, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{p}.")]
            assert ".".join(kept) in modules, node.name


def test_captions_retrieve_the_right_digit_as_the_card_says(digits):
    folder = DATA / "models" / "digits_captions"
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    captions = [
        (template.format(name=name, figure=digit), digit)
        for template in vocabulary["held_out_templates"]
        for digit, name in enumerate(vocabulary["names"])
    ]
    ids = np.zeros((len(captions), vocabulary["tokens"]), np.int64)
    for row, (caption, _) in zip(ids, captions, strict=True):
        words = [vocabulary["words"].get(word, 1) for word in caption.split()]
        row[: len(words)] = words
    index = digits["evaluation_index"]
    images = upsample_digits(digits["images"][index])
    (image_side,) = session(folder / "image_tower.onnx").run(["image_embedding"], {"image": images})
    (text_side,) = session(folder / "text_tower.onnx").run(["text_embedding"], {"token_ids": ids})
    # Embeddings are divided by their own length in FP32.
    np.testing.assert_allclose(np.linalg.norm(image_side, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text_side, axis=1), 1, atol=1e-5)
    named = np.array([digit for _, digit in captions])[(image_side @ text_side.T).argmax(axis=1)]
    stated = card("digits_captions")["metrics"]["image_to_caption_top_1"]
    # One image on the border may tip on another processor.
    assert abs(int((named == digits["labels"][index]).sum()) - stated["correct"]) <= 1


def test_calibration_and_evaluation_text_share_neither_file_nor_window(text):
    assert text["calibration"].shape == (128, 128)
    assert text["evaluation"].shape == (320, 128)
    assert not set(text["calibration_files"]) & set(text["evaluation_files"])
    windows = [{row.tobytes() for row in text[part]} for part in ("calibration", "evaluation")]
    assert (len(windows[0]), len(windows[1])) == (128, 320)
    assert not windows[0] & windows[1]
    assert len(text["prompts"]) == 8


@pytest.fixture(scope="module")
def llama():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = DATA / "models" / "stdlib_llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_the_llama_perplexity_on_16_windows_is_near_the_card(llama, text):
    import torch

    windows = torch.from_numpy(text["evaluation"][::20]).long()
    assert len(windows) == 16
    with torch.inference_mode():
        perplexity = math.exp(llama[0](input_ids=windows, labels=windows).loss.item())
    stated = card("stdlib_llama")["metrics"]["every_20th_window_perplexity_per_token"]
    # The same windows and weights; FP32 sums in another order move the loss in its sixth digit.
    assert perplexity == pytest.approx(stated, rel=1e-3)


def test_the_llama_tokenizer_gives_text_back_unchanged(llama, text):
    tokenizer = llama[1]
    assert len(tokenizer) == llama[0].config.vocab_size == 2048
    for prompt in [*text["prompts"], "naïve = 'ünï¢ødé'\n\tif x:  # 日本\n"]:
        assert tokenizer.decode(tokenizer(str(prompt))["input_ids"]) == prompt


def test_stored_byte_counts_are_those_of_the_decoded_windows(llama, text):
    ids = text["evaluation"][0]
    whole, first = (llama[1].decode(part) for part in (ids, ids[:1]))
    assert len(whole.encode()) - len(first.encode()) == text["evaluation_bytes"][0]
