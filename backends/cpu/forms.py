"""The weights of a Program in the forms that kernels read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mbqc.backends.cpu.geometry import LayerData, pack_layers
from mbqc.backends.cpu.native import Kernels
from mbqc.backends.cpu.packed import CostModel, PackedWeights
from mbqc.backends.cpu.popcount import BitWeights
from mbqc.program.operations import Program


@dataclass(frozen=True)
class WeightForms:
    """Every layer as stored, for all widths; and what single widths gain from, made when it is first needed.

    Attributes:
        layers: 8-bit panels of each layer operation, by the name of its output.
        bits: bit-planes, for layers that count ones.
        packed: copies of 4, 2 or 1 bits a weight, for linear layers of few rows.
    """

    layers: Mapping[str, LayerData]
    bits: BitWeights
    packed: PackedWeights

    @staticmethod
    def of(program: Program, kernels: Kernels, cost: CostModel) -> WeightForms:
        """The stored form of all layers."""
        layers = pack_layers(program)
        bits = BitWeights(program, kernels.popcount)
        return WeightForms(layers, bits, PackedWeights(kernels, layers, program.listing.ladder, cost))

    def tensors(self) -> dict[str, list[Tensor]]:
        """What is held, by form in words for a table."""
        stored = [t for data in self.layers.values() for t in vars(data).values() if isinstance(t, Tensor)]
        return {
            "weights for kernels": stored,
            "weights as bit-planes": list(self.bits.tensors()),
            "packed weights": self.packed.tensors(),
        }
