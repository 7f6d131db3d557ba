"""The step of one slot with INT8 weights and activations on TensorRT 8.6, for `llm_h200.py`: half the bytes of FP16.

8.6 has no kernels that read INT8 weights and compute in FP16, so both sides of a product are lowered. Weights are random,
so activation scales are guesses: speed does not depend on them, and the answers mean nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from llm_h200_engine import Bench, Settings, Wanted, build_all, isolated, measure_layers, measure_step
from onnx import TensorProto

from workbench.graph import files
from workbench.graph.editing import Graph
from workbench.graph.qdq import SIGNED, WeightWriter, scale_of_weight, write_pair

ACTIVATION_SCALE = 0.04


def run(bench: Bench, layout: str, graph: str, settings: Settings) -> None:
    """Build and measure at the smallest and the largest depth."""
    for depth in (bench.case.depths[0], bench.case.depths[-1]):
        model = (bench.models(depth, layout) or {}).get(graph)
        if model is None or bench.left < 60:
            continue
        file = bench.root / "models" / f"int8-{depth}-{layout}" / "int8.onnx"
        if not file.exists():
            started = time.monotonic()
            lowered(Path(model.path), file)
            print(f"  {depth} layers in INT8 written in {time.monotonic() - started:.0f} s", flush=True)
        named = replace(settings, name=f"int8 {settings.name}", hold_norms=False)
        item = Wanted(depth, layout, graph, named, 60.0 + 20.0 * depth, str(file))
        build_all(bench, [item])
        engine = bench.engine(item.key)
        if engine is None or bench.results.get(f"step-{item.key}"):
            continue
        bench.results.put(f"step-{item.key}", isolated(measure_step, bench.backend, engine, bench.case.columns))
        bench.results.put(f"layers-{item.key}", isolated(measure_layers, engine, bench.case.columns))


def lowered(source: Path, target: Path) -> None:
    """Write a copy whose products with weights, but the head's, are INT8: Q/DQ on both sides, as 8.6 reads them."""
    graph = Graph(onnx.load(str(source)))
    writer = WeightWriter(graph, integer=False)
    activations: dict[str, str] = {}
    for node in [node for node in graph.nodes if node.op_type == "MatMul"]:
        weight = graph.array(node.input[1]) if node.input[1] in graph.initializers else None
        if weight is None or weight.ndim != 2 or "lm_head" in node.name:
            continue
        fed, written = node.input[0], node.output[0]
        if fed not in activations:
            single = graph.unique(f"{fed}_single")
            graph.add_node("Cast", [fed], [single], single, to=TensorProto.FLOAT)
            activations[fed] = write_pair(graph, single, ACTIVATION_SCALE, 0, SIGNED)
        array = weight.astype(np.float32)
        name = graph.add_initializer(f"{node.input[1]}_single", array)
        scale, _ = scale_of_weight(array, 1, SIGNED)
        graph.set_input(node, 0, activations[fed])
        graph.set_input(node, 1, writer.write(name, array, scale, 1, SIGNED))
        product = graph.unique(f"{written}_single")
        graph.rename_output(node, written, product)
        half = graph.unique(f"{written}_half")
        graph.rewire(product, half)
        graph.add_node("Cast", [product], [half], half, to=TensorProto.FLOAT16)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name("part.onnx")
    files.save(graph.finish(), scratch)
    model = onnx.load(str(scratch), load_external_data=False)
    for tensor in model.graph.initializer:  # the weights keep the name of the scratch file
        assert not tensor.external_data or tensor.external_data[0].value == "part.onnx.data"
    scratch.rename(target)
