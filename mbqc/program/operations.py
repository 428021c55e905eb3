"""What a Program is made of: values, grids and a flat list of typed operations in single assignment form.

Every array of a Program is plain row-major memory; where there are channels they are the last dimension
(N x H x W x C, N x T x C). Integer operations share one `Epilogue`, computed in float32 with one rounding a step:

    t = float32(accumulator) * multiplier
    t = t + float32(window) * window_multiplier        only where weight codes have an offset (see `bind`)
    t = t + addend
    t = t + float32(residual) * residual_multiplier    only with a residual
    code = clamp(round_half_even(t), low, high)        or, for a float32 output, clamp(t, low, high)

`mbqc.program.bind` computes these numbers for one choice of widths from what is stored here, which does not depend
on the widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mbqc.ir.types import Dims
from mbqc.numerics import Ladder
from mbqc.program.float_operations import Arithmetic, FloatOperation, MatMul
from mbqc.program.record import Operation, Record

DType = Literal["u8", "f32", "i64", "bool"]
TORCH_DTYPES = {"u8": torch.uint8, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


class Grid(Record, frozen=True):
    """How the codes of a u8 value stand for real numbers at each width: `scale * (code - zero_point)`.

    Attributes:
        scales, zero_points: for widths 1 to 8, in this order.
        layers: the layers that read the value; the widest of them gives its width, 8 bits where there is none.
    """

    scales: tuple[float, float, float, float, float, float, float, float]
    zero_points: tuple[int, int, int, int, int, int, int, int]
    layers: tuple[str, ...] = ()


class Value(Record, frozen=True):
    """One array: its dtype, its shape (-k stands for k times the batch size) and, for u8, the name of its grid."""

    dtype: DType
    shape: Dims
    grid: str | None = None


class Epilogue(Record, frozen=True):
    """What follows an integer accumulator, in real units: `clamp(gain * y + shift + residual, low, high)`.

    Attributes:
        gain, shift: names of float32 tensors [C], or with a row a width [8, C], or a pair [64, C] (`Widths.pair`);
            None stands for 1 and 0.
        residual: a u8 value of the output's shape that is added.
        low, high: bounds of the activation, None for no bound.
        before: the layers whose widest makes the pair with the operation's own; empty where rows go by widths.
    """

    gain: str | None = None
    shift: str | None = None
    residual: str | None = None
    low: float | None = None
    high: float | None = None
    before: tuple[str, ...] = ()


class Weight(Record, frozen=True):
    """The stored weight of a layer: int8 codes, and what turns codes of any width into real numbers.

    Attributes:
        layer: whose width applies.
        codes: name of an int8 tensor, [out, kernel height, kernel width, in / groups] or [out, in].
        scale: name of a float32 tensor [out].
        mean, std: names of float32 tensors [out], the moments of the float weights that lower widths are corrected to;
            None for no correction of this moment.
    """

    layer: str
    codes: str
    scale: str
    mean: str | None = None
    std: str | None = None


class Quantize(Operation, frozen=True, tag="quantize"):
    """float32 to codes: `t = x * float32(1/scale)`, `t = t + zero_point`, round, clamp.

    With `channels_last` the input is in torch's order (N x C x ...) and the output has its channels last.
    """

    input: str
    output: str
    channels_last: bool


class Conv(Operation, frozen=True, tag="conv"):
    """Convolution of N x H x W x C codes. `padding` is (top, bottom, left, right), filled with the zero-point."""

    input: str
    output: str
    weight: Weight
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    epilogue: Epilogue


class Linear(Operation, frozen=True, tag="linear"):
    """Product of the codes' last dimension with a weight [out, in]."""

    input: str
    output: str
    weight: Weight
    epilogue: Epilogue


class Affine(Operation, frozen=True, tag="affine"):
    """Element-wise: the accumulator is the code itself. Addition, BatchNorm on its own, dequantization."""

    input: str
    output: str
    epilogue: Epilogue


class AveragePool(Operation, frozen=True, tag="average_pool"):
    """The accumulator is the sum of a window of N x H x W x C codes; padding counts as zeros."""

    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    epilogue: Epilogue


class MaxPool(Operation, frozen=True, tag="max_pool"):
    """Largest code of a window; the grid stays, padding never wins."""

    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


