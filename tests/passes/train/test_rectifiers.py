"""The form of a graph for training computes and learns the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbqc.frontend.trace import trace
from mbqc.ir.quantized import quantized_layers
from mbqc.lookup import find_pass
from mbqc.passes.train.rectifiers import fuse_rectifiers
from mbqc.pipeline import Context, Pipeline
from mbqc.widths import FLOAT, resolve


class Block(nn.Module):
    """A ReLU that a quantizer alone reads, and one that is also an output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.inner, self.outer = nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norm(self.first(x)))
        return self.outer(self.second(y))


def test_outputs_and_gradients_are_equal_bit_for_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    context = Context((x[:1],), calibration=[x])
    graph = Pipeline.parse("normalize,quant,bncorrect", find_pass).run(trace(Block().eval(), (x[:1],)), context)
    graph.eval()
    fused = fuse_rectifiers(graph)
    targets = [str(node.target) for node in fused.graph.nodes]
    assert "inner" not in targets
    assert "outer" in targets
    assert "inner" in [str(node.target) for node in graph.graph.nodes]  # the graph itself stays as it was
    for widths in (FLOAT, *(resolve(bits, quantized_layers(graph)) for bits in (8, 3))):
        results = []
        for each in (graph, fused):
            graph.zero_grad()
            output = each(x, widths)
            output.square().sum().backward()
            gradients = {name: p.grad for name, p in graph.named_parameters() if p.grad is not None}
            results.append((output, gradients))
        (output, gradients), (found, shared) = results
        assert torch.equal(found, output)
        assert gradients
        assert gradients.keys() == shared.keys()
        assert all(torch.equal(gradients[name], shared[name]) for name in gradients)
