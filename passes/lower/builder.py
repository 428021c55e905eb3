"""Writes a Program: names values, stores tensors, emits operations, changes layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mbqc.errors import PassError
from mbqc.ir.modules import ActivationQuantizer
from mbqc.ir.types import Dims
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.passes.lower.states import Joined, Pending, Stored, Table
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Concat,
    DType,
    Epilogue,
    Grid,
    LayerInfo,
    Listing,
    Lookup,
    Permute,
    Program,
    Quantize,
    Reshape,
    Value,
)

DTYPES: dict[torch.dtype, DType] = {
    torch.uint8: "u8",
    torch.float32: "f32",
    torch.int64: "i64",
    torch.bool: "bool",
}


class Builder:
    """Collects the parts of a Program in order."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.values: dict[str, Value] = {}
        self.grids: dict[str, Grid] = {}
        self.operations: list[AnyOperation] = []
        self.tensors: dict[str, Tensor] = {}

    def program(self, inputs: list[str], outputs: list[str], layers: dict[str, LayerInfo]) -> Program:
        """The finished Program, without tensors, values and grids that nothing uses."""
        listing = Listing(
            self.ladder, tuple(inputs), tuple(outputs), self.values, self.grids, layers, tuple(self.operations)
        )
        return Program(listing, self.tensors)

    def define(self, name: str, dtype: DType, shape: Dims, grid: str | None = None) -> str:
        """A new value; the name is made unique."""
        unique, count = name, 1
        while unique in self.values:
            unique, count = f"{name}_{count}", count + 1
        self.values[unique] = Value(dtype, shape, grid)
        return unique

    def tensor(self, name: str, value: Tensor) -> str:
        """Stores a tensor, once; the name is made unique, since a parameter may have one that lowering gives."""
        unique, count = name, 1
        while unique in self.tensors and not _equal(self.tensors[unique], value):
            unique, count = f"{name}_{count}", count + 1
        if unique not in self.tensors:
            self.tensors[unique] = value.detach().clone().contiguous()
        return unique

    def grid(self, name: str, quantizer: ActivationQuantizer) -> str:
        """Stores the grids of an activation quantizer under its name, once."""
        if name not in self.grids:
            grids = quantizer.grids()
            scales = [grids[b][0] for b in ALL_BITS]
            zeros = [grids[b][1] for b in ALL_BITS]
            self.grids[name] = Grid(tuple(scales), tuple(zeros), quantizer.layers)  # type: ignore[arg-type]
        return name

    def quantize(
        self, name: str, source: Stored | Pending | Table | Joined, grid: str, to_channels_last: bool
    ) -> Stored:
        """Codes of `source` on `grid`, by whichever operation that takes."""
        match source:
            case Pending():
                return self._finish(name, source, grid)
            case Joined():
                last = all(s.channels_last for s in source.sources)
                result = self._stored(name, source.dims, last, "u8", grid)
                self.operations.append(Concat(tuple(s.name for s in source.sources), result.name, source.dim))
                return result
            case Table():
                return self._lookup(name, source, grid)
            case Stored(codes=True):
                return self._lookup(name, Table(source, ()), grid)
            case Stored():
                move = to_channels_last and not source.channels_last
                if move and len(source.dims) == 3:  # N x C x L is stored as N x 1 x L x C
                    n, c, length = source.dims
                    flat = self.define(f"{name}_flat", "u8", (n, length, c), grid)
                    self.operations.append(Quantize(source.name, flat, True))
                    return self._reshape(name, Stored(flat, source.dims, True, True), source.dims)
                result = self._stored(name, source.dims, source.channels_last or move, "u8", grid)
                self.operations.append(Quantize(source.name, result.name, move))
                return result

    def floats(self, name: str, source: Stored | Pending | Table | Joined) -> Stored:
        """The float32 value of `source` in torch's order."""
        match source:
            case Pending():
                result = self._finish(name, source, None)
            case Table():
                result = self._lookup(name, source, None)
            case Stored(codes=True):
                result = self._stored(name, source.dims, source.channels_last, "f32", None)
                self.operations.append(Affine(source.name, result.name, Epilogue()))
            case Stored():
                result = source
            case Joined():
                raise PassError("a concatenation of codes is read as float", where=f"node {name}")
        return self.torch_order(result)

    def torch_order(self, source: Stored) -> Stored:
        """The same tensor in torch's order of dimensions."""
        if not source.channels_last or len(source.dims) < 3:
            return source
        name = f"{source.name}_plain"
        n, c, *spatial = source.dims
        if all(size == 1 for size in spatial):
            return self._reshape(name, source, source.dims, channels_last=False)
        if len(source.dims) == 3:
            source = self._reshape(f"{source.name}_rows", source, (n, *spatial, c), channels_last=False)
            return self.permute(name, source, (0, 2, 1))
        permuted = self._as(name, source, (n, c, *spatial))
        self.operations.append(Permute(source.name, permuted.name, (0, 3, 1, 2)))
        return permuted

    def channels_last(self, source: Stored) -> Stored:
        """The same tensor with its channels last."""
        if source.channels_last or len(source.dims) < 3:
            return source
        value, dims = self.values[source.name], program_dims(source.dims, True)
        target = f"{source.name}_last"
        if len(source.dims) == 3:
            rows = self.permute(f"{target}_rows", source, (0, 2, 1))
            target = self.define(target, value.dtype, dims, value.grid)
            self.operations.append(Reshape(rows.name, target))
        else:
            target = self.define(target, value.dtype, dims, value.grid)
            self.operations.append(Permute(source.name, target, (0, 2, 3, 1)))
        return Stored(target, source.dims, True, source.codes)

    def reshape(self, name: str, source: Stored, dims: Dims) -> Stored:
        """The elements of a tensor, in torch's order, in another shape."""
        return self._reshape(name, self.torch_order(source), dims, channels_last=False)

    def permute(self, name: str, source: Stored, order: tuple[int, ...]) -> Stored:
        """Dimensions in another order, both sides in torch's order."""
        source = self.torch_order(source)
        result = self._as(name, source, tuple(source.dims[i] for i in order))
        self.operations.append(Permute(source.name, result.name, order))
        return result

    def _as(self, name: str, source: Stored, dims: Dims) -> Stored:
        """A new value in torch's order with the dtype and grid of `source`."""
        value = self.values[source.name]
        return Stored(self.define(name, value.dtype, dims, value.grid), dims, False, source.codes)

    def _reshape(self, name: str, source: Stored, dims: Dims, channels_last: bool | None = None) -> Stored:
        last = source.channels_last if channels_last is None else channels_last
        value = self.values[source.name]
        target = self.define(name, value.dtype, program_dims(dims, last), value.grid)
        self.operations.append(Reshape(source.name, target))
        return Stored(target, dims, last, source.codes)

    def _finish(self, name: str, pending: Pending, grid: str | None) -> Stored:
        gain = None if pending.gain is None else self.tensor(f"{name}.gain", pending.gain.to(torch.float32))
        shift = None if pending.shift is None else self.tensor(f"{name}.shift", pending.shift.to(torch.float32))
        result = self._stored(name, pending.dims, pending.channels_last, "f32" if grid is None else "u8", grid)
        epilogue = Epilogue(gain, shift, pending.residual, pending.low, pending.high, pending.before)
        self.operations.append(pending.emit(result.name, epilogue))
        return result

    def _lookup(self, name: str, table: Table, grid: str | None) -> Stored:
        """A table changes no shape; padding to come stays to come."""
        source = table.source
        dtype: DType = "f32" if grid is None else "u8"
        value = self.define(name, dtype, self.values[source.name].shape, grid)
        self.operations.append(Lookup(source.name, value, table.functions))
        return replace(source, name=value, codes=grid is not None)

    def _stored(
        self, name: str, dims: Dims, channels_last: bool, dtype: Literal["u8", "f32"], grid: str | None
    ) -> Stored:
        value = self.define(name, dtype, program_dims(dims, channels_last), grid)
        return Stored(value, dims, channels_last, dtype == "u8")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def program_dims(dims: Dims, channels_last: bool) -> Dims:
    """Shape in the Program of a tensor of shape `dims`: N x C x L becomes N x 1 x L x C, N x C x H x W as usual."""
    if not channels_last or len(dims) < 3:
        return dims
    n, c, *spatial = dims
    return (n, *([1] * (4 - len(dims))), *spatial, c)
