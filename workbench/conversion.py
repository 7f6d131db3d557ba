"""`convert`: from a PyTorch module to a callable with the module's signature, in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import datasets, engines
from workbench.datasets import Dataset, Split
from workbench.engines import jobs
from workbench.engines.base import Runner
from workbench.errors import CalibrationError, DataError, LoadError, RunError
from workbench.machine.store import Store
from workbench.models import eager_outputs, load, signature
from workbench.recipes import Recipe, named
from workbench.records import BuildOptions, Engine, Model, Variant
from workbench.transformation.steps import transform
from workbench.tuning.calibrating import calibrate

if TYPE_CHECKING:
    import torch

# What people call a precision, and the recipe that it stands for.
PRECISIONS = {"fp32": "fp32", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8-kl", "fp8": "fp8"}


def convert(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor | None] | Mapping[str, torch.Tensor],
    precision: str | Recipe = "fp32",
    *,
    calibration: Any = None,
    backend: str = "auto",
    options: BuildOptions | None = None,
    store: Store | None = None,
) -> Converted:
    """Turn a module into a fast callable with the module's own signature.

    Args:
        module: in evaluation mode or not; it is left as it was.
        example_inputs: a tensor, a list in the order of `forward`'s arguments, or a dict by their names; the first axis
            of each becomes dynamic. An argument that is not among them keeps its default for good.
        precision: `fp32`, `tf32`, `fp16`, `bf16`, `int8`, `fp8`, the name of a recipe, or a Recipe.
        calibration: samples for static quantization, never the ones it is judged on: an array or tensor (samples on
            axis 0), a dict of them by input name, a DataLoader or other iterable of batches (labels behind the inputs
            are left alone; the first 1024 samples are taken, since an iterable need not end), a Split, or a Dataset, of
            which the calibration samples are taken.
        backend: a name from `workbench.backends()`, or `auto` for the fastest that is here.
        options: how the engine is built; None takes one CPU thread and the engine's own choices.
        store: None takes the default store.

    Returns:
        A callable that takes and returns tensors as the module does. It holds an open engine: `close()` it, or use it
        in a `with` block.

    Raises:
        LoadError: it is no module.
        ExportError: the module cannot be exported.
        RecipeError: there is no such precision or recipe.
        CalibrationError: the precision needs calibration samples; none were given, or they do not fit the module.
        BackendMissing, TransformError, BuildError: see `transform` and `build`.
    """
    if not callable(getattr(module, "forward", None)):
        raise LoadError(
            f"convert takes a torch.nn.Module, got a {type(module).__name__}. For other models use load, then run or build."
        )
    store = store or Store()
    recipe = named(PRECISIONS.get(precision, precision) if isinstance(precision, str) else precision)
    model = load(module, example_inputs, store=store)
    name, _ = engines.choose(backend)
    dialect = engines.backend(name).dialect(name)
    table = None
    if recipe.needs_calibration or (recipe.uses_samples and calibration is not None):
        samples, notes = _calibration_split(calibration, model, recipe)
        model = replace(model, origin=replace(model.origin, notes=(*model.origin.notes, *notes)))
        table = calibrate(model, samples, recipe, dialect=dialect)
    variant = transform(model, recipe, dialect=dialect, table=table, store=store)
    engine = jobs.build(variant, name, options, store=store)
    return Converted(model, variant, engine, _Form(module, example_inputs))


class _Form:
    """What a module takes and returns: arguments to tensors by name, and tensors back into what it returned."""

    def __init__(self, module: torch.nn.Module, example_inputs: Any) -> None:
        from torch.utils import _pytree

        self._signature = inspect.signature(module.forward)
        tensors = signature.bind(module, example_inputs).tensors
        self._known = set(tensors)
        # The engine is that of a float32 copy where the module is in bfloat16; its caller need not know.
        self._widened = {name for name, tensor in tensors.items() if _is_bfloat16(tensor)}
        returned: list[Any] = []
        hook = module.register_forward_hook(lambda module, arguments, outputs: returned.append(outputs))
        try:
            eager_outputs(module, example_inputs)
        finally:
            hook.remove()
        leaves, self._structure = _pytree.tree_flatten(returned[-1])
        self._present = [leaf is not None for leaf in leaves]
        self._narrowed = [_is_bfloat16(leaf) for leaf in leaves]
        self._join: Callable[[list[Any], Any], Any] = _pytree.tree_unflatten

    def named(self, arguments: tuple[Any, ...], named_arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by the names of the model's inputs; None and defaults are left out.

        Raises:
            TypeError: they do not fit `forward`.
            RunError: one that was not among the example inputs, so that the engine cannot follow it.
        """
        found: dict[str, Any] = {}
        for name, value in self._signature.bind(*arguments, **named_arguments).arguments.items():
            parameter = self._signature.parameters[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                found |= {f"{name}_{place}": item for place, item in enumerate(value)}
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                found |= value
            elif name in self._known or not _is_same(value, parameter.default):
                found[name] = value
        found = {name: value for name, value in found.items() if value is not None}
        found |= {name: found[name].float() for name in self._widened & set(found) if _is_bfloat16(found[name])}
        if fixed := [name for name in found if name not in self._known]:
            raise RunError(
                f"The engine cannot follow the argument {fixed[0]!r}: it was not among the example inputs "
                f"({', '.join(sorted(self._known))}), so its default was written into the graph. Leave it out, or convert "
                f"again with a tensor for it in example_inputs."
            )
        return found

    def returned(self, outputs: Sequence[Any]) -> Any:
        """Put the engine's outputs into the tuple, dict or other form that the module returns."""
        rest = iter(outputs)
        leaves = [next(rest) if present else None for present in self._present]
        pairs = zip(leaves, self._narrowed, strict=True)
        leaves = [leaf.bfloat16() if narrow and leaf is not None else leaf for leaf, narrow in pairs]
        return self._join(leaves, self._structure)


def _is_bfloat16(value: Any) -> bool:
    return "bfloat16" in str(getattr(value, "dtype", ""))


def _is_same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (bool, int, float, str)) and value == default)


