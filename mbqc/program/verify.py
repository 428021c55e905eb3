"""The rules of a Program. What passes here, a backend may run without further checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mbqc.errors import VerifyError
from mbqc.ir.types import Dims, at_batch, format_dims
from mbqc.numerics import ALL_BITS, activation_range
from mbqc.program.float_operations import FloatOperation
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Aten,
    AveragePool,
    Concat,
    Conv,
    Epilogue,
    EpilogueOperation,
    Linear,
    Listing,
    Lookup,
    MaxPool,
    Permute,
    Program,
    Quantize,
    Reshape,
    Value,
    Weight,
    inputs_of,
    outputs_of,
)
from mbqc.program.verify_aten import check_aten, check_elementwise
from mbqc.program.verify_floats import check_float

LARGEST_CODE = 255
LARGEST_WEIGHT = 128
"""Whatever is stored: kernels may leave codes of a lower width scaled to 8 bits, and at 1 bit -1 becomes -128."""

LARGEST_ZERO_POINT = 1 << 15
LARGEST_SAMPLE = 1 << 31
"""Elements of one value for a batch of one."""


def verify_program(program: Program) -> None:
    """Checks names, order, dtypes, shapes, tensors, grids and that no accumulator can overflow 32 bits.

    Raises:
        VerifyError: names the operation or value and what is wrong with it.
    """
    listing = program.listing
    _check_grids(listing)
    for name, value in listing.values.items():
        _check_value(listing, name, value)
    _check_order(listing)
    rules = _Rules(program)
    for index, operation in enumerate(listing.operations):
        try:
            rules.check(operation)
        except VerifyError as error:
            if error.where is None:
                kind = type(operation).__name__.lower()
                error.where = f"operation {index} ({kind} -> {', '.join(outputs_of(operation))})"
            raise
    used = {o.weight.layer for o in listing.operations if isinstance(o, Conv | Linear)}
    if used != set(listing.layers):
        raise VerifyError(f"layers {sorted(used ^ set(listing.layers))} are listed or used, but not both")


def _require(fact: bool, message: str, where: str | None = None) -> None:
    if not fact:
        raise VerifyError(message, where=where)


def _check_grids(listing: Listing) -> None:
    for name, grid in listing.grids.items():
        where = f"grid {name}"
        _require(all(0 < s < math.inf for s in grid.scales), "a scale is not positive and finite", where)
        _require(all(abs(z) <= LARGEST_ZERO_POINT for z in grid.zero_points), "a zero-point is out of range", where)
        _require(all(layer in listing.layers for layer in grid.layers), "it names an unknown layer", where)
    for name, info in listing.layers.items():
        _require(info.pinned is None or info.pinned in ALL_BITS, "pinned width is not from 1 to 8", f"layer {name}")


def _check_value(listing: Listing, name: str, value: Value) -> None:
    where = f"value {name}"
    _require((value.dtype == "u8") == (value.grid is not None), "u8 values, and only they, have a grid", where)
    _require(value.grid is None or value.grid in listing.grids, f"unknown grid {value.grid!r}", where)
    _require(math.prod(max(abs(d), 1) for d in value.shape) < LARGEST_SAMPLE, "the shape is too large", where)
    _require(value.dtype != "u8" or (value.shape or (1,))[-1] > -2, "channels cannot depend on the batch size", where)


def _check_order(listing: Listing) -> None:
    """Every value is defined once, before it is read."""
    defined: set[str] = set()
    for name in listing.inputs:
        _require(name in listing.values and name not in defined, f"input {name!r} is unknown or repeated")
        value = listing.values[name]
        _require(value.dtype != "u8" and value.shape[:1] == (-1,), "an input has the batch first and is no code", name)
        defined.add(name)
    for index, operation in enumerate(listing.operations):
        where = f"operation {index}"
        for name in inputs_of(operation):
            _require(name in defined, f"value {name!r} is read before it is defined", where)
        for name in outputs_of(operation):
            _require(name in listing.values, f"value {name!r} has no type", where)
            _require(name not in defined, f"value {name!r} is defined twice", where)
            defined.add(name)
    _require(bool(listing.inputs) and bool(listing.outputs), "a Program needs inputs and outputs")
    _require(defined == set(listing.values), f"values {sorted(set(listing.values) - defined)} are never defined")
    for name in listing.outputs:
        _require(name in defined and listing.values[name].dtype != "u8", f"output {name!r} is undefined or a code")


class _Rules:
    """The rule of each operation."""

    def __init__(self, program: Program) -> None:
        self.program, self.listing, self.tensors = program, program.listing, program.tensors

    def check(self, operation: AnyOperation) -> None:
        if isinstance(operation, Aten):
            check_aten(operation, self.program)
            return
        sources = [self.listing.values[name] for name in inputs_of(operation)]
        _require(bool(sources), "it has no input")
        output = self.listing.values[operation.output]
        expected = self._shape(operation, sources, output)
        _require(
            output.shape == expected,
            f"the output has shape {format_dims(output.shape)}, expected {format_dims(expected)}",
        )
        if isinstance(operation, EpilogueOperation):
            self._epilogue(operation.epilogue, output, isinstance(operation, Conv | Linear))
        moves_codes = isinstance(operation, MaxPool | Reshape | Permute)
        same = (sources[0].dtype, sources[0].grid) == (output.dtype, output.grid)
        _require(not moves_codes or same, "moving values changes neither dtype nor grid")

    def _shape(self, operation: AnyOperation, sources: list[Value], output: Value) -> Dims:
        """The output's shape; checks dtypes and attributes on the way."""
        shape = sources[0].shape
        if isinstance(operation, Reshape):
            for batch in (1, 2):
                sizes = [math.prod(at_batch(s, batch)) for s in (shape, output.shape)]
                _require(sizes[0] == sizes[1], "the number of elements changes")
            return output.shape
        if isinstance(operation, Permute):
            _require(
                sorted(operation.dims) == list(range(len(shape))), f"{operation.dims} is no order of the dimensions"
            )
            return tuple(shape[d] for d in operation.dims)
        if isinstance(operation, Quantize):
            _require(sources[0].dtype == "f32" and output.dtype == "u8", "quantize takes f32 and gives u8")
            _require(len(shape) >= 2 or not operation.channels_last, "there are no channels to move")
            return (shape[0], *shape[2:], shape[1]) if operation.channels_last else shape
        if isinstance(operation, FloatOperation):
            return check_float(operation, sources, output, self._tensor)
        _require(all(s.dtype == "u8" for s in sources), "the inputs must be codes")
        _require(output.dtype in ("u8", "f32"), "the output must be codes or float32")
        if isinstance(operation, Lookup):
            for function in operation.functions:
                check_elementwise(function)
            return shape
        if isinstance(operation, Affine):
            return shape
        if isinstance(operation, Concat):
            return self._concat(operation, [s.shape for s in sources])
        if isinstance(operation, Linear):
            return self._linear(operation, shape)
        assert isinstance(operation, Conv | AveragePool | MaxPool)
        return self._window(operation, sources[0])

    def _concat(self, operation: Concat, shapes: list[Dims]) -> Dims:
        dim, rank = operation.dim, len(shapes[0])
        _require(0 < dim < rank, f"dimension {dim} cannot be concatenated")
        rests = {s[:dim] + s[dim + 1 :] for s in shapes}
        _require(len(rests) == 1 and all(len(s) == rank and s[dim] > 0 for s in shapes), "the inputs' shapes differ")
        return (*shapes[0][:dim], sum(s[dim] for s in shapes), *shapes[0][dim + 1 :])

    def _linear(self, operation: Linear, shape: Dims) -> Dims:
        out, codes = self._weight(operation.weight, rank=2)
        _require(
            shape[-1:] == (codes.shape[1],),
            f"a weight [out, {codes.shape[1]}] on {format_dims(shape)}",
        )
        return (*shape[:-1], out)

    def _window(self, operation: Conv | AveragePool | MaxPool, source: Value) -> Dims:
        _require(len(source.shape) == 4 and min(source.shape[1:]) > 0, "the input must be N x H x W x C")
        n, height, width, channels = source.shape
        dilation = (1, 1) if isinstance(operation, AveragePool) else operation.dilation
        if isinstance(operation, Conv):
            out, codes = self._weight(operation.weight, rank=4)
            kernel = (codes.shape[1], codes.shape[2])
            fits = (
                operation.groups > 0 and out % operation.groups == 0 and codes.shape[3] * operation.groups == channels
            )
            _require(
                fits, f"a weight {tuple(codes.shape)} with {operation.groups} groups does not fit {channels} channels"
            )
        else:
            out, kernel = channels, operation.kernel
        if isinstance(operation, AveragePool):
            _require(math.prod(kernel) * LARGEST_CODE < 1 << 31, "the window is so large that its sum could overflow")
        _require(
            all(0 < v <= 1 << 16 for v in (*kernel, *operation.stride, *dilation)), "a window size is not positive"
        )
        _require(all(0 <= p <= 1 << 16 for p in operation.padding), "padding is negative or beyond 65536")
        if any(operation.padding) and not isinstance(operation, MaxPool):
            self._padding_code(source)
        top, bottom, left, right = operation.padding
        sizes = [
            (size + before + after - d * (k - 1) - 1) // s + 1
            for size, before, after, k, s, d in zip(
                (height, width), (top, left), (bottom, right), kernel, operation.stride, dilation, strict=True
            )
        ]
        _require(min(sizes) > 0, "the window is larger than its input")
        _require(
            abs(n) * (height + top + bottom) * (width + left + right) * channels < LARGEST_SAMPLE,
            "the input with its padding is too large",
        )
        return (n, *sizes, out)

    def _padding_code(self, source: Value) -> None:
        assert source.grid is not None
        zeros = self.listing.grids[source.grid].zero_points
        fits = all(0 <= z <= activation_range(b)[1] for b, z in zip(ALL_BITS, zeros, strict=True))
        _require(fits, "padding needs a zero-point that is a code of the input")

    def _weight(self, weight: Weight, rank: int) -> tuple[int, Tensor]:
        codes = self._tensor(weight.codes, torch.int8)
        _require(
            codes.dim() == rank and codes.numel() > 0, f"weight codes {tuple(codes.shape)} must have {rank} dimensions"
        )
        out = codes.shape[0]
        for name in (weight.scale, weight.mean, weight.std):
            if name is not None:
                _require(tuple(self._tensor(name, torch.float32).shape) == (out,), f"{name} must have {out} entries")
        _require(weight.mean is not None or weight.std is None, "a spread is corrected only together with the mean")
        _require(bool((self.tensors[weight.scale] > 0).all()), f"{weight.scale} must be positive")
        largest = codes[0].numel() * LARGEST_WEIGHT * LARGEST_CODE
        _require(
            largest < 1 << 31,
            f"an accumulator over {codes[0].numel()} inputs could reach {largest}, more than 32 bits hold",
        )
        return out, codes

    def _tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise VerifyError(f"tensor {name!r} is missing")
        _require(tensor.dtype == dtype, f"tensor {name!r} is {tensor.dtype}, expected {dtype}")
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        _require(finite, f"tensor {name!r} holds NaN or infinity")
        return tensor

    def _epilogue(self, epilogue: Epilogue, output: Value, of_layer: bool) -> None:
        channels = output.shape[-1] if output.shape else 1
        _require(all(layer in self.listing.layers for layer in epilogue.before), "it names an unknown layer")
        _require(of_layer or not epilogue.before, "only a layer has a width that makes pairs")
        rows = len(ALL_BITS) ** (2 if epilogue.before else 1)
        for name in (epilogue.gain, epilogue.shift):
            if name is not None:
                shape = tuple(self._tensor(name, torch.float32).shape)
                _require(shape in ((channels,), (rows, channels)), f"{name} must have {channels} channels")
        if epilogue.residual is not None:
            _require(self.listing.values[epilogue.residual].shape == output.shape, "the residual's shape differs")
        bounds = [b for b in (epilogue.low, epilogue.high) if b is not None]
        _require(all(math.isfinite(b) for b in bounds) and bounds == sorted(bounds), "the clamp's bounds are wrong")
