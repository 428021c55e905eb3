"""The float functions of a Program as exact sequences of float32 operations.

IEEE 754 rounds sums, products, quotients and square roots alike on every machine, so whoever does what stands here, in
this order, gets the same bits: the `reference` backend calls these functions, kernels repeat them. Nothing is
contracted to a fused multiply-add, and no library's exponential or square root is called: those differ in last bits.

All tensors are float32, but for indices. What is no number stays none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mbqc.errors import BackendError

LANES = 16
"""Partial sums of a row: as many as the longest vector of the kernels has lanes."""

EXP_LIMIT = 88.0
"""`exponential` goes no further: e^88 is finite, and what it gives for -88 is 0."""

LOG2_E = 1.442695
LN2_HIGH = 0.693359375
"""ln(2) to 9 bits, so that its product with a whole number below 2^15 is exact; `LN2_LOW` is the rest."""
LN2_LOW = -0.00021219444
TO_WHOLE = 12582912.0
"""1.5 * 2^23: a number added to it is rounded to a whole one, half to even, which its lowest bits then hold."""

EXP_TERMS = (0.001381454, 0.008368745, 0.04166839, 0.16666521, 0.49999994)
"""Minimax of (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, highest power first; e^r is then right to 3e-9 of itself."""

Function = Literal["gelu", "gelu_tanh", "silu"]

Sign = Literal["add", "sub", "mul", "div"]


@dataclass(frozen=True)
class Gate:
    """An activation `x * logistic(c P(c^2))`, where `c` is x clamped to +-limit.

    Attributes:
        terms: of P, lowest power first.
    """

    limit: float
    terms: tuple[float, ...]


_GELU = (
    1.5957717,
    0.07266046,
    -5.974838e-05,
    -0.00011280099,
    8.350737e-06,
    -3.0448666e-07,
    5.2705755e-09,
    -2.7788065e-11,
)

GATES: dict[Function, Gate] = {
    "gelu": Gate(6.0, _GELU),
    "gelu_tanh": Gate(6.0, (1.5957692, 0.071354814)),
    "silu": Gate(EXP_LIMIT, (1.0,)),
}
"""GELU and SiLU (Hendrycks and Gimpel, arXiv 1606.08415).

Of the normal distribution's Phi, `ln(Phi(x) / Phi(-x)) / x` is a smooth function of x^2: P is minimax for the error of
x Phi(x), 4.2e-8 with exact arithmetic. The form with tanh, section 2, is a logistic function as it stands, as
`1 + tanh(u) = 2 logistic(2 u)`: P has the terms 2 sqrt(2 / pi) and 0.044715 times that."""


def exponential(x: Tensor) -> Tensor:
    """e^x, at most 1 unit in the last place off from -87 to 88, of x clamped to +-EXP_LIMIT.

    e^x = 2^n e^r with n whole and |r| <= ln(2) / 2 (Cody and Waite, Software Manual for the Elementary Functions).
    """
    x = x.clamp(-EXP_LIMIT, EXP_LIMIT)
    shifted = x * LOG2_E + TO_WHOLE
    whole = shifted - TO_WHOLE
    rest = (x - whole * LN2_HIGH) - whole * LN2_LOW
    total = torch.full_like(rest, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        total = total * rest + term
    total = (total * (rest * rest) + rest) + 1.0
    power = ((shifted.view(torch.int32) + 127) << 23).view(torch.float32)  # 2^n; 0 for n = -127
    return total * power


def sum_rows(x: Tensor) -> Tensor:
    """Sums over the last dimension: [..., n] to [...], n from 1 on.

    Element i goes to partial sum i mod LANES, in order and from 0 on; then the upper half of the partial sums is added
    to the lower one until a single one is left. It errs by no more than (n / LANES + 4) 2^-24 of the sum of magnitudes.
    """
    count = x.shape[-1]
    parts = torch.nn.functional.pad(x, (0, -count % LANES)).reshape(*x.shape[:-1], -(-count // LANES), LANES)
    total = torch.zeros_like(parts[..., 0, :])
    for part in parts.unbind(-2):
        total = total + part
    half = LANES
    while half > 1:
        half //= 2
        total = total[..., :half] + total[..., half:]
    return total.squeeze(-1)


def layer_norm(x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """LayerNorm over the last `dims` dimensions (arXiv 1607.06450, eq. 4).

    A group whose variance is not finite, be it that it overflows, gives no numbers.

    Args:
        weight, bias: of the shape of these dimensions.
    """
    rows = x.flatten(-dims)
    count = float(rows.shape[-1])
    deviation = rows - (sum_rows(rows) / count).unsqueeze(-1)
    variance = sum_rows(deviation * deviation) / count
    factor = _square_root(variance + epsilon).reciprocal()
    result = deviation * factor.unsqueeze(-1)
    if weight is not None:
        result = result * weight.flatten()
    if bias is not None:
        result = result + bias.flatten()
    return result.where((variance < torch.inf).unsqueeze(-1), torch.nan).reshape(x.shape)


def softmax(x: Tensor) -> Tensor:
    """`exponential(x - max)` over the last dimension, times the reciprocal of its sum.

    A row with something that is not a number, with +inf, or of -inf alone gives no numbers.
    """
    powers = exponential(x - x.amax(-1, keepdim=True))
    total = sum_rows(powers).unsqueeze(-1)
    return (powers * total.reciprocal()).where(total < torch.inf, torch.nan)


def activate(x: Tensor, function: Function) -> Tensor:
    """One of GATES: GELU to 1e-7 and 2 units in the last place, SiLU to 3 units in the last place above -87.

    `max(x, -limit) / (1 + exponential(-z))` with `z = c P(c^2)`, P by Horner's rule.
    """
    gate = GATES[function]
    above = x.clamp(min=-gate.limit)
    clamped = above.clamp(max=gate.limit)
    square = clamped * clamped
    total = torch.full_like(x, gate.terms[-1])
    for term in reversed(gate.terms[:-1]):
        total = total * square + term
    return above / (exponential(0.0 - clamped * total) + 1.0)


def calculate(x: Tensor, sign: Sign, y: Tensor) -> Tensor:
    """The sum, difference, product or quotient of x and y, which is broadcast against it."""
    match sign:
        case "add":
            result = x + y
        case "sub":
            result = x - y
        case "mul":
            result = x * y
        case "div":
            result = x / y
    return _one_nan(result)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices, [..., m, k] and [..., k, n] to [..., m, n]: from 0 on, products are added in order of k."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for column, row in zip(a.unbind(-1), b.unbind(-2), strict=True):
        total = total + column.unsqueeze(-1) * row.unsqueeze(-2)
    return _one_nan(total)


def mean(x: Tensor, dim: int) -> Tensor:
    """Mean over a dimension: from 0 on, added in order and divided by their number."""
    total = torch.zeros_like(x.select(dim, 0))
    for part in x.unbind(dim):
        total = total + part
    return _one_nan(total / float(x.shape[dim]))


def embed(indices: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` [n, length] by int64 indices [...]: [..., length].

    Raises:
        BackendError: an index is not from 0 to n - 1.
    """
    if indices.numel() and not bool(((indices >= 0) & (indices < len(table))).all()):
        raise outside_table(len(table))
    return table[indices]


def outside_table(rows: int) -> BackendError:
    """The error of an index outside a table of so many rows."""
    return BackendError(f"an index is outside the {rows} rows of its table", hint="indices count from 0")


def _one_nan(x: Tensor) -> Tensor:
    """Which of two that are no numbers an operation gives is the machine's choice: so it is always the same one."""
    return x.where(x == x, torch.nan)


def _square_root(x: Tensor) -> Tensor:
    """Rounded as IEEE 754 says; torch's own is not always."""
    return torch.from_numpy(np.sqrt(x.numpy()))
