"""Where numbers stopped being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from mbqc.widths import Widths


def first_not_finite(graph: fx.GraphModule, inputs: tuple[Tensor, ...], widths: Widths) -> str:
    """The first parameter, node or gradient that holds NaN or infinity, in words; empty where there is none.

    The batch runs once more, in the mode that the graph is in.
    """
    for name, parameter in graph.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            return f"{name} holds NaN or infinity"
    search = _Search(graph)
    with torch.no_grad():
        search.run(*inputs, widths)
    if search.found is not None:
        return f"the output of {search.found.target} ({search.found.name}) is the first that holds NaN or infinity"
    for name, parameter in graph.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name} is the first that holds NaN or infinity"
    return ""


class _Search(fx.Interpreter):
    """Runs a graph and keeps the first node with a value that is not finite."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.found is None and isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            self.found = n
        return value
