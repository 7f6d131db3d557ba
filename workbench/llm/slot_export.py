"""Export a transformers decoder as two kinds of graphs around a cache of fixed length: prefills and steps.

See `workbench.engines.slots` for what the graphs take and give. Every graph is traced with the network's weights taken
out, and all share one file of weights. Torch is imported where it is used.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from workbench.engines.slots import (
    HIDDEN_SCORE,
    LENGTHS,
    LOGITS,
    MASK,
    NEW,
    NEXT,
    POSITIONS,
    TOKENS,
    Kind,
    names,
)
from workbench.errors import DataError, ExportError
from workbench.llm import cache_codes, two_pieces
from workbench.llm.cache_codes import CacheScales
from workbench.llm.shared_weights import Weights, WeightsFile
from workbench.models import naming

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
WEIGHTS_FILE = "weights.bin"
_ROTARY = "rotary_table."
# Sizes that a free axis is traced with: no two alike, and none of them 1.
_EXAMPLE_BATCH, _EXAMPLE_COLUMNS = 3, 7
_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class GraphSize:
    """One graph: a prefill of `batch` prompts of `columns` tokens, or a step of `batch` slots over `columns` columns.

    None leaves an axis free, for engines that take any size (ONNX Runtime).
    """

    kind: Kind
    batch: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        if any(size is not None and size < 1 for size in (self.batch, self.columns)):
            raise ValueError(f"GraphSize needs a batch and columns of at least 1, got {self.batch} and {self.columns}")

    @property
    def label(self) -> str:
        """Such as `step-64x256`; `n` stands for a free axis."""
        return f"{self.kind}-{self.batch or 'n'}x{self.columns or 'n'}"


def export_graphs(
    network: nn.Module,
    sizes: Sequence[GraphSize],
    folder: Path,
    *,
    largest_length: int,
    keys_transposed: bool = True,
    scales: CacheScales | None = None,
) -> list[Path]:
    """Write one ONNX file a size and the weights that they share into a folder; the type is the network's.

    Args:
        network: a transformers causal language model, on any device.
        largest_length: tokens that a sequence may have: rotary angles are stored up to there.
        scales: keep keys and values in 8 bits with these; None keeps them in the network's type.

    Returns:
        The files, in the order of the sizes.

    Raises:
        ExportError: the network does not take its attention from transformers' interface, has a sliding window shorter
            than the cache or rotary angles that depend on the length, or the exporter fails.
    """
    _check(network, largest_length)
    weights_file = WeightsFile(folder / WEIGHTS_FILE)
    with two_pieces.attending(network), _tabulated(network, largest_length) as tables:
        weights = Weights(network)
        tensors = {**weights.tensors, **{_ROTARY + name: tensor for name, tensor in tables.tensors.items()}}
        files = []
        for size in sizes:
            job = _Job(network, weights, tables, tensors, size, keys_transposed, scales)
            proto = _traced(job, folder / f"{size.label}.onnx.part")
            weights_file.attach(proto, tensors)
            naming.make_unique(proto)
            files.append(folder / f"{size.label}.onnx")
            onnx.save(proto, str(files[-1]))
    return files


def _check(network: nn.Module, largest_length: int) -> None:
    config: Any = network.config
    windows = [getattr(module, "sliding_window", None) for module in network.modules()]
    if getattr(config, "use_sliding_window", True):
        windows.append(getattr(config, "sliding_window", None) if "layer_types" not in vars(config) else None)
    short = [window for window in windows if isinstance(window, int) and window < largest_length]
    if short:
        raise ExportError(
            f"{type(network).__name__} attends to the last {short[0]} tokens only (sliding_window), which a cache of "
            f"{largest_length} columns does not do. Ask for at most {short[0]} tokens, or export it with "
            f"workbench.llm.load."
        )
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
    if kinds & set(_BY_LENGTH):
        raise ExportError(
            f"{type(network).__name__} has rotary angles that depend on the length so far ({rope.get('rope_type')}): keys "
            f"in the cache would have to change. Export it with workbench.llm.load."
        )


class _Tables:
    """Rotary angles of all positions, computed once; engines then look them up instead of computing cosines in FP16."""

    def __init__(self, largest_length: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._largest = largest_length

    def fill(self, label: str, original: Any, example: Tensor, options: Mapping[str, Any]) -> None:
        import torch

        positions = torch.arange(self._largest, device=example.device)[None]
        for kind, table in zip(("cos", "sin"), original(example[:1, :1], positions, **options), strict=True):
            self.tensors[f"{label}.{kind}"] = table[0].detach()

    def look_up(self, label: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        cos, sin = (
            torch.nn.functional.embedding(positions, self.tensors[f"{label}.{kind}"]) for kind in ("cos", "sin")
        )
        return cos, sin


@contextlib.contextmanager
def _tabulated(network: nn.Module, largest_length: int) -> Iterator[_Tables]:
    """Let the rotary modules look angles up; tables are filled by one small call."""
    import torch

    tables = _Tables(largest_length)
    modules = {path: module for path, module in network.named_modules() if _is_rotary(module)}

    def replaced(path: str, original: Any) -> Any:
        def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
            label = path if layer_type is None else f"{path}.{layer_type}"
            if f"{label}.cos" not in tables.tensors:
                tables.fill(label, original, x, {} if layer_type is None else {"layer_type": layer_type})
            return tables.look_up(label, position_ids)

        return forward

    for path, module in modules.items():
        module.forward = replaced(path, module.forward)
    try:
        device = next(network.parameters()).device
        tokens = torch.zeros(1, 1, dtype=torch.long, device=device)
        with torch.no_grad():
            mask = torch.zeros(1, 1, 1, 1, dtype=next(network.parameters()).dtype, device=device)
            two_pieces.call(network, two_pieces.Past(False), input_ids=tokens, attention_mask=mask, position_ids=tokens)
        yield tables
    finally:
        for module in modules.values():
            del module.forward


def _is_rotary(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters
    return type(module).__name__.endswith("RotaryEmbedding") and list(parameters)[:2] == ["x", "position_ids"]


@dataclass(frozen=True)
class _Job:
    network: nn.Module
    weights: Weights
    tables: _Tables
    tensors: Mapping[str, Tensor]
    size: GraphSize
    keys_transposed: bool
    scales: CacheScales | None = None

    def past(self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None) -> two_pieces.Past:
        """Return the cache of one call."""
        scales = None if self.scales is None else (self.scales.keys, self.scales.values)
        return two_pieces.Past(self.keys_transposed, keys, values, scales=scales)

    @property
    def layers(self) -> int:
        return int(self.network.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

    @property
    def cache(self) -> tuple[str, ...]:
        return names(self.layers, keys_transposed=self.keys_transposed)

    @contextlib.contextmanager
    def given(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let the network compute with these weights and tables, in the order of `tensors`, within the block."""
        given, tables = dict(zip(self.tensors, tensors, strict=True)), self.tables.tensors
        self.tables.tensors = {name: given[_ROTARY + name] for name in tables}
        try:
            with self.weights.given(given):
                yield
        finally:
            self.tables.tensors = tables


