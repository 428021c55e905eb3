"""The last step to the canonical form: nodes in one order under one naming, a module tree without leftovers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload

from mbqc.ir.aten import arguments, op_name, shortest
from mbqc.ir.graph import get_tensor, is_int
from mbqc.ir.vocabulary import is_aten


def lay_out(gm: fx.GraphModule) -> None:
    """Rebuild graph and module tree of `gm`, in place, from what its output needs.

    Inputs come first, `get_attr` and sizes right before their first user and once each; the rest keeps its order.
    Names follow from targets, in that order: `layer1_0_conv1`, `add`, `add_1`.
    """
    gm.graph = _Copy(gm).graph
    _rebuild_tree(gm)
    gm.recompile()


class _Copy:
    """A copy of the graph of `gm` in canonical order."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.shared: dict[tuple[Any, ...], fx.Node] = {}
        needed = _needed(gm.graph)
        inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
        for node in (
            *inputs,
            *(n for n in gm.graph.nodes if n in needed and not _is_late(n) and n not in inputs),
        ):
            self.copy(node)

    def copy(self, node: fx.Node) -> fx.Node:
        if node in self.copies:
            return self.copies[node]
        args, kwargs = node.args, node.kwargs
        if is_aten(node):
            assert isinstance(node.target, OpOverload)
            args, kwargs = shortest(node.target, arguments(node))
        args, kwargs = fx.node.map_arg((args, kwargs), self.copy)
        key = (node.op, node.target, repr(args))
        new = self.shared.get(key)
        if new is None:
            new = self.graph.create_node(node.op, node.target, args, kwargs, name=_name(node))
            new.meta = dict(node.meta)
        if _is_late(node):
            self.shared[key] = new
        self.copies[node] = new
        return new


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the output depends on."""
    needed: set[fx.Node] = {graph.output_node()}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _is_late(node: fx.Node) -> bool:
    """Whether a node stands right before its first user."""
    return node.op == "get_attr" or is_int(node)


def _name(node: fx.Node) -> str:
    if is_aten(node):
        return op_name(node).partition(".")[0]
    if callable(node.target):
        return str(node.target.__name__)
    return node.target.replace(".", "_")


def _rebuild_tree(gm: fx.GraphModule) -> None:
    """Give `gm` the modules and tensors that its graph names, and no others; all in eval mode."""
    calls = sorted({str(n.target) for n in gm.graph.nodes if n.op == "call_module"})
    reads = sorted({str(n.target) for n in gm.graph.nodes if n.op == "get_attr"})
    modules = {path: gm.get_submodule(path) for path in calls}
    tensors = {path: get_tensor(gm, path) for path in reads}
    for kept in (gm._modules, gm._parameters, gm._buffers):
        kept.clear()
    for path, module in modules.items():
        module._modules.clear()
        gm.add_submodule(path, module)
    for path, tensor in tensors.items():
        _set_tensor(gm, path, tensor)
    gm.eval()


def _set_tensor(gm: fx.GraphModule, target: str, tensor: Tensor) -> None:
    path, _, name = target.rpartition(".")
    if path and not _has_submodule(gm, path):
        gm.add_submodule(path, nn.Module())
    owner = gm.get_submodule(path)
    if getattr(owner, name, None) is tensor:
        return
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)


def _has_submodule(gm: fx.GraphModule, path: str) -> bool:
    return any(name == path for name, _ in gm.named_modules(remove_duplicate=False))
