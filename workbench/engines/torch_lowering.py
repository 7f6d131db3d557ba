"""Put an exported PyTorch program into FP16 or BF16, as `module.half()` with autocast's care would.

An exported program has FP32 written into it, so converting its weights alone makes operators meet two types. Weights
are stored in the lower type; operators that insist on one type get casts where an input has another; what the module
computed in FP32 on purpose (norms, softmax in FP32) stays so. Knows nothing of engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Operators of torch.ops.aten whose tensors must all have one floating-point type.
_ONE_TYPE = (
    "linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "scaled_dot_product_attention", "batch_norm",
    "instance_norm", "layer_norm", "group_norm", "rms_norm", "embedding", "prelu", "lstm", "gru", "rnn_tanh", "rnn_relu",
)  # fmt: skip


def lower(module: torch.fx.GraphModule, dtype: torch.dtype) -> int:
    """Change a program's module in place; its inputs and outputs keep their types.

    Args:
        module: what `ExportedProgram.module(check_guards=False)` returns.
        dtype: `torch.float16` or `torch.bfloat16`.

    Returns:
        The number of casts that were put in.
    """
    import torch

    stored = _store_low(module, dtype)
    graph = module.graph
    casts: dict[tuple[torch.fx.Node, torch.dtype], torch.fx.Node] = {}

    def cast_inputs(node: torch.fx.Node, to: torch.dtype) -> None:
        for used in [item for item in node.all_input_nodes if _is_float32(item)]:
            if to == dtype and used.op == "get_attr" and used.target in stored:
                continue
            if (used, to) not in casts:
                with graph.inserting_before(node):
                    casts[used, to] = graph.call_function(torch.ops.aten.to.dtype, (used, to))
            node.replace_input_with(used, casts[used, to])

    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it insists on the type that was traced
        elif _name(node) in _ONE_TYPE:
            cast_inputs(node, dtype)
        elif node.op == "output":
            cast_inputs(node, torch.float32)
    needless = _drop_needless(module, list(casts.values()))
    graph.lint()
    module.recompile()
    return len(casts) - needless


def _drop_needless(module: torch.fx.GraphModule, casts: list[torch.fx.Node]) -> int:
    """Take out the casts of what has the type already; a call of each costs microseconds in eager mode.

    Types are found by running the changed graph on fake tensors: the graph's own notes are from before the change.
    """
    import torch
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    inputs = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    fake = next((value for value in inputs if isinstance(value, torch._subclasses.FakeTensor)), None)
    if fake is None:
        return 0
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), fake.device)
    with fake.fake_mode:
        there = [value.to(device) if isinstance(value, torch.Tensor) else value for value in inputs]
    FakeTensorProp(module, fake.fake_mode).propagate(*there)
    needless = [node for node in casts if node.args[0].meta["val"].dtype == node.meta["val"].dtype]  # type: ignore[union-attr]
    for node in needless:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        module.graph.erase_node(node)
    return len(needless)


def _store_low(module: torch.fx.GraphModule, dtype: torch.dtype) -> set[str]:
    """Convert all parameters, and the buffers that only one-type operators read (such as BatchNorm's statistics)."""
    import torch

    elsewhere = {
        str(node.target)
        for node in module.graph.nodes
        if node.op == "get_attr" and any(_name(user) not in _ONE_TYPE for user in node.users)
    }
    found = {name: tensor for name, tensor in module.named_buffers() if name not in elsewhere}
    found |= dict(module.named_parameters(remove_duplicate=False))
    low = {name: tensor for name, tensor in found.items() if tensor.dtype == torch.float32}
    made: dict[torch.Tensor, torch.Tensor] = {}  # tied weights stay tied
    for name, tensor in low.items():
        if tensor not in made:
            lowered = tensor.detach().to(dtype)
            is_weight = isinstance(tensor, torch.nn.Parameter)
            made[tensor] = torch.nn.Parameter(lowered, requires_grad=False) if is_weight else lowered
        # A new tensor in its place: torch.compile refuses one whose type was changed through `.data`.
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, made[tensor])
    return set(low)


def _name(node: torch.fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", "")) if getattr(node.target, "namespace", "") == "aten" else ""


def _is_float32(node: torch.fx.Node) -> bool:
    import torch

    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
