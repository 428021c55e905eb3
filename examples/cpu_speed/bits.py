"""Convolutions of 1- and 2-bit codes against the same layers at 8 bits, in one process.

    OMP_NUM_THREADS=1 taskset -c 1 python examples/cpu_speed/bits.py [repeats]

A layer's width is that of its weights; its input is as wide as the widest layer that reads it, so a second, small
layer sets the input's width. Every figure is the time of the layer's own step: u8 codes in, u8 codes out.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mbqc
from mbqc.program.operations import Conv, Linear

PAIRS = ((8, 8), (1, 1), (1, 2), (2, 2), (1, 4), (1, 8), (2, 8))
"""Widths of weights and inputs; the first is what the others are compared with."""


@dataclass(frozen=True)
class Shape:
    """A square layer; a linear one has no size."""

    channels: int
    size: int = 0
    kernel: int = 3

    def __str__(self) -> str:
        if not self.size:
            return f"linear {self.channels}"
        return f"{self.channels} ch {self.size}x{self.size} k{self.kernel}"


SHAPES = (
    Shape(64, 56),
    Shape(128, 28),
    Shape(256, 14),
    Shape(512, 7),
    Shape(16, 32),
    Shape(32, 16),
    Shape(64, 8),
    Shape(64, 56, 1),
    Shape(256, 14, 1),
    Shape(1024, 14, 1),
    Shape(1024),
    Shape(4096),
)


class Layers(nn.Module):
    """The measured layer, a reader of its output, and a second reader of its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels = shape.channels
        if shape.size:
            self.measured: nn.Module = nn.Conv2d(channels, channels, shape.kernel, padding=shape.kernel // 2)
            self.reader: nn.Module = nn.Conv2d(channels, 8, 1)
            self.second: nn.Module = nn.Conv2d(channels, 8, 1)
        else:
            self.measured, self.reader, self.second = (nn.Linear(channels, out) for out in (channels, 8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.reader(torch.relu(self.measured(x))), self.second(x)


def main(repeats: int = 60) -> None:
    """Prints a row a shape: times of the 8-bit layer, and how many times as fast the others are."""
    table = Table(title="times as fast as 8 bits: median (5th percentile), weights x inputs in bits")
    table.add_column("layer")
    table.add_column("8x8 us", justify="right")
    for weight, inputs in PAIRS[1:]:
        table.add_column(f"{weight}x{inputs}", justify="right")
    for shape in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(1, shape.channels, *([shape.size] * 2 if shape.size else []))
        compiled = mbqc.compile(Layers(shape), x, "quant")
        layers = [
            op.weight.layer if isinstance(op, Conv | Linear) else None for op in compiled.program.listing.operations
        ]
        index = layers.index("measured")
        choices = [compiled.widths({"measured": w, "second": a, ...: 8}) for w, a in PAIRS]
        runs = [[compiled.executable.profile([x], widths)[index] for widths in choices] for _ in range(repeats + 5)]
        columns = [sorted(column) for column in zip(*runs[5:], strict=True)]
        medians, lows = [statistics.median(c) for c in columns], [c[len(c) // 20] for c in columns]
        ratios = [f"{medians[0] / m:.2f} ({lows[0] / low:.2f})" for m, low in zip(medians[1:], lows[1:], strict=True)]
        table.add_row(str(shape), f"{medians[0] * 1e6:.1f} ({lows[0] * 1e6:.1f})", *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
