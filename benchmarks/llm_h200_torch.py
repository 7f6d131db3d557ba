"""The PyTorch half of `llm_h200.py`: exports the graphs, keeps what the engines must answer, and times PyTorch itself."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llm_h200_cases import CHECKED_SEQUENCES, CHECKED_STEPS, Case

from workbench import codec, llm

KEPT_MODELS = "models.json"
_REPEATS = 40


def export_all(
    root: Path,
    case: Case,
    note: Callable[[str, dict[str, Any]], None],
    depths: Sequence[int],
    layouts: Sequence[str] = ("turned", "plain"),
) -> None:
    """Write the graphs of these depths; a folder that is whole is left as it is."""
    for depth in depths:
        network = None
        for layout in layouts:
            folder = case.folder(root, depth, layout)
            if (folder / KEPT_MODELS).exists():
                continue
            network = network or random_llama(case, depth)
            started = time.perf_counter()
            shutil.rmtree(folder, ignore_errors=True)
            scratch = folder.with_name(f".{folder.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            llm.write_slots(network, case.graphs(depth, layout), scratch, keys_transposed=layout == "turned")
            if depth in (case.depths[0], case.depths[-1]):
                np.savez(scratch / "checked.npz", logits=checked_logits(network, case))
            scratch.rename(folder)
            read = llm.open_slot_folder(folder)
            models = {"prefills": read.prefills, "steps": read.steps}
            (folder / KEPT_MODELS).write_text(
                json.dumps({kind: [codec.to_plain(model) for model in found] for kind, found in models.items()})
            )
            seconds = time.perf_counter() - started
            size = sum(file.stat().st_size for file in folder.iterdir())
            note(f"export-{depth}-{layout}", {"seconds": seconds, "size_bytes": size})


def random_llama(case: Case, depth: int) -> Any:
    """Return a LLaMA with random FP16 weights, on the GPU where there is one; small ones, so that logits stay finite."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(**case.config, num_hidden_layers=depth)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(place):
            network = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return network


def checked_logits(network: Any, case: Case) -> np.ndarray:
    """Return what PyTorch says after the prompt and after each further token: (sequences, steps + 1, V) float32."""
    import torch

    tokens = torch.from_numpy(case.checked_tokens()).to(next(network.parameters()).device)
    network.config._attn_implementation = "sdpa"
    with torch.no_grad():
        logits = network(input_ids=tokens, use_cache=False).logits
    found = logits[:, case.prompt - 1 : case.prompt + CHECKED_STEPS - 1].float().cpu().numpy()
    assert found.shape[:2] == (CHECKED_SEQUENCES, CHECKED_STEPS)
    return np.asarray(found)


def measure_torch(
    case: Case, note: Callable[[str, dict[str, Any]], None], have: Callable[[str], bool], seconds: float
) -> None:
    """Time PyTorch: what the card can do, a step with a static cache in a CUDA graph, and a prefill."""
    import torch

    if not torch.cuda.is_available():
        print("No CUDA device here: PyTorch is not timed.")
        return
    until = time.monotonic() + seconds
    if not have("ceilings"):
        note("ceilings", ceilings())
    for depth in case.depths:
        network = None
        for slots in (1, case.slots):
            key = f"torch-step-{depth}-{slots}"
            if have(key) or time.monotonic() > until:
                continue
            network = network or random_llama(case, depth)
            note(key, static_step(network, case, slots, compiled=depth == case.depths[-1]))
        key = f"torch-prefill-{depth}-{case.long_prompt}"
        if depth == case.depths[-1] and not have(key) and time.monotonic() < until:
            network = network or random_llama(case, depth)
            note(key, prefill(network, case))
        del network
        torch.cuda.empty_cache()


def ceilings() -> dict[str, Any]:
    """Return the FP16 rate of a large product and the bandwidth of a large copy."""
    import torch

    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    source = torch.empty(2 * 10**9, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return {
        "device": torch.cuda.get_device_name(),
        "flops_per_second": 2 * 8192**3 / _seconds(lambda: torch.mm(left, right)),
        "bytes_per_second": 2 * source.nbytes / _seconds(lambda: target.copy_(source)),
    }


def static_step(network: Any, case: Case, slots: int, *, compiled: bool) -> dict[str, Any]:
    """Time one step of transformers over its StaticCache in a CUDA graph: as it is, and through torch.compile."""
    import torch
    from transformers import StaticCache

    network.config._attn_implementation = "sdpa"
    tokens = torch.zeros(slots, 1, dtype=torch.long, device="cuda")
    positions = torch.full((slots, 1), case.columns - 1, dtype=torch.long, device="cuda")
    mask = torch.zeros(slots, 1, 1, case.columns, dtype=torch.float16, device="cuda")
    found: dict[str, Any] = {}

    def calls() -> Callable[[], Any]:
        cache = StaticCache(config=network.config, max_cache_len=case.columns)

        def call() -> Any:
            for layer in cache.layers:  # each call is the step at the same place
                if isinstance(getattr(layer, "cumulative_length", None), torch.Tensor):
                    layer.cumulative_length.zero_()
            return network(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits

        return call

    with torch.no_grad():
        ways = {"captured": calls, **({"compiled": lambda: torch.compile(calls())} if compiled else {})}
        for name, make in ways.items():
            started = time.perf_counter()
            try:
                found[name] = _captured_seconds(make())
            except Exception as error:  # noqa: BLE001 - a comparison that fails is a line of the table
                found[f"{name}_failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                torch.cuda.synchronize()
            found[f"{name}_setup_seconds"] = time.perf_counter() - started
    return found


def prefill(network: Any, case: Case) -> dict[str, Any]:
    """Time a prefill with scaled_dot_product_attention."""
    import torch

    network.config._attn_implementation = "sdpa"
    tokens = torch.zeros(1, case.long_prompt, dtype=torch.long, device="cuda")
    with torch.no_grad():
        return {"seconds": _seconds(lambda: network(input_ids=tokens, use_cache=False, logits_to_keep=1).logits)}


def _captured_seconds(call: Callable[[], Any]) -> float:
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return _seconds(graph.replay)


def _seconds(call: Callable[[], Any]) -> float:
    """Return the median device time of a call."""
    import torch

    taken = []
    for _ in range(_REPEATS + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return float(np.median(taken[5:]))
