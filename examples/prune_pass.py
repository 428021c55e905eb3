"""A pass of one's own in thirty lines: sets the smallest weights of every layer to zero before quantization.

mbqc compile examples/digits/model.py --passes 'examples/prune_pass.py:Prune{share=0.3},quant,bncorrect'
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from mbqc.ir.vocabulary import LAYERS, module_of
from mbqc.pipeline import Context, Pass, Property
from mbqc.properties import CANONICAL


@dataclass(frozen=True)
class Prune(Pass):
    """Sets the weights of smallest magnitude to zero, in every layer the same share."""

    share: float = 0.5

    name: ClassVar[str] = "prune"
    requires: ClassVar[tuple[Property, ...]] = (CANONICAL,)

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The same graph with sparser weights."""
        for layer in {module_of(node) for node in graph.graph.nodes}:
            if isinstance(layer, LAYERS):
                limit = layer.weight.abs().quantile(self.share)
                with torch.no_grad():
                    layer.weight.mul_(layer.weight.abs() > limit)
        context.report.add(self.name, "info", "", f"{self.share:.0%} of the weights of every layer are zero")
        return graph
