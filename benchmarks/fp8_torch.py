"""FP8 (e4m3) on Hopper through PyTorch, with this package's calibration: beside FP32, FP16 and BF16 of the same module.

    python3.12 benchmarks/fp8_torch.py [--cases digits_vit,bert,llama] [--out RESULTS]

No TensorRT here knows FP8 and this card both, so this is PyTorch's own product (`torch._scaled_mm`) under torch.compile,
replayed from a CUDA graph, and labelled as what it is. Activations have one static scale a tensor, the largest magnitude
that calibration saw; weights one a column, multiplied behind the product. Linear layers are lowered, what is between them stays
BF16, attention too. digits_vit is trained and has an accuracy; the BERT-sized encoder and
the block of TinyLlama's shape have random weights: of them the error against FP32 is told. `--size tiny` on a CPU rehearses
it with the product computed in FP32 from the same codes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

import h200_cases  # noqa: E402
from turns import rotated, settled_median  # noqa: E402

import workbench as wb  # noqa: E402
from workbench.datasets import Dataset, Split  # noqa: E402
from workbench.machine import device as hardware  # noqa: E402

LARGEST = 448.0  # of e4m3
BATCH = {"digits_vit": 256, "bert": 32, "llama": 8}
TOKENS = {"full": 512, "tiny": 8}
LLAMA = {
    "full": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2},
}
TURNS, LAUNCHES = 5, 60
CALIBRATED = 32  # samples: largest magnitudes of random inputs settle at once


class Float8Linear(nn.Module):
    """A linear layer whose weights are e4m3 with a scale a column, and whose inputs are rounded to e4m3 at a static scale."""

    def __init__(self, linear: nn.Linear, largest_input: float) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / LARGEST
        self.register_buffer("codes", (weight / scale[:, None]).to(torch.float8_e4m3fn))
        self.register_buffer("weight_scale", scale[None, :].contiguous())
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("input_scale", torch.tensor(max(largest_input, 1e-12) / LARGEST))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        codes = (flat.float() / self.input_scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        if codes.is_cuda:
            # One scale a tensor is what the product takes; the weights' own scales, one a column, follow it.
            made = torch._scaled_mm(
                codes, self.codes.t(), scale_a=self.input_scale, scale_b=self.one, out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )  # fmt: skip
            made = made * self.weight_scale
            made = made if self.bias is None else made + self.bias
        else:
            made = (codes.float() * self.input_scale) @ (self.codes.float().t() * self.weight_scale)
            made = (made if self.bias is None else made + self.bias.float()).to(inputs.dtype)
        return made.reshape(*inputs.shape[:-1], -1).to(inputs.dtype)


class Block(nn.Module):
    """Two layers of a LLaMA over a prompt, without embedding and head."""

    def __init__(self, size: str) -> None:
        super().__init__()
        import transformers

        config = transformers.LlamaConfig(  # type: ignore[call-arg]
            **LLAMA[size], num_hidden_layers=2, vocab_size=32, max_position_embeddings=2048, attn_implementation="sdpa"
        )
        self.model = transformers.LlamaModel(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model(inputs_embeds=hidden, use_cache=False)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="digits_vit,bert,llama")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--out", type=Path, default=Path("out/fp8_torch"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    place = "cuda" if options.size == "full" else "cpu"
    for name in options.cases.split(","):
        kept = options.out / f"{name}-fp8-torch.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory() as folder:
                found = measured(name, options.size, place, Path(folder))
            kept.write_text(json.dumps(found, indent=1) + "\n")
        show(json.loads(kept.read_text()))


def measured(name: str, size: str, place: str, folder: Path) -> dict:
    """Calibrate, lower, check and time one case."""
    module, inputs, data = case(name, size)
    count = BATCH[name] if size == "full" else 4
    model = wb.load(module, inputs, dynamic=True, store=wb.Store(folder / "store"))
    largest, modules = calibrated(model, module, data, None if name == "digits_vit" else CALIBRATED)
    data = data if "" not in data.evaluation.inputs else data.bound_to(model)
    batch = {key: torch.from_numpy(array[:count]) for key, array in data.evaluation.inputs.items()}
    variants: dict[str, nn.Module] = {}
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        variants[str(kind).removeprefix("torch.")] = copy.deepcopy(module).to(kind)
    lowered, left = with_float8(copy.deepcopy(module), largest)
    variants["float8_e4m3"] = half_between(lowered)
    rows, launch = {}, {}
    exact = run(module.float().cpu(), batch)
    for key, variant in variants.items():
        variant = variant.to(place).eval()
        began = time.perf_counter()
        fed = {word: cast(tensor.to(place), variant) for word, tensor in batch.items()}
        try:
            ready = torch.compile(variant, dynamic=False) if place == "cuda" else variant
            answer = run(ready, fed)
            launch[key] = graph(ready, fed) if place == "cuda" else lambda ready=ready, fed=fed: run(ready, fed)
        except Exception as error:  # noqa: BLE001 - the other types are worth having without this one
            print(f"{name}, {key}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        noise = (answer.float().cpu() - exact).square().sum()
        rows[key] = {
            "sqnr_db": float(10 * torch.log10(exact.square().sum() / noise)) if noise > 0 else None,
            "prepare_seconds": time.perf_counter() - began,
            "top1": None if data.evaluation.labels is None else top1(ready, data, variant, place, count),
        }
    for key, seconds in timed(launch, place).items():
        rows[key] |= {"turn_medians_seconds": seconds, "median_seconds": median(seconds)}
    return {
        "case": name, "batch": count, "shape": {key: list(tensor.shape) for key, tensor in batch.items()}, "rows": rows,
        "linear_layers": {"lowered": modules - left, "left": left}, "torch": torch.__version__, "device": hardware.describe(),
        "method": "torch._scaled_mm under torch.compile in a CUDA graph, static scales of this package's calibration",
    }  # fmt: skip


def case(name: str, size: str) -> tuple[nn.Module, dict[str, torch.Tensor], Dataset]:
    """Return a module, an example and data."""
    torch.manual_seed(0)
    if name == "llama":
        rng, width = np.random.default_rng(0), LLAMA[size]["hidden_size"]
        parts = [Split({"hidden": rng.normal(size=(16, TOKENS[size], width)).astype(np.float32)}) for _ in range(2)]
        return (
            Block(size).eval(),
            {"hidden": torch.from_numpy(parts[0].inputs["hidden"][:2])},
            Dataset("random", "random", *parts),
        )
    found = h200_cases.Case(name, name, size)
    module, inputs, _ = h200_cases.module(name, size)
    return module, inputs, found.data()


def calibrated(
    model: wb.records.Model, module: nn.Module, data: Dataset, most: int | None
) -> tuple[dict[str, float], int]:
    """Return path of a linear layer -> largest magnitude that calibration saw at its input, and how many there are."""
    bound = data.bound_to(model)
    samples = bound.calibration.take(range(len(bound.calibration))[:most])
    table = wb.calibrate(model, samples, "fp8", dialect="strong").table
    nodes = {node.name: node for node in onnx.load(model.path, load_external_data=False).graph.node}
    paths = {path for path, item in module.named_modules() if isinstance(item, nn.Linear)}
    largest: dict[str, float] = {}
    for name, path in model.modules.items():
        node = nodes.get(name)
        if path in paths and node is not None and node.op_type in ("MatMul", "Gemm") and node.input[0] in table:
            largest[path] = float(table[node.input[0]].abs_max)
    return largest, len(paths)


def with_float8(module: nn.Module, largest: dict[str, float]) -> tuple[nn.Module, int]:
    """Replace the linear layers that calibration knows and the card can multiply; return how many were left."""
    left = 0
    for path, item in list(module.named_modules()):
        if not isinstance(item, nn.Linear):
            continue
        if path not in largest or item.in_features % 16 or item.out_features % 16:
            left += 1
            continue
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, Float8Linear(item, largest[path]))
    return module, left


def half_between(module: nn.Module) -> nn.Module:
    """Put everything but scales and codes into BF16."""
    for item in module.modules():
        if not isinstance(item, Float8Linear):
            for tensor in (*item.parameters(recurse=False), *item.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(torch.bfloat16)
    return module


def cast(tensor: torch.Tensor, module: nn.Module) -> torch.Tensor:
    kind = next(item.dtype for item in module.parameters() if item.is_floating_point())
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def run(module: Any, fed: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return module(**fed)


def graph(module: Any, fed: dict[str, torch.Tensor]) -> Any:
    """Return a replay of a captured call; it holds the module and the inputs, whose memory the graph reads."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(module, fed)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        run(module, fed)
    held = (module, fed)

    def replay() -> None:
        assert held
        captured.replay()

    return replay


