"""`explain_profiles`: judge what profilers told elsewhere, such as layer tables of a GPU that is not here. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from workbench.explaining.evidence import Evidence
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.passes import pass_of
from workbench.explaining.structure import facts_of
from workbench.judging.roofline import Ceilings
from workbench.records import LayerProfile

_NO_FILE = onnx.ModelProto()


def explain_profiles(
    before: LayerProfile,
    after: LayerProfile,
    precision: str,
    *,
    backend: str,
    files: tuple[onnx.ModelProto, onnx.ModelProto] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    names: tuple[str, str] = ("before", "after"),
    ceilings: Ceilings | None = None,
) -> Explanation:
    """Explain a recorded profile beside another one.

    Args:
        before, after: layers in the order of execution, as any backend's profiler tells them.
        precision: the type that `after` was built for: `int8`, `fp8`, `fp16` or `bf16`.
        backend: of both, for the sentences.
        files: the ONNX files that both were built from; without them no operations are counted, and what the file asks for
            is not known.
        shapes: input name -> shape that was fed.
        ceilings: of the machine that was profiled; without them no bounds and no rates.
    """
    graphs = files or (_NO_FILE, _NO_FILE)
    passes = [
        pass_of(name, profile, file, shapes or {}, ceilings=ceilings, measured_seconds=None)
        for name, profile, file in zip(names, (before, after), graphs, strict=True)
    ]
    facts = facts_of(files[1]) if files is not None else ()
    return explanation("recorded", Evidence(backend, passes[0], passes[1], ceilings, precision, facts))
