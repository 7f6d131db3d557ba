"""What the training scripts share: the digits, augmentation, a classifier's training loop, ONNX export, cards.

Knows nothing of any one model. Scripts are run from anywhere as `python data/training/<name>.py`, with the workbench
installed (`pip install -e .`).
"""

import importlib.metadata
import io
import json
import math
import platform
import random
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.datasets.digits_images import PIXEL_MEAN, PIXEL_STD, upsample_digits

DATA_DIR = Path(__file__).resolve().parents[1]
MODELS_DIR = DATA_DIR / "models"
# The newest ONNX opset that TensorRT 8.6 reads.
OPSET = 17


@dataclass(frozen=True)
class Digits:
    """One part of the digits: images (N, 1, 32, 32) float32 normalised, labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClassifierRecipe:
    """Options of `train_classifier`; rotation in degrees, shift in pixels of 32, zoom and noise as fractions."""

    epochs: int
    peak_learning_rate: float
    seed: int = 20
    batch_size: int = 64
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    rotation_degrees: float = 12.0
    shift_pixels: float = 2.0
    zoom: float = 0.12
    noise: float = 0.0
    averaging_decay: float = 0.0


def start(seed: int) -> None:
    """Fix every seed and use one thread, so that a run on the same machine gives the same weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def load_digits_part(part: str) -> Digits:
    """Read one part (`train`, `calibration` or `evaluation`) of data/digits.npz."""
    with np.load(DATA_DIR / "digits.npz") as stored:
        index = stored[f"{part}_index"]
        images, labels = stored["images"][index], stored["labels"][index]
    return Digits(torch.from_numpy(upsample_digits(images)), torch.from_numpy(labels))


def augment(images: Tensor, recipe: ClassifierRecipe) -> Tensor:
    """Rotate, zoom, shear and shift each image (N, 1, 32, 32) at random, filling with background."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count) - 1) * limit

    angle, shear = uniform(math.radians(recipe.rotation_degrees)), uniform(recipe.zoom)
    zoom_x, zoom_y = 1 + uniform(recipe.zoom), 1 + uniform(recipe.zoom)
    shift_x, shift_y = uniform(recipe.shift_pixels / 16), uniform(recipe.shift_pixels / 16)
    first = torch.stack([zoom_x * angle.cos(), shear - angle.sin(), shift_x], dim=1)
    second = torch.stack([angle.sin(), zoom_y * angle.cos(), shift_y], dim=1)
    grid = nn.functional.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    background = -PIXEL_MEAN / PIXEL_STD
    moved = nn.functional.grid_sample(images - background, grid, align_corners=False) + background
    return moved + recipe.noise * torch.randn_like(moved)


def train_classifier(model: nn.Module, recipe: ClassifierRecipe) -> float:
    """Train on the training part with AdamW and a one-cycle schedule; return the seconds it took.

    The last weights (averaged, when the recipe says so) are kept: nothing is selected on held-out images.
    """
    started = time.perf_counter()
    digits = load_digits_part("train")
    averaging = _averaging(model, recipe)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.peak_learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(len(digits.labels) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_learning_rate, total_steps=steps, pct_start=0.15
    )
    for epoch in range(recipe.epochs):
        model.train()
        for batch in torch.randperm(len(digits.labels)).split(recipe.batch_size):
            logits = model(augment(digits.images[batch], recipe))
            loss = nn.functional.cross_entropy(logits, digits.labels[batch], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if averaging is not None:
                averaging.update_parameters(model)
        print(
            f"epoch {epoch + 1}/{recipe.epochs} loss {loss.item():.4f} {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if averaging is not None:
        model.load_state_dict(averaging.module.state_dict())
    model.eval()
    return time.perf_counter() - started


def _averaging(model: nn.Module, recipe: ClassifierRecipe) -> torch.optim.swa_utils.AveragedModel | None:
    if not recipe.averaging_decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.averaging_decay)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@dataclass(frozen=True)
class OnnxExport:
    """Where and under which names a module is exported; `keep_batchnorm` leaves BatchNormalization unfolded."""

    path: Path
    input_name: str
    output_name: str
    keep_batchnorm: bool = False


def export_onnx(module: nn.Module, example: Tensor, options: OnnxExport) -> None:
    """Write an ONNX file with a dynamic batch whose node names hold the PyTorch module path.

    The TorchScript exporter is used: it writes opset 17 (the default exporter starts at 18) and names a node
    /layer1/layer1.0/conv1/Conv.
    """
    training = torch.onnx.TrainingMode.PRESERVE if options.keep_batchnorm else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        module.eval(),
        (example,),
        options.path,
        dynamo=False,
        opset_version=OPSET,
        training=training,
        do_constant_folding=not options.keep_batchnorm,
        input_names=[options.input_name],
        output_names=[options.output_name],
        dynamic_axes={options.input_name: {0: "batch"}, options.output_name: {0: "batch"}},
    )
    model = onnx.load(options.path)
    _constants_to_initializers(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, options.path)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes, and Identity nodes of an initializer, into initializers of the same name.

    The exporter merges weights that happen to be equal (the biases of two BatchNorms that are added) and puts an
    Identity between; a copy of a few floats is easier to read and to fold.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in stored:
            tensor = stored[node.input[0]]
        else:
            kept.append(node)
            continue
        added = graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def run_onnx(path: Path, feed: NDArray[Any]) -> NDArray[np.float32]:
    """Run a one-input, one-output ONNX file in ONNX Runtime on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: feed})
    return output


