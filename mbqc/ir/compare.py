"""How far a quantized graph is from the float model inside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mbqc.ir.quantized import layer_nodes, quantized_layers
from mbqc.widths import FLOAT, Widths, resolve


def sqnr(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise ratio in decibels, infinite where the two are equal."""
    exact, found = reference.detach().double(), other.detach().double()
    noise, signal = float((exact - found).square().sum()), float(exact.square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def layer_sqnr(graph: fx.GraphModule, inputs: Sequence[Tensor], bits: Iterable[int]) -> dict[str, dict[int, float]]:
    """SQNR of each layer's output on `inputs`, with all layers at one width, for every width in `bits`.

    Errors of the layers before it are part of a layer's error, as they are when the model runs.
    """
    layers = quantized_layers(graph)
    exact = _layer_outputs(graph, inputs, FLOAT)
    result: dict[str, dict[int, float]] = {layer: {} for layer in layers}
    for width in bits:
        found = _layer_outputs(graph, inputs, resolve(width, layers))
        for layer, values in found.items():
            result[layer][width] = sqnr(exact[layer], values)
    return result


def _layer_outputs(graph: fx.GraphModule, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(*inputs, widths)
    return recorder.outputs


class _Recorder(fx.Interpreter):
    """Keeps the output of each layer; of a shared layer, its last one."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._layers = {node: str(node.target) for node in layer_nodes(graph)}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._layers:
            self.outputs[self._layers[n]] = value
        return value
