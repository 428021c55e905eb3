"""Operations on float32 values that have a definition of their own: `mbqc.float_functions`, to the last bit.

All other operations on floats are fallbacks (`mbqc.program.operations.Aten`): torch runs them.
"""

from __future__ import annotations

from mbqc.float_functions import Function, Sign
from mbqc.program.record import Operation


class LayerNorm(Operation, frozen=True, tag="layer_norm"):
    """Mean 0 and variance 1 over the last `dims` dimensions.

    Attributes:
        weight, bias: names of float32 tensors of the shape of these dimensions; None stands for 1 and 0.
    """

    input: str
    output: str
    dims: int
    weight: str | None
    bias: str | None
    epsilon: float


class Softmax(Operation, frozen=True, tag="softmax"):
    """Over the last dimension."""

    input: str
    output: str


class Activation(Operation, frozen=True, tag="activation"):
    """Element-wise, between float values; between codes it is a `Lookup`."""

    input: str
    output: str
    function: Function


class Embedding(Operation, frozen=True, tag="embedding"):
    """Rows of `table`, a float32 tensor [n, length], by i64 indices [...]: [..., length].

    The table is stored as it is: the quantized graph looks up these very numbers.
    """

    input: str
    output: str
    table: str


class Arithmetic(Operation, frozen=True, tag="arithmetic"):
    """`input sign other`, element by element.

    Attributes:
        other: a value of the shape of the input's last dimensions, all of them or none included.
        constant: a float32 tensor of such a shape, in place of a value.
    """

    input: str
    output: str
    sign: Sign
    other: str | None
    constant: str | None


class MatMul(Operation, frozen=True, tag="matmul"):
    """Products of matrices, [..., m, k] and [..., k, n] to [..., m, n]."""

    input: str
    other: str
    output: str


class Mean(Operation, frozen=True, tag="mean"):
    """Over the dimension `dim`, which the output lacks."""

    input: str
    output: str
    dim: int


class Select(Operation, frozen=True, tag="select"):
    """Element `index` of the dimension `dim`, which the output lacks."""

    input: str
    output: str
    dim: int
    index: int


FloatOperation = LayerNorm | Softmax | Activation | Embedding | Arithmetic | MatMul | Mean | Select
