"""What a recipe can ask for that a release of the TensorRT family, or what it builds for, cannot do; and why.

Asks the same rules as a build does (`Capabilities.refuses`), so that a greyed toggle and a refused build never differ.
"""

from __future__ import annotations

from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.engines.tensorrt.targets import NEWEST, Targets

# What a recipe asks for -> the precision that the builder must have for it.
_PRECISIONS = {
    "tf32": "tf32",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "int8-smooth": "int8",
    "int8-weights": "int8",
    "fp8": "fp8",
    "int4-weights": "int4",
}


def refused(caps: Capabilities, targets: Targets) -> dict[str, str]:
    """Return what cannot be had -> the reason, of the first target that lacks it."""
    found = {"int8-dynamic": f"{caps.name} has no scales found at run time; onnxruntime-cpu finds them"}
    for asked, precision in _PRECISIONS.items():
        reasons = (caps.refuses(precision, device) for device in targets.devices or (NEWEST,))
        if (why := next(filter(None, reasons), None)) is not None:
            found[asked] = why
    if "bf16" not in found and caps.dialect != "strong":
        found["bf16"] = f"BF16 is written into the graph, which TensorRT follows from 10.12 on; this is {caps.version}"
    return found
