"""A small Program with every kind of operation, for tests of what does not depend on the model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mbqc.artifact import Manifest, StoredNote
from mbqc.numerics import ALL_BITS
from mbqc.program.float_operations import Activation, Arithmetic, Embedding, LayerNorm, MatMul, Mean, Select, Softmax
from mbqc.program.operations import (
    Affine,
    Aten,
    AtenCall,
    AveragePool,
    BatchMultiple,
    Concat,
    Constant,
    DTypeArgument,
    Epilogue,
    LayerInfo,
    ListArgument,
    Lookup,
    MaxPool,
    Permute,
    Program,
    Reference,
    Reshape,
    Value,
)
from mbqc.runtime import Compiled, make
from tests.backends.program_builder import Builder

LAYERS = ("layer0", "layer1", "layer2", "layer3")


def sample_program(seed: int = 0) -> Program:
    """An image [N, 3, 6, 6] to scores [N, 5] and to features in float, and indices [N, 2] to rows of a table.

    Its first and last layer are pinned to 8 bits.
    """
    build = Builder(seed)
    image = build.quantize(build.new_input((-1, 3, 6, 6)), build.new_grid(), channels_last=True)
    same = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    x = build.conv(image, 8, **same, grid=build.new_grid(), corrected="both", epilogue=Epilogue(low=0.0))
    y = build.conv(x, 8, **same, groups=8, grid=build.new_grid(), corrected="mean", epilogue=_epilogue(build, x))
    pooled = build.add(
        lambda out: MaxPool(y, out, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)), (-1, 3, 3, 8), build.values[y].grid
    )
    z = build.conv(pooled, 4, grid=build.new_grid(), corrected="both")
    joined = build.add(lambda out: Concat((pooled, z), out, 3), (-1, 3, 3, 12), build.new_grid())
    table = build.add(
        lambda out: Lookup(joined, out, (AtenCall("hardswish.default"),)), (-1, 3, 3, 12), build.new_grid()
    )
    turned = build.add(lambda out: Permute(table, out, (0, 3, 1, 2)), (-1, 12, 3, 3), build.values[table].grid)
    back = build.add(lambda out: Permute(turned, out, (0, 2, 3, 1)), (-1, 3, 3, 12), build.values[table].grid)
    mean = build.add(
        lambda out: AveragePool(back, out, (3, 3), (3, 3), (0, 0, 0, 0), Epilogue()), (-1, 1, 1, 12), build.new_grid()
    )
    flat = build.add(lambda out: Reshape(mean, out), (-1, 12), build.values[mean].grid)
    scores = build.linear(flat, 5, grid=None, corrected="both")
    features = _float_tail(build, build.add(lambda out: Affine(flat, out, Epilogue()), (-1, 12), None))
    build.layers |= {"layer0": LayerInfo(8, 0.5, 0.1), "layer3": LayerInfo(8, 0.0, 0.2)}
    build.layers |= {"layer1": LayerInfo(None, 2.0, 0.1), "layer2": LayerInfo(None, 0.1, 0.1)}
    return build.finish((scores, features, _embedded(build)))


def _epilogue(build: Builder, residual: str) -> Epilogue:
    gain, shift = build.tensor(1 + 0.1 * build.normal(8, 8)), build.tensor(build.normal(8))
    return Epilogue(gain, shift, residual, 0.0, 4.0)


def _float_tail(build: Builder, value: str) -> str:
    """Operations on floats, and calls of torch with every kind of argument."""
    gain, bias = build.tensor(build.normal(12)), build.tensor(build.normal(12))
    for operation in (
        lambda name, out: LayerNorm(name, out, 1, gain, bias, 1e-5),
        lambda name, out: Activation(name, out, "gelu"),
        Softmax,
    ):
        value = build.add(partial(operation, value), (-1, 12), None)
    calls = (
        (AtenCall("add.Tensor", (Reference(value), Constant(bias)), {"alpha": 2}), (-1, 12)),
        (AtenCall("reshape.default", (Reference("w0"), ListArgument((BatchMultiple(2), 6)))), (-2, 6)),
        (AtenCall("constant_pad_nd.default", (Reference("w1"), ListArgument((1, 0)), float("-inf"))), (-2, 7)),
        (AtenCall("softmax.int", (Reference("w2"), -1, DTypeArgument("float32"))), (-2, 7)),
        (AtenCall("gelu.default", (Reference("w3"),), {"approximate": "tanh"}), (-2, 7)),
        (AtenCall("amax.default", (Reference("w4"), ListArgument((1,)), False)), (-2,)),
    )
    for index, (call, shape) in enumerate(calls):
        build.values[f"w{index}"] = Value("f32", shape)
        build.operations.append(Aten(call, (f"w{index}",)))
    return f"w{len(calls) - 1}"


def _embedded(build: Builder) -> str:
    """A second input of whole numbers, looked up in a table by torch and in another one by kernels."""
    build.values["ids"] = Value("i64", (-1, 2))
    build.inputs.append("ids")
    table = build.tensor(build.normal(7, 4))
    build.values["rows"] = Value("f32", (-1, 2, 4))
    build.operations.append(Aten(AtenCall("embedding.default", (Constant(table), Reference("ids"))), ("rows",)))
    other, constant = build.tensor(build.normal(7, 4)), build.tensor(build.normal(4))
    more = build.add(lambda out: Embedding("ids", out, other), (-1, 2, 4), None)
    turned = build.add(lambda out: Permute(more, out, (0, 2, 1)), (-1, 4, 2), None)
    squares = build.add(lambda out: MatMul(turned, more, out), (-1, 4, 4), None)
    product = build.add(lambda out: MatMul(more, squares, out), (-1, 2, 4), None)
    build.add(lambda out: Mean(squares, out, 1), (-1, 4), None)  # which nobody reads
    build.add(lambda out: Select("rows", out, 1, 0), (-1, 4), None)  # likewise
    scaled = build.add(lambda out: Arithmetic(product, out, "mul", None, constant), (-1, 2, 4), None)
    return build.add(lambda out: Arithmetic("rows", out, "sub", scaled, None), (-1, 2, 4), None)


def sample_manifest() -> Manifest:
    """How the sample might have been made."""
    notes = (
        StoredNote("quant", "warning", "", "no calibration data: the example inputs alone set every activation range"),
        StoredNote("quant", "skip", "head", "skip=head"),
        StoredNote("lower", "fallback", "w3", "aten.softmax.int runs in float"),
    )
    sqnr = {layer: {str(bits): 6.0 * bits for bits in ALL_BITS} for layer in LAYERS} | {"layer1": {"8": float("inf")}}
    return Manifest("0.1.0", "Net", "quant,lower", "torch.fx", 1000, notes, sqnr)


def sample_compiled(backend: str = "reference") -> Compiled:
    """The sample on a backend."""
    return make(sample_program(), sample_manifest(), backend)


def sample_inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs of the sample."""
    random = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 6, 6, generator=random), torch.randint(0, 7, (batch, 2), generator=random)
