"""From a Program and a choice of widths to the numbers that a backend runs with.

Everything is computed in float64 from stored float32 tensors and exact integer sums, then rounded once to float32,
so that every backend and every machine gets the same numbers. With `x_q, s_x, z_x` the input's code, scale and
zero-point, a weight `W = a q + o` per output channel (EMQNet's correction is a and o, or a and a shift of q: see
`mbqc.numerics.correct_moments`), K the window size, Q the channel's sum of codes, and real output `gain * y + shift`:

    y = a s_x (sum q x_q - z_x Q) + o s_x (sum x_q - z_x K)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.program import aten
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    AveragePool,
    Concat,
    Conv,
    Epilogue,
    EpilogueOperation,
    Grid,
    Linear,
    Listing,
    Lookup,
    Program,
    Quantize,
    Value,
    Weight,
)
from mbqc.widths import Widths


@dataclass(frozen=True)
class BoundEpilogue:
    """The numbers of one epilogue (see `mbqc.program.operations`), float32.

    Attributes:
        multiplier, addend: [channels of the output].
        window_multiplier: [channels], or None where every weight offset is zero: the window sum is not needed.
        residual_multiplier: 0 without residual.
        low, high: codes for a u8 output, real numbers (or infinities) for a float32 output.
    """

    multiplier: Tensor
    addend: Tensor
    window_multiplier: Tensor | None
    residual_multiplier: float
    low: float
    high: float


@dataclass(frozen=True)
class Step:
    """One operation with its numbers.

    Attributes:
        bits: width of the weight codes; 8 where there is no weight.
        input_bits: width of a layer's input codes; 8 for other operations.
        weights: what those codes stand for; None where there is no weight.
        zero_point: the input's zero-point, the code that fills padding.
        epilogues: one; for a `Concat` one per input; none for operations that only move codes.
        table: for a `Lookup`, 256 entries, uint8 or float32; entries past the input's width repeat its last.
    """

    operation: AnyOperation
    bits: int
    input_bits: int
    weights: WeightLine | None
    zero_point: int
    epilogues: tuple[BoundEpilogue, ...]
    table: Tensor | None


@dataclass(frozen=True)
class CodeGrid:
    """A grid at one width: scale, zero-point and largest code."""

    scale: float
    zero_point: int
    top: int


class Binder:
    """Binds one Program at many widths; what depends on one layer and one width is computed once and kept."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lines: dict[tuple[str, int], WeightLine] = {}

    def bind(self, widths: Widths) -> tuple[Step, ...]:
        """The steps of the Program at `widths`, in the order of its operations.

        Raises:
            KeyError: `widths` lacks a layer of the Program; `mbqc.widths.resolve` prevents that.
        """
        binding = _Binding(self._program.listing, self._program.tensors, widths, self._line)
        return tuple(binding.step(operation) for operation in self._program.listing.operations)

    def tensors(self) -> list[Tensor]:
        """What is kept."""
        lines = self._lines.values()
        shifts = [tensor for line in lines if line.shift for tensor in (line.shift.whole, line.shift.rest)]
        return [tensor for line in lines for tensor in (line.slope, line.offset, line.code_sum)] + shifts

    def _line(self, weight: Weight, bits: int) -> WeightLine:
        key = (weight.codes, bits)
        if key not in self._lines:
            self._lines[key] = weight_line(weight, self._program.tensors, bits, self._program.listing.ladder)
        return self._lines[key]


def width_of(grid: Grid, widths: Widths) -> int:
    """The width at which values of `grid` are stored."""
    return widths.governing(grid.layers)


def code_grid(grid: Grid, widths: Widths) -> CodeGrid:
    """The grid at the width that `widths` gives it."""
    bits = width_of(grid, widths)
    return CodeGrid(grid.scales[bits - 1], grid.zero_points[bits - 1], numerics.activation_range(bits)[1])


