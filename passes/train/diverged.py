"""Where a training came apart: numbers that are not finite, parameters that went far."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer
from mbqc.ir.quantized import QUANT_LAYERS
from mbqc.widths import Widths

HINT = (
    "a lower rate or scale_rate, or clip=1; the last checkpoint, if there is one, is kept, but goes on with its own "
    "options only"
)


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


def parameter_norms(graph: fx.GraphModule) -> dict[str, float]:
    """The norms of layers' weights and quantizers' scales, by name."""
    found = {}
    for path, module in graph.named_modules():
        if isinstance(module, QUANT_LAYERS):
            found[f"{path}.weight"] = float(module.weight.detach().norm())
        elif isinstance(module, WeightQuantizer | ActivationQuantizer):
            found[f"{path}.scale"] = float(module.scale.detach().norm())
    return found


def changed_most(graph: fx.GraphModule, before: dict[str, float]) -> str:
    """Which weight or scale has grown or shrunk by the largest factor since `parameter_norms`, in words."""
    ratios = {name: now / before[name] for name, now in parameter_norms(graph).items() if now and before[name]}
    name = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    return f"{name} has changed most: its norm is {ratios[name]:.3g} times what it was"


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
