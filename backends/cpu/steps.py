"""One bound operation of a Program as the kernel steps that run it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.float_steps import float_step
from mbqc.backends.cpu.geometry import extent
from mbqc.backends.cpu.layer_steps import LayerSteps
from mbqc.errors import BackendError
from mbqc.program.bind import BoundEpilogue, Step
from mbqc.program.operations import (
    Affine,
    Aten,
    AveragePool,
    Concat,
    Conv,
    Linear,
    Lookup,
    MaxPool,
    Permute,
    Quantize,
    Reshape,
)


@dataclass(frozen=True)
class StepBuilder:
    """Makes steps."""

    at: Addresses
    layers: LayerSteps

    def steps(self, step: Step) -> list[abi.Step]:
        """The steps of one operation: one, or one per input of a concatenation."""
        match step.operation:
            case Quantize():
                return [abi.step("quantize", self._quantize(step.operation, step.epilogues[0]))]
            case Conv() | Linear():
                return [self.layers.step(step.operation, step)]
            case Affine():
                return [abi.step("map", self._affine(step.operation, step.epilogues[0]))]
            case AveragePool():
                return [abi.step("average_pool", self._pool(step.operation, step))]
            case MaxPool():
                return [abi.step("max_pool", self._pool(step.operation, step))]
            case Concat():
                return [abi.step("map", part) for part in self._concat(step.operation, step)]
            case Lookup():
                if _is_identity(step.table):
                    return [abi.step("copy", self._copy(step.operation))]
                return [abi.step("lookup", self._lookup(step.operation, step))]
            case Reshape():
                return [abi.step("copy", self._copy(step.operation))]
            case Permute():
                return [abi.step("permute", self._permute(step.operation))]
            case Aten():
                raise AssertionError("torch runs it")
            case _:
                return [float_step(self.at, step.operation)]

    def _quantize(self, operation: Quantize, bound: BoundEpilogue) -> abi.Quantize:
        shape = self.at.shape(operation.input)
        outer, channels, inner = 1, 1, extent(shape)
        if operation.channels_last:
            outer, channels, inner = shape[0], shape[1], extent(shape[2:])
        return abi.Quantize(
            self.at.place(operation.input),
            self.at.place(operation.output),
            outer,
            channels,
            inner,
            bound.multiplier.item(),
            bound.addend.item(),
            bound.high,
        )

    def _affine(self, operation: Affine, bound: BoundEpilogue) -> abi.Map:
        shape = self.at.shape(operation.output)
        per_channel = bound.multiplier.numel() > 1
        rows, length = (extent(shape[:-1]), shape[-1]) if per_channel else (1, extent(shape))
        epilogue = self.at.epilogue(bound, operation.output, operation.epilogue.residual)
        source, target = self.at.place(operation.input), self.at.place(operation.output)
        return abi.Map(source, target, epilogue, rows, length, 0, length)

    def _concat(self, operation: Concat, step: Step) -> list[abi.Map]:
        dim = operation.dim % len(self.at.shape(operation.output))
        stride, start = extent(self.at.shape(operation.output)[dim:]), 0
        maps = []
        for name, bound in zip(operation.inputs, step.epilogues, strict=True):
            uniform = replace(bound, multiplier=bound.multiplier[:1], addend=bound.addend[:1])  # a change of grids
            shape, epilogue = self.at.shape(name), self.at.epilogue(uniform, operation.output)
            rows, length = extent(shape[:dim]), extent(shape[dim:])
            source, target = self.at.place(name), self.at.place(operation.output)
            maps.append(abi.Map(source, target, epilogue, rows, length, start, stride))
            start += length
        return maps

    def _pool(self, operation: AveragePool | MaxPool, step: Step) -> abi.Pool:
        images, height, width, channels = self.at.shape(operation.input)
        _, out_height, out_width, _ = self.at.shape(operation.output)
        if isinstance(operation, AveragePool):
            epilogue = self.at.epilogue(step.epilogues[0], operation.output, operation.epilogue.residual)
            dilation = (1, 1)
        else:
            epilogue, dilation = abi.Epilogue(), operation.dilation
        return abi.Pool(
            input=self.at.place(operation.input),
            output=self.at.place(operation.output),
            epilogue=epilogue,
            images=images,
            height=height,
            width=width,
            channels=channels,
            out_height=out_height,
            out_width=out_width,
            kernel=operation.kernel,
            stride=operation.stride,
            dilation=dilation,
            padding=operation.padding[::2],
            zero_point=step.zero_point,
        )

    def _lookup(self, operation: Lookup, step: Step) -> abi.Lookup:
        assert step.table is not None
        return abi.Lookup(
            self.at.place(operation.input),
            self.at.place(operation.output),
            self.at.pointer(step.table.contiguous()),
            extent(self.at.shape(operation.input)),
            self.at.is_float(operation.output),
        )

    def _copy(self, operation: Reshape | Lookup) -> abi.Copy:
        size = extent(self.at.shape(operation.input)) * self.at.item_bytes(operation.input)
        return abi.Copy(self.at.place(operation.input), self.at.place(operation.output), size)

    def _permute(self, operation: Permute) -> abi.Permute:
        """Dimensions at the end that stay move as one run of bytes."""
        dims, order = list(self.at.shape(operation.input)), [d % len(operation.dims) for d in operation.dims]
        run = self.at.item_bytes(operation.input)
        while order and order[-1] == len(order) - 1:
            order.pop()
            run = extent((run, dims.pop()))
        dims, order = [*dims, run], [*order, len(order)]
        if len(dims) > abi.MAX_RANK:
            raise BackendError(
                f"the cpu backend permutes at most {abi.MAX_RANK - 1} dimensions", where=f"value {operation.output}"
            )
        fill = [0] * (abi.MAX_RANK - len(dims))
        return abi.Permute(
            self.at.place(operation.input),
            self.at.place(operation.output),
            len(dims),
            (ctypes.c_int64 * abi.MAX_RANK)(*dims, *fill),
            (ctypes.c_int64 * abi.MAX_RANK)(*order, *fill),
        )


def _is_identity(table: Tensor | None) -> bool:
    """Whether a lookup moves codes between equal grids."""
    return table is not None and table.dtype == torch.uint8 and torch.equal(table, torch.arange(256, dtype=torch.uint8))