def _traced(job: _Job, scratch: Path) -> onnx.ModelProto:
    failure: Exception | None = None
    for folded in (True, False):  # folding meets constants on two devices where the network is on a GPU
        try:
            return _exported(job, scratch, folded)
        except ExportError:
            raise
        except Exception as error:  # noqa: BLE001 - exporters raise whatever the traced code and its tracers raise
            failure = error
        finally:
            scratch.unlink(missing_ok=True)
    raise ExportError(
        f"The torchscript exporter cannot write the {job.size.kind} of {type(job.network).__name__}: "
        f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}. Export it with workbench.llm.load."
    ) from failure


def _exported(job: _Job, scratch: Path, folded: bool) -> onnx.ModelProto:
    import torch

    module, inputs = (_prefill if job.size.kind == "prefill" else _step)(job)
    with torch.no_grad(), warnings.catch_warnings(), job.weights.out():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (*inputs.values(), *job.tensors.values()),
            str(scratch),
            dynamo=False,
            opset_version=OPSET,
            input_names=[*inputs, *job.tensors],
            output_names=[LOGITS, NEXT, *(NEW + name for name in job.cache)],
            dynamic_axes=_free_axes(job, list(inputs)),
            do_constant_folding=folded,
            verbose=False,
        )
    proto = onnx.load(str(scratch))
    if job.scales is not None:
        cache_codes.store(proto, job.scales.to, job.cache)
    naming.unwrap(proto)
    return proto


