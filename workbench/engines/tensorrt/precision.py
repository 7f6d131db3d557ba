"""Which flags a build sets for a recipe, decided before TensorRT is asked. Touches no builder.

In the `strong` dialect types come from the graph alone. In the `trt-8.6` dialect the graph is FP32 with Q/DQ, and
flags allow what the recipe asks for. TF32 is on by default in every release, so FP32 has to clear it.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.engines.tensorrt.switches import Switches
from workbench.engines.tensorrt.targets import NEWEST, Targets
from workbench.errors import BuildError
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe
from workbench.records import Variant


@dataclass(frozen=True)
class Flags:
    """Names of the flags to set and to clear.

    Attributes:
        network: NetworkDefinitionCreationFlag members.
        set, clear: BuilderFlag members.
        hold_fp32: ONNX nodes whose layers stay in FP32 in a weakly typed network.
        notes: what a reader of the report must know.
    """

    network: tuple[str, ...]
    set: tuple[str, ...]
    clear: tuple[str, ...]
    hold_fp32: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def wanted(recipe: Recipe) -> tuple[str, ...]:
    """Return the precisions that a recipe asks for: `fp32` or another float type, then `int8`, `fp8` or `int4`."""
    precision, quantize, weights = (recipe.step(kind) for kind in ("precision", "quantize", "quantize_weights"))
    formats: list[str] = [precision.to if isinstance(precision, Precision) else "fp32"]
    if isinstance(quantize, Quantize):
        formats.append(quantize.to)
    if isinstance(weights, QuantizeWeights):
        formats.append(weights.to)
    return tuple(formats)


def decide(caps: Capabilities, targets: Targets, variant: Variant, switches: Switches, *, quantized: bool) -> Flags:
    """Return the flags for a variant.

    Args:
        quantized: whether the graph holds Q/DQ nodes.

    Raises:
        BuildError: this release or a target cannot do what the recipe asks, or recipe, graph and switches disagree.
    """
    formats = wanted(variant.recipe)
    if switches.native_calibrator is not None:
        _check_native(caps, variant, quantized)
        formats = (*formats, "int8")
    quantize = variant.recipe.step("quantize")
    if quantize is None and switches.native_calibrator is None and not quantized:
        formats = formats[:1]  # weights alone, and there were none to quantize: the step's report says why
    if isinstance(quantize, Quantize) and quantize.activations == "dynamic":
        raise BuildError(
            f"The recipe {variant.name!r} quantizes activations with scales found at run time, which TensorRT does not "
            f"do. Use a static recipe such as 'int8-kl'."
        )
    for precision in formats:
        for device in targets.devices or (NEWEST,):
            reason = caps.refuses(precision, device)
            if reason is not None:
                raise BuildError(
                    f"The recipe {variant.name!r} cannot be built: {reason}. Choose another recipe or device."
                )
    strong = _strong(caps, variant, formats, quantized)
    if "int8" in formats and not quantized and switches.native_calibrator is None:
        raise BuildError(
            f"The recipe {variant.name!r} asks for INT8, but its graph holds no Q/DQ nodes, so TensorRT would have no "
            f"scales. Transform the model again, or set the option native_calibrator."
        )
    hold_fp32 = frozenset[str]() if strong else _held(variant)
    if hold_fp32 and not caps.layer_precision:
        raise BuildError(
            f"The recipe {variant.name!r} excludes layers, which {caps.name} can only do in the graph. "
            f"Transform the model again with dialect='strong'."
        )
    chosen = [] if strong else _weak_flags(formats, quantized)
    if hold_fp32:
        chosen.append("OBEY_PRECISION_CONSTRAINTS")
    return Flags(
        network=_network(caps, strong),
        set=(*chosen, *_others(variant.recipe, switches, formats)),
        clear=() if "tf32" in formats else ("TF32",),
        hold_fp32=hold_fp32,
        notes=_notes(targets, variant.recipe, formats),
    )


def _check_native(caps: Capabilities, variant: Variant, quantized: bool) -> None:
    if not caps.calibrators:
        raise BuildError(
            f"{caps.name} has no calibrators of its own any more (they went in 11). Use a recipe such as "
            f"'int8-kl' instead of the option native_calibrator."
        )
    if quantized:
        raise BuildError(
            f"The option native_calibrator needs a graph without Q/DQ nodes, and the recipe {variant.name!r} wrote "
            f"them. Use it with the recipe 'fp32' or 'fp16'."
        )
    if variant.dialect == "strong" and variant.recipe.step("precision") is not None:
        raise BuildError(
            f"The option native_calibrator needs an FP32 graph; the recipe {variant.name!r} in the dialect 'strong' "
            f"wrote other types into it. Use it with the recipe 'fp32'."
        )


def _strong(caps: Capabilities, variant: Variant, formats: tuple[str, ...], quantized: bool) -> bool:
    """Whether the network takes its types from the graph; refuses a graph written for another engine."""
    native = formats[-1] == "int8" and not quantized
    plain = not quantized and formats[0] in ("fp32", "tf32")
    if plain:
        return not native and (caps.dialect == "strong")
    if variant.dialect == "strong" and caps.strongly_typed:
        return True
    if variant.dialect == "trt-8.6" and caps.weakly_typed:
        return False
    raise BuildError(
        f"The variant {variant.name!r} is written in the dialect {variant.dialect!r}, which {caps.name} "
        f"cannot build as meant. Transform the model again with dialect={caps.dialect!r}."
    )


def _weak_flags(formats: tuple[str, ...], quantized: bool) -> list[str]:
    flags = [name.upper() for name in formats[:1] if name in ("fp16", "bf16")]
    if quantized or "int8" in formats:
        flags.append("INT8")  # explicit Q/DQ is refused without it (TensorRT #4021)
    return flags


def _held(variant: Variant) -> frozenset[str]:
    """Return the nodes that the precision step lists for the builder to keep in FP32."""
    reports = (report for report in variant.reports if report.kind == "precision")
    return frozenset(str(name) for report in reports for name in report.details.get("keep_fp32", ()))


def _network(caps: Capabilities, strong: bool) -> tuple[str, ...]:
    if strong:
        return ("STRONGLY_TYPED",) if caps.weakly_typed else ()  # without a choice the flag is deprecated
    return ("EXPLICIT_BATCH",) if caps.needs_explicit_batch else ()


def _others(recipe: Recipe, switches: Switches, formats: tuple[str, ...]) -> tuple[str, ...]:
    sparse = recipe.step("sparsify") is not None if switches.sparse is None else switches.sparse
    asked = {
        "TF32": "tf32" in formats,
        "SPARSE_WEIGHTS": sparse,
        "REFIT": switches.refit,
        "VERSION_COMPATIBLE": switches.version_compatible,
    }
    return tuple(name for name, on in asked.items() if on)


def _notes(targets: Targets, recipe: Recipe, formats: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    oldest = min(targets.devices, key=lambda device: device.compute_capability, default=NEWEST)
    if recipe.fusion != "all":
        notes.append(
            f"The recipe asks for fusion {recipe.fusion!r}; TensorRT always fuses all it can and has no switch for it."
        )
    if "int8" in formats and oldest.compute_capability < (7, 5):
        notes.append(f"{oldest.name} has no INT8 tensor cores (they came with 7.5); INT8 is slower than it could be.")
    if recipe.step("sparsify") is not None and oldest.compute_capability < (8, 0):
        notes.append(f"{oldest.name} has no sparse tensor cores (they came with 8.0); 2:4 zeros gain no time there.")
    elif recipe.step("sparsify") is not None and formats == ("fp32",):
        notes.append(
            "There are no sparse tensor cores for FP32, so 2:4 zeros gain no time in this recipe. Prune in FP16 or INT8: "
            "'sparse-2:4-fp16', 'sparse-2:4-int8'."
        )
    return tuple(notes)
