"""A builder of small Programs with random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbqc.numerics import ALL_BITS, Ladder, activation_range
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Aten,
    AtenCall,
    Conv,
    Epilogue,
    Grid,
    LayerInfo,
    Linear,
    Listing,
    Program,
    Quantize,
    Value,
    Weight,
)
from mbqc.program.verify import verify_program

Shape = tuple[int, ...]


@dataclass
class Builder:
    """A Program in the making; all numbers are drawn from `seed`."""

    seed: int
    ladder: Ladder = "round"
    values: dict[str, Value] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    layers: dict[str, LayerInfo] = field(default_factory=dict)
    operations: list[AnyOperation] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def uniform(self, low: float, high: float) -> float:
        return float(torch.empty((), dtype=torch.float64).uniform_(low, high, generator=self.random))

    def shape(self, name: str) -> Shape:
        return self.values[name].shape

    def new_input(self, shape: Shape) -> str:
        name = self._value("f32", shape, None)
        self.inputs.append(name)
        return name

    def new_grid(self, *, codes_only: bool = True, layers: tuple[str, ...] = (), factor: float = 1.0) -> str:
        """A grid with zero-points that are codes, or any whole numbers, and scales times `factor`."""
        zeros, scales = [], []
        for bits in ALL_BITS:
            top = activation_range(bits)[1]
            low, high = (0, top) if codes_only else (-top, 2 * top)
            zeros.append(round(self.uniform(low, high)))
            scales.append(factor * self.uniform(1.0, 4.0) / top)
        name = f"grid{len(self.grids)}"
        self.grids[name] = Grid(tuple(scales), tuple(zeros), layers)
        return name

    def _value(self, dtype: Any, shape: Shape, grid: str | None) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = Value(dtype, shape, grid)
        return name

    def aten(self, call: AtenCall, shape: Shape) -> str:
        """Appends a float operation with one result."""
        output = self._value("f32", shape, None)
        self.operations.append(Aten(call, (output,)))
        return output

    def add(self, make: Any, shape: Shape, grid: str | None) -> str:
        """Appends the operation `make(output name)`; without a grid its output is float32."""
        output = self._value("f32" if grid is None else "u8", shape, grid)
        self.operations.append(make(output))
        return output

    def tensor(self, tensor: Tensor) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = tensor.contiguous()
        return name

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def weight(self, shape: Shape, *, corrected: str = "none") -> Weight:
        """Weight codes with extremes, a zero channel, and with `corrected` mean (and std) moments."""
        codes = torch.randint(-128, 128, shape, generator=self.random, dtype=torch.int8)
        codes[0] = 0 if self.uniform(0, 1) < 0.2 else codes[0]
        codes[-1] = 127 if self.uniform(0, 1) < 0.2 else codes[-1]
        out = shape[0]
        layer = f"layer{len(self.layers)}"
        self.layers[layer] = LayerInfo()
        scale = (self.normal(out).abs() + 0.1) / 128 / math.sqrt(max(codes[0].numel(), 1))
        size = 0.1 if self.uniform(0, 1) < 0.7 else 60.0  # in codes; large ones shift some beyond their range
        mean = self.tensor(size * self.normal(out) * scale) if corrected != "none" else None
        std = self.tensor(60 * scale * (1 + 0.1 * self.normal(out).abs())) if corrected == "both" else None
        return Weight(layer, self.tensor(codes), self.tensor(scale), mean, std)

    def finish(self, outputs: tuple[str, ...]) -> Program:
        listing = Listing(
            self.ladder, tuple(self.inputs), outputs, self.values, self.grids, self.layers, tuple(self.operations)
        )
        program = Program(listing, self.tensors)
        verify_program(program)
        return program

    def quantize(self, source: str, grid: str, *, channels_last: bool = False) -> str:
        shape = self.shape(source)
        shape = (shape[0], *shape[2:], shape[1]) if channels_last else shape
        return self.add(lambda out: Quantize(source, out, channels_last), shape, grid)

    def conv(
        self,
        source: str,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        *,
        grid: str | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        corrected: str = "none",
        epilogue: Epilogue | None = None,
    ) -> str:
        shape = window_shape(self.shape(source), out_channels, kernel, stride, padding, dilation)
        weight = self.weight((out_channels, *kernel, self.shape(source)[-1] // groups), corrected=corrected)
        self.reads(source, weight.layer)

        def make(out: str) -> Conv:
            return Conv(source, out, weight, stride, padding, dilation, groups, epilogue or Epilogue())

        return self.add(make, shape, grid)

    def linear(
        self, source: str, out: int, *, grid: str | None, corrected: str = "none", epilogue: Epilogue | None = None
    ) -> str:
        weight = self.weight((out, self.shape(source)[-1]), corrected=corrected)
        self.reads(source, weight.layer)
        shape = (*self.shape(source)[:-1], out)
        return self.add(lambda name: Linear(source, name, weight, epilogue or Epilogue()), shape, grid)

    def reads(self, source: str, layer: str) -> None:
        """Makes `layer` one of those that give the value its width."""
        name = self.values[source].grid
        assert name is not None
        grid = self.grids[name]
        self.grids[name] = Grid(grid.scales, grid.zero_points, (*grid.layers, layer))

    def affine(self, source: str, *, grid: str | None, epilogue: Epilogue | None = None) -> str:
        return self.add(lambda out: Affine(source, out, epilogue or Epilogue()), self.shape(source), grid)


def window_shape(
    shape: Shape, out: int, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape = (1, 1)
) -> tuple[int, ...]:
    """The output of a window operation."""
    n, height, width, _ = shape
    top, bottom, left, right = padding
    sizes = [
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, before, after, k, s, d in zip(
            (height, width), (top, left), (bottom, right), kernel, stride, dilation, strict=True
        )
    ]
    return (n, *sizes, out)
