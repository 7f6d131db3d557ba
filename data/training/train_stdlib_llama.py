"""Train a small LLaMA on Python's standard library and write data/models/stdlib_llama/ and data/stdlib_text.npz.

The number of steps is fixed, not the time, so that a run on the same machine and Python gives the same weights.
Run: python data/training/train_stdlib_llama.py
"""

import json
import math
import time
from typing import Any

import numpy as np
import torch
from make_stdlib_text import read_part, write_windows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from training import DATA_DIR, MODELS_DIR, start, write_card
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20
FOLDER = MODELS_DIR / "stdlib_llama"
VOCABULARY = 2048
STEPS = 1200
WARMUP_STEPS = 50
BATCH, LENGTH = 16, 128
MATRIX_LEARNING_RATE = 0.03
OTHER_LEARNING_RATE = 1e-2
END_OF_TEXT = "<|endoftext|>"


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the training files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Return the untrained model: 4 layers, width 192, 6 query and 3 key/value heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int) -> float:
    """Return the learning-rate factor: linear warm-up, then linear decay to zero over the last 60 %."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (STEPS - step) / (0.6 * STEPS))


def train(model: LlamaForCausalLM, stream: Tensor) -> float:
    """Train on random windows of one long token stream; return the seconds it took."""
    started = time.perf_counter()
    chosen = optimisers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, schedule) for optimiser in chosen]
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for step in range(STEPS):
        starts = torch.randint(len(stream) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([stream[i : i + LENGTH] for i in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in zip(chosen, schedules, strict=True):
            optimiser.step()
            rate.step()
            optimiser.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    return time.perf_counter() - started


def held_out(model: torch.nn.Module) -> dict[str, float | int]:
    """Measure loss on the evaluation windows, per token and per byte of the predicted text."""
    with np.load(DATA_DIR / "stdlib_text.npz") as stored:
        windows, byte_counts = torch.from_numpy(stored["evaluation"]).long(), stored["evaluation_bytes"]
    with torch.inference_mode():
        losses = torch.cat([window_losses(model, batch) for batch in windows.split(32)])
    per_token = losses.mean().item() / (windows.shape[1] - 1)
    few = losses[::20].mean().item() / (windows.shape[1] - 1)
    return {
        "evaluation_windows": len(windows),
        "evaluation_predicted_tokens": windows[:, 1:].numel(),
        "evaluation_loss_nats_per_token": round(per_token, 4),
        "evaluation_perplexity_per_token": round(math.exp(per_token), 3),
        "evaluation_bits_per_byte": round(losses.sum().item() / math.log(2) / int(byte_counts.sum()), 4),
        "every_20th_window_perplexity_per_token": round(math.exp(few), 3),
    }


def window_losses(model: torch.nn.Module, windows: Tensor) -> Tensor:
    """Return the summed loss in nats of each window (windows,) float64."""
    logits = model(input_ids=windows).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").sum(dim=1)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the transformers folder, weights in float16."""
    model.half().save_pretrained(FOLDER)
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, max_new_tokens=64).save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    # transformers 5 writes a class name here that transformers 4 does not know; both know this one.
    settings = FOLDER / "tokenizer_config.json"
    described = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(described, indent=2) + "\n")


def sample(model: Any, tokenizer: Any) -> None:
    """Print a greedy continuation, to be looked at."""
    ids = tokenizer("def read(self, ", return_tensors="pt")["input_ids"]
    print(tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=60, do_sample=False)[0]))


def main() -> None:
    start(SEED)
    texts = list(read_part("train").values())
    tokenizer = make_tokenizer(texts)
    write_windows(tokenizer)
    stream = torch.tensor([token for text in texts for token in [*tokenizer(text)["input_ids"], 0]])
    model = make_model()
    seconds = train(model, stream)

    save(model, tokenizer)
    stored = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32).eval()
    sample(stored, AutoTokenizer.from_pretrained(FOLDER, local_files_only=True))
    write_card(
        "stdlib_llama",
        files=sorted(FOLDER.iterdir()),
        content={
            "script": "data/training/train_stdlib_llama.py",
            "training": {
                "seed": SEED,
                "steps": STEPS,
                "tokens": STEPS * BATCH * LENGTH,
                "files": len(texts),
                "tokens_in_files": len(stream),
                "matrix_learning_rate": MATRIX_LEARNING_RATE,
                "other_learning_rate": OTHER_LEARNING_RATE,
                "optimiser": "Muon for matrices, AdamW for embeddings and norms",
            },
            "training_seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in stored.parameters()),
            "metrics": held_out(stored),
            "measured_with": "the stored float16 weights, upcast to float32, evaluation windows of data/stdlib_text.npz",
        },
    )


if __name__ == "__main__":
    main()