def timed(launch: dict[str, Any], place: str) -> dict[str, list[float]]:
    """Return the median seconds of each turn of each variant."""
    found: dict[str, list[float]] = {key: [] for key in launch}
    for turn in range(TURNS):
        for key in rotated(launch, turn):
            found[key].append(settled_median(partial(once, launch[key], place), LAUNCHES if place == "cuda" else 3))
    return found


def once(call: Any, place: str) -> float:
    if place == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def top1(ready: Any, data: Dataset, variant: nn.Module, place: str, count: int) -> float:
    """Return the share of evaluation images that are answered right; the last batch is filled up with copies."""
    ((name, images),) = data.evaluation.inputs.items()
    answers = []
    for start in range(0, len(images), count):
        rows = np.resize(np.arange(start, min(start + count, len(images))), count)
        fed = {name: cast(torch.from_numpy(images[rows]).to(place), variant)}
        answers.append(run(ready, fed).float().cpu().numpy()[: min(count, len(images) - start)])
    return float(np.mean(np.concatenate(answers).argmax(1) == data.evaluation.labels))


def show(found: dict) -> None:
    """Print a line a type."""
    lowered = found["linear_layers"]
    print(
        f"\n{found['case']}, {found['shape']}, {lowered['lowered']} linear layers in FP8, {lowered['left']} left",
        flush=True,
    )
    base = found["rows"].get("float16", {}).get("median_seconds")
    for key, row in found["rows"].items():
        score = "" if row["top1"] is None else f"  top-1 {row['top1']:.4f}"
        sqnr = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        against = f"{base / row['median_seconds']:5.2f}x FP16" if base else ""
        print(f"  {key:12} {row['median_seconds'] * 1e3:8.4f} ms {against}  {sqnr}{score}", flush=True)


if __name__ == "__main__":
    main()
