"""Language models through the workbench: load with a cache, lower, generate, measure, judge, and serve.

`load` gives a `LanguageModel` whose `.model` goes through the ordinary verbs (`transform`, `build`, `run`, `report`);
the functions here add what only decoders have: tokens, a cache, prefill and decode, requests that arrive.
"""

from __future__ import annotations

from workbench.engines.decoding import open_decoder
from workbench.llm.feeding import dataset, feeds
from workbench.llm.generation import Generation, Sequences, generate
from workbench.llm.loading import LanguageModel, load
from workbench.llm.sampling import Sampling
from workbench.llm.verification import Verification, verify

__all__ = [
    "Generation",
    "LanguageModel",
    "Sampling",
    "Sequences",
    "Verification",
    "dataset",
    "feeds",
    "generate",
    "load",
    "open_decoder",
    "verify",
]
