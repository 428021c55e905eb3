"""Convolutions of 1- and 2-bit codes against the same layers at 8 bits.

A layer's width is that of its weights; its input is as wide as the widest layer that reads it, so a second, small
layer sets the input's width. Every figure is the time of the layer's own step: u8 codes in, u8 codes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rows import Row, summary
from torch import Tensor, nn

import mbqc
from mbqc.cli.timing import in_turn
from mbqc.program.operations import Conv, Linear

GOALS = {(1, 2): (2.0, 2.5), (2, 2): (1.1, 1.3), (1, 8): (0.95, 1.0), (2, 8): (0.95, 1.0)}
"""Owed and aimed at by widths of weights and inputs; 1 x 1 bit depends on the layer."""


@dataclass(frozen=True)
class Shape:
    """A square 3 x 3 layer, and the goals of 1 x 1 bit."""

    channels: int
    size: int
    owed: float
    aimed: float


SHAPES = (Shape(64, 56, 3.8, 4.6), Shape(128, 28, 4.2, 4.9), Shape(256, 14, 4.5, 5.1), Shape(512, 7, 4.5, 5.1))


class Layers(nn.Module):
    """The measured layer, a reader of its output, and a second reader of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.measured = nn.Conv2d(channels, channels, 3, padding=1)
        self.reader = nn.Conv2d(channels, 8, 1)
        self.second = nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.reader(torch.relu(self.measured(x))), self.second(x)


def rows(repeats: int) -> Iterator[Row]:
    """A row a shape and pair of widths: how many times as fast as at 8 bits."""
    for shape in SHAPES:
        yield from _rows_of(shape, repeats)


def _rows_of(shape: Shape, repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.randn(1, shape.channels, shape.size, shape.size)
    compiled = mbqc.compile(Layers(shape.channels).eval(), x, "quant{calibration=minmax}")
    operations = compiled.program.listing.operations
    layers = [op.weight.layer if isinstance(op, Conv | Linear) else None for op in operations]
    index = layers.index("measured")
    goals = {(8, 8): (0.0, 0.0), (1, 1): (shape.owed, shape.aimed), **GOALS}
    widths = {pair: compiled.widths({"measured": pair[0], "second": pair[1], ...: 8}) for pair in goals}
    calls = {str(pair): lambda w=chosen: compiled.executable.profile([x], w)[index] for pair, chosen in widths.items()}
    name = f"3x3 {shape.channels} channels {shape.size}"
    times = {pair: summary(found) for pair, found in in_turn(name, calls, repeats).items()}
    whole = times["(8, 8)"]
    for weight, inputs in list(goals)[1:]:
        own = times[str((weight, inputs))]
        ratios = [whole[i] / own[i] for i in range(2)]
        kernel = compiled.executable.kernels(widths[weight, inputs], 1)[index]
        item = f"{name}: weights {weight}, inputs {inputs} bit / 8 x 8"
        yield Row(item, *ratios, "x", *goals[weight, inputs], f"{1e6 * own[0]:.1f} us, {kernel}")
