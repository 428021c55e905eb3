"""The rules of a Program: one good Program with every operation, broken in one place at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from mbqc.errors import VerifyError
from mbqc.program.float_operations import Activation, Arithmetic, Embedding, LayerNorm, MatMul, Mean, Select, Softmax
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Aten,
    AtenCall,
    AveragePool,
    Concat,
    Constant,
    Conv,
    DTypeArgument,
    Epilogue,
    Grid,
    LayerInfo,
    Linear,
    ListArgument,
    Listing,
    Lookup,
    MaxPool,
    Permute,
    Program,
    Quantize,
    Reference,
    Reshape,
    Value,
    Weight,
)
from mbqc.program.verify import verify_program
from tests import zoo

GRID = Grid(tuple(1.0 / (2**b - 1) for b in range(1, 9)), tuple(2 ** (b - 1) for b in range(1, 9)), ("conv",))
OFFSET = replace(GRID, zero_points=(0, 0, 0, 0, 0, 0, 0, -5), layers=())
"""A grid whose zero-point is no code: nothing can be padded with it."""


def u8(*shape: int, grid: str = "grid") -> Value:
    return Value("u8", (-1, *shape), grid)


def f32(*shape: int) -> Value:
    return Value("f32", (-1, *shape))


VALUES = {
    "x": f32(3, 8, 8),
    "codes": u8(8, 8, 3),
    "conv": u8(8, 8, 4),
    "norm": u8(8, 8, 4),
    "max": u8(4, 4, 4),
    "mean": u8(4, 4, 4),
    "table": u8(4, 4, 4),
    "both": u8(4, 4, 8, grid="offset"),
    "turned": u8(8, 4, 4, grid="offset"),
    "flat": u8(128, grid="offset"),
    "fc": f32(5),
    "soft": f32(5),
    "rows": f32(5),
    "normed": f32(5),
    "active": f32(5),
    "share": f32(5),
    "looked": f32(3, 2),
    "scaled": f32(3, 2),
    "squares": f32(3, 3),
    "average": f32(3),
    "first": f32(3),
    "sum": f32(3),
    "ids": Value("i64", (-1, 3)),
    "square": f32(2, 3),
}
OPERATIONS = (
    Quantize("x", "codes", channels_last=True),
    Conv(
        "codes",
        "conv",
        Weight("conv", "conv.codes", "conv.scale", "conv.mean", "conv.std"),
        stride=(1, 1),
        padding=(1, 1, 1, 1),
        dilation=(1, 1),
        groups=1,
        epilogue=Epilogue("conv.gain", "conv.shift", None, 0.0, 6.0),
    ),
    Affine("conv", "norm", Epilogue(gain="norm.gain", residual="conv")),
    MaxPool("norm", "max", kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0), dilation=(1, 1)),
    AveragePool("norm", "mean", kernel=(3, 3), stride=(2, 2), padding=(1, 0, 1, 0), epilogue=Epilogue()),
    Lookup("max", "table", (AtenCall("hardswish.default"), AtenCall("mul.Tensor", (2.0,)))),
    Concat(("mean", "table"), "both", dim=3),
    Permute("both", "turned", dims=(0, 3, 1, 2)),
    Reshape("turned", "flat"),
    Linear("flat", "fc", Weight("fc", "fc.codes", "fc.scale"), Epilogue(shift="fc.bias")),
    Aten(AtenCall("softmax.int", (Reference("fc"), 1)), ("soft",)),
    Aten(
        AtenCall("add.Tensor", (Reference("soft"), Constant("rows")), {"alpha": 2}),
        ("rows",),
    ),
    LayerNorm("rows", "normed", 1, "rows", None, 1e-5),
    Activation("normed", "active", "silu"),
    Softmax("active", "share"),
    Embedding("ids", "looked", "words"),
    Arithmetic("looked", "scaled", "div", None, "pair"),
    MatMul("scaled", "square", "squares"),
    Mean("squares", "average", 2),
    Select("squares", "first", 1, 2),
    Arithmetic("average", "sum", "add", "first", None),
)
QUANTIZE, CONV, NORM, MAX, MEAN, TABLE, BOTH, TURNED, FLAT, FC, SOFT, ROWS = range(12)
NORMED, ACTIVE, SHARE, LOOKED, SCALED, SQUARES, AVERAGE, FIRST, SUM = range(12, len(OPERATIONS))


def codes(*shape: int) -> Tensor:
    return torch.full(shape, -128, dtype=torch.int8)


TENSORS = {
    "conv.codes": codes(4, 3, 3, 3),
    **{f"conv.{name}": torch.ones(4) for name in ("scale", "mean", "std", "gain")},
    "conv.shift": torch.zeros(8, 4),
    "norm.gain": torch.ones(4),
    "fc.codes": codes(5, 128),
    "fc.scale": torch.ones(5),
    "fc.bias": torch.ones(5),
    "rows": torch.ones(5),
    "words": torch.ones(9, 2),
    "pair": torch.ones(2),
}
LISTING = Listing(
    ladder="round",
    inputs=("x", "ids", "square"),
    outputs=("rows", "fc"),
    values=VALUES,
    grids={"grid": GRID, "offset": OFFSET},
    layers={"conv": LayerInfo(pinned=8), "fc": LayerInfo()},
    operations=OPERATIONS,
)
GOOD = Program(LISTING, TENSORS)

Change = Callable[[Program], Program]


def listing(**fields: Any) -> Change:
    return lambda program: Program(replace(program.listing, **fields), program.tensors)


def entry(part: str, name: str, **fields: Any) -> Change:
    """One value, grid or layer with other fields."""

    def change(program: Program) -> Program:
        entries = getattr(program.listing, part)
        return listing(**{part: {**entries, name: replace(entries[name], **fields)}})(program)

    return change


def operation(place: int, /, **fields: Any) -> Change:
    """One operation with other fields; those of its weight or epilogue are named `weight__scale`."""

    def change(program: Program) -> Program:
        found = program.listing.operations[place]
        for name, value in fields.items():
            part, _, inner = name.partition("__")
            found = replace(found, **{part: replace(getattr(found, part), **{inner: value}) if inner else value})
        operations = list(program.listing.operations)
        operations[place] = found
        return listing(operations=tuple(operations))(program)

    return change


def tensor(name: str, value: Tensor | None) -> Change:
    def change(program: Program) -> Program:
        kept = {n: t for n, t in program.tensors.items() if n != name}
        return Program(program.listing, kept if value is None else {**kept, name: value})

    return change


def all_of(*changes: Change) -> Change:
    def change(program: Program) -> Program:
        for one in changes:
            program = one(program)
        return program

    return change


def call(name: str, *args: Any, **kwargs: Any) -> Change:
    return operation(SOFT, call=AtenCall(name, args, kwargs))


def table(name: str, *args: Any) -> Change:
    return operation(TABLE, functions=(AtenCall(name, args),))


SCALES, ZEROS = GRID.scales, GRID.zero_points
SELF = Reference("fc")
WITHOUT_SOFT = {name: value for name, value in VALUES.items() if name != "soft"}

# (what is wrong, the change that makes it so, a part of the message, the place that is named)
GRIDS = [
    ("a scale of zero", entry("grids", "grid", scales=(*SCALES[:7], 0.0)), "a scale is not positive", "grid grid"),
    ("an infinite scale", entry("grids", "grid", scales=(math.inf, *SCALES[1:])), "and finite", "grid grid"),
    ("a scale that is no number", entry("grids", "grid", scales=(math.nan, *SCALES[1:])), "and finite", "grid grid"),
    ("a huge zero-point", entry("grids", "grid", zero_points=(*ZEROS[:7], 1 << 20)), "out of range", "grid grid"),
    ("a grid that names no layer", entry("grids", "grid", layers=("gone",)), "an unknown layer", "grid grid"),
    ("a layer pinned to 9 bits", entry("layers", "fc", pinned=9), "pinned width is not from 1 to 8", "layer fc"),
    ("a layer pinned to 0 bits", entry("layers", "fc", pinned=0), "pinned width is not from 1 to 8", "layer fc"),
    ("a layer that is not used", listing(layers={**LISTING.layers, "gone": LayerInfo()}), r"\['gone'\]", None),
    ("a layer that is not listed", listing(layers={"conv": LayerInfo()}), r"layers \['fc'\]", None),
]
ORDER = [
    ("codes without a grid", entry("values", "flat", grid=None), "u8 values, and only they", "value flat"),
    ("floats with a grid", entry("values", "fc", grid="grid"), "u8 values, and only they", "value fc"),
    ("an unknown grid", entry("values", "flat", grid="gone"), "unknown grid 'gone'", "value flat"),
    ("a value of 16 GiB", entry("values", "fc", shape=(-1, 1 << 32)), "the shape is too large", "value fc"),
    ("an input without a type", listing(inputs=("x", "y")), "input 'y' is unknown", None),
    ("an input twice", listing(inputs=("x", "x")), "input 'x' is unknown or repeated", None),
    ("an input without a batch", entry("values", "x", shape=(3, 8, 8)), "an input has the batch first", "x"),
    ("codes as an input", entry("values", "x", dtype="u8", grid="grid"), "and is no code", "x"),
    ("a value read too early", operation(CONV, input="norm"), "'norm' is read before", "operation 1"),
    ("a residual read too early", operation(CONV, epilogue__residual="norm"), "'norm' is read before", "operation 1"),
    ("an argument that is never defined", call("relu.default", Reference("gone")), "'gone' is read", "operation 10"),
    ("a result without a type", listing(values=WITHOUT_SOFT), "value 'soft' has no type", "operation 10"),
    ("a value defined twice", operation(NORM, output="conv"), "'conv' is defined twice", "operation 2"),
    ("a value never defined", listing(values={**VALUES, "y": f32(5)}), r"\['y'\] are never defined", None),
    ("no output", listing(outputs=()), "a Program needs inputs and outputs", None),
    ("codes as an output", listing(outputs=("flat",)), "output 'flat' is undefined or a code", None),
    ("an output that is never defined", listing(outputs=("gone",)), "output 'gone' is undefined", None),
]
SHAPES = [
    ("too many channels", entry("values", "conv", shape=(-1, 8, 8, 5)), "Nx8x8x5, expected Nx8x8x4", CONV),
    ("another dtype", entry("values", "fc", dtype="i64"), "the output must be codes or float32", FC),
    ("quantizing to floats", entry("values", "codes", dtype="f32", grid=None), "takes f32 and gives u8", QUANTIZE),
    ("quantizing whole numbers", entry("values", "x", dtype="i64"), "takes f32 and gives u8", QUANTIZE),
    ("moving channels that are not there", entry("values", "x", shape=(-1,)), "no channels to move", QUANTIZE),
    ("a layer that reads floats", operation(FC, input="x"), "the inputs must be codes", FC),
    ("moving to another grid", entry("values", "max", grid="offset"), "changes neither dtype nor grid", MAX),
    ("permuting to another grid", entry("values", "turned", grid="grid"), "changes neither dtype nor grid", TURNED),
    ("reshaping to more elements", entry("values", "flat", shape=(-1, 129)), "number of elements changes", FLAT),
    ("reshaping the batch away", entry("values", "flat", shape=(128,)), "number of elements changes", FLAT),
    ("no order of the dimensions", operation(TURNED, dims=(0, 3, 1, 1)), "is no order of the dimensions", TURNED),
    ("too few dimensions", operation(TURNED, dims=(0, 2, 1)), "is no order of the dimensions", TURNED),
    ("concatenation of batches", operation(BOTH, dim=0), "dimension 0 cannot be concatenated", BOTH),
    ("concatenation behind the end", operation(BOTH, dim=4), "dimension 4 cannot be concatenated", BOTH),
    ("concatenation of other heights", operation(BOTH, inputs=("mean", "norm")), "the inputs' shapes differ", BOTH),
    ("concatenation of nothing", operation(BOTH, inputs=()), "it has no input", BOTH),
    ("a convolution of rows", operation(CONV, input="x"), "the inputs must be codes", CONV),
    ("a window on three dimensions", entry("values", "norm", shape=(-1, 64, 4)), "expected Nx8x8x4", NORM),
    ("groups that do not divide", operation(CONV, groups=3), "with 3 groups does not fit 3 channels", CONV),
    ("no groups", operation(CONV, groups=0), "with 0 groups does not fit", CONV),
    ("a stride of zero", operation(CONV, stride=(1, 0)), "a window size is not positive", CONV),
    ("a dilation of zero", operation(MAX, dilation=(0, 1)), "a window size is not positive", MAX),
    ("padding without end", operation(CONV, padding=(0, 1 << 17, 0, 0)), "or beyond 65536", CONV),
    (
        "padding that takes gigabytes",
        operation(CONV, padding=(1 << 16, 1 << 16, 1 << 16, 1 << 16), stride=(1 << 16, 1 << 16)),
        "the input with its padding is too large",
        CONV,
    ),
    ("an empty kernel", operation(MEAN, kernel=(0, 3)), "a window size is not positive", MEAN),
    ("negative padding", operation(CONV, padding=(-1, 1, 1, 1)), "padding is negative", CONV),
    ("a window larger than its input", operation(MAX, kernel=(9, 1)), "larger than its input", MAX),
    ("a sum that could overflow", operation(MEAN, kernel=(3000, 3000)), "its sum could overflow", MEAN),
    (
        "padding with no code",
        entry("grids", "grid", zero_points=OFFSET.zero_points),
        "padding needs a zero-point",
        CONV,
    ),
]
NUMBERS = [
    ("no weight codes", tensor("fc.codes", None), "tensor 'fc.codes' is missing", FC),
    ("weight codes of 16 bits", tensor("fc.codes", codes(5, 128).short()), "is torch.int16, expected torch.int8", FC),
    ("a flat weight of a convolution", tensor("conv.codes", codes(4, 27)), "must have 4 dimensions", CONV),
    ("an empty weight", tensor("fc.codes", codes(0, 128)), "must have 2 dimensions", FC),
    ("a weight of another size", tensor("fc.codes", codes(5, 127)), "127", FC),
    ("too few scales", tensor("fc.scale", torch.ones(4)), "fc.scale must have 5 entries", FC),
    ("scales of double precision", tensor("fc.scale", torch.ones(5).double()), "is torch.float64", FC),
    ("a negative scale", tensor("fc.scale", -torch.ones(5)), "fc.scale must be positive", FC),
    ("an infinite scale", tensor("fc.scale", torch.full((5,), math.inf)), "holds NaN or infinity", FC),
    ("too many means", tensor("conv.mean", torch.ones(5)), "conv.mean must have 4 entries", CONV),
    ("a mean that is no number", tensor("conv.mean", torch.full((4,), math.nan)), "holds NaN or infinity", CONV),
    ("a spread without a mean", operation(CONV, weight__mean=None), "only together with the mean", CONV),
    ("a gain of another size", tensor("conv.gain", torch.ones(3)), "conv.gain must have 4 channels", CONV),
    ("a shift for seven widths", tensor("conv.shift", torch.ones(7, 4)), "conv.shift must have 4 channels", CONV),
    ("pairs with a row a width", operation(CONV, epilogue__before=("fc",)), "conv.shift must have 4 channels", CONV),
    ("pairs with a stranger", operation(CONV, epilogue__before=("gone",)), "it names an unknown layer", CONV),
    ("pairs of what is no layer", operation(NORM, epilogue__before=("fc",)), "only a layer has a width", NORM),
    ("no gain", tensor("norm.gain", None), "tensor 'norm.gain' is missing", NORM),
    ("a residual of another shape", operation(NORM, epilogue__residual="codes"), "the residual's shape differs", NORM),
    ("a clamp upside down", operation(CONV, epilogue__low=7.0), "the clamp's bounds are wrong", CONV),
    ("an infinite clamp", operation(CONV, epilogue__high=math.inf), "the clamp's bounds are wrong", CONV),
]
FUNCTIONS = [
    ("a table of no function", table("softmax.int", 1), "softmax.int is not an element-wise function", TABLE),
    ("a table over two values", table("add.Tensor", Reference("max")), "takes plain numbers only", TABLE),
    ("a table with a wrong argument", table("gelu.default", 1, 2, 3), "aten.gelu.default", TABLE),
    ("a function that is not allowed", call("from_file.default", "/etc/passwd"), "is not in the list", SOFT),
    ("a function that does not exist", call("nothing.default", SELF), "is not in the list", SOFT),
    ("a missing argument", call("softmax.int", SELF), "aten.softmax.int refuses its arguments", SOFT),
    ("a dimension that is not there", call("select.int", SELF, 7, 0), "aten.select.int refuses its arguments", SOFT),
    ("a text for a tensor", call("relu.default", "fc"), "aten.relu.default takes Tensor as self", SOFT),
    ("a number for the only tensor", call("relu.default", 1.0), "aten.relu.default", SOFT),
    ("a dtype that is none", call("to.dtype", SELF, DTypeArgument("load")), "aten.to.dtype takes", SOFT),
    ("a number for a dtype", call("to.dtype", SELF, 6), "aten.to.dtype takes", SOFT),
    ("a float function of codes", call("relu.default", Reference("flat")), "a float operation reads codes", SOFT),
    ("a missing tensor", call("add.Tensor", SELF, Constant("gone")), "tensor 'gone' is missing", SOFT),
    ("another shape than declared", call("sum.dim_IntList", SELF, ListArgument((1,))), "declared is", SOFT),
    ("another dtype than declared", call("gt.Scalar", SELF, 0), "declared is", SOFT),
    ("a fixed batch", call("expand.default", SELF, ListArgument((2, 5))), "aten.expand.default", SOFT),
    ("more results than declared", call("unbind.int", SELF, 1), "gives 5 parts, declared are 1", SOFT),
]
FLOATS = [
    ("a softmax of codes", operation(SHARE, input="flat"), "it takes f32 and gives f32", SHARE),
    ("a softmax to codes", entry("values", "share", dtype="u8", grid="grid"), "it takes f32 and gives f32", SHARE),
    ("a softmax to another shape", entry("values", "share", shape=(-1, 4)), "has shape Nx4, expected Nx5", SHARE),
    ("a norm over the batch", operation(NORMED, dims=2), "must have a fixed size, not Nx5", NORMED),
    ("a norm over nothing", operation(NORMED, dims=0), "there are no 0 last dimensions", NORMED),
    ("a norm over more than there is", operation(NORMED, dims=3), "there are no 3 last dimensions", NORMED),
    (
        "a gain of a norm of another size",
        operation(NORMED, weight="conv.gain"),
        "conv.gain must have the shape",
        NORMED,
    ),
    ("a bias of a norm in codes", operation(NORMED, bias="fc.codes"), "is torch.int8, expected", NORMED),
    ("no gain of a norm", tensor("rows", None), "'rows' is missing", ROWS),
    ("a gain that is no number", tensor("rows", torch.full((5,), math.nan)), "NaN or infinity", NORMED),
    ("a negative epsilon", operation(NORMED, epsilon=-1e-5), "epsilon must be", NORMED),
    ("an epsilon that is no number", operation(NORMED, epsilon=math.nan), "epsilon must be", NORMED),
    ("an infinite epsilon", operation(NORMED, epsilon=math.inf), "epsilon must be", NORMED),
    ("an activation of indices", operation(ACTIVE, input="ids"), "it takes f32", ACTIVE),
    ("real numbers as indices", operation(LOOKED, input="rows"), "it takes i64 and gives f32", LOOKED),
    ("a table that is no matrix", tensor("words", torch.ones(9)), "must have rows of numbers", LOOKED),
    ("a table without rows", tensor("words", torch.ones(0, 2)), "must have rows of numbers", LOOKED),
    ("a table in double precision", tensor("words", torch.ones(9, 2).double()), "is torch.float64", LOOKED),
    ("rows of another length", tensor("words", torch.ones(9, 3)), "expected Nx3x3", LOOKED),
    ("a sum of one", operation(SCALED, constant=None), "takes another value or a constant", SCALED),
    ("a sum of three", operation(SUM, constant="pair"), "takes another value or a constant", SUM),
    ("a sum with indices", operation(SUM, other="ids"), "it takes f32", SUM),
    ("a sum of two shapes", operation(SUM, other="scaled"), "Nx3x2 are not the last dimensions of Nx3", SUM),
    ("a constant of another size", tensor("pair", torch.ones(3)), "3 are not the last dimensions of Nx3x2", SCALED),
    ("a constant without numbers", tensor("pair", torch.ones(0)), "are not the last dimensions", SCALED),
    ("a constant of whole numbers", tensor("pair", torch.ones(2).int()), "is torch.int32, expected", SCALED),
    ("an infinite constant", tensor("pair", torch.full((2,), math.inf)), "holds NaN or infinity", SCALED),
    ("a product of other depths", operation(SQUARES, other="looked"), "no product of Nx3x2 and Nx3x2", SQUARES),
    ("a product with a vector", operation(SQUARES, other="fc"), "no product of Nx3x2 and Nx5", SQUARES),
    ("a product over the batch", operation(SQUARES, input="fc", other="fc"), "no product of", SQUARES),
    ("a mean over no dimension", operation(AVERAGE, dim=3), "Nx3x3 has no dimension 3", AVERAGE),
    ("a mean from behind", operation(AVERAGE, dim=-1), "Nx3x3 has no dimension -1", AVERAGE),
    ("a mean over the batch", operation(AVERAGE, dim=0), "must have a fixed size, not N", AVERAGE),
    ("an element beyond the last", operation(FIRST, index=3), "has no element 3", FIRST),
    ("an element before the first", operation(FIRST, index=-1), "has no element -1", FIRST),
    ("an element of the batch", operation(FIRST, dim=0), "must have a fixed size, not N", FIRST),
]


def test_the_good_program_is_good() -> None:
    verify_program(GOOD)
    assert {type(o).__name__ for o in OPERATIONS} == {cls.__name__ for cls in AnyOperation.__args__}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_programs_of_the_zoo_are_good(name: str) -> None:
    verify_program(zoo.program(name))


@pytest.mark.parametrize(
    ("change", "message", "where"),
    [pytest.param(*case[1:], id=case[0]) for case in [*GRIDS, *ORDER, *SHAPES, *NUMBERS, *FUNCTIONS, *FLOATS]],
)
def test_a_broken_rule_is_refused_with_the_place(change: Change, message: str, where: str | int | None) -> None:
    with pytest.raises(VerifyError, match=message) as caught:
        verify_program(change(GOOD))
    if isinstance(where, int):
        kind, output = type(OPERATIONS[where]).__name__.lower(), list(VALUES)[where + 1]
        where = f"operation {where} ({kind} -> {output})"
    assert caught.value.where == where


def test_a_softmax_over_the_batch_is_refused() -> None:
    values = {**VALUES, "turned_round": Value("f32", (5, -1)), "share": Value("f32", (5, -1))}
    operations = (*OPERATIONS[:SHARE], Permute("active", "turned_round", (1, 0)), Softmax("turned_round", "share"))
    change = listing(values=values, operations=(*operations, *OPERATIONS[SHARE + 1 :]))
    with pytest.raises(VerifyError, match="must have a fixed size, not N"):
        verify_program(change(GOOD))


# Accumulators: what 32 bits hold


def sums(weight: Tensor) -> Program:
    """A linear layer [out, in] on codes."""
    values = {"x": f32(weight.shape[1]), "codes": u8(weight.shape[1]), "y": f32(weight.shape[0])}
    operations = (Quantize("x", "codes", False), Linear("codes", "y", Weight("conv", "w", "s"), Epilogue()))
    made = Listing("round", ("x",), ("y",), values, {"grid": GRID}, {"conv": LayerInfo()}, operations)
    return Program(made, {"w": weight, "s": torch.ones(weight.shape[0])})


@pytest.mark.parametrize("code", [-128, -1, 127])
def test_an_accumulator_that_could_overflow_is_refused(code: int) -> None:
    """Whatever the stored codes: at 1 bit, scaled back to 8, a code of -1 counts as -128."""
    most = (2**31 - 1) // (255 * 128)
    verify_program(sums(torch.full((2, most), code, dtype=torch.int8)))
    with pytest.raises(VerifyError, match=f"an accumulator over {most + 1} inputs could reach"):
        verify_program(sums(torch.full((2, most + 1), code, dtype=torch.int8)))


# Values without dimensions: nobody makes them, but an artifact could hold them

MEAN_OF_ALL = Aten(AtenCall("mean.default", (Reference("x"),)), ("m",))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Linear("q", "y", Weight("conv", "w", "s"), Epilogue()), "a weight"),
        (MaxPool("q", "y", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), "the input must be N x H x W x C"),
        (Affine("q", "y", Epilogue(gain="s")), "s must have 1 channels"),
        (Permute("q", "y", (0,)), "is no order of the dimensions"),
        (Concat(("q", "q"), "y", 0), "cannot be concatenated"),
    ],
)
def test_a_value_without_dimensions_is_refused_where_dimensions_are_needed(operation: Any, message: str) -> None:
    good = sums(codes(2, 3))
    values = {"x": f32(3), "m": Value("f32", ()), "q": Value("u8", (), "grid"), "y": Value("f32", ())}
    made = replace(good.listing, values=values, operations=(MEAN_OF_ALL, Quantize("m", "q", False), operation))
    with pytest.raises(VerifyError, match=message):
        verify_program(Program(made, good.tensors))
