"""From a language model with slots to the engines of one decoder: one recipe for all of its graphs, and their names kept.

Knows no cache and no tokens; what comes out goes to `open_slots`, `slots_contestant` or `Endpoint`.
"""

from __future__ import annotations

from dataclasses import replace

from workbench import engines
from workbench.engines import jobs
from workbench.engines.slots import slot_layout
from workbench.errors import BuildError, RecipeError
from workbench.llm.lowering import recipe as fitted
from workbench.llm.slot_loading import SlotModel
from workbench.machine.store import Store
from workbench.recipes import Recipe, named
from workbench.records import BuildOptions, Engine
from workbench.transformation.steps import transform


def build_slots(
    language: SlotModel,
    recipe: str | Recipe = "fp32",
    backend: str = "onnxruntime-cpu",
    options: BuildOptions | None = None,
    *,
    store: Store | None = None,
) -> list[Engine]:
    """Apply one recipe to every prefill and step of a model, and build them for one backend.

    The head and the products inside attention stay as they are, as with `workbench.llm.recipe`.

    Args:
        recipe: one that needs no calibration data: graphs with slots have no samples of their own.

    Returns:
        Prefills, then steps, each in the order of the model's.

    Raises:
        RecipeError: there is no such recipe, or it has to be calibrated.
        BuildError: a graph leaves sizes free, and the backend wants them fixed.
        TransformError, BackendMissing, BuildError: as `workbench.transform` and `workbench.build`.
    """
    chosen = named(recipe)
    if chosen.needs_calibration:
        raise RecipeError(
            f"The recipe {chosen.name!r} is calibrated on samples, and graphs with slots have none. Take one that needs "
            f"none, such as 'int8-dynamic', 'int8-weights' or 'fp16'."
        )
    name, _ = engines.choose(backend, to_build=True)
    if name.startswith("tensorrt"):
        _check_sizes(language, name)
    dialect = engines.backend(name).dialect(name)
    built = []
    for model in (*language.prefills, *language.steps):
        own = fitted(replace(language, model=model), chosen)  # each graph has node names of its own
        built.append(jobs.build(transform(model, own, dialect=dialect, store=store), name, options, store=store))
    return built


def _check_sizes(language: SlotModel, backend: str) -> None:
    for model in (*language.prefills, *language.steps):
        layout = slot_layout(model.inputs, model.outputs)
        if layout.batch is None or layout.columns is None:
            raise BuildError(
                f"The graph {model.name!r} leaves its batch or columns free, and a decoder with slots on {backend} takes "
                f"fixed sizes. Name them: load_slots(source, [GraphSize('prefill', 1, 128), GraphSize('step', 8, 256)])."
            )