@dataclass(frozen=True)
class _Binding:
    listing: Listing
    tensors: Mapping[str, Tensor]
    widths: Widths
    line: Callable[[Weight, int], WeightLine]

    def step(self, operation: AnyOperation) -> Step:
        bits, input_bits, zero_point = numerics.STORED_BITS, numerics.STORED_BITS, 0
        weights: WeightLine | None = None
        table: Tensor | None = None
        epilogues: tuple[BoundEpilogue, ...] = ()
        if isinstance(operation, Quantize):
            epilogues = (self._quantize(operation),)
        elif isinstance(operation, EpilogueOperation):
            zero_point = self._grid(operation.input).zero_point
            if isinstance(operation, Conv | Linear):
                bits = self.widths.by_layer[operation.weight.layer]
                weights = self.line(operation.weight, bits)
                input_bits = width_of(self._listed_grid(operation.input), self.widths)
            epilogues = (self._epilogue(operation, bits),)
        elif isinstance(operation, Concat):
            epilogues = tuple(
                self._finish(Affine(name, operation.output, Epilogue()), *self._identity(name))
                for name in operation.inputs
            )
        elif isinstance(operation, Lookup):
            table = self._table(operation)
        return Step(operation, bits, input_bits, weights, zero_point, epilogues, table)

    def _value(self, name: str) -> Value:
        return self.listing.values[name]

    def _listed_grid(self, name: str) -> Grid:
        grid = self._value(name).grid
        assert grid is not None, f"value {name} has no grid"
        return self.listing.grids[grid]

    def _grid(self, name: str) -> CodeGrid:
        return code_grid(self._listed_grid(name), self.widths)

    def _quantize(self, operation: Quantize) -> BoundEpilogue:
        grid = self._grid(operation.output)
        scale = torch.tensor([grid.scale], dtype=torch.float32)
        addend = torch.tensor([grid.zero_point], dtype=torch.float32)
        # float32 division, as in `numerics.quantize`, so that graph and Program agree on every input
        return BoundEpilogue(scale.reciprocal(), addend, None, 0.0, 0.0, float(grid.top))

    def _epilogue(self, operation: EpilogueOperation, bits: int) -> BoundEpilogue:
        if isinstance(operation, Conv | Linear):
            return self._finish(operation, *self._layer(operation, bits))
        count = operation.kernel[0] * operation.kernel[1] if isinstance(operation, AveragePool) else 1
        return self._finish(operation, *self._identity(operation.input, count))

    def _identity(self, name: str, count: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Multiplier, window multiplier and addend of a mean of `count` codes."""
        grid = self._grid(name)
        scale = torch.tensor([grid.scale / count], dtype=torch.float64)
        return scale, torch.zeros(1, dtype=torch.float64), -scale * grid.zero_point * count

    def _layer(self, operation: Conv | Linear, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        grid = self._grid(operation.input)
        line = self.line(operation.weight, bits)
        addend = -grid.scale * grid.zero_point * (line.slope * line.code_sum + line.offset * line.count)
        return line.slope * grid.scale, line.offset * grid.scale, addend

    def _finish(
        self, operation: EpilogueOperation, multiplier: Tensor, window: Tensor, addend: Tensor
    ) -> BoundEpilogue:
        """From `y = multiplier acc + window X + addend` in real units to the output's codes or floats."""
        epilogue = operation.epilogue
        row = self._row(operation)
        gain, shift = self._line_of(epilogue.gain, 1.0, row), self._line_of(epilogue.shift, 0.0, row)
        multiplier, window, addend = gain * multiplier, gain * window, gain * addend + shift
        output = self._value(operation.output)
        grid = self._grid(operation.output) if output.grid is not None else None
        scale, zero = (grid.scale, grid.zero_point) if grid else (1.0, 0)
        residual = 0.0
        if epilogue.residual is not None:
            other = self._grid(epilogue.residual)
            residual = other.scale / scale
            addend = addend - other.scale * other.zero_point
        low, high = _bounds(epilogue, grid)
        # a part of a concatenation is an Affine with its own input's channels
        shape = self._value(operation.input).shape if isinstance(operation, Affine) else output.shape
        channels = shape[-1] if shape else 1
        multiplier, window, addend = (
            t.expand(channels).to(torch.float32).contiguous()
            for t in (multiplier / scale, window / scale, addend / scale + zero)
        )
        return BoundEpilogue(multiplier, addend, window if bool(window.any()) else None, _float32(residual), low, high)

    def _row(self, operation: EpilogueOperation) -> int:
        """Of an epilogue's tables; what is no layer runs at 8 bits."""
        if isinstance(operation, Conv | Linear):
            return self.widths.pair(operation.weight.layer, operation.epilogue.before)
        return numerics.STORED_BITS - 1

    def _line_of(self, name: str | None, default: float, row: int) -> Tensor:
        if name is None:
            return torch.tensor([default], dtype=torch.float64)
        tensor = self.tensors[name].to(torch.float64)
        return tensor[row] if tensor.dim() == 2 else tensor

    def _table(self, operation: Lookup) -> Tensor:
        source = self._grid(operation.input)
        codes = torch.arange(256).clamp(max=source.top)
        real = (codes - source.zero_point).to(torch.float64) * source.scale
        for function in operation.functions:
            real = aten.elementwise(function, real)
        if self._value(operation.output).grid is None:
            return real.to(torch.float32)
        target = self._grid(operation.output)
        return numerics.requantize(real / target.scale + target.zero_point, 0.0, float(target.top)).to(torch.uint8)


CHUNK = 1 << 17
"""Codes of a layer that are narrowed at once: what is made of them on the way stays in the second cache."""


@dataclass(frozen=True)
class WeightLine:
    """Real weights as a line over codes, `W = slope * code + offset` per output channel (float64 [out]).

    Attributes:
        shift: None where codes are the narrowed ones; else they are `shift.apply` of those, in stored steps.
        code_sum: the sum of a channel's codes, float64 [out].
        count: how many codes a channel has.
    """

    slope: Tensor
    offset: Tensor
    shift: numerics.Shift | None
    code_sum: Tensor
    count: int


def weight_line(weight: Weight, tensors: Mapping[str, Tensor], bits: int, ladder: numerics.Ladder) -> WeightLine:
    """The line of a layer at `bits`: the ladder's own, or below 8 bits the one that matches the stored moments."""
    stored = tensors[weight.codes].flatten(1)
    scale = tensors[weight.scale]
    mean, std = (None if name is None else tensors[name] for name in (weight.mean, weight.std))
    channels = max(1, CHUNK // max(1, stored.shape[1]))
    granularity = numerics.shift_granularity(tensors[weight.codes].shape, bits)
    lines = []
    for first in range(0, max(1, len(stored)), channels):
        part = slice(first, first + channels)
        moments = None if mean is None else (mean[part], None if std is None else std[part])
        lines.append(_line_of(stored[part], scale[part].to(torch.float64), moments, bits, ladder, granularity))
    return lines[0] if len(lines) == 1 else _join(lines)


def _line_of(
    stored: Tensor,
    scale: Tensor,
    moments: tuple[Tensor, Tensor | None] | None,
    bits: int,
    ladder: numerics.Ladder,
    granularity: int,
) -> WeightLine:
    drop, count = numerics.STORED_BITS - bits, stored.shape[1]
    narrowed = weight_codes(stored, bits, ladder, None)
    code_sum, step = narrowed.sum(1).to(torch.float64), float(1 << drop)
    if moments is None or drop == 0:
        return WeightLine(scale * step, scale * numerics.ladder_offset(bits, ladder), None, code_sum, count)
    found = numerics.correct_moments(narrowed << drop, scale, *moments, granularity)
    if found.shift is None:
        return WeightLine(found.slope * step, found.offset, None, code_sum, count)
    code_sum = found.shift.apply(narrowed << drop).sum(1).to(torch.float64)
    return WeightLine(found.slope, found.offset, found.shift, code_sum, count)


def _join(lines: Sequence[WeightLine]) -> WeightLine:
    """The line of all channels from those of some."""
    slope, offset, code_sum = (
        torch.cat(p) for p in zip(*((w.slope, w.offset, w.code_sum) for w in lines), strict=True)
    )
    shifts = [line.shift for line in lines if line.shift is not None]
    shift = None
    if shifts:
        whole, rest = (torch.cat(p) for p in zip(*((s.whole, s.rest) for s in shifts), strict=True))
        shift = numerics.Shift(whole, rest, shifts[0].granularity)
    return WeightLine(slope, offset, shift, code_sum, lines[0].count)


def weight_codes(stored: Tensor, bits: int, ladder: numerics.Ladder, shift: numerics.Shift | None) -> Tensor:
    """The codes of a `WeightLine` from stored ones [out, n], int16: a shift goes through larger numbers."""
    narrowed = numerics.narrow(stored.to(torch.int16), bits, ladder)
    return narrowed if shift is None else shift.apply(narrowed << (numerics.STORED_BITS - bits))


def _bounds(epilogue: Epilogue, grid: CodeGrid | None) -> tuple[float, float]:
    """Clamp bounds in the output's units; rounding is monotone, so clamping codes equals clamping reals first."""
    low = -torch.inf if epilogue.low is None else epilogue.low
    high = torch.inf if epilogue.high is None else epilogue.high
    if grid is None:
        return _float32(low), _float32(high)

    inverse = torch.tensor(grid.scale, dtype=torch.float32).reciprocal()

    def code(bound: float) -> float:
        total = torch.tensor(bound, dtype=torch.float32) * inverse + float(grid.zero_point)
        return float(numerics.requantize(total, 0.0, float(grid.top)))

    return code(low), code(high)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
