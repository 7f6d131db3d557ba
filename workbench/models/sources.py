"""Models that come as PyTorch modules from elsewhere: torchvision, timm, transformers folders and Hugging Face ids.

Nothing from a hub is executed: no remote code, no pickled weights. Each library is imported where it is used.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.errors import LoadError
from workbench.models import naming
from workbench.models.safetensors_header import refuse_what_the_weights_lack

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_CONFIG_BYTES = 16 << 20
# The hub's client waits and retries for minutes by default; a notebook user should know within seconds.
_HUB_TIMEOUT_SECONDS = 5.0
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_EXAMPLE_TOKENS = 16
# Parts of a configuration that each describe a network for another kind of input.
_TOWERS = ("audio_config", "qformer_config", "speech_config", "text_config", "vision_config")
# Names that both libraries have, to suggest where neither is installed.
_WELL_KNOWN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "vgg16", "mobilenet_v2")


@dataclass(frozen=True)
class ModuleSource:
    """A module ready for export.

    Attributes:
        example_inputs: by forward's names or in its order, a batch of two.
        dynamic: the axes that stay free, as `exporting.ExportOptions.dynamic`.
        kind, reference: for the model's origin.
    """

    module: nn.Module
    example_inputs: dict[str, Tensor] | list[Tensor]
    dynamic: bool | Mapping[str, Mapping[int, str]]
    kind: str
    reference: str
    notes: tuple[str, ...] = ()


def torchvision(name: str) -> ModuleSource:
    """Take a classification model from torchvision with its default weights.

    Raises:
        LoadError: torchvision is missing, the name is unknown, or the weights cannot be fetched.
    """
    models = _library("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise LoadError(_unknown("torchvision", name, models.list_models()))
    weights = models.get_model_weights(name).DEFAULT
    module = _fetch(f"torchvision:{name}", lambda: models.get_model(name, weights=weights))
    size = getattr(weights.transforms(), "crop_size", [224])
    return _image_source(module, (3, size[0], size[0]), "torchvision", f"{name} ({weights})")


def timm(name: str) -> ModuleSource:
    """Take a model from timm with its pretrained weights.

    Raises:
        LoadError: timm is missing, the name is unknown, or the weights cannot be fetched.
    """
    library = _library("timm", "timm")
    if not library.is_model(name.partition(".")[0]):
        raise LoadError(_unknown("timm", name, library.list_models()))
    module = _fetch(f"timm:{name}", lambda: library.create_model(name, pretrained=True))
    return _image_source(module, tuple(module.default_cfg["input_size"]), "timm", name)


def hub(identifier: str) -> ModuleSource:
    """Take a transformers model from the Hugging Face hub, or from its local cache.

    Only configuration, tokenizer and safetensors files are fetched; then it is a folder like any other.

    Raises:
        LoadError: the hub is out of reach, there is no such model, or what `transformers_folder` refuses.
    """
    client = _library("huggingface_hub", "huggingface_hub")
    try:
        folder = client.snapshot_download(identifier, allow_patterns=_HUB_FILES, etag_timeout=_HUB_TIMEOUT_SECONDS)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(
            f"{identifier!r} could not be had from the Hugging Face hub ({type(error).__name__}: {reason}). If you are "
            "offline, download the model where there is a network and pass its folder: load('path/to/folder'). If it is "
            "private, log in with `hf auth login`."
        ) from error
    revision = Path(folder).name
    return transformers_folder(Path(folder), f"{identifier}@{revision}")


def transformers_folder(folder: Path, reference: str | None = None) -> ModuleSource:
    """Load a transformers model from a folder with a config.json and safetensors weights.

    Causal language models become `input_ids` to `logits`, all tokens present and no key/value cache; encoders take an
    `attention_mask` too, image models `pixel_values`. Batch and sequence are free. Weights are upcast to float32, and
    attention is written out (`eager`), so that its MatMul and Softmax are visible to recipes.

    Args:
        reference: for the model's origin; None takes the folder's name.

    Raises:
        LoadError: no or a damaged config, remote code or pickled weights, an architecture that is not supported,
            weights missing in the file.
    """
    config = _read_config(folder)
    _library("torch", "torch")
    library = _library("transformers", "transformers")
    notes = _refuse_remote_code(library, config, folder)
    _refuse_pickle(folder)
    refuse_what_the_weights_lack(config, folder)
    architecture = _architecture(library, config, folder)
    _refuse_towers(config, architecture.__name__, folder)
    module = _from_folder(library, architecture, folder)
    if module.config.is_encoder_decoder:
        raise LoadError(
            f"{folder.name} ({architecture.__name__}) is an encoder-decoder model, which takes two inputs that depend on "
            "each other. Pass its encoder or decoder as a module with example inputs."
        )
    module.config.use_cache = False
    module.config.return_dict = True
    reference = reference or folder.name
    inputs, dynamic = _transformers_inputs(module, architecture.__name__)
    if _is_causal(architecture.__name__):
        module = _all_tokens_present(module)
    return ModuleSource(module, inputs, dynamic, "transformers", reference, notes)


def _transformers_inputs(module: Any, architecture: str) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    import torch

    config = module.config
    if module.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        pixels = torch.randn(2, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": pixels}, {"pixel_values": {0: "batch"}}
    if module.main_input_name != "input_ids":
        raise LoadError(
            f"{architecture} takes {module.main_input_name!r}, for which there is no example here. Load it with "
            "transformers and pass the module with example inputs."
        )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.get_text_config().vocab_size, (2, _EXAMPLE_TOKENS), generator=generator)
    inputs = {"input_ids": ids}
    if not _is_causal(architecture):
        inputs["attention_mask"] = torch.ones_like(ids)
    return inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def _all_tokens_present(model: nn.Module) -> nn.Module:
    """Pass a mask of ones: without one, transformers guesses packed sequences in a detour through CumSum and GatherND."""
    import torch
    from torch import nn

    class CausalLanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, naming.WRAPPER, model)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            outputs = getattr(self, naming.WRAPPER)(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            return {"logits": outputs.logits}

    return CausalLanguageModel().eval()


def _refuse_towers(config: dict[str, Any], architecture: str, folder: Path) -> None:
    """Refuse models of several kinds of input: which of them to make up, and in what sizes, is not ours to guess."""
    towers = sorted(key.removesuffix("_config") for key, value in config.items() if key in _TOWERS and value)
    if len(towers) < 2 or _is_causal(architecture):
        return
    raise LoadError(
        f"{folder.name} ({architecture}) takes several kinds of input ({', '.join(towers)}), for which there is no example "
        f"here. Load it with transformers and pass the module with example inputs, or one tower of it: "
        f"load(model.{towers[-1]}_model, example_inputs)."
    )


def _is_causal(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:10])
        found = f"it has no config.json, but {held}" if held else "it is empty"
        raise LoadError(f"{folder} is no transformers folder: {found}. Pass a model's folder.")
    if file.stat().st_size > LARGEST_CONFIG_BYTES:
        raise LoadError(f"{file} has {file.stat().st_size} bytes, too many for a configuration. Check the folder.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"Cannot read {file}: {error}. Save the model again with save_pretrained.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LoadError(f"{file} has no model_type, so it is no transformers configuration. Check the folder.")
    return config


def _refuse_remote_code(library: ModuleType, config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    native = config["model_type"] in library.CONFIG_MAPPING
    if not native:
        asks = " and asks for code from its repository (auto_map)" if "auto_map" in config else ""
        raise LoadError(
            f"{folder.name} has model_type {config['model_type']!r}, which transformers {library.__version__} does not "
            f"have{asks}. Code from a model folder is never run here. Update transformers, or build the module "
            "yourself and pass it with example inputs."
        )
    if "auto_map" in config:
        return ("The configuration offers code of its own (auto_map); transformers' own class was used instead.",)
    return ()


def _refuse_pickle(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(item.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for item in folder.glob(pattern))
    found = (
        f"only pickled weights ({', '.join(pickled[:3])}), which can run code when opened" if pickled else "no weights"
    )
    raise LoadError(
        f"{folder} has {found}; only safetensors are read. Load the model where you trust it and save it again with "
        "save_pretrained(folder), which writes safetensors."
    )


def _architecture(library: ModuleType, config: dict[str, Any], folder: Path) -> Any:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = getattr(library, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise LoadError(
            f"{folder / 'config.json'} names the architecture {name!r}, which is no model class of transformers "
            f"{library.__version__}. Update transformers, or correct `architectures`."
        )
    return found


def _from_folder(library: ModuleType, architecture: Any, folder: Path) -> Any:
    import torch

    bars = library.utils.logging.is_progress_bar_enabled()
    level = library.utils.logging.get_verbosity()
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity(library.utils.logging.CRITICAL)
    try:
        module, report = architecture.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(
            f"transformers cannot load {folder} as {architecture.__name__}: {type(error).__name__}: {reason}. Is the "
            "download complete, and does config.json belong to these weights?"
        ) from error
    finally:
        library.utils.logging.set_verbosity(level)
        if bars:
            library.utils.logging.enable_progress_bar()
    missing = sorted(report["missing_keys"]) + [str(item) for item in sorted(report["mismatched_keys"])]
    if missing:
        raise LoadError(
            f"{folder} lacks {len(missing)} weights of {architecture.__name__} ({', '.join(missing[:3])}), which would be "
            "random. Pass the folder of a complete model."
        )
    return module.eval()


def _image_source(module: Any, shape: tuple[int, ...], kind: str, reference: str) -> ModuleSource:
    import torch

    return ModuleSource(module.eval(), [torch.randn(2, *shape)], True, kind, reference)


def _library(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LoadError(
            f"This model needs {package}, which cannot be imported ({error}). Run: pip install {package} - or pass a "
            "module with example inputs, or an .onnx file."
        ) from error


def suggestions(name: str) -> str:
    """Return a sentence that names the libraries here which have a model of that name; nothing where none has."""
    found = []
    for library, known in (
        ("torchvision", lambda: importlib.import_module("torchvision.models").list_models()),
        ("timm", lambda: importlib.import_module("timm").list_models()),
    ):
        try:
            if name in known():
                found.append(f"{library}:{name}")
        except ImportError:
            if name in _WELL_KNOWN:
                found.append(f"{library}:{name} (needs pip install {library})")
    return f"Did you mean {' or '.join(map(repr, found))}? " if found else ""


def _fetch(source: str, create: Any) -> Any:
    try:
        return create()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(
            f"The weights of {source} could not be had ({type(error).__name__}: {reason}). If you are offline, make the "
            "module yourself from a local file and pass it with example inputs."
        ) from error


def _unknown(library: str, name: str, known: list[str]) -> str:
    close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5)) or "none is similar"
    return f"{library} has no model {name!r}. Similar names: {close}. It knows {len(known)} models."