def largest_difference(module: nn.Module, path: Path, feed: Tensor) -> float:
    """Return the largest absolute difference between the module and its ONNX file on one feed."""
    with torch.inference_mode():
        expected = module.eval()(feed).numpy()
    return float(np.abs(expected - run_onnx(path, feed.numpy())).max())


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson, 1927)."""
    z = 1.959964
    share, centre = correct / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / centre
    half = z / centre * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def proportion(correct: int, total: int) -> dict[str, Any]:
    """Return an accuracy as a card stores it: value, counts and 95 % Wilson interval."""
    low, high = wilson_interval(correct, total)
    return {
        "value": round(correct / total, 4),
        "correct": correct,
        "total": total,
        "wilson_95": [round(low, 4), round(high, 4)],
    }


def write_classifier(
    name: str, model: nn.Module, seconds: float, recipe: ClassifierRecipe, keep_batchnorm: bool
) -> None:
    """Write a digit classifier's safetensors, ONNX file and card, measured on the files as written."""
    from safetensors.torch import save_file

    weights, graph = MODELS_DIR / f"{name}.safetensors", MODELS_DIR / f"{name}.onnx"
    save_file(model.state_dict(), weights)
    digits = load_digits_part("evaluation")
    export_onnx(model, digits.images[:1], OnnxExport(graph, "image", "logits", keep_batchnorm))
    correct = int((run_onnx(graph, digits.images.numpy()).argmax(axis=1) == digits.labels.numpy()).sum())
    write_card(
        name,
        files=[weights, graph],
        content={
            "script": f"data/training/train_{name}.py",
            "training": asdict(recipe),
            "training_seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
            "metrics": {
                "evaluation_accuracy": proportion(correct, len(digits.labels)),
                "onnx_largest_difference_batch_7": largest_difference(model, graph, digits.images[:7]),
            },
            "measured_with": "ONNX Runtime CPU on the .onnx file, evaluation part of data/digits.npz",
        },
    )


def write_card(name: str, files: list[Path], content: dict[str, Any]) -> None:
    """Write data/models/<name>.card.json with the content, the files' sizes and what it was made with."""
    packages = ("torch", "numpy", "onnx", "onnxruntime", "transformers", "tokenizers", "safetensors")
    card = {
        "schema_version": 1,
        "name": name,
        **content,
        "files": {str(path.relative_to(DATA_DIR)): path.stat().st_size for path in files},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "machine": {"processor": processor_name(), "threads": torch.get_num_threads()},
    }
    text = json.dumps(card, indent=2) + "\n"
    (MODELS_DIR / f"{name}.card.json").write_text(text)
    print(text)


def processor_name() -> str:
    """Return the processor's name as Linux gives it, or platform.processor() elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def savez_reproducible(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a compressed .npz without time stamps, so that the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