class Concat(Operation, frozen=True, tag="concat"):
    """Inputs side by side along `dim`, each brought to the output's grid as an `Affine` would."""

    inputs: tuple[str, ...]
    output: str
    dim: int


class Constant(Record, frozen=True, tag="tensor", tag_field="is"):
    """A tensor of the Program as an argument."""

    name: str


class Reference(Record, frozen=True, tag="value", tag_field="is"):
    """A value as an argument."""

    name: str


class BatchMultiple(Record, frozen=True, tag="batch", tag_field="is"):
    """A whole number that is `factor` times the batch size."""

    factor: int


class DTypeArgument(Record, frozen=True, tag="dtype", tag_field="is"):
    """A torch dtype by name, such as `float32`."""

    name: str


class ListArgument(Record, frozen=True, tag="list", tag_field="is"):
    """Several arguments as a list."""

    items: tuple[Argument, ...]


Argument = Constant | Reference | BatchMultiple | DTypeArgument | ListArgument | bool | int | float | str | None


class AtenCall(Record, frozen=True):
    """A call of an aten overload from the allow-list: `name` as in `gelu.default`."""

    name: str
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = {}


class Lookup(Operation, frozen=True, tag="lookup"):
    """A table of 256 entries: each input code's real number through `functions` (element-wise), to the output's grid.

    Without functions it moves codes from one grid to another. The output may be float32.
    """

    input: str
    output: str
    functions: tuple[AtenCall, ...] = ()


class Reshape(Operation, frozen=True, tag="reshape"):
    """The same elements in the shape of the output."""

    input: str
    output: str


class Permute(Operation, frozen=True, tag="permute"):
    """Dimensions in another order: output dimension i is input dimension dims[i]."""

    input: str
    output: str
    dims: tuple[int, ...]


class Aten(Operation, frozen=True, tag="aten"):
    """A float fallback: an aten overload run by torch. Several outputs are the parts of a tuple or list result."""

    call: AtenCall
    outputs: tuple[str, ...]


IntegerOperation = Quantize | Conv | Linear | Affine | AveragePool | MaxPool | Concat | Lookup | Reshape | Permute
AnyOperation = IntegerOperation | FloatOperation | Aten

EpilogueOperation = Conv | Linear | Affine | AveragePool


class LayerInfo(Record, frozen=True):
    """A quantized layer. `pinned` is the width it keeps under a uniform width, None for no such width."""

    pinned: int | None = None
    sensitivity: float | None = None
    sensitivity_error: float | None = None


class Listing(Record, frozen=True):
    """The Program without its tensors: what an artifact stores as JSON."""

    ladder: Ladder
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[str, Value]
    grids: dict[str, Grid]
    layers: dict[str, LayerInfo]
    operations: tuple[AnyOperation, ...]


@dataclass(frozen=True)
class Program:
    """A listing and the tensors that it names. Checked by `mbqc.program.verify`."""

    listing: Listing
    tensors: Mapping[str, Tensor]


def inputs_of(operation: AnyOperation) -> tuple[str, ...]:
    """Names of the values that an operation reads."""
    if isinstance(operation, Concat):
        return operation.inputs
    if isinstance(operation, Aten):
        return named_in(operation.call, Reference)
    if isinstance(operation, EpilogueOperation) and operation.epilogue.residual is not None:
        return (operation.input, operation.epilogue.residual)
    if isinstance(operation, Arithmetic | MatMul) and operation.other is not None:
        return (operation.input, operation.other)
    return (operation.input,)


def outputs_of(operation: AnyOperation) -> tuple[str, ...]:
    """Names of the values that an operation defines."""
    return operation.outputs if isinstance(operation, Aten) else (operation.output,)


def named_in(call: AtenCall, kind: type[Reference] | type[Constant]) -> tuple[str, ...]:
    """Names of the values, or of the tensors, among the arguments of a call, those within lists included."""

    def names(argument: Argument) -> list[str]:
        if isinstance(argument, ListArgument):
            return [name for item in argument.items for name in names(item)]
        return [argument.name] if isinstance(argument, kind) else []

    return tuple(name for argument in (*call.args, *call.kwargs.values()) for name in names(argument))