class Converted:
    """An open engine that is called like the module it was made from. Not for two threads at once.

    Attributes:
        model, variant, engine: the records of what was done to get here, notes and skipped layers included.
    """

    def __init__(self, model: Model, variant: Variant, engine: Engine, form: _Form) -> None:
        self.model = model
        self.variant = variant
        self.engine = engine
        self._form = form
        self._runner: Runner | None = engines.open_runner(engine).__enter__()

    def __call__(self, *arguments: Any, **named_arguments: Any) -> Any:
        """Run the engine; takes what the module's `forward` takes.

        Where the engine runs on the GPU and all arguments are CUDA tensors, they stay there: nothing is copied to the
        host, and the outputs are ready for what is put on the current stream next.

        Returns:
            What the module returns: a tensor, or a tuple, dict or nest of them; on the device of the arguments.

        Raises:
            TypeError: arguments that `forward` does not have, or one too few, as the module itself would.
            RunError: closed, or arguments do not fit the engine.
        """
        import torch

        if self._runner is None:
            raise RunError("This converted module was closed. Call workbench.convert again.")
        bound = self._form.named(arguments, named_arguments)
        # What the exporter found to be unused is no input of the engine.
        given = {spec.name: bound[spec.name] for spec in self._runner.inputs if spec.name in bound}
        if hasattr(self._runner, "infer_device") and given and all(_is_on_gpu(value) for value in given.values()):
            return self._form.returned(_infer_on_gpu(self._runner, given))
        tensors = (value for value in bound.values() if isinstance(value, torch.Tensor))
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        results = self._runner.infer({name: _array(name, value) for name, value in given.items()})
        return self._form.returned([torch.from_numpy(value).to(device) for value in results.values()])

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        if self._runner is not None:
            self._runner.__exit__(None, None, None)
            self._runner = None

    def __enter__(self) -> Converted:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Converted({self.model.name!r}, {self.variant.name!r}, backend={self.engine.backend!r})"


def _is_on_gpu(value: Any) -> bool:
    return bool(getattr(value, "is_cuda", False))


def _current_stream(tensor: torch.Tensor) -> int:
    import torch

    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _infer_on_gpu(runner: Any, given: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Run on tensors that lie on the GPU, in the engine's types, and return tensors in the model's types."""
    import torch

    feeds = {
        name: tensor.detach().to(getattr(torch, runner.device_dtypes[name])).contiguous()
        for name, tensor in _checked(runner, given).items()
    }
    outputs = runner.infer_device(feeds, stream=_current_stream(next(iter(feeds.values()))))
    wanted = {spec.name: getattr(torch, spec.dtype) for spec in runner.outputs}
    return tuple(value.to(wanted[name]) for name, value in outputs.items())


def _checked(runner: Any, given: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Refuse what the host path refuses: a type that is not the model's."""
    for spec in runner.inputs:
        found = str(given[spec.name].dtype).removeprefix("torch.") if spec.name in given else "nothing"
        if found != spec.dtype:
            raise RunError(f"The input {spec.name!r} is {found}, the model wants {spec.dtype}. Convert it with .to().")
    return given


def _array(name: str, value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.ascontiguousarray(value)
    if _is_bfloat16(value):
        raise RunError(f"Argument {name!r} is bfloat16, which engines are not fed with. Pass {name}.float().")
    return np.ascontiguousarray(value.detach().cpu().numpy())


def _calibration_split(calibration: Any, model: Model, recipe: Recipe) -> tuple[Split, tuple[str, ...]]:
    if calibration is None:
        raise CalibrationError(
            f"The recipe {recipe.name!r} needs calibration samples. Pass calibration=<array or batches of real inputs>, "
            f"a few hundred samples that you do not judge the result on."
        )
    try:
        samples, notes = _samples(calibration, model)
        return Dataset("calibration", "user", samples).bound_to(model).evaluation, notes
    except DataError as error:
        raise CalibrationError(f"The calibration samples cannot be used: {error}") from error


def _samples(calibration: Any, model: Model) -> tuple[Split, tuple[str, ...]]:
    if isinstance(calibration, Split):
        return calibration, ()
    if isinstance(calibration, Dataset):
        if calibration.calibration is None:
            raise DataError(
                f"The data {calibration.name!r} have no calibration samples. Take some with split_off(...)."
            )
        return calibration.calibration, ()
    if isinstance(calibration, Mapping) or hasattr(calibration, "shape"):
        return datasets.arrays(calibration, metric=None).evaluation, ()
    indexed = hasattr(calibration, "__getitem__") and hasattr(calibration, "__len__")
    if isinstance(calibration, str) or not (indexed or isinstance(calibration, Iterable)):
        raise DataError(
            f"They are a {type(calibration).__name__}. Pass an array, a dict of arrays, or batches of them."
        )
    names = [spec.name for spec in model.inputs]
    taken = datasets.loader(calibration, inputs=names, metric=None, name="calibration")
    return taken.evaluation, tuple(f"Calibration: {note}" for note in taken.notes)
