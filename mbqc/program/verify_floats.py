"""The rules of operations on float values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbqc.errors import VerifyError
from mbqc.ir.types import Dims, format_dims
from mbqc.program.float_operations import (
    Activation,
    Arithmetic,
    Embedding,
    FloatOperation,
    LayerNorm,
    MatMul,
    Mean,
    Select,
    Softmax,
)
from mbqc.program.operations import Value

FindTensor = Callable[[str, torch.dtype], Tensor]
"""The tensor of a Program by name, checked to have a dtype and to be finite."""


def check_float(operation: FloatOperation, sources: Sequence[Value], output: Value, tensor: FindTensor) -> Dims:
    """The shape that the output must have.

    Raises:
        VerifyError: a dtype, a shape, a tensor or a number does not fit.
    """
    dtype = "i64" if isinstance(operation, Embedding) else "f32"
    if any(source.dtype != dtype for source in sources) or output.dtype != "f32":
        raise VerifyError(f"it takes {dtype} and gives f32")
    shape = sources[0].shape
    match operation:
        case LayerNorm():
            _check_layer_norm(operation, shape, tensor)
        case Softmax():
            _require_fixed(shape[-1:])
        case Activation():
            pass
        case Embedding():
            return (*shape, _row_length(tensor(operation.table, torch.float32)))
        case Arithmetic():
            _check_arithmetic(operation, sources, tensor)
        case MatMul():
            return _product(shape, sources[1].shape)
        case Mean() | Select():
            return _without(operation, shape)
    return shape


def _require_fixed(dims: Dims) -> None:
    if not dims or min(dims) < 1:
        raise VerifyError(f"dimensions that it computes over must have a fixed size, not {format_dims(dims) or 'none'}")


def _check_layer_norm(operation: LayerNorm, shape: Dims, tensor: FindTensor) -> None:
    if not 0 < operation.dims <= len(shape):
        raise VerifyError(f"there are no {operation.dims} last dimensions")
    _require_fixed(shape[-operation.dims :])
    if not 0 <= operation.epsilon < math.inf:
        raise VerifyError("epsilon must be a finite number of at least 0")
    for name in (operation.weight, operation.bias):
        if name is not None and tuple(tensor(name, torch.float32).shape) != shape[-operation.dims :]:
            raise VerifyError(f"{name} must have the shape of the last {operation.dims} dimensions")


def _row_length(table: Tensor) -> int:
    if table.dim() != 2 or table.numel() == 0:
        raise VerifyError(f"a table {tuple(table.shape)} must have rows of numbers")
    return table.shape[1]


def _check_arithmetic(operation: Arithmetic, sources: Sequence[Value], tensor: FindTensor) -> None:
    if (operation.other is None) == (operation.constant is None):
        raise VerifyError("it takes another value or a constant")
    shape = sources[0].shape
    other = sources[-1].shape
    if operation.constant is not None:
        other = tuple(tensor(operation.constant, torch.float32).shape)
    if other != shape[len(shape) - len(other) :] or 0 in other:
        raise VerifyError(f"{format_dims(other)} are not the last dimensions of {format_dims(shape)}")


def _product(left: Dims, right: Dims) -> Dims:
    if min(len(left), len(right)) < 2 or (left[:-2], left[-1]) != (right[:-2], right[-2]):
        raise VerifyError(f"there is no product of {format_dims(left)} and {format_dims(right)}")
    _require_fixed((*left[-2:], right[-1]))
    return (*left[:-1], right[-1])


def _without(operation: Mean | Select, shape: Dims) -> Dims:
    """The shape without the operation's dimension."""
    if not 0 <= operation.dim < len(shape):
        raise VerifyError(f"{format_dims(shape)} has no dimension {operation.dim}")
    _require_fixed(shape[operation.dim : operation.dim + 1])
    if isinstance(operation, Select) and not 0 <= operation.index < shape[operation.dim]:
        raise VerifyError(f"dimension {operation.dim} of {format_dims(shape)} has no element {operation.index}")
    return shape[: operation.dim] + shape[operation.dim + 1 :]
