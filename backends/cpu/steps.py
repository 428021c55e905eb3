"""One bound operation of a Program as the kernel steps that run it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.backends.cpu import abi
from mbqc.backends.cpu.epilogues import in_range, readable, scaled
from mbqc.backends.cpu.geometry import FIRST_POSITION, LayerData, extent
from mbqc.backends.cpu.memory import Layout
from mbqc.backends.cpu.packed import FindPacked
from mbqc.backends.cpu.popcount import BitWeights
from mbqc.errors import BackendError
from mbqc.program.arena import ITEM_BYTES
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
    Program,
    Quantize,
    Reshape,
)


@dataclass(frozen=True)
class StepBuilder:
    """Makes steps, and collects the tables that they point to."""

    program: Program
    layers: Mapping[str, LayerData]
    bit_weights: BitWeights
    packed: FindPacked
    layout: Layout
    tables: list[Tensor] = field(default_factory=list)

    def steps(self, step: Step) -> list[abi.Step]:
        """The steps of one operation: one, or one per input of a concatenation."""
        match step.operation:
            case Quantize():
                return [abi.step("quantize", self._quantize(step.operation, step.epilogues[0]))]
            case Conv() | Linear():
                geometry = self.layers[step.operation.output].geometry
                if geometry.depthwise:
                    return [abi.step("depthwise", self._depthwise(step.operation, step))]
                if self.bit_weights.serve(step, geometry):
                    layer = self._counted_layer(step.operation, step)
                    return [abi.step("popcount", self._conv(step.operation, step, *layer))]
                return [abi.step("conv", self._conv(step.operation, step, *self._layer(step.operation, step)))]
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

    def _place(self, name: str) -> abi.Place:
        return self.layout.places[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.program.listing.values[name].shape

    def _is_float(self, name: str) -> bool:
        return self.program.listing.values[name].dtype == "f32"

    def _pointer(self, table: Tensor) -> int:
        """The address of a table; who runs the steps keeps `tables` alive."""
        self.tables.append(table)
        return table.data_ptr()

    def _layer(self, operation: Conv | Linear, step: Step) -> tuple[abi.StoredWeights, abi.Epilogue]:
        """Weights and epilogue of a layer."""
        assert step.weights is not None
        data, shift = self.layers[operation.output], step.weights.shift
        # shifted codes are in stored steps, as those of 8 bits are
        bound, drop = scaled(step.epilogues[0], step.bits if shift is None else numerics.STORED_BITS)
        weights = abi.StoredWeights(
            codes=self._pointer(data.weights),
            bits=step.bits,
            rounds=self.program.listing.ladder == "round",
            shift=drop,
            panel=self.layout.scratch.panel,
        )
        if packed := self.packed(operation.output, step.bits):
            weights.packed, weights.field = self._pointer(packed.codes), packed.field
        if shift is not None:
            assert data.positions is not None
            weights.whole = self._pointer(data.per_code(shift.whole))
            weights.rest = self._pointer(data.per_code(shift.rest + FIRST_POSITION))
            weights.positions = self._pointer(data.positions)
        return weights, self._layer_epilogue(operation, bound, bound)

    def _counted_layer(self, operation: Conv | Linear, step: Step) -> tuple[abi.StoredWeights, abi.Epilogue]:
        """Weights as bit-planes, and epilogue: totals are those of the width itself."""
        planes = self.bit_weights.of(operation, step.bits, self.layers[operation.output].geometry)
        weights = abi.StoredWeights(codes=self._pointer(planes), bits=step.bits, panel=self.layout.scratch.panel)
        as_stored, _ = scaled(step.epilogues[0], step.bits)
        return weights, self._layer_epilogue(operation, step.epilogues[0], as_stored)

    def _layer_epilogue(self, operation: Conv | Linear, bound: BoundEpilogue, as_stored: BoundEpilogue) -> abi.Epilogue:
        """The epilogue of a layer; `as_stored` is what it would be for codes of 8 bits."""
        epilogue = self._epilogue(bound, operation.output, operation.epilogue.residual)
        epilogue.in_range = in_range(as_stored, self.program.tensors[operation.weight.codes][0].numel())
        return epilogue

    def _epilogue(self, bound: BoundEpilogue, output: str, residual: str | None = None) -> abi.Epilogue:
        def pointer(table: Tensor | None) -> int | None:
            return None if table is None else self._pointer(readable(table))

        return abi.Epilogue(
            multiplier=pointer(bound.multiplier),
            addend=pointer(bound.addend),
            window_multiplier=pointer(bound.window_multiplier),
            residual=self._place(output if residual is None else residual),
            has_residual=residual is not None,
            to_float=self._is_float(output),
            table_step=bound.multiplier.numel() > 1,
            residual_multiplier=bound.residual_multiplier,
            low=bound.low,
            high=bound.high,
        )

    def _quantize(self, operation: Quantize, bound: BoundEpilogue) -> abi.Quantize:
        shape = self._shape(operation.input)
        outer, channels, inner = 1, 1, extent(shape)
        if operation.channels_last:
            outer, channels, inner = shape[0], shape[1], extent(shape[2:])
        return abi.Quantize(
            self._place(operation.input),
            self._place(operation.output),
            outer,
            channels,
            inner,
            bound.multiplier.item(),
            bound.addend.item(),
            bound.high,
        )

    def _conv(
        self, operation: Conv | Linear, step: Step, weights: abi.StoredWeights, epilogue: abi.Epilogue
    ) -> abi.Conv:
        g, scratch = self.layers[operation.output].geometry, self.layout.scratch
        return abi.Conv(
            input=self._place(operation.input),
            output=self._place(operation.output),
            bordered=scratch.bordered,
            pixel_sums=scratch.pixel_sums,
            windows=scratch.windows,
            columns=scratch.columns,
            planes=scratch.planes,
            epilogue=epilogue,
            weights=weights,
            run_taps=g.run_taps,
            images=g.images,
            height=g.height,
            width=g.width,
            channels=g.channels,
            pixel_bytes=g.pixel_bytes,
            groups=g.groups,
            out_height=g.out_height,
            out_width=g.out_width,
            out_channels=g.out_channels,
            kernel=g.kernel,
            stride=g.stride,
            dilation=g.dilation,
            padding=g.padding,
            border_code=step.zero_point,
            input_bits=step.input_bits,
        )

    def _depthwise(self, operation: Conv | Linear, step: Step) -> abi.Depthwise:
        data = self.layers[operation.output]
        g = data.geometry
        assert data.ones is not None
        weights, epilogue = self._layer(operation, step)
        return abi.Depthwise(
            input=self._place(operation.input),
            output=self._place(operation.output),
            columns=self.layout.scratch.columns,
            epilogue=epilogue,
            weights=weights,
            ones=self._pointer(data.ones),
            images=g.images,
            height=g.height,
            width=g.width,
            channels=g.channels,
            out_height=g.out_height,
            out_width=g.out_width,
            kernel=g.kernel,
            stride=g.stride,
            dilation=g.dilation,
            padding=g.padding,
            border_code=step.zero_point,
        )

    def _affine(self, operation: Affine, bound: BoundEpilogue) -> abi.Map:
        shape = self._shape(operation.output)
        per_channel = bound.multiplier.numel() > 1
        rows, length = (extent(shape[:-1]), shape[-1]) if per_channel else (1, extent(shape))
        epilogue = self._epilogue(bound, operation.output, operation.epilogue.residual)
        return abi.Map(self._place(operation.input), self._place(operation.output), epilogue, rows, length, 0, length)

    def _concat(self, operation: Concat, step: Step) -> list[abi.Map]:
        dim = operation.dim % len(self._shape(operation.output))
        stride, start = extent(self._shape(operation.output)[dim:]), 0
        maps = []
        for name, bound in zip(operation.inputs, step.epilogues, strict=True):
            uniform = replace(bound, multiplier=bound.multiplier[:1], addend=bound.addend[:1])  # a change of grids
            shape, epilogue = self._shape(name), self._epilogue(uniform, operation.output)
            rows, length = extent(shape[:dim]), extent(shape[dim:])
            source, target = self._place(name), self._place(operation.output)
            maps.append(abi.Map(source, target, epilogue, rows, length, start, stride))
            start += length
        return maps

    def _pool(self, operation: AveragePool | MaxPool, step: Step) -> abi.Pool:
        images, height, width, channels = self._shape(operation.input)
        _, out_height, out_width, _ = self._shape(operation.output)
        if isinstance(operation, AveragePool):
            epilogue = self._epilogue(step.epilogues[0], operation.output, operation.epilogue.residual)
            dilation = (1, 1)
        else:
            epilogue, dilation = abi.Epilogue(), operation.dilation
        return abi.Pool(
            input=self._place(operation.input),
            output=self._place(operation.output),
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
            self._place(operation.input),
            self._place(operation.output),
            self._pointer(step.table.contiguous()),
            extent(self._shape(operation.input)),
            self._is_float(operation.output),
        )

    def _copy(self, operation: Reshape | Lookup) -> abi.Copy:
        size = extent(self._shape(operation.input)) * self._item_bytes(operation.input)
        return abi.Copy(self._place(operation.input), self._place(operation.output), size)

    def _permute(self, operation: Permute) -> abi.Permute:
        """Dimensions at the end that stay move as one run of bytes."""
        dims, order = list(self._shape(operation.input)), [d % len(operation.dims) for d in operation.dims]
        run = self._item_bytes(operation.input)
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
            self._place(operation.input),
            self._place(operation.output),
            len(dims),
            (ctypes.c_int64 * abi.MAX_RANK)(*dims, *fill),
            (ctypes.c_int64 * abi.MAX_RANK)(*order, *fill),
        )

    def _item_bytes(self, name: str) -> int:
        return ITEM_BYTES[self.program.listing.values[name].dtype]


def _is_identity(table: Tensor | None) -> bool:
    """Whether a lookup moves codes between equal grids."""
    return table is not None and table.dtype == torch.uint8 and torch.equal(table, torch.arange(256, dtype=torch.uint8))
