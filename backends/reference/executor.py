"""The meaning of every Program operation. Other backends must equal this one bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mbqc import float_functions, numerics
from mbqc.ir.types import at_batch
from mbqc.program import aten
from mbqc.program.bind import Binder, BoundEpilogue, Step, weight_codes
from mbqc.program.float_operations import (
    Activation,
    Arithmetic,
    Embedding,
    FloatOperation,
    LayerNorm,
    MatMul,
    Mean,
    Select,
    Softmax,
)
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Aten,
    AveragePool,
    Concat,
    Conv,
    Linear,
    Lookup,
    MaxPool,
    Permute,
    Program,
    Quantize,
    Reshape,
)
from mbqc.widths import Widths


def load(program: Program, threads: int = 1) -> ReferenceExecutable:
    """Makes a Program ready to run, on whatever threads torch has: `threads` does not matter here."""
    return ReferenceExecutable(program)


class ReferenceExecutable:
    """Runs a Program step by step; holds no state between runs."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._binder = Binder(program)

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """Outputs of the Program."""
        values = self.trace(inputs, widths)
        return [values[name] for name in self._program.listing.outputs]

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """Every value of the Program by name; u8 values as uint8.

        All are row-major: what torch computes in a float fallback depends, in the last bit, on strides.
        """
        return self._execute(inputs, widths, [])

    def profile(self, inputs: Sequence[Tensor], widths: Widths) -> tuple[float, ...]:
        """Seconds that each operation took in one run."""
        ends: list[float] = []
        self._execute(inputs, widths, ends)
        return tuple(end - start for start, end in pairwise(ends))

    def memory(self) -> dict[str, int]:
        """What the artifact stores; nothing else outlives a call but small tables."""
        return {"tensors as stored": sum(tensor.nbytes for tensor in self._program.tensors.values())}

    def ceilings(self) -> None:
        """None: it runs by definition, not by speed."""
        return

    def _execute(self, inputs: Sequence[Tensor], widths: Widths, ends: list[float]) -> dict[str, Tensor]:
        """Every value; `ends` gets the time before the first operation and after each."""
        values = dict(zip(self._program.listing.inputs, inputs, strict=True))
        batch = inputs[0].shape[0] if inputs else 1
        steps = self._binder.bind(widths)
        ends.append(time.perf_counter())
        for step in steps:
            if isinstance(step.operation, Aten):
                results = aten.call(step.operation.call, values, self._program.tensors, batch)
                values |= {o: result.contiguous() for o, result in zip(step.operation.outputs, results, strict=True)}
            else:
                values[step.operation.output] = self._run_step(step, values, batch).contiguous()
            ends.append(time.perf_counter())
        return values

    def prepare(self, widths: Widths, batch: int) -> None:
        """Nothing to prepare."""

    def kernels(self, widths: Widths, batch: int) -> tuple[str, ...]:
        """`torch` for float fallbacks, `float32` for other operations on floats, `int64` for all else."""

        def kernel(operation: AnyOperation) -> str:
            if isinstance(operation, FloatOperation):
                return "float32"
            return "torch" if isinstance(operation, Aten) else "int64"

        return tuple(map(kernel, self._program.listing.operations))

    def _run_step(self, step: Step, values: dict[str, Tensor], batch: int) -> Tensor:
        operation = step.operation
        match operation:
            case Concat():
                parts = [
                    self._finish(values[name].long(), None, bound, None, operation.output)
                    for name, bound in zip(operation.inputs, step.epilogues, strict=True)
                ]
                return torch.cat(parts, operation.dim)
            case Lookup():
                assert step.table is not None
                return step.table[values[operation.input].long()]
            case MaxPool():
                padded = _pad(values[operation.input].long(), operation.padding, 0)
                return (
                    _windows(padded, operation.kernel, operation.stride, operation.dilation)
                    .amax((-2, -1))
                    .to(torch.uint8)
                )
            case Reshape():
                shape = at_batch(self._program.listing.values[operation.output].shape, batch)
                return values[operation.input].reshape(shape)
            case Permute():
                return values[operation.input].permute(operation.dims)
            case Quantize():
                x = values[operation.input]
                x = x.movedim(1, -1) if operation.channels_last else x
                return self._finish(x, None, step.epilogues[0], None, operation.output)
            case Conv() | Linear() | Affine() | AveragePool():
                accumulator, window = self._accumulate(step, values[operation.input].long())
                name = operation.epilogue.residual
                residual = values[name] if name is not None else None
                return self._finish(accumulator, window, step.epilogues[0], residual, operation.output)
            case Aten():
                raise AssertionError("handled by the caller")
            case _:
                return self._run_float(operation, values)

    def _run_float(self, operation: FloatOperation, values: dict[str, Tensor]) -> Tensor:
        x, tensors = values[operation.input], self._program.tensors
        match operation:
            case LayerNorm():
                weight, bias = (None if n is None else tensors[n] for n in (operation.weight, operation.bias))
                return float_functions.layer_norm(x, operation.dims, weight, bias, operation.epsilon)
            case Softmax():
                return float_functions.softmax(x)
            case Activation():
                return float_functions.activate(x, operation.function)
            case Embedding():
                return float_functions.embed(x, tensors[operation.table])
            case Arithmetic():
                y = tensors[str(operation.constant)] if operation.other is None else values[operation.other]
                return float_functions.calculate(x, operation.sign, y)
            case MatMul():
                return float_functions.matmul(x, values[operation.other])
            case Mean():
                return float_functions.mean(x, operation.dim)
            case Select():
                return x.select(operation.dim, operation.index)

    def _accumulate(self, step: Step, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The integer accumulator and the sum of the window, int64."""
        operation = step.operation
        match operation:
            case Conv():
                codes = self._codes(operation.weight.codes, step)
                padded = _pad(x, operation.padding, step.zero_point)
                kernel = (codes.shape[1], codes.shape[2])
                windows = _windows(padded, kernel, operation.stride, operation.dilation)
                return _convolve(windows, codes, operation.groups)
            case Linear():
                return x @ self._codes(operation.weight.codes, step).T, x.sum(-1, keepdim=True)
            case AveragePool():
                padded = _pad(x, operation.padding, step.zero_point)
                return _windows(padded, operation.kernel, operation.stride, (1, 1)).sum((-2, -1)), None
            case _:
                return x, None

    def _codes(self, name: str, step: Step) -> Tensor:
        stored = self._program.tensors[name]
        assert step.weights is not None
        codes = weight_codes(stored.flatten(1), step.bits, self._program.listing.ladder, step.weights.shift)
        return codes.reshape(stored.shape).long()

    def _finish(
        self, accumulator: Tensor, window: Tensor | None, bound: BoundEpilogue, residual: Tensor | None, output: str
    ) -> Tensor:
        """The epilogue, one float32 rounding a step."""
        total = accumulator.to(torch.float32) * bound.multiplier
        if bound.window_multiplier is not None and window is not None:
            total = total + window.to(torch.float32) * bound.window_multiplier
        total = total + bound.addend
        if residual is not None:
            total = total + residual.to(torch.float32) * bound.residual_multiplier
        if self._program.listing.values[output].grid is None:
            return total.clamp(bound.low, bound.high)
        return numerics.requantize(total, bound.low, bound.high).to(torch.uint8)


def _pad(x: Tensor, padding: tuple[int, int, int, int], code: int) -> Tensor:
    """`x` [N, H, W, C] with a border of `code`."""
    top, bottom, left, right = padding
    return torch.nn.functional.pad(x, (0, 0, left, right, top, bottom), value=code)


def _windows(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """[N, H, W, C] to [N, H', W', C, kernel height, kernel width]."""
    for dim, k, s, d in zip((1, 2), kernel, stride, dilation, strict=True):
        x = x.unfold(dim, (k - 1) * d + 1, s)[..., ::d]
    return x


def _convolve(windows: Tensor, codes: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Windows [N, H, W, C, kh, kw] times codes [O, kh, kw, C / groups], and the window's sum for each output."""
    n, h, w, c, kh, kw = windows.shape
    outputs = codes.shape[0]
    grouped = windows.reshape(n * h * w, groups, c // groups, kh, kw).permute(1, 0, 3, 4, 2)
    columns = grouped.reshape(groups, n * h * w, c // groups * kh * kw)
    matrix = codes.reshape(groups, outputs // groups, -1).transpose(1, 2)
    total = torch.bmm(columns, matrix).permute(1, 0, 2).reshape(n, h, w, outputs)
    window = columns.sum(-1).T.reshape(n, h, w, groups, 1).expand(-1, -1, -1, -1, outputs // groups)
    return total, window.reshape(n, h, w, outputs)
