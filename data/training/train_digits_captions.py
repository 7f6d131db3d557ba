"""Train an image tower and a text tower on digits and generated captions; write data/models/digits_captions/.

A caption is a template with the digit's name in it; the templates of `HELD_OUT_TEMPLATES` are never trained on.
Run: python data/training/train_digits_captions.py
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from architectures import TwoTowers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from training import (
    MODELS_DIR,
    ClassifierRecipe,
    OnnxExport,
    augment,
    export_onnx,
    largest_difference,
    load_digits_part,
    proportion,
    run_onnx,
    start,
    write_card,
)

FOLDER = MODELS_DIR / "digits_captions"
RECIPE = ClassifierRecipe(epochs=30, peak_learning_rate=3e-3)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = [
    "a handwritten {name}",
    "the digit {figure}",
    "the number {name}",
    "a scan of the digit {name}",
    "somebody wrote the number {figure}",
    "a small picture of a {name}",
    "this is a handwritten {figure}",
    "the figure {name} written by hand",
    "a low resolution image of the number {figure}",
    "{name}",
]
HELD_OUT_TEMPLATES = [
    "a picture of the number {name}",
    "a scan of a handwritten {figure}",
    "this is the figure {name}",
    "an image of the digit {figure}",
]
CAPTION_TOKENS = 12


def fill(templates: list[str]) -> list[tuple[str, int]]:
    """Return every (caption, digit), template by template."""
    return [(t.format(name=name, figure=digit), digit) for t in templates for digit, name in enumerate(NAMES)]


def make_vocabulary(captions: list[str]) -> dict[str, int]:
    """Number the words of the captions; 0 is padding and 1 any unknown word."""
    words = sorted({word for caption in captions for word in caption.split()})
    return {"<pad>": 0, "<unknown>": 1} | {word: i + 2 for i, word in enumerate(words)}


def encode(captions: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Return token ids (captions, CAPTION_TOKENS) int64, padded with 0."""
    ids = np.zeros((len(captions), CAPTION_TOKENS), np.int64)
    for row, caption in zip(ids, captions, strict=True):
        words = [vocabulary.get(word, 1) for word in caption.split()]
        row[: len(words)] = words
    return torch.from_numpy(ids)


def train(model: TwoTowers, token_ids: Tensor, caption_digits: Tensor) -> float:
    """Train both towers; every caption in the list that names the image's digit is a right answer."""
    started = time.perf_counter()
    digits = load_digits_part("train")
    steps = RECIPE.epochs * -(-len(digits.labels) // RECIPE.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RECIPE.peak_learning_rate, weight_decay=RECIPE.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RECIPE.peak_learning_rate, total_steps=steps, pct_start=0.15
    )
    model.train()
    for epoch in range(RECIPE.epochs):
        for batch in torch.randperm(len(digits.labels)).split(RECIPE.batch_size):
            drawn = torch.randint(len(TEMPLATES), (len(NAMES),)) * len(NAMES) + torch.arange(len(NAMES))
            similarity = model(augment(digits.images[batch], RECIPE), token_ids[drawn])
            loss = contrastive_loss(similarity, digits.labels[batch], caption_digits[drawn])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} loss {loss.item():.4f} {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()
    return time.perf_counter() - started


def contrastive_loss(similarity: Tensor, image_digits: Tensor, caption_digits: Tensor) -> Tensor:
    """Mean of the image-to-caption and caption-to-image losses; all pairs of the same digit are positives.

    Args:
        similarity: (images, captions).
        image_digits: (images,) int64.
        caption_digits: (captions,) int64.
    """
    positive = (image_digits[:, None] == caption_digits[None, :]).float()
    to_caption = -(positive * similarity.log_softmax(dim=1)).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    to_image = -(positive * similarity.log_softmax(dim=0)).sum(dim=0) / positive.sum(dim=0).clamp(min=1)
    return (to_caption.mean() + to_image.mean()) / 2


def retrieval(images: Path, texts: Path, token_ids: Tensor, caption_digits: Tensor) -> dict[str, object]:
    """Measure both directions of retrieval with the ONNX files on the evaluation images."""
    digits = load_digits_part("evaluation")
    labels = digits.labels.numpy()
    similarity = run_onnx(images, digits.images.numpy()) @ run_onnx(texts, token_ids.numpy()).T
    named: NDArray[np.int64] = caption_digits.numpy()
    to_caption = int((named[similarity.argmax(axis=1)] == labels).sum())
    to_image = int((labels[similarity.argmax(axis=0)] == named).sum())
    return {
        "image_to_caption_top_1": proportion(to_caption, len(labels)),
        "caption_to_image_top_1": proportion(to_image, len(named)),
    }


def main() -> None:
    start(RECIPE.seed)
    captions = fill(TEMPLATES)
    held_out = fill(HELD_OUT_TEMPLATES)
    vocabulary = make_vocabulary([caption for caption, _ in captions])
    token_ids = encode([caption for caption, _ in captions], vocabulary)
    model = TwoTowers(len(vocabulary), CAPTION_TOKENS)
    seconds = train(model, token_ids, torch.tensor([digit for _, digit in captions]))

    FOLDER.mkdir(parents=True, exist_ok=True)
    images, texts = FOLDER / "image_tower.onnx", FOLDER / "text_tower.onnx"
    weights, words = FOLDER / "two_towers.safetensors", FOLDER / "vocabulary.json"
    save_file(model.state_dict(), weights)
    described = {
        "tokens": CAPTION_TOKENS,
        "words": vocabulary,
        "templates": TEMPLATES,
        "held_out_templates": HELD_OUT_TEMPLATES,
        "names": NAMES,
    }
    words.write_text(json.dumps(described, indent=1) + "\n")
    picture = load_digits_part("evaluation").images
    export_onnx(model.image_tower, picture[:1], OnnxExport(images, "image", "image_embedding"))
    export_onnx(model.text_tower, token_ids[:1], OnnxExport(texts, "token_ids", "text_embedding"))
    new_ids = encode([caption for caption, _ in held_out], vocabulary)
    metrics = retrieval(images, texts, new_ids, torch.tensor([digit for _, digit in held_out]))
    metrics["held_out_captions"] = len(held_out)
    metrics["image_tower_largest_difference_batch_7"] = largest_difference(model.image_tower, images, picture[:7])
    metrics["text_tower_largest_difference_batch_40"] = largest_difference(model.text_tower, texts, new_ids)
    write_card(
        "digits_captions",
        files=[images, texts, weights, words],
        content={
            "script": "data/training/train_digits_captions.py",
            "training": asdict(RECIPE),
            "training_seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
            "metrics": metrics,
            "measured_with": "ONNX Runtime CPU, evaluation images against captions from templates never trained on",
        },
    )


if __name__ == "__main__":
    main()
