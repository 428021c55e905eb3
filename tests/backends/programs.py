"""Random small Programs: hypothesis strategies for single operations and for chains of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from program_builder import Builder, Shape, window_shape
from torch import Tensor

from mbqc.numerics import MOST_SHIFTED
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
)
from mbqc.widths import Widths


@dataclass
class Case:
    """What one test runs."""

    program: Program
    inputs: list[Tensor]
    widths: Widths


@dataclass
class Drawing:
    """Draws operations onto a builder; all zero-points are codes if `chained`, so that any operation may follow."""

    draw: Any
    build: Builder
    chained: bool = False

    def whole(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def one_of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def grid(self, codes_only: bool = True) -> str | None:
        """A new grid for an output, or None for a float32 output."""
        return self.one_of(None, self.build.new_grid(codes_only=codes_only or self.chained))

    def codes(self, shape: Shape, codes_only: bool = True) -> str:
        """A quantized input; the batch times two comes out of a reshape."""
        build = self.build
        factor, *rest = (-shape[0], *shape[1:])
        source = build.new_input(shape if factor == 1 else (-1, factor, *rest))
        codes = build.quantize(source, build.new_grid(codes_only=codes_only))
        return codes if factor == 1 else build.add(lambda out: Reshape(codes, out), shape, build.values[codes].grid)

    def image(self, channels: int, codes_only: bool = True, largest: int = 9) -> str:
        return self.codes((-1, self.whole(1, largest), self.whole(1, largest), channels), codes_only)

    def epilogue(self, shape: Shape) -> Epilogue:
        """Any mix of gain, shift, residual and clamp for an output of `shape`."""
        build, channels = self.build, shape[-1]
        rows = self.one_of((), (8,))
        gain = build.tensor(1 + 0.5 * build.normal(*rows, channels)) if self.one_of(True, False) else None
        shift = build.tensor(0.5 * build.normal(*rows, channels)) if self.one_of(True, False) else None
        residual = self.codes(shape, codes_only=False) if self.one_of(True, False) else None
        low, high = self.one_of((None, None), (0.0, None), (0.0, 0.75), (-0.5, 0.5), (None, 0.25))
        return Epilogue(gain, shift, residual, low, high)

    def window(self, height: int, width: int, *, dilated: bool = True) -> dict[str, Any]:
        """Kernel, stride, padding and dilation that fit an input."""
        result: dict[str, Any] = {"kernel": [], "stride": [], "dilation": []}
        padding = []
        for size in (height, width):
            before, after = self.one_of((0, 0), (1, 1), (0, 1), (2, 0), (1, 2))
            room = size + before + after
            kernel = self.whole(1, min(room, 5))
            largest = (room - 1) // (kernel - 1) if kernel > 1 else 1
            result["kernel"].append(kernel)
            result["stride"].append(self.whole(1, 3))
            result["dilation"].append(self.whole(1, min(largest, 3)) if dilated else 1)
            padding += [before, after]
        return {key: tuple(value) for key, value in result.items()} | {"padding": tuple(padding)}

    def conv(self, source: str | None = None) -> str:
        groups = self.one_of(1, 1, 1, 2, 3)
        depth = self.one_of(1, 2, 3, 4, 5, 8, 17, 33)
        out = groups * self.one_of(1, 3, 8, 16, 17, 32, 37)
        if self.one_of(False, False, True):  # depthwise
            groups, depth, out = (channels := self.one_of(2, 5, 16, 19, 40)), 1, channels
        source = source or self.image(groups * depth)
        if self.build.shape(source)[-1] != groups * depth:
            groups = 1
        return self._window_conv(source, out, groups)

    def _window_conv(self, source: str, out: int, groups: int) -> str:
        build = self.build
        _, height, width, _ = build.shape(source)
        window = self.window(height, width)
        shape = window_shape(build.shape(source), out, **window)
        corrected = self.one_of("none", "mean", "both")
        return build.conv(
            source, out, **window, groups=groups, grid=self.grid(), corrected=corrected, epilogue=self.epilogue(shape)
        )

    def depthwise(self) -> str:
        """A 3 x 3 kernel for each channel: more channels than a vector, and every remainder."""
        build, channels = self.build, self.one_of(3, 16, 24, 32, 48, 64, 80, 96, 130)
        source = self.image(channels)
        padding = self.one_of((1, 1, 1, 1), (2, 1, 2, 0), (2, 1, 2, 2))
        stride = self.one_of((1, 1), (2, 2), (2, 1), (1, 2))
        options = {"groups": channels, "corrected": self.one_of("none", "mean", "both"), "grid": build.new_grid()}
        epilogue = Epilogue(low=self.one_of(None, -0.25), high=self.one_of(None, 0.75))
        return build.conv(source, channels, (3, 3), stride=stride, padding=padding, epilogue=epilogue, **options)

    def pointwise(self) -> str:
        """A 1 x 1 convolution of a wide image: tiles of all sizes."""
        build = self.build
        source = self.image(self.one_of(4, 7, 32), codes_only=False, largest=20)
        out = self.one_of(1, 16, 24, 48)
        shape = (*build.shape(source)[:-1], out)
        corrected = self.one_of("none", "mean", "both")
        return build.conv(source, out, grid=self.grid(), corrected=corrected, epilogue=self.epilogue(shape))

    def linear(self) -> str:
        build = self.build
        leading = self.one_of((-1,), (-1, 3), (-2,))
        inputs = self.one_of(self.whole(1, 70), MOST_SHIFTED, MOST_SHIFTED + 1)
        source = self.codes((*leading, inputs), codes_only=False)
        out = self.whole(1, 70)
        corrected = self.one_of("none", "mean", "both")
        return build.linear(
            source, out, grid=self.grid(), corrected=corrected, epilogue=self.epilogue((*build.shape(source)[:-1], out))
        )

    def affine(self, source: str | None = None) -> str:
        source = source or self.codes(self.one_of((-1, 3, 5, self.whole(1, 40)), (-1, 70), (-1,)), codes_only=False)
        shape = self.build.shape(source)
        epilogue = self.epilogue(shape) if shape != (-1,) else Epilogue()
        return self.build.affine(source, grid=self.grid(codes_only=False), epilogue=epilogue)

    def average_pool(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.image(self.one_of(1, 5, 16, 40))
        window = self.window(*build.shape(source)[1:3], dilated=False)
        del window["dilation"]
        shape = window_shape(build.shape(source), build.shape(source)[-1], **window)
        epilogue = self.epilogue(shape)
        return build.add(lambda out: AveragePool(source, out, **window, epilogue=epilogue), shape, self.grid())

    def max_pool(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.image(self.one_of(1, 5, 16, 40), codes_only=False)
        window = self.window(*build.shape(source)[1:3])
        shape = window_shape(build.shape(source), build.shape(source)[-1], **window)
        return build.add(lambda out: MaxPool(source, out, **window), shape, build.values[source].grid)

    def concat(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.codes((-1, 2, 3, self.whole(1, 20)), codes_only=False)
        dim = self.whole(1, len(build.shape(source)) - 1)
        sources = [source]
        for _ in range(self.whole(0, 2)):
            shape = list(build.shape(source))
            shape[dim] = self.whole(1, 20)
            sources.append(self.codes(tuple(shape), codes_only=False))
        shape = list(build.shape(source))
        shape[dim] = sum(build.shape(s)[dim] for s in sources)
        return build.add(lambda out: Concat(tuple(sources), out, dim), tuple(shape), self.grid(codes_only=False))

    def lookup(self, source: str | None = None) -> str:
        source = source or self.codes((-1, 5, self.whole(1, 20)), codes_only=False)
        functions = self.one_of(
            (), (AtenCall("hardswish.default"),), (AtenCall("sigmoid.default"), AtenCall("leaky_relu.default", (0.2,)))
        )
        return self.build.add(
            lambda out: Lookup(source, out, functions), self.build.shape(source), self.grid(codes_only=False)
        )

    def reshape(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.codes((-1, 2, self.whole(1, 5), 3), codes_only=False)
        first, *rest = build.shape(source)
        shape = self.one_of((first, math.prod(rest)), (first * rest[0], *rest[1:]) if rest[1:] else (first, *rest))
        return build.add(lambda out: Reshape(source, out), shape, build.values[source].grid)

    def permute(self, source: str | None = None) -> str:
        build = self.build
        source = source or self.codes((-1, 2, self.whole(1, 5), 3), codes_only=False)
        dims = tuple(self.draw(st.permutations(range(len(build.shape(source))))))
        shape = tuple(build.shape(source)[d] for d in dims)
        return build.add(lambda out: Permute(source, out, dims), shape, build.values[source].grid)

    def quantize(self) -> str:
        build = self.build
        shape = self.one_of((-1, 3, 5, 7), (-1, self.whole(1, 40), 4), (-1, 50), (-1, 1, 33))
        grid = build.new_grid(codes_only=False)
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
        return build.quantize(value, build.new_grid())


KINDS = (
    "quantize",
    "conv",
    "depthwise",
    "pointwise",
    "linear",
    "affine",
    "average_pool",
    "max_pool",
    "concat",
    "lookup",
    "reshape",
    "permute",
)


@st.composite
def single(draw: Any, kind: str) -> Case:
    """One operation of a kind, between quantized inputs and a float32 output."""
    drawing = _drawing(draw)
    return _case(drawing, [getattr(drawing, kind)()])


@st.composite
def chain(draw: Any) -> Case:
    """Several operations, with branches: values are read again long after they were made."""
    drawing = _drawing(draw, chained=True)
    build = drawing.build
    values = [drawing.image(drawing.one_of(3, 8, 16))]
    for _ in range(drawing.whole(2, 6)):
        images = [v for v in values if len(build.shape(v)) == 4 and build.shape(v)[0] == -1]
        source = drawing.one_of(*images)
        kind = drawing.one_of("_window_conv", "average_pool", "max_pool", "affine", "concat", "lookup", "float_between")
        made = (
            drawing._window_conv(source, drawing.one_of(3, 8, 16), 1)
            if kind == "_window_conv"
            else getattr(drawing, kind)(source)
        )
        if build.values[made].dtype == "u8":
            values.append(made)
        else:
            values.append(build.quantize(made, build.new_grid()))
    return _case(drawing, values[-2:])


def _drawing(draw: Any, *, chained: bool = False) -> Drawing:
    ladder = draw(st.sampled_from(["round", "shift"]))
    return Drawing(draw, Builder(draw(st.integers(0, 1 << 30)), ladder), chained)


def _case(drawing: Drawing, values: list[str]) -> Case:
    """A Program whose outputs are `values`, brought to float32, with its inputs and widths."""
    build = drawing.build
    for layer in range(drawing.whole(0, 2)):  # layers that read nothing here, but give grids a width
        build.reads(
            drawing.one_of(*[v for v in build.values if build.values[v].dtype == "u8"]), _spare_layer(build, layer)
        )
    outputs = [v if build.values[v].dtype == "f32" else build.affine(v, grid=None) for v in dict.fromkeys(values)]
    program = build.finish(tuple(outputs))
    batch = drawing.whole(0, 5)
    inputs = [_input(build, (batch, *build.shape(name)[1:])) for name in build.inputs]
    widths = Widths(tuple((layer, drawing.whole(1, 8)) for layer in build.layers))
    return Case(program, inputs, widths)


def _spare_layer(build: Builder, index: int) -> str:
    """A layer with a linear operation of its own, so that the Program lists it."""
    source = build.quantize(build.new_input((-1, 3)), build.new_grid())
    build.linear(source, 2, grid=None)
    return f"layer{len(build.layers) - 1}"


def _input(build: Builder, shape: Shape) -> Tensor:
    """Normal numbers with a few special ones."""
    x = 2 * build.normal(*shape)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -0.0])
    places = torch.rand(shape, generator=build.random) < 0.02
    return torch.where(places, special[torch.randint(0, 5, shape, generator=build.random)], x)
