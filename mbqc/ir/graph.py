"""Questions about a graph, asked through networkx, and the one way to put a node in the place of another."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import networkx as nx
import torch
from torch import fx

from mbqc.ir.vocabulary import LAYERS, is_aten, is_module

INT_OPERATORS = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv})
"""Python functions that may compute a size from another one."""


def is_int(node: fx.Node) -> bool:
    """Whether the node computes a whole number (a size), not a tensor."""
    if node.op != "call_function":
        return False
    return is_aten(node, "sym_size.int") or (
        node.target in INT_OPERATORS and all(is_int(n) for n in node.all_input_nodes)
    )


def to_networkx(gm: fx.GraphModule) -> nx.DiGraph[fx.Node]:
    """The data flow of `gm`: its nodes in graph order, an edge from each node to each of its users."""
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    flow.add_nodes_from(gm.graph.nodes)
    flow.add_edges_from((node, user) for node in gm.graph.nodes for user in node.users)
    return flow


def first_layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Calls of LAYERS modules that no other such call comes before, in graph order."""
    flow = to_networkx(gm)
    return [n for n in _layers(gm) if not any(is_module(a, LAYERS) for a in nx.ancestors(flow, n))]


def last_layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Calls of LAYERS modules that no other such call comes after, in graph order."""
    flow = to_networkx(gm)
    return [n for n in _layers(gm) if not any(is_module(d, LAYERS) for d in nx.descendants(flow, n))]


def _layers(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if is_module(n, LAYERS)]


def replace_call(
    node: fx.Node,
    op: str,
    target: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Put a new call in the place of `node`: same users, same meta. Returns the new node."""
    with node.graph.inserting_before(node):
        new = node.graph.create_node(op, target, tuple(args), dict(kwargs or {}))
    new.meta = dict(node.meta)
    replace_value(node, new)
    return new


def replace_value(node: fx.Node, value: fx.Node | float) -> None:
    """Give every user of `node` the node or the number `value` instead, and erase `node`."""
    if isinstance(value, fx.Node):
        node.replace_all_uses_with(value)
    else:
        for user in list(node.users):
            user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)
    node.graph.erase_node(node)


def fresh_path(gm: fx.GraphModule, stem: str) -> str:
    """`stem`, or `stem_1`, `stem_2` ...: the first at which `gm` has no module or tensor."""
    parent, _, name = stem.rpartition(".")
    owner = gm.get_submodule(parent)
    numbered = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
    free = next(n for n in numbered if not hasattr(owner, n))
    return f"{parent}.{free}" if parent else free


def place(gm: fx.GraphModule, device: torch.device) -> None:
    """Moves `gm` to a device: parameters, their gradients, buffers, and what calls such as `aten.arange` make there."""
    gm.to(device)
    for node in gm.graph.nodes:
        node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
        node.kwargs = {k: device if isinstance(value, torch.device) else value for k, value in node.kwargs.items()}
    gm.recompile()


def get_tensor(gm: fx.GraphModule, target: str) -> torch.Tensor:
    """The parameter, buffer or constant that a `get_attr` node of `gm` reads."""
    path, _, name = target.rpartition(".")
    return cast(torch.Tensor, getattr(gm.get_submodule(path), name))
