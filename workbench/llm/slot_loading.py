"""Load a causal language model as a prefill and a step around a cache of fixed length, from its source or a written folder.

The folder holds the graphs, the one file of weights that they share, the tokenizer, and `slots.json` with what is needed to
talk to the model and the hash of each file: it can be carried to another machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.engines.slots import SlotLayout, slot_layout
from workbench.errors import EngineError, LoadError
from workbench.llm.cache_codes import CacheFormat, calibrate
from workbench.llm.loading import (
    LanguageModel,
    _end_ids,
    _source,
    causal,
    check_tokenizer,
    place_of_tokenizer,
)
from workbench.llm.slot_export import WEIGHTS_FILE, GraphSize, export_graphs
from workbench.machine.store import Store, digest
from workbench.models import onnx_file
from workbench.records import Model, Origin

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1  # 1: the first
MANIFEST, TOKENIZER = "slots.json", "tokenizer.json"
_CHAT = "tokenizer_config.json"
_LARGEST_MANIFEST_BYTES = 1 << 20
FREE_SIZES = (GraphSize("prefill"), GraphSize("step"))

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class SlotModel(LanguageModel):
    """A decoder as two kinds of graphs; `model` is the first step.

    Attributes:
        prefills, steps: one a size; each goes through the ordinary verbs.
    """

    prefills: tuple[Model, ...] = ()
    steps: tuple[Model, ...] = ()

    @property
    def cache(self) -> SlotLayout:
        """How keys and values lie."""
        return slot_layout(self.model.inputs, self.model.outputs)


def load_slots(
    source: str | Path,
    sizes: Sequence[GraphSize] = FREE_SIZES,
    *,
    largest_length: int | None = None,
    dtype: Precision = "float32",
    keys_transposed: bool = True,
    cache: CacheFormat | None = None,
    samples: Any = None,
    tokenizer: str | Path | None = None,
    name: str | None = None,
    store: Store | None = None,
) -> SlotModel:
    """Load a causal language model and export it for decoding with slots.

    Args:
        source: a transformers folder, a Hugging Face id, or a shipped model's name, as for `load`.
        sizes: graphs to write; the default leaves batch and lengths free, which ONNX Runtime takes and TensorRT does not
            build a step from: name sizes for it.
        largest_length: tokens that a sequence may have; None takes what the model was made for.
        dtype: of the weights, and of the cache where that is not said.
        keys_transposed: keys lie as (slots, heads, width, columns), which the product with the query reads as it is.
        cache: keep keys and values as `int8` or `fp8` (e4m3, opset 19: not for TensorRT 8.6), with one static scale for each
            element of a head; None keeps them in `dtype`.
        samples: token ids (N, T) on which the scales are found; needed with `cache`.

    Raises:
        CalibrationError: the samples are missing or do not fit.
        LoadError: as `load`, or the sizes lack a prefill or a step.
        ExportError: the model cannot be exported so; the message says what to do instead.
    """
    import torch

    found, folder = _source(str(source))
    network = causal(found, folder).to(getattr(torch, dtype))
    place = place_of_tokenizer(folder, tokenizer)
    if place is not None:
        check_tokenizer(place, int(network.config.vocab_size))
    store = store or Store()
    with store.scratch() as scratch:
        written = scratch / "slots"
        write_slots(
            network,
            sizes,
            written,
            largest_length=largest_length,
            keys_transposed=keys_transposed,
            cache=cache,
            samples=samples,
            name=name or folder.resolve().name,
            tokenizer=place,
        )
        kept = store.add(written)[1]
    notes = found.notes if cache is None else (*found.notes, f"Keys and values are kept in {cache}.")
    origin = Origin(found.kind, found.reference, "torchscript", notes)
    return replace(open_slot_folder(kept, origin), folder=str(folder), tokenizer=None if place is None else str(place))


def write_slots(
    network: nn.Module,
    sizes: Sequence[GraphSize],
    folder: Path,
    *,
    largest_length: int | None = None,
    keys_transposed: bool = True,
    cache: CacheFormat | None = None,
    samples: Any = None,
    name: str = "decoder",
    tokenizer: str | Path | None = None,
) -> None:
    """Export a transformers model into an empty folder, with its manifest; weights keep the network's type and device.

    Args:
        cache, samples: as `load_slots`.
        tokenizer: a tokenizer.json, or a folder with one, to be carried along with the chat template beside it; None leaves
            the folder without: prompts are token ids then.

    Raises:
        LoadError: the sizes lack a prefill or a step, the folder is not empty, or there is no such tokenizer.
        CalibrationError, ExportError: as `load_slots`.
    """
    kinds = {size.kind for size in sizes}
    if kinds != {"prefill", "step"}:
        raise LoadError(f"A decoder with slots takes a prefill and a step; the sizes have {', '.join(sorted(kinds))}.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise LoadError(f"{folder} is not empty. Pass a folder of its own for the exported graphs.")
    place = None if tokenizer is None else place_of_tokenizer(Path(tokenizer), tokenizer)
    config: Any = network.config
    longest = largest_length or int(config.max_position_embeddings)
    scales = None if cache is None else calibrate(network, cache, samples)
    files = export_graphs(
        network, sizes, folder, largest_length=longest, keys_transposed=keys_transposed, scales=scales
    )
    carried = [] if place is None else _carried(place, folder)
    hashes = {file.name: digest(file) for file in (*files, folder / WEIGHTS_FILE, *carried)}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "vocabulary": int(config.vocab_size),
        "largest_length": longest,
        "end_ids": list(_end_ids(network)),
        "prefills": [file.name for file, size in zip(files, sizes, strict=True) if size.kind == "prefill"],
        "steps": [file.name for file, size in zip(files, sizes, strict=True) if size.kind == "step"],
        "sha256": hashes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _carried(tokenizer: Path, folder: Path) -> list[Path]:
    """Copy a tokenizer and the configuration beside it, which has the chat template."""
    pairs = [(tokenizer, folder / TOKENIZER), (tokenizer.with_name(_CHAT), folder / _CHAT)]
    return [Path(shutil.copyfile(source, target)) for source, target in pairs if source.is_file()]


def open_slot_folder(folder: str | Path, origin: Origin | None = None) -> SlotModel:
    """Read a folder that `write_slots` wrote, here or on another machine.

    Raises:
        LoadError: the manifest or a file is missing or was changed, or the graphs are not what it says.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    for name, wanted in manifest["sha256"].items():
        file = folder / name
        if Path(name).name != name or not file.is_file() or digest(file) != wanted:
            raise LoadError(f"{file} is missing or not what {MANIFEST} says (sha256). Export the model again.")
    origin = origin or Origin("transformers", manifest["name"], "torchscript")
    models: dict[str, tuple[Model, ...]] = {}
    for kind in ("prefills", "steps"):
        listed = manifest[kind]
        if not listed or not set(listed) <= set(manifest["sha256"]):
            raise LoadError(f"{folder / MANIFEST} names no {kind}, or files without a hash. Export the model again.")
        read = [onnx_file.read(folder / name, name=Path(name).stem, origin=origin) for name in listed]
        models[kind] = tuple(read)
        for model in read:
            _check(model, manifest, kind)
    return SlotModel(
        model=models["steps"][0],
        folder=str(folder),
        vocabulary=manifest["vocabulary"],
        largest_length=manifest["largest_length"],
        end_ids=tuple(manifest["end_ids"]),
        prefills=models["prefills"],
        steps=models["steps"],
        tokenizer=str(folder / TOKENIZER) if TOKENIZER in manifest["sha256"] else None,
    )


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file() or file.stat().st_size > _LARGEST_MANIFEST_BYTES:
        raise LoadError(f"There is no {MANIFEST} in {folder}. Pass a folder that write_slots wrote.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found["schema_version"]
        known = {
            "name": str,
            "vocabulary": int,
            "largest_length": int,
            "end_ids": list,
            "prefills": list,
            "steps": list,
            "sha256": dict,
        }
        fits = all(isinstance(found[key], kind) for key, kind in known.items())
        fits = fits and all(isinstance(item, str) for kind in ("prefills", "steps") for item in found[kind])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"{file} is damaged ({type(error).__name__}: {error}). Export the model again.") from error
    if version != SCHEMA_VERSION or not fits:
        raise LoadError(
            f"{file} has the schema version {version!r} and this code reads {SCHEMA_VERSION}, or a field of another type. "
            f"Export the model again."
        )
    return dict(found)


def _check(model: Model, manifest: dict[str, Any], kind: str) -> None:
    try:
        layout = slot_layout(model.inputs, model.outputs)
    except EngineError as error:
        raise LoadError(f"{model.path} is not what {MANIFEST} says. {error}") from error
    if f"{layout.kind}s" != kind or layout.vocabulary != manifest["vocabulary"]:
        raise LoadError(
            f"{model.path} is a {layout.kind} with {layout.vocabulary} tokens, and {MANIFEST} lists it under {kind} with "
            f"{manifest['vocabulary']}: they do not belong together. Export the model again."
        )
