"""What a graph computes from its parameters, buffers and plain values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from mbqc.ir.types import TensorType
from mbqc.ir.vocabulary import module_of


def constants(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """The values of all nodes that no input of the graph reaches, for its tensors as they are now; they may be views.

    A node has a tensor, or a tuple of them. Nodes need types.
    """
    found: dict[fx.Node, Any] = {}
    runner = fx.Interpreter(graph)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "get_attr" or (_is_pure(node) and all(source in found for source in node.all_input_nodes)):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: found[source])
                found[node] = getattr(runner, node.op)(node.target, args, kwargs)
    return found


def _is_pure(node: fx.Node) -> bool:
    """Whether the node computes tensors, the same ones each time."""
    if node.op not in ("call_module", "call_function") or not isinstance(node.meta.get("type"), TensorType | tuple):
        return False
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    module = module_of(node)
    return not (isinstance(module, nn.Embedding) and module.max_norm is not None)  # it changes its table
