"""`convert`: from a PyTorch module to a callable with the module's signature, in one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import engines
from workbench.datasets import Split
from workbench.engines import jobs
from workbench.engines.base import Runner
from workbench.errors import CalibrationError, RunError, nearest
from workbench.loading import load
from workbench.recipes import Recipe, named
from workbench.records import BuildOptions, Engine, Model, Variant
from workbench.store import Store
from workbench.transformation import calibrate, transform

if TYPE_CHECKING:
    import torch

# What people call a precision, and the recipe that it stands for.
PRECISIONS = {"fp32": "fp32", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8-kl", "fp8": "fp8"}


def convert(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
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
        example_inputs: one tensor for each argument of `forward`; the first axis of each becomes dynamic.
        precision: `fp32`, `tf32`, `fp16`, `bf16`, `int8`, `fp8`, the name of a recipe, or a Recipe.
        calibration: samples for static quantization, never the ones it is judged on: an array or tensor (samples on
            axis 0), a dict of them by input name, a Split, or a sequence of batches.
        backend: a name from `workbench.backends()`, or `auto` for the fastest that is here.
        store: None takes the default store.

    Returns:
        A callable that takes and returns tensors as the module does. It holds an open engine: `close()` it, or use it
        in a `with` block.

    Raises:
        ExportError: the module cannot be exported.
        CalibrationError: the precision needs calibration samples and none were given.
        BackendMissing, TransformError, BuildError: see `transform` and `build`.
    """
    store = store or Store()
    recipe = named(PRECISIONS.get(precision, precision) if isinstance(precision, str) else precision)
    model = load(module, list(example_inputs), store=store)
    name, _ = engines.choose(backend)
    dialect = engines.backend(name).dialect(name)
    table = None
    if recipe.needs_calibration:
        table = calibrate(model, _calibration_split(calibration, model, recipe), recipe, dialect=dialect)
    variant = transform(model, recipe, dialect=dialect, table=table, store=store)
    engine = jobs.build(variant, name, options, store=store)
    return Converted(model, variant, engine, inspect.signature(module.forward))


class Converted:
    """An open engine that is called like the module it was made from. Not for two threads at once.

    Attributes:
        model, variant, engine: the records of what was done to get here, notes and skipped layers included.
    """

    def __init__(self, model: Model, variant: Variant, engine: Engine, signature: inspect.Signature) -> None:
        self.model = model
        self.variant = variant
        self.engine = engine
        self._signature = signature
        self._runner: Runner | None = engines.open_runner(engine).__enter__()

    def __call__(self, *arguments: Any, **named_arguments: Any) -> Any:
        """Run the engine; takes what the module's `forward` takes.

        Where the engine runs on the GPU and all arguments are CUDA tensors, they stay there: nothing is copied to the
        host, and the outputs are ready for what is put on the current stream next.

        Returns:
            One tensor, or a tuple of them in the order of the module's outputs, on the device of the arguments.

        Raises:
            RunError: closed, or arguments do not fit the engine.
        """
        import torch

        if self._runner is None:
            raise RunError("This converted module was closed. Call workbench.convert again.")
        bound = self._signature.bind(*arguments, **named_arguments).arguments
        wanted = [spec.name for spec in self._runner.inputs]
        given = {name: bound[name] for name in wanted if name in bound}
        if len(given) != len(wanted):
            # Exporters may rename arguments; the order is theirs as well as ours.
            given = dict(zip(wanted, bound.values(), strict=False))
        if hasattr(self._runner, "infer_device") and given and all(_is_on_gpu(value) for value in given.values()):
            outputs = _infer_on_gpu(self._runner, given)
        else:
            tensors = (value for value in bound.values() if isinstance(value, torch.Tensor))
            device = next((tensor.device for tensor in tensors), torch.device("cpu"))
            results = self._runner.infer({name: _array(value) for name, value in given.items()})
            outputs = tuple(torch.from_numpy(value).to(device) for value in results.values())
        return outputs[0] if len(outputs) == 1 else outputs

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
    return tuple(torch.from_dlpack(value).to(wanted[name]) for name, value in outputs.items())


def _checked(runner: Any, given: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Refuse what the host path refuses: a type that is not the model's."""
    for spec in runner.inputs:
        found = str(given[spec.name].dtype).removeprefix("torch.") if spec.name in given else "nothing"
        if found != spec.dtype:
            raise RunError(f"The input {spec.name!r} is {found}, the model wants {spec.dtype}. Convert it with .to().")
    return given


def _array(value: Any) -> np.ndarray:
    return np.ascontiguousarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _calibration_split(calibration: Any, model: Model, recipe: Recipe) -> Split:
    if calibration is None:
        raise CalibrationError(
            f"The recipe {recipe.name!r} needs calibration samples. Pass calibration=<array or batches of real inputs>, "
            f"a few hundred samples that you do not judge the result on."
        )
    if isinstance(calibration, Split):
        return calibration
    names = [spec.name for spec in model.inputs]
    if isinstance(calibration, Mapping):
        unknown = set(calibration) - set(names)
        if unknown:
            raise CalibrationError(f"Calibration data name the input {min(unknown)!r}. {nearest(min(unknown), names)}")
        return Split({name: _array(value) for name, value in calibration.items()}, None)
    if hasattr(calibration, "shape"):
        return Split({names[0]: _array(calibration)}, None)
    batches = [batch if isinstance(batch, (tuple, list)) else (batch,) for batch in calibration]
    if not batches:
        raise CalibrationError("Calibration needs at least one batch, got 0. Pass batches of real inputs.")
    columns = [np.concatenate([_array(batch[place]) for batch in batches]) for place in range(len(names))]
    return Split(dict(zip(names, columns, strict=True)), None)