def _free_axes(job: _Job, inputs: Sequence[str]) -> dict[str, dict[int, str]]:
    size = job.size
    batch = {0: "batch"} if size.batch is None else {}
    columns = "tokens" if size.kind == "prefill" else "columns"

    def with_columns(axis: int) -> dict[int, str]:
        return {**batch, **({axis: columns} if size.columns is None else {})}

    axes = {TOKENS: with_columns(1) if size.kind == "prefill" else batch, LENGTHS: batch, POSITIONS: batch}
    axes |= {MASK: with_columns(3), LOGITS: batch, NEXT: batch}
    for name in job.cache:
        axis = 3 if name.startswith("keys_transposed") else 2
        axes[name] = with_columns(axis)
        axes[NEW + name] = with_columns(axis) if size.kind == "prefill" else batch
    wanted = {*inputs, LOGITS, NEXT, *(NEW + name for name in job.cache)}
    return {name: found for name, found in axes.items() if found and name in wanted}


def _example(job: _Job) -> tuple[int, int, Any]:
    device = next(iter(job.tensors.values())).device
    return job.size.batch or _EXAMPLE_BATCH, job.size.columns or _EXAMPLE_COLUMNS, device


def _prefill(job: _Job) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a module from prompts, padded at the end, and their lengths, and what it is traced with."""
    import torch
    from torch import nn

    class Prefill(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, naming.WRAPPER, job.network)

        def forward(self, tokens: Tensor, lengths: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            network = getattr(self, naming.WRAPPER)
            past = job.past()
            places = torch.arange(tokens.shape[1], device=tokens.device)
            dtype = next(tensor.dtype for tensor in weights if tensor.is_floating_point())
            # Padding comes behind the prompt, so no token of it sees any.
            later = places[None, :] > places[:, None]
            mask = torch.where(later, HIDDEN_SCORE, 0.0).to(dtype)[None, None]

            def last_of_each(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                hidden = inputs[0]  # (N, S, E)
                count, each = job.size.batch or tokens.shape[0], job.size.columns or tokens.shape[1]
                rows = torch.arange(count, device=tokens.device) * each + lengths - 1
                return (hidden.reshape(-1, int(hidden.shape[2])).index_select(0, rows)[:, None],)

            hook = network.get_output_embeddings().register_forward_pre_hook(last_of_each)
            try:
                inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": places[None]}
                with job.given(weights):
                    logits = two_pieces.call(network, past, **inputs)[:, 0]
            finally:
                hook.remove()
            return _outputs(logits, past)

    batch, columns, device = _example(job)
    tokens = torch.zeros(batch, columns, dtype=torch.int32, device=device)
    return Prefill().eval(), {TOKENS: tokens, LENGTHS: torch.full((batch,), columns, dtype=torch.int32, device=device)}


def _step(job: _Job) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a module from one token of every slot, positions, mask and cache, and what it is traced with.

    The slots are fed as the tokens of one sequence: every product but attention's is one matrix then, not a batch of rows.
    """
    import torch
    from torch import nn

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, naming.WRAPPER, job.network)

        def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            cache, weights = rest[: 2 * job.layers], rest[2 * job.layers :]
            past = job.past(list(cache[0::2]), list(cache[1::2]))
            inputs = {"input_ids": tokens[None], "attention_mask": mask, "position_ids": positions[None]}
            with job.given(weights):
                logits = two_pieces.call(getattr(self, naming.WRAPPER), past, **inputs)[0]
            return _outputs(logits, past)

    batch, columns, device = _example(job)
    dtype = next(tensor.dtype for tensor in job.tensors.values() if tensor.is_floating_point())
    heads, width = cache_shape(job.network)
    inputs = {name: torch.zeros(batch, dtype=torch.int32, device=device) for name in (TOKENS, POSITIONS)}
    inputs[MASK] = torch.zeros(batch, 1, 1, columns, dtype=dtype, device=device)
    for name in job.cache:
        shape = (batch, heads, width, columns) if name.startswith("keys_transposed") else (batch, heads, columns, width)
        inputs[name] = torch.zeros(shape, dtype=dtype, device=device)
    return Step().eval(), inputs


def _outputs(logits: Tensor, past: two_pieces.Past) -> tuple[Tensor, ...]:
    import torch

    new = [tensor for layer in sorted(past.new) for tensor in past.new[layer]]
    return (logits, logits.argmax(dim=-1).to(torch.int32), *new)


def cache_shape(network: nn.Module) -> tuple[int, int]:
    """Return key/value heads and elements a head.

    Raises:
        DataError: the network's configuration does not say.
    """
    config: Any = network.config
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (config.hidden_size // config.num_attention_heads if heads else None)
    if not heads or not width:
        raise DataError(f"The configuration of {type(network).__name__} names no attention heads.")
    return int(heads), int(width)
