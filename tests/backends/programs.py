"""Random small Programs: single operations and chains of them.

Every choice is a whole number within bounds, drawn by a function of the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mbqc.float_functions import GATES
from mbqc.numerics import SHIFTED, Ladder
from mbqc.program.float_operations import Activation, Arithmetic, Embedding, LayerNorm, MatMul, Mean, Select, Softmax
from mbqc.program.operations import (
    AtenCall,
    AveragePool,
    Concat,
    Epilogue,
    Lookup,
    MaxPool,
    Permute,
    Program,
    Reference,
    Reshape,
    Value,
)
from mbqc.widths import Widths
from tests.backends.program_builder import Builder, Shape, window_shape

Draw = Callable[[int, int], int]
"""A whole number from the first to the last."""


EXTREMES = (1.0, 0.0, -0.0, -1.0, 1e-45, -1e-45, 1e-38, -1e-38, 1e-20, 1e20, 3e38, -3e38)


@dataclass
class Case:
    """What one test runs."""

    program: Program
    inputs: list[Tensor]
    widths: Widths
    threads: int = 1


@dataclass
class Drawing:
    """Draws operations onto a builder.

    Attributes:
        chained: all zero-points are codes, so that any operation may follow.
        wild: scales, gains, shifts and bounds at the ends of the float range.
    """

    whole: Draw
    build: Builder
    chained: bool = False
    wild: bool = False

    def one_of(self, *options: Any) -> Any:
        return options[self.whole(0, len(options) - 1)]

    def order(self, count: int) -> tuple[int, ...]:
        """The numbers below `count` in any order."""
        rest = list(range(count))
        return tuple(rest.pop(self.whole(0, len(rest) - 1)) for _ in range(count))

    def new_grid(self, codes_only: bool = True) -> str:
        factor = self.one_of(*EXTREMES) if self.wild else 1.0
        return self.build.new_grid(codes_only=codes_only or self.chained, factor=abs(factor) or 1.0)

    def grid(self, codes_only: bool = True) -> str | None:
        """A new grid for an output, or None for a float32 output."""
        return self.one_of(None, self.new_grid(codes_only))

    def codes(self, shape: Shape, codes_only: bool = True) -> str:
        """A quantized input; the batch times two comes out of a reshape."""
        build = self.build
        factor, *rest = (-shape[0], *shape[1:])
        source = build.new_input(shape if factor == 1 else (-1, factor, *rest))
        codes = build.quantize(source, self.new_grid(codes_only))
        return codes if factor == 1 else build.add(lambda out: Reshape(codes, out), shape, build.values[codes].grid)

    def image(self, channels: int, codes_only: bool = True, largest: int = 9) -> str:
        return self.codes((-1, self.whole(1, largest), self.whole(1, largest), channels), codes_only)

    def numbers(self, mean: float, *shape: int) -> str:
        """A tensor of gains or shifts about `mean`."""
        tensor = mean + 0.5 * self.build.normal(*shape)
        if self.wild:
            chosen = torch.randint(0, len(EXTREMES), shape, generator=self.build.random)
            tensor = torch.tensor(EXTREMES)[chosen] * self.one_of(1.0, tensor)
        return self.build.tensor(tensor.nan_to_num())

    def epilogue(self, shape: Shape) -> Epilogue:
        """Any mix of gain, shift, residual and clamp for an output of `shape`."""
        channels = shape[-1]
        rows = self.one_of((), (8,))
        gain = self.numbers(1.0, *rows, channels) if self.one_of(True, False) else None
        shift = self.numbers(0.0, *rows, channels) if self.one_of(True, False) else None
        low, high = self.one_of((None, None), (0.0, None), (0.0, 0.75), (-0.5, 0.5), (None, 0.25), (-0.0, 1e300))
        return Epilogue(gain, shift, self.residual(shape), low, high)

    def residual(self, shape: Shape) -> str | None:
        """Nothing, codes of their own, or an earlier value of this shape."""
        values = self.build.values
        earlier = [name for name in values if values[name].grid is not None and values[name].shape == shape]
        kind = self.one_of("none", "new", "earlier" if earlier else "none")
        return self.codes(shape, codes_only=False) if kind == "new" else self.one_of(None, *earlier[-2:])

    def window(self, height: int, width: int, *, dilated: bool = True) -> dict[str, Any]:
        """Kernel, stride, padding and dilation that fit an input."""
        result: dict[str, Any] = {"kernel": [], "stride": [], "dilation": []}
        padding = []
        for size in (height, width):
            before, after = self.one_of((0, 0), (0, 0), (1, 1), (self.whole(0, 3), self.whole(0, 3)))
            room = size + before + after
            kernel = self.one_of(self.whole(1, min(room, 3)), self.whole(1, min(room, 7)))
            largest = (room - 1) // (kernel - 1) if kernel > 1 else 1
            result["kernel"].append(kernel)
            result["stride"].append(self.whole(1, self.one_of(1, 2, 4)))
            result["dilation"].append(self.whole(1, min(largest, 3)) if dilated else 1)
            padding += [before, after]
        return {key: tuple(value) for key, value in result.items()} | {"padding": tuple(padding)}

    def conv(self) -> str:
        groups = self.one_of(1, 1, 1, 2, 3)
        depth = self.one_of(1, 2, 3, 4, 5, 8, 16, 17, 32, 33, 70)
        out = groups * self.one_of(1, 3, 8, 16, 17, 32, 37, 48, 65)
        if self.one_of(False, False, True):  # a kernel for each channel, or two
            groups, depth = self.one_of(2, 5, 16, 19, 32, 40, 64, 71, 100), 1
            out = groups * self.one_of(1, 1, 1, 2)
        source = self.image(groups * depth, largest=self.one_of(3, 9, 9, 33))
        return self.window_conv(source, out, groups)

    def window_conv(self, source: str, out: int, groups: int) -> str:
        build = self.build
        _, height, width, _ = build.shape(source)
        window = self.window(height, width)
        shape = window_shape(build.shape(source), out, **window)
        corrected = self.one_of("none", "mean", "both")
        return build.conv(
            source, out, **window, groups=groups, grid=self.grid(), corrected=corrected, epilogue=self.epilogue(shape)
        )

    def depthwise(self, source: str | None = None) -> str:
        """A 3 x 3 kernel for each channel: more channels than a vector, and every remainder."""
        build = self.build
        source = source or self.image(self.one_of(3, 16, 24, 32, 48, 64, 80, 96, 130), largest=self.one_of(9, 20))
        channels = build.shape(source)[-1]
        padding = self.one_of((1, 1, 1, 1), (2, 1, 2, 0), (0, 2, 0, 2), (2, 0, 1, 2), (2, 1, 2, 2), (3, 3, 3, 3))
        stride = self.one_of((1, 1), (2, 2), (2, 1), (1, 2), (3, 1))
        options = {"groups": channels, "corrected": self.one_of("none", "mean", "both"), "grid": self.new_grid()}
        epilogue = Epilogue(low=self.one_of(None, -0.25), high=self.one_of(None, 0.75))
        if min(window_shape(build.shape(source), channels, (3, 3), stride, padding)[1:3]) < 1:
            padding = (2, 1, 2, 2)
        return build.conv(source, channels, (3, 3), stride=stride, padding=padding, epilogue=epilogue, **options)

    def pointwise(self) -> str:
        """A 1 x 1 convolution of a wide image: tiles of all sizes."""
        build = self.build
        source = self.image(self.one_of(1, 4, 7, 32, 64, 100, 300, 508, 509, 640, 641), codes_only=False, largest=20)
        out = self.one_of(1, 16, 24, 31, 32, 48, 65)
        shape = (*build.shape(source)[:-1], out)
        corrected = self.one_of("none", "mean", "both")
        return build.conv(source, out, grid=self.grid(), corrected=corrected, epilogue=self.epilogue(shape))

    def linear(self, source: str | None = None) -> str:
        build = self.build
        if source is None:
            inputs = self.one_of(self.whole(1, 70), self.one_of(64, 127, 256, 300, SHIFTED[0][1], SHIFTED[0][1] + 1))
            source = self.codes((*self.one_of((-1,), (-1, 3), (-2,), (-1, 0), (-1, 2, 2, 2)), inputs), codes_only=False)
        out = self.one_of(self.whole(1, 70), 16, 32)
        corrected = self.one_of("none", "mean", "both")
        return build.linear(
            source, out, grid=self.grid(), corrected=corrected, epilogue=self.epilogue((*build.shape(source)[:-1], out))
        )

    def affine(self, source: str | None = None) -> str:
        if source is None:
            channels = self.one_of(self.whole(0, 40), 64, 1030)
            shape = self.one_of((-1, 3, 5, channels), (-1, 70), (-1,), (-1, 2, 0, channels), (-1, 2, 1, 3, channels))
            source = self.codes(shape, codes_only=False)
        shape = self.build.shape(source)
        epilogue = self.epilogue(shape) if shape != (-1,) else Epilogue()
        return self.build.affine(source, grid=self.grid(codes_only=False), epilogue=epilogue)

    def average_pool(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.image(self.one_of(1, 5, 16, 40, 64, 600))
        window = self.window(*build.shape(source)[1:3], dilated=False)
        del window["dilation"]
        shape = window_shape(build.shape(source), build.shape(source)[-1], **window)
        epilogue = self.epilogue(shape)
        return build.add(lambda out: AveragePool(source, out, **window, epilogue=epilogue), shape, self.grid())

    def max_pool(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.image(self.one_of(1, 5, 16, 40, 64, 100), codes_only=False)
        window = self.window(*build.shape(source)[1:3])
        shape = window_shape(build.shape(source), build.shape(source)[-1], **window)
        return build.add(lambda out: MaxPool(source, out, **window), shape, build.values[source].grid)

    def concat(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.codes((-1, self.one_of(0, 1, 2, 2), 3, self.whole(1, 20)), codes_only=False)
        dim = self.one_of(*[d for d, size in enumerate(build.shape(source)) if size > 0])
        sources = [source]
        for _ in range(self.whole(0, 2)):
            shape = list(build.shape(source))
            shape[dim] = self.whole(1, 20)
            sources.append(self.codes(tuple(shape), codes_only=False))
        shape = list(build.shape(source))
        shape[dim] = sum(build.shape(s)[dim] for s in sources)
        return build.add(lambda out: Concat(tuple(sources), out, dim), tuple(shape), self.grid(codes_only=False))

    def lookup(self, source: str | None = None) -> str:
        shape = self.one_of((-1, 5, self.whole(0, 20)), (-1, self.one_of(15, 16, 17, 63, 64, 65, 127, 131)))
        source = source or self.codes(shape, codes_only=False)
        functions = self.one_of(
            (), (AtenCall("hardswish.default"),), (AtenCall("sigmoid.default"), AtenCall("leaky_relu.default", (0.2,)))
        )
        return self.build.add(
            lambda out: Lookup(source, out, functions), self.build.shape(source), self.grid(codes_only=False)
        )

    def reshape(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.codes((-1, 2, self.whole(0, 5), 3), codes_only=False)
        first, *rest = build.shape(source)
        shape = self.one_of((first, math.prod(rest)), (first * rest[0], *rest[1:]) if rest[1:] else (first, *rest))
        return build.add(lambda out: Reshape(source, out), shape, build.values[source].grid)

    def permute(self, source: str | None = None) -> str:
        build = self.build
        shape = self.one_of((-1, 2, self.whole(0, 5), 3), (-1, 2, 3, 2, self.whole(1, 3)), (-1, self.whole(1, 70)))
        source = source or self.codes(shape, codes_only=False)
        dims = self.order(len(build.shape(source)))
        shape = tuple(build.shape(source)[d] for d in dims)
        return build.add(lambda out: Permute(source, out, dims), shape, build.values[source].grid)

    def quantize(self) -> str:
        build = self.build
        channels, inner = self.whole(0, 9), self.one_of(self.whole(0, 20), 63, 64, 65, 128, 150)
        shape = self.one_of((-1, channels, 5, 7), (-1, channels, inner), (-1, 50), (-1, 1, inner), (-1, 3, inner))
        grid = self.new_grid(codes_only=False)
        return build.quantize(build.new_input(shape), grid, channels_last=self.one_of(True, False))

    def float_between(self, source: str) -> str:
        """Codes to float, a float function that may be a mere view, another one, and back to codes."""
        build = self.build
        value = build.affine(source, grid=None)
        first, *rest = build.shape(value)
        flat = (first, math.prod(rest))
        name, shape, extra = self.one_of(
            ("gelu.default", (first, *rest), ()),
            ("abs.default", (first, *rest), ()),
            ("flatten.using_ints", flat, (1, -1)),
        )
        value = build.aten(AtenCall(name, (Reference(value), *extra)), shape)
        value = build.aten(AtenCall("relu.default", (Reference(value),)), shape)
        return build.quantize(value, self.new_grid())

    def floats(self, source: str | None = None) -> str:
        """A few operations on floats: as the first ones of a Program they meet what is infinite or no number."""
        build = self.build
        if source is None:
            length = self.one_of(self.whole(1, 40), 64, 65, 100, 197, 300)
            value = build.new_input(self.one_of((-1, length), (-1, 3, length), (-1, 2, 2, length)))
        else:
            value = build.affine(source, grid=None)
        shape = build.shape(value)
        for _ in range(self.whole(1, 3)):
            value = build.add(self.float_operation(value, shape), shape, None)
        return value if source is None else build.quantize(value, self.new_grid())

    def float_operation(self, value: str, shape: Shape) -> Callable[[str], Any]:
        """One that keeps the shape."""
        kind = self.one_of("norm", "softmax", "value", "constant", *GATES)
        if kind == "softmax":
            return lambda out: Softmax(value, out)
        sign = self.one_of("add", "sub", "mul", "div")
        if kind == "value":
            equal = [name for name, v in self.build.values.items() if (v.dtype, v.shape) == ("f32", shape)]
            other = self.one_of(*equal)
            return lambda out: Arithmetic(value, out, sign, other, None)
        if kind == "constant":
            last = shape[self.whole(1, len(shape)) :]
            constant = self.numbers(0.5, *last) if last else self.build.tensor(torch.tensor(self.build.uniform(-1, 1)))
            return lambda out: Arithmetic(value, out, sign, None, constant)
        if kind != "norm":
            return lambda out: Activation(value, out, kind)
        dims = self.whole(1, len(shape) - 1)
        gain, bias = (self.one_of(None, self.numbers(mean, *shape[-dims:])) for mean in (1.0, 0.0))
        epsilon = self.one_of(1e-5, 1e-12, 0.0, 1.0)
        return lambda out: LayerNorm(value, out, dims, gain, bias, epsilon)

    def matmul(self) -> str:
        build = self.build
        leading = self.one_of((-1,), (-1, 2), (3, -1))
        rows, depth, columns = (self.one_of(self.whole(1, 9), self.whole(1, 70)) for _ in range(3))
        if leading[0] == -1:
            left, right = (build.new_input((*leading, *sides)) for sides in ((rows, depth), (depth, columns)))
        else:
            turned = [build.new_input((-1, leading[0], *sides)) for sides in ((rows, depth), (depth, columns))]
            left, right = (
                build.add(partial(Permute, v, dims=(1, 0, 2, 3)), (*leading, *build.shape(v)[2:]), None) for v in turned
            )
        return build.add(lambda out: MatMul(left, right, out), (*leading, rows, columns), None)

    def reduction(self) -> str:
        """A mean over a dimension, or one element of it."""
        build = self.build
        length = self.one_of(1, 3, 16, 17, 40)
        value = build.new_input(self.one_of((-1, length), (-1, 5, length), (-1, length, 3), (-1, 2, length, 2)))
        shape = build.shape(value)
        dim = self.whole(1, len(shape) - 1)
        index = self.one_of(None, self.whole(0, shape[dim] - 1))
        rest = shape[:dim] + shape[dim + 1 :]
        if index is None:
            return build.add(lambda out: Mean(value, out, dim), rest, None)
        return build.add(lambda out: Select(value, out, dim, index), rest, None)

    def embedding(self) -> str:
        build = self.build
        shape = self.one_of((-1,), (-1, self.whole(0, 20)), (-1, 3, 4))
        table = self.numbers(0.0, self.one_of(1, 7, 100), self.one_of(1, 3, 16, 50))
        build.inputs.append("ids")
        build.values["ids"] = Value("i64", shape)
        return build.add(lambda out: Embedding("ids", out, table), (*shape, build.tensors[table].shape[1]), None)


CHAINED = (
    "affine",
    "average_pool",
    "concat",
    "depthwise",
    "float_between",
    "floats",
    "linear",
    "lookup",
    "max_pool",
    "permute",
    "reshape",
)
SINGLE = (
    "affine",
    "average_pool",
    "concat",
    "conv",
    "depthwise",
    "embedding",
    "floats",
    "linear",
    "lookup",
    "matmul",
    "max_pool",
    "permute",
    "pointwise",
    "quantize",
    "reduction",
    "reshape",
)
KINDS = (*SINGLE, "chain")


def draw_case(whole: Draw, kind: str) -> Case:
    """One operation of a kind between quantized inputs and a float32 output, or a chain of several."""
    ladder: Ladder = "round" if whole(0, 1) else "shift"
    drawing = Drawing(whole, Builder(whole(0, 1 << 30), ladder), kind == "chain", wild=whole(0, 5) == 5)
    return _case(drawing, chain(drawing) if kind == "chain" else [getattr(drawing, kind)()])


def chain(drawing: Drawing) -> list[str]:
    """The last values of several operations, with branches: values are read again long after they were made."""
    build = drawing.build
    values = [drawing.image(drawing.one_of(3, 8, 16, 20))]
    for _ in range(drawing.whole(2, 6)):
        images = [v for v in values if len(build.shape(v)) == 4 and build.shape(v)[0] == -1 and 0 not in build.shape(v)]
        source = drawing.one_of(*images)
        kind = drawing.one_of("window_conv", "window_conv", *CHAINED)
        made = (
            drawing.window_conv(source, drawing.one_of(3, 8, 16, 33), 1)
            if kind == "window_conv"
            else getattr(drawing, kind)(source)
        )
        if build.values[made].dtype == "u8":
            values.append(made)
        else:
            values.append(build.quantize(made, drawing.new_grid()))
    return values[-2:]


def _case(drawing: Drawing, values: list[str]) -> Case:
    """A Program whose outputs are `values`, brought to float32, with its inputs and widths."""
    build = drawing.build
    codes = [v for v in build.values if build.values[v].dtype == "u8"]
    for layer in range(drawing.whole(0, 2) if codes else 0):  # layers that read nothing here, but give grids a width
        build.reads(drawing.one_of(*codes), _spare_layer(build, layer))
    outputs = [v if build.values[v].dtype == "f32" else build.affine(v, grid=None) for v in dict.fromkeys(values)]
    program = build.finish(tuple(outputs))
    batch = drawing.whole(0, 5)
    inputs = [_input(build, name, batch) for name in build.inputs]
    widest = drawing.one_of(2, 8, 8)  # layers whose inputs are of few bits as well have kernels of their own
    widths = Widths(tuple((layer, drawing.whole(1, widest)) for layer in build.layers))
    return Case(program, inputs, widths, threads=drawing.one_of(1, 1, 2, 3))


def _spare_layer(build: Builder, index: int) -> str:
    """A layer with a linear operation of its own, so that the Program lists it."""
    source = build.quantize(build.new_input((-1, 3)), build.new_grid())
    build.linear(source, 2, grid=None)
    return f"layer{len(build.layers) - 1}"


def _input(build: Builder, name: str, batch: int) -> Tensor:
    """Normal numbers with a few special ones, or rows of the first table."""
    shape = (batch, *build.shape(name)[1:])
    if build.values[name].dtype == "i64":
        return torch.randint(0, len(build.tensors["t0"]), shape, generator=build.random)
    x = 2 * build.normal(*shape)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -0.0, 1e-42, -1e-38])
    places = torch.rand(shape, generator=build.random) < 0.02
    return torch.where(places, special[torch.randint(0, len(special), shape, generator=build.random)], x)
