"""Layers of few bits by counting ones: which they are, and their weights as bit-planes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mbqc import numerics
from mbqc.backends.cpu.abi import BLOCK, PANEL_BLOCKS, WORD
from mbqc.backends.cpu.geometry import ConvGeometry
from mbqc.program.bind import Step
from mbqc.program.operations import Conv, Linear, Program

FEWEST_INPUTS = {1: 32, 2: 64, 3: 256, 4: 256}
"""From how many inputs an output on counting is faster than 8-bit products, by pairs of planes of weights and inputs.

Packing the input and summing windows cost as much for few products as for many. Measured on Zen 5 (AVX-512), times as
fast as the 8-bit kernel at 8 bits; at few bits that kernel itself reaches 0.8 to 0.97 (examples/cpu_speed/bits.py):

    inputs              16    32    64   144   216   288   576  2304
    1 bit x 1 bit     0.72  1.01   1.7   1.6   2.2   2.4   3.8   4.8
    1 bit x 2 bits    0.50  0.73   1.2   1.0   1.4   1.6   2.3   2.6
    2 bits x 2 bits   0.39  0.59  0.88  0.70  0.84  1.00   1.3   1.3

AVX2 counts by table: from 576 inputs on 3.5 to 4.1, 1.9 to 2.1 and 1.0 times as fast as its own 8-bit kernel (288
inputs: 3.0, 1.7, 0.95); the portable kernels gain more: 5.7, 2.9 and 1.5 at 576.
"""

MOST_PLANES = max(FEWEST_INPUTS)
"""Planes of an input, at most."""


def countable(geometry: ConvGeometry) -> bool:
    """Whether the kernel takes such a layer: one group, whose pixels fill whole bytes."""
    return geometry.groups == 1 and geometry.channels % 8 == 0


@dataclass(frozen=True)
class BitWeights:
    """Weights of a Program as bit-planes, made when a width first needs them and kept.

    Attributes:
        available: whether this machine counts fast enough.
    """

    program: Program
    available: bool
    _made: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, init=False)

    def serve(self, step: Step, geometry: ConvGeometry) -> bool:
        """Whether a layer is to run by counting at the widths of `step`."""
        narrow = step.weights is not None and step.weights.shift is None  # shifted codes are of 8 bits at any width
        fewest = FEWEST_INPUTS.get(step.bits * step.input_bits)
        inputs = geometry.kernel[0] * geometry.kernel[1] * geometry.channels
        return self.available and narrow and countable(geometry) and fewest is not None and inputs >= fewest

    def of(self, operation: Conv | Linear, bits: int, geometry: ConvGeometry) -> Tensor:
        """The planes of a layer's weights at a width."""
        key = (operation.weight.codes, bits, geometry.run_taps)
        if key not in self._made:
            stored = self.program.tensors[operation.weight.codes]
            self._made[key] = bit_panels(numerics.narrow(stored, bits, self.program.listing.ladder), bits, geometry)
        return self._made[key]

    def tensors(self) -> tuple[Tensor, ...]:
        """All that were made so far."""
        return tuple(self._made.values())


def bit_panels(codes: Tensor, bits: int, geometry: ConvGeometry) -> Tensor:
    """Codes of `bits` bits [out, kernel height, kernel width, in] in the order in which the counting kernel reads them.

    That is bits [panels][planes][runs][words of a run][PANEL_BLOCKS * BLOCK outputs][WORD inputs], a run being
    `run_taps` taps; filled up with zeros. Negative codes are in two's complement.
    """
    runs = geometry.kernel[0] * geometry.kernel[1] // geometry.run_taps
    run = codes.reshape(codes.shape[0], runs, -1)
    panel = PANEL_BLOCKS * BLOCK
    filled = torch.nn.functional.pad(run, (0, -run.shape[2] % WORD, 0, 0, 0, -run.shape[0] % panel))
    planes = torch.stack([filled >> plane & 1 for plane in range(bits)], 1)
    packed = torch.from_numpy(np.packbits(planes.numpy(), -1, bitorder="little"))
    panels = packed.reshape(-1, panel, bits, runs, packed.shape[3] // (WORD // 8), WORD // 8)
    return panels.permute(0, 2, 3, 4, 1, 5).contiguous()
