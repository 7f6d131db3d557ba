"""What a study will do: recipes, backend and protocol, and how long that will take. Starts nothing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

from traitlets import Bool, Dict, HasTraits, Instance, Int, Tuple, Unicode

from workbench import codec, engines
from workbench.engines.tensorrt.trtexec import from_trtexec
from workbench.errors import RecipeError, WorkbenchError
from workbench.recipes import NAMED, Recipe, named
from workbench.records import BuildOptions, Protocol, ShapeProfile
from workbench.study import estimate, offers, sweep
from workbench.study.estimate import Pace
from workbench.study.sweep import Toggles
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

DEFAULT_RECIPES = ("fp32", "fp16", "int8-kl")
# A search shows the first ones; typing on narrows it.
_MOST_MATCHES = 200
_TOGGLES = {
    "fusion": "fusions",
    "precision": "precisions",
    "quantization": "quantizations",
    "calibrator": "calibrators",
    "per_channel": "per_channel",
    "sparse": "sparse",
}


class Plan(HasTraits):
    """What was chosen on the page of recipes.

    Attributes:
        recipes: those of the study, side by side, in order.
        toggles: what a sweep is made of.
        samples_text: sample counts as typed, such as `64, 256, all`.
        sweep_size: number of variants that the toggles make now.
        query, matches, excluded: the search over layers, what it found, and the layers left out.
        backend: a name; `reasons` has (toggle, value) -> why it cannot be chosen there.
        smallest_batch, largest_batch: of the shape profile, for backends that compile for shapes; 0 is none.
        estimate: how long the study will take, in words.
        trtexec_words: what a pasted trtexec command asked for that has no counterpart.
    """

    recipes = Tuple()
    toggles = Instance(Toggles, args=())
    samples_text = Unicode("all")
    sweep_size = Int(1)
    sweep_words = Unicode()
    query = Unicode()
    matches = Tuple()
    excluded = Tuple()
    backend = Unicode()
    backends = Tuple()
    reasons: Any = Dict()
    caveats = Tuple()
    batch = Int(8)
    rounds = Int(5)
    threads = Int(1)
    boundary = Unicode("compute")
    min_seconds_text = Unicode("0.5")
    cuda_graph = Bool(False)
    smallest_batch = Int(0)
    largest_batch = Int(0)
    estimate = Unicode()
    trtexec_words = Unicode()

    def __init__(
        self, session: Session, selection: ModelSelection, protocol: Protocol | None = None, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.session, self.selection = session, selection
        self._protocol = protocol or Protocol()
        self._extra = BuildOptions()
        self.batch, self.rounds = self._protocol.batch, self._protocol.rounds
        self.boundary, self.min_seconds_text = self._protocol.boundary, f"{self._protocol.min_seconds:g}"
        self.backends = tuple(name for name, absent in selection.backends.items() if absent is None)
        self.backend = engines.choose(backend)[0] if self.backends else ""
        self._refresh()
        self.recipes = tuple(NAMED[name] for name in DEFAULT_RECIPES)
        selection.observe(lambda change: self._refresh(), ["model", "data"])
        selection.observe(lambda change: self.search(self.query), "layers")

    def set_toggle(self, toggle: str, values: tuple[Any, ...]) -> None:
        """Choose the values of a toggle; none chosen leaves its first.

        Raises:
            RecipeError: a value cannot be chosen on this backend or with these data.
        """
        for value in values:
            if why := self.reasons.get((toggle, str(value))):
                raise RecipeError(f"{value} cannot be chosen: {why}.")
        field = _TOGGLES[toggle]
        self.toggles = replace(self.toggles, **{field: values or getattr(Toggles(), field)})
        self._count()

    def set_samples(self, text: str) -> None:
        """Take sample counts such as `64, 256, all`.

        Raises:
            RecipeError: an entry is no number.
        """
        self.samples_text = text
        try:
            samples = sweep.parse_samples(text)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        self.toggles = replace(self.toggles, samples=samples)
        self._count()

    def search(self, query: str) -> None:
        """List the layers whose node or module name holds the words of the query, in any order and case."""
        self.query = query
        words = query.lower().split()
        found = [
            node
            for node, module in self.selection.layers.items()
            if all(word in f"{node} {module}".lower() for word in words)
        ]
        self.matches = tuple(found[:_MOST_MATCHES])

    def exclude(self, nodes: tuple[str, ...]) -> None:
        """Leave layers out of precision and quantization steps.

        Raises:
            RecipeError: the backend cannot leave layers out.
        """
        if why := self.reasons.get(("exclude", "layers")):
            raise RecipeError(f"No layer can be left out: {why}. Choose another backend.")
        self.excluded = tuple(dict.fromkeys((*self.excluded, *nodes)))
        self._exclusions()

    def include(self, nodes: tuple[str, ...]) -> None:
        """Take layers back in."""
        self.excluded = tuple(node for node in self.excluded if node not in nodes)
        self._exclusions()

    def add_named(self, name: str) -> None:
        """Add a recipe by its name.

        Raises:
            RecipeError: there is none, it is there already, or the backend cannot run it.
        """
        recipe = named(name)
        if why := self.refusal(recipe):
            raise RecipeError(f"{name} cannot be run: {why}.")
        self._add((recipe,))

    def add_trtexec(self, line: str) -> None:
        """Take what a pasted trtexec command asks for: its recipe into the study, its protocol and shapes as they are.

        Raises:
            RecipeError: nothing was pasted, the recipe is there already, or the backend cannot run it.
        """
        if "trtexec" not in line:
            raise RecipeError("Paste a whole trtexec command, such as: trtexec --onnx=model.onnx --fp16 --noTF32")
        read = from_trtexec(line)
        if why := self.refusal(read.recipe):
            raise RecipeError(f"{read.recipe.name} cannot be run: {why}.")
        self._add((read.recipe,))
        self._protocol = read.protocol
        self.batch, self.rounds = read.protocol.batch, read.protocol.rounds
        self.boundary, self.min_seconds_text = read.protocol.boundary, f"{read.protocol.min_seconds:g}"
        self.cuda_graph = read.protocol.cuda_graph
        self._extra = read.options
        self.trtexec_words = " ".join(read.notes) or "Every flag of the command has its counterpart here."
        self._refresh()

    def add_recipe(self, recipe: Recipe) -> Recipe:
        """Add a recipe that was made elsewhere, such as from chosen layers; return it as it was added.

        One whose name another recipe has gets a mark behind it: two choices of as many layers have the same name.

        Raises:
            RecipeError: it is there already, or the backend cannot run it.
        """
        if why := self.refusal(recipe):
            raise RecipeError(f"{recipe.name} cannot be run: {why}.")
        if any(one.name == recipe.name and one.steps != recipe.steps for one in self.recipes):
            mark = hashlib.sha256(codec.to_json(recipe).encode()).hexdigest()[:4]
            recipe = replace(recipe, name=f"{recipe.name}-{mark}")
        self._add((recipe,))
        return recipe

    def add_sweep(self) -> None:
        """Add every recipe that the toggles make and that is not there yet.

        Raises:
            RecipeError: all are there already.
        """
        self._add(sweep.recipes(self.toggles))

    def remove(self, names: tuple[str, ...]) -> None:
        """Drop recipes by name; the baseline comes back when the study starts."""
        self.recipes = tuple(recipe for recipe in self.recipes if recipe.name not in names)
        self._estimate()

    def set_backend(self, name: str) -> None:
        """Choose a backend; toggles that mean nothing there fall back to their first value.

        Raises:
            BackendMissing: it cannot be used here.
        """
        self.backend = engines.choose(name)[0]
        self._refresh()

    def refusal(self, recipe: Recipe) -> str:
        """Return why the backend cannot run a recipe, or nothing."""
        if why := self.reasons.get(("backend", "model")):
            return str(why)
        for step in recipe.steps:
            for toggle, value in _asked(step):
                if why := self.reasons.get((toggle, value)):
                    return str(why)
        return ""

    @property
    def protocol(self) -> Protocol:
        """How latency will be measured.

        Raises:
            RecipeError: a number is out of range.
        """
        try:
            return replace(
                self._protocol,
                batch=self.batch,
                rounds=self.rounds,
                boundary=self.boundary,  # type: ignore[arg-type]
                min_seconds=float(self.min_seconds_text),
                cuda_graph=self.cuda_graph,
            )
        except ValueError as error:
            raise RecipeError(f"The protocol is not possible: {error}. Correct the field.") from error

    @property
    def options(self) -> BuildOptions:
        """How engines will be built.

        Raises:
            RecipeError: the shape profile does not hold the batch.
        """
        threads = None if ("threads", "count") in self.reasons else self.threads
        if not self.largest_batch or ("profile", "shapes") in self.reasons or self.selection.model is None:
            return replace(self._extra, threads=threads)
        if not 1 <= self.smallest_batch <= self.batch <= self.largest_batch:
            raise RecipeError(
                f"The shape profile goes from batch {self.smallest_batch} to {self.largest_batch} and must hold the "
                f"measured batch {self.batch}. Widen it, or set both to 0 for none."
            )
        profile = {
            spec.name: ShapeProfile(
                *((size, *(axis or 1 for axis in spec.shape[1:])) for size in self._profile_batches())
            )
            for spec in self.selection.model.inputs
        }
        return replace(self._extra, threads=threads, profiles=(profile,))

    def restart_estimate(self) -> None:
        """Estimate again, such as after a study has shown how fast this machine is."""
        self._estimate()

    def pace(self) -> Pace:
        """Return what earlier studies on this backend took, as the store remembers it."""
        text = self.session.store.get("pace", self.backend)
        try:
            return Pace() if text is None else codec.from_json(Pace, text)
        except WorkbenchError:
            return Pace()  # a damaged memory of how long things took is no reason to stop

    def _profile_batches(self) -> tuple[int, int, int]:
        return (self.smallest_batch, self.batch, self.largest_batch)

    def _exclusions(self) -> None:
        patterns = tuple(f"^{re.escape(node)}$" for node in self.excluded)
        self.toggles = replace(self.toggles, excluded=patterns)
        self._count()

    def _add(self, recipes: tuple[Recipe, ...]) -> None:
        there = {recipe.name for recipe in self.recipes}
        fresh = tuple(recipe for recipe in recipes if recipe.name not in there)
        if not fresh:
            raise RecipeError(
                f"Nothing to add: {', '.join(recipe.name for recipe in recipes)} is in the study already."
            )
        self.recipes = (*self.recipes, *fresh)
        self._estimate()

    def _refresh(self) -> None:
        self.reasons = self._reasons()
        self.caveats = offers.caveats(self.backend)
        kept: dict[str, Any] = {}
        for toggle, field in _TOGGLES.items():
            values = tuple(value for value in getattr(self.toggles, field) if (toggle, str(value)) not in self.reasons)
            kept[field] = values or getattr(Toggles(), field)
        self.toggles = replace(self.toggles, **kept)
        self._count()

    def _reasons(self) -> offers.Reasons:
        if not self.backend:
            return {}
        return offers.refusals(self.backend, self.selection.model, self.selection.data, target=self._extra.target)

    def _count(self) -> None:
        made = sweep.recipes(self.toggles)
        self.sweep_size = len(made)
        self.sweep_words = ", ".join(recipe.name for recipe in made)
        self._estimate()

    def _estimate(self) -> None:
        there = {recipe.name for recipe in self.recipes} | {"fp32"}
        added = len([recipe for recipe in sweep.recipes(self.toggles) if recipe.name not in there])
        try:
            protocol = self.protocol
        except RecipeError:
            self.estimate = "The protocol is not possible yet."
            return
        pace = self.pace()
        source = "from earlier studies here" if pace.is_seen else "a first guess; the first study corrects it"
        now, then = (estimate.study_seconds(count, protocol, pace) for count in (len(there), len(there) + added))
        variants = "1 variant" if len(there) == 1 else f"{len(there)} variants"
        more = f" With the sweep: {len(there) + added} variants, about {estimate.words(then)}." if added else ""
        self.estimate = f"This study: {variants}, about {estimate.words(now)} ({source}).{more}"


def _asked(step: Any) -> tuple[tuple[str, str], ...]:
    """The toggles and values that a step stands for."""
    left_out = (("exclude", "layers"),) if getattr(step, "exclude", ()) else ()
    if step.kind == "fuse":
        return (("fusion", step.level),)
    if step.kind == "precision":
        return (("precision", step.to), *left_out)
    if step.kind == "quantize":
        return (("quantization", "int8-dynamic" if step.activations == "dynamic" else step.to), *left_out)
    if step.kind == "quantize_weights":
        return (("quantization", f"{step.to}-weights"), *left_out)
    return (("quantization", "int8-smooth") if step.kind == "smooth_quant" else ("sparse", "True"), *left_out)
