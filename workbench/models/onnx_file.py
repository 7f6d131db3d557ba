"""Read an ONNX file that may be damaged or hostile, check it, and describe it as a Model.

Weights in files beside it are looked for, kept inside the folder, and never loaded here. Knows nothing of PyTorch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from workbench.engines.limits import axes, parsed
from workbench.errors import LoadError
from workbench.graph.contents import parameters, stored_as
from workbench.graph.editing import graphs
from workbench.graph.quantized_by import quantized_by
from workbench.models import naming, onnx_sanity
from workbench.models.place import Place
from workbench.records import Model, Origin, TensorSpec

LARGEST_PROTOBUF_BYTES = (2 << 30) - 1
_HASH_CHUNK_BYTES = 1 << 20
# Content hash of a model -> file -> (bytes, nanoseconds of its last change) when it was last found to be that content.
_looked_at: dict[str, dict[Path, tuple[int, int]]] = {}
_LIMITS_KEY = "size_limits"
_LONGEST_LIMITS = 10_000


def read(path: Path, *, name: str | None = None, origin: Origin | None = None, place: Place | None = None) -> Model:
    """Check an ONNX file and describe it.

    Args:
        name: of the model; None takes the file's.
        origin: None means an ONNX file of the user's.
        place: where a copy goes when nodes must be renamed; the file itself is never changed.

    Raises:
        LoadError: no file, no ONNX, truncated, invalid, external data missing or outside the folder, inputs that are
            no tensors.
    """
    file = path.expanduser().absolute()
    proto = parse(file)
    onnx_sanity.refuse_nonsense(proto, file)
    external = external_files(proto, file)
    mended = ["Nodes were out of order and were sorted."] if onnx_sanity.sort(proto) else []
    mended += _fill_output_shapes(proto, file)
    if mended:
        onnx.load_external_data_for_model(proto, str(file.parent))
    # The path where it says the same: it is no limit for large weights.
    _check(proto, file, proto if mended else str(file))
    notes = mended
    if renamed := naming.make_unique(proto):
        notes.append(f"{renamed} nodes without a name of their own were given one.")
    if notes:
        file = _keep_copy(proto, file, name or file.stem, place or Place())
        external = external_files(onnx.load(str(file), load_external_data=False), file)
        notes.append("These changes were made in a copy of the file.")
    origin = origin or Origin("onnx", path.name)
    origin_tool, stored = quantized_by(proto), stored_as(proto)
    origin = replace(origin, notes=(*origin.notes, *notes, *_lowered_before(stored, origin_tool)))
    return Model(
        name=name or path.stem,
        path=str(file),
        sha256=_content([file, *external]),
        size_bytes=sum(item.stat().st_size for item in (file, *external)),
        opset=opset(proto),
        inputs=_limited(tuple(_spec(value, file) for value in inputs(proto)), _limits(proto, file)),
        outputs=tuple(_spec(value, file) for value in proto.graph.output),
        origin=origin,
        parameters=parameters(proto),
        operators=dict(Counter(node.op_type for graph in graphs(proto.graph) for node in graph.node)),
        modules=naming.modules(proto),
        quantized_by=origin_tool,
        stored_as=stored,
    )


def refuse_changed(model: Model) -> None:
    """Refuse a model whose file, or what lies beside it, is no longer what was loaded: its results would be another's.

    Files with the size and time of change that they had at the last look are not read again.

    Raises:
        LoadError: the file is gone, or holds something else.
    """
    seen = _looked_at.get(model.sha256)
    if seen is not None and Path(model.path) in seen and seen == _states(seen):
        return
    file = Path(model.path)
    with contextlib.suppress(LoadError, OSError):
        if _content([file, *external_files(parse(file), file)]) == model.sha256:
            return
    raise LoadError(
        f"The file of the model {model.name!r} ({file}) is gone, or was changed since it was loaded. Load it again, and run "
        "its studies again; a study that came from another machine has no model here."
    )


def reread(model: Model) -> onnx.ModelProto:
    """Return the graph of a loaded model, with its weights, from its file.

    Raises:
        LoadError: as `refuse_changed`.
    """
    refuse_changed(model)
    proto = parse(Path(model.path))
    onnx.load_external_data_for_model(proto, str(Path(model.path).parent))
    return proto


def _content(files: Sequence[Path]) -> str:
    """Return the hash of a model's files, and remember that they had it."""
    states = _states(files)  # before they are read: what is changed meanwhile is looked at again
    found = _sha256(files)
    _looked_at[found] = states
    return found


