"""transformers' own `generate`, with its cache, as a contestant: the baseline that everybody has.

Runs in the child process that measures it; torch is imported there.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from workbench import codec
from workbench.engines.base import Feeds
from workbench.llm.loading import LanguageModel, causal
from workbench.llm.timing import Contestant, Workload, run_workload
from workbench.machine import device
from workbench.models import sources

_JOB = "workbench.llm.eager:round_job"


def contestant(language: LanguageModel, *, threads: int = 1, name: str = "transformers eager") -> Contestant:
    """Return PyTorch's eager `generate` in FP32 on the CPU, for `measure_generation`."""
    return Contestant(
        name=name,
        sha256=language.model.sha256,
        backend="transformers",
        device=device.cpu_device(),
        target=_JOB,
        job={"folder": language.folder, "threads": threads},
        weights_bytes=None,
        token_bytes=language.layout.token_bytes,
        file_bytes=language.model.size_bytes,
    )


def round_job(job: dict[str, Any], arrays: Feeds) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Be the child: load the folder, run every workload with `generate`."""
    import torch

    torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    folder = Path(job["folder"])
    network = causal(sources.transformers_folder(folder), folder)
    network.config._attn_implementation = "sdpa"  # transformers' default; loading for export asks for the plain one
    network.generation_config.eos_token_id = None  # end of text is ignored
    extra = {"open_seconds": time.perf_counter() - started}

    def repeat(prompts: np.ndarray, new_tokens: int) -> tuple[float, list[float]]:
        return _generate_timed(network, torch.from_numpy(prompts), new_tokens)

    workloads = [codec.from_plain(Workload, plain) for plain in job["workloads"]]
    return {"workloads": [run_workload(repeat, workload, job, dict(extra)) for workload in workloads]}, {}


class _Moments:
    """Notes when `generate` hands out the prompt, and then each token; transformers calls it a streamer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate_timed(network: Any, prompts: Any, new_tokens: int) -> tuple[float, list[float]]:
    import torch

    moments = _Moments()
    started = time.perf_counter()
    with torch.no_grad():
        network.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            streamer=moments,
        )
    tokens = moments.seconds[1:]  # the first call hands the prompt back
    return tokens[0] - started, [later - earlier for earlier, later in itertools.pairwise(tokens)]
