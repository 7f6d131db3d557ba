"""Language models through the workbench: load with a cache, lower, generate, measure, judge, and serve.

`load` gives a `LanguageModel` whose `.model` goes through the ordinary verbs (`transform`, `build`, `run`, `report`);
the functions here add what only decoders have: tokens, a cache, prefill and decode, requests that arrive.
"""

from __future__ import annotations

from workbench.engines.decoding import open_decoder
from workbench.engines.slot_decoding import open_slots
from workbench.llm.eager import contestant as transformers_eager
from workbench.llm.endpoint import Endpoint
from workbench.llm.feeding import dataset, feeds
from workbench.llm.fidelity import Quality, quality
from workbench.llm.generation import Generation, Sequences, generate
from workbench.llm.loading import LanguageModel, load
from workbench.llm.lowering import recipe
from workbench.llm.rates import Speed, faster, speed
from workbench.llm.rates import table as speed_table
from workbench.llm.requests import Lengths, Traffic
from workbench.llm.sampling import Sampling
from workbench.llm.scenario import HighestRate, ServingRun, highest_rate, serve_traffic
from workbench.llm.scenario import table as serving_table
from workbench.llm.serving import ContinuousBatching, DynamicBatching, NoBatching
from workbench.llm.shaping import profiles
from workbench.llm.slot_building import build_slots
from workbench.llm.slot_export import GraphSize
from workbench.llm.slot_fidelity import slots_quality
from workbench.llm.slot_loading import SlotModel, load_slots, open_slot_folder, write_slots
from workbench.llm.tensorrt_llm import TensorRTLLMFiles, to_tensorrt_llm
from workbench.llm.timing import GenerationMeasurement, Workload, measure_generation, slots_contestant
from workbench.llm.towers import TowerStudies, TwoTowers, digits_captions, run_towers
from workbench.llm.verification import Verification, verify

__all__ = [
    "ContinuousBatching",
    "DynamicBatching",
    "Endpoint",
    "Generation",
    "GenerationMeasurement",
    "GraphSize",
    "HighestRate",
    "LanguageModel",
    "Lengths",
    "NoBatching",
    "Quality",
    "Sampling",
    "Sequences",
    "ServingRun",
    "SlotModel",
    "Speed",
    "TensorRTLLMFiles",
    "TowerStudies",
    "Traffic",
    "TwoTowers",
    "Verification",
    "Workload",
    "build_slots",
    "dataset",
    "digits_captions",
    "faster",
    "feeds",
    "generate",
    "highest_rate",
    "load",
    "load_slots",
    "measure_generation",
    "open_decoder",
    "open_slot_folder",
    "open_slots",
    "profiles",
    "quality",
    "recipe",
    "run_towers",
    "serve_traffic",
    "serving_table",
    "slots_contestant",
    "slots_quality",
    "speed",
    "speed_table",
    "to_tensorrt_llm",
    "transformers_eager",
    "verify",
    "write_slots",
]