def _states(files: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """File -> (bytes, nanoseconds of its last change), without those that are gone."""
    found = {}
    for file in files:
        with contextlib.suppress(OSError):
            state = file.stat()
            found[file] = (state.st_size, state.st_mtime_ns)
    return found


def parse(file: Path) -> onnx.ModelProto:
    """Return the message in a file, external data left where they are.

    Raises:
        LoadError: no file, empty, too large for ONNX, or not ONNX.
    """
    if not file.is_file():
        raise LoadError(f"There is no file {file}. Check the path.")
    size = file.stat().st_size
    if not 0 < size <= LARGEST_PROTOBUF_BYTES:
        raise LoadError(
            f"{file} has {size} bytes; an ONNX file has between 1 and {LARGEST_PROTOBUF_BYTES}, larger weights lie "
            "beside it as external data. Copy or export it again."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise LoadError(f"Cannot read {file}: {error.strerror}. Check its permissions.") from error
    if content.startswith(b"version https://git-lfs"):
        raise LoadError(f"{file} is a Git LFS pointer, not the model itself. Run: git lfs pull")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise LoadError(
            f"{file} ({size} bytes) is not ONNX, or is truncated: {error}. Compare its size with the original, then "
            "copy or export it again."
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise LoadError(
            f"{file} ({size} bytes) holds no ONNX graph: no nodes, or no opset. It is another kind of file, or truncated."
        )
    return proto


def inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph inputs that must be fed: old files list their weights among the inputs too."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def external_files(proto: onnx.ModelProto, file: Path) -> list[Path]:
    """Return the files that tensors refer to, each inside the model's folder and large enough."""
    folder = file.parent.resolve()
    found: dict[str, Path] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder) or target == folder:
            raise LoadError(
                f"{file} asks for weights at {location!r} (tensor {tensor.name!r}), outside its folder {folder}. Such a "
                "file is not opened. Put model and weights into one folder and save the model again."
            )
        if not target.is_file():
            raise LoadError(
                f"{file} needs the weights file {location!r} (tensor {tensor.name!r}), which is not in {folder}. Copy it "
                "there, beside the model."
            )
        _check_range(tensor, entries, target)
        found[location] = target
    return [found[location] for location in sorted(found)]


def _check_range(tensor: onnx.TensorProto, entries: dict[str, str], target: Path) -> None:
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError as error:
        raise LoadError(
            f"Tensor {tensor.name!r} has no readable place in {target.name}: {error}. Save it again."
        ) from error
    size = target.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise LoadError(
            f"{target} has {size} bytes, tensor {tensor.name!r} asks for {length} from {offset}. The file is truncated, "
            "or belongs to another model. Copy it again."
        )


def _check(proto: onnx.ModelProto, file: Path, subject: onnx.ModelProto | str) -> None:
    try:
        onnx.checker.check_model(subject)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(
            f"{file} is no valid ONNX model (opset {opset(proto)}, IR {proto.ir_version}, written by "
            f"{proto.producer_name or 'unknown'}): {reason}. Export it again, or update onnx (here {onnx.__version__})."
        ) from error
    fed = inputs(proto)
    if not fed or not proto.graph.output:
        raise LoadError(f"{file} has {len(fed)} inputs and {len(proto.graph.output)} outputs; both are needed.")


def _fill_output_shapes(proto: onnx.ModelProto, file: Path) -> list[str]:
    """Infer shapes where an output states none, as some exporters leave it; return a note for each."""
    unknown = [value for value in proto.graph.output if _lacks_shape(value)]
    if unknown:
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.output}
        for value in unknown:
            value.CopyFrom(inferred[value.name])
    for what, values in (("input", inputs(proto)), ("output", proto.graph.output)):
        for value in values:
            if _lacks_shape(value):
                raise LoadError(
                    f"{file}: {what} {value.name!r} states no number of axes, and none follows from the graph. Export it "
                    "again with its shape."
                )
    return [f"The shape of output {value.name!r} was not stated and was inferred." for value in unknown]


def _lacks_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def _keep_copy(proto: onnx.ModelProto, file: Path, name: str, place: Place) -> Path:
    onnx.load_external_data_for_model(proto, str(file.parent))
    return place.keep(proto, name)


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of the default operator set that the model imports, 0 where none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _spec(value: onnx.ValueInfoProto, file: Path) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise LoadError(
            f"{file}: {value.name!r} is a {kind or 'value without a type'}; only tensors can be fed and read."
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise LoadError(
            f"{file}: {value.name!r} has no element type, and none follows from the graph. Export it again."
        )
    return TensorSpec(value.name, _dtype_name(tensor.elem_type), tuple(_length(dim) for dim in tensor.shape.dim))


def write_limits(proto: onnx.ModelProto, limits: Sequence[str]) -> None:
    """Write into a file's metadata the conditions on sizes under which it is what was exported."""
    kept = [entry for entry in proto.metadata_props if entry.key != _LIMITS_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=_LIMITS_KEY, value=json.dumps(list(limits)))


def _limits(proto: onnx.ModelProto, file: Path) -> list[str]:
    text = next((entry.value for entry in proto.metadata_props if entry.key == _LIMITS_KEY), "[]")
    try:
        found = json.loads(text) if len(text) <= _LONGEST_LIMITS else None
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise ValueError("not a list of texts")
        for item in found:
            parsed(item)
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"{file}: its metadata {_LIMITS_KEY!r} cannot be read ({error}). Export the model again."
        ) from error
    return found


def _limited(specs: tuple[TensorSpec, ...], limits: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Give each limit to the first input that it speaks of."""
    first = {
        text: min((spec.name for spec in specs if spec.name in dict(axes(parsed(text)))), default="") for text in limits
    }
    return tuple(replace(spec, limits=tuple(text for text in limits if first[text] == spec.name)) for spec in specs)


def _length(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    # torch's dynamo exporter writes an axis that it had to fix to 4 as one with the name "4".
    if dim.dim_param.isdecimal() and len(dim.dim_param) < 19:
        return int(dim.dim_param)
    # -1 is how some exporters write a dynamic axis.
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _dtype_name(element: int) -> str:
    if element == onnx.TensorProto.STRING:
        return "str"
    return str(helper.tensor_dtype_to_np_dtype(element).name)


def _lowered_before(stored: str, tool: str | None) -> tuple[str, ...]:
    """Say that a file is no FP32 model, so that nobody takes it for one."""
    if tool is not None:
        return (
            f"The file was quantized before it was loaded (by {tool}; most parameters are {stored}). Run as it is, its row "
            f"is what others are compared with, and no FP32 model.",
        )
    if stored != "fp32":
        return (
            f"The file is {stored.upper()} already: most of its parameters are stored so. The recipe 'fp32' runs it as it "
            f"is and does not make it FP32; load the FP32 model to compare with that.",
        )
    return ()


def _sha256(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                whole.update(chunk)
    return whole.hexdigest()
