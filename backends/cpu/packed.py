"""Copies of linear layers' weights at one low width, for calls of few rows: these wait for weights from memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.geometry import LayerData
from mbqc.backends.cpu.native import Kernels
from mbqc.backends.cpu.pages import weight_memory
from mbqc.numerics import Ladder

FIELDS = {1: 1, 2: 2, 3: 4, 4: 4}
"""Bits that a code of each width takes when packed; wider ones stay as stored."""


@dataclass(frozen=True)
class CostModel:
    """When a packed copy pays.

    Attributes:
        smallest: bytes of stored weights. With a row at 4 bits 256 KB gain 1.1x (the second cache is as fast as the
            kernel), 1 MB 2.2x.
        cache: bytes of stored weights that the last cache keeps from call to call.
        rows_in_cache: the most rows of a layer that fits there. At 4096 x 4096, 4 bits gain 2.2x with one row, 1.3x
            with 4, nothing with 5, and lose with 8, which wait for the multiplier.
        rows_beyond: the most rows of others. At 8192 x 8192, 4 bits gain 1.9x with one row and 1.2x with 8.
    """

    smallest: int = 1 << 18
    cache: int = 1 << 25
    rows_in_cache: int = 4
    rows_beyond: int = abi.MAX_PACKED_ROWS

    def pays(self, stored_bytes: int, rows: int) -> bool:
        """Whether a layer of so many bytes should run on a packed copy."""
        most = self.rows_in_cache if stored_bytes <= self.cache else self.rows_beyond
        return stored_bytes >= self.smallest and rows <= most


DEFAULT_COST = CostModel()
"""Measured on a Zen 5 core with a second cache of 1 MB and a last one of 32 MB."""


@dataclass(frozen=True)
class Packed:
    """A copy of a layer's weights.

    Attributes:
        codes: bytes of `8 / field` codes.
        field: bits of a code.
    """

    codes: Tensor
    field: int


def packed_name(isa: str, field: int) -> str:
    """The name of a kernel for packed weights."""
    return f"{isa} packed{field}"


class PackedWeights:
    """The copies of a Program's layers: each made when it is first asked for, then kept.

    No lock, for which a process forked meanwhile would wait for ever: two threads may make the same copy, one is kept.
    """

    def __init__(self, kernels: Kernels, layers: Mapping[str, LayerData], ladder: Ladder, cost: CostModel) -> None:
        self._kernels = kernels
        self._layers = layers
        self._ladder = ladder
        self._cost = cost
        self._copies: dict[tuple[str, int], Packed] = {}

        chosen = [self._paying(batch) for batch in range(abi.MAX_PACKED_ROWS + 2)]
        self._batches = [chosen.index(outputs) for outputs in chosen]

    def batch_of_plan(self, batch: int) -> int:
        """The smallest batch size for which the same layers would be packed, so that they share a plan."""
        return self._batches[min(batch, len(self._batches) - 1)]

    def _paying(self, batch: int) -> set[str]:
        return {output for output in self._layers if self._pays(output, batch)}

    def _pays(self, output: str, batch: int) -> bool:
        """Whether a copy of a layer operation's weights, at a width that has one, pays for `batch` samples."""
        layer = self._layers[output]
        if not layer.geometry.linear or layer.positions is not None:
            return False  # where there are positions, codes may be shifted
        pixels = layer.geometry.out_width
        return self._cost.pays(layer.weights.numel(), pixels if pixels > 0 else -pixels * batch)

    def tensors(self) -> list[Tensor]:
        """All copies."""
        return [packed.codes for packed in list(self._copies.values())]

    def find(self, output: str, bits: int, batch: int) -> Packed | None:
        """The copy for calls of `batch` samples of the layer operation with that output, or None where none pays."""
        if bits not in FIELDS or not self._pays(output, batch):
            return None
        field = FIELDS[bits]
        if (output, bits) not in self._copies:
            self._copies.setdefault((output, bits), Packed(self._pack(self._layers[output], bits, field), field))
        return self._copies[output, bits]

    def _pack(self, layer: LayerData, bits: int, field: int) -> Tensor:
        depth = layer.geometry.channels
        blocks = -(-layer.geometry.out_channels // abi.BLOCK)
        groups = -(-depth // (abi.QUAD * 8 // field))
        packed = weight_memory(blocks * groups * abi.BLOCK * abi.QUAD)
        stored = abi.StoredWeights(
            codes=layer.weights.data_ptr(), bits=bits, rounds=self._ladder == "round", field=field
        )
        self._kernels.pack(stored, blocks, depth, packed.data_ptr())
        return packed
