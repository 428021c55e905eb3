"""Dropout: a graph is traced in eval mode, in which it does nothing, and no training of the graph brings it back."""

from __future__ import annotations

from torch import fx, nn

from mbqc.frontend.symbolic import DROPOUTS
from mbqc.ir.aten import arguments, op_name
from mbqc.ir.shapes import place
from mbqc.ir.vocabulary import is_aten


def dropouts(model: nn.Module, graph: fx.GraphModule) -> dict[str, float]:
    """Where a model drops values in its own training, and with which probability.

    Args:
        model: what was traced.
        graph: as `trace` gives it.

    Returns:
        Probabilities, none 0, by path of the module, or by place in the code where a function drops.
    """
    found = {}
    for node in graph.graph.nodes:
        path = node.meta["scope"][0] if "scope" in node.meta else ""
        owner = model.get_submodule(path)
        if isinstance(owner, DROPOUTS):
            found[path] = owner.p
        elif isinstance(owner, nn.MultiheadAttention):
            found[path] = owner.dropout
        elif is_aten(node) and "dropout" in op_name(node):
            found[place(node)] = float(arguments(node)["p"])
    return {name: share for name, share in found.items() if share > 0}
