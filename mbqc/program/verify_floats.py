"""The rules of operations on float values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mbqc.errors import VerifyError
from mbqc.ir.types import Dims
from mbqc.program.float_operations import Embedding, FloatOperation, LayerNorm, Softmax
from mbqc.program.operations import Value

FindTensor = Callable[[str, torch.dtype], Tensor]
"""The tensor of a Program by name, checked to have a dtype and to be finite."""


def check_float(operation: FloatOperation, source: Value, output: Value, tensor: FindTensor) -> Dims:
    """The shape that the output must have.

    Raises:
        VerifyError: a dtype, a tensor or a number does not fit.
    """
    dtype = "i64" if isinstance(operation, Embedding) else "f32"
    if (source.dtype, output.dtype) != (dtype, "f32"):
        raise VerifyError(f"it takes {dtype} and gives f32")
    if isinstance(operation, Embedding):
        table = tensor(operation.table, torch.float32)
        if table.dim() != 2 or table.numel() == 0:
            raise VerifyError(f"a table {tuple(table.shape)} must have rows of numbers")
        return (*source.shape, table.shape[1])
    if isinstance(operation, LayerNorm):
        _check_layer_norm(operation, source.shape, tensor)
    if isinstance(operation, Softmax) and (source.shape or (0,))[-1] < 1:
        raise VerifyError("the last dimension must have a fixed size")
    return source.shape


def _check_layer_norm(operation: LayerNorm, shape: Dims, tensor: FindTensor) -> None:
    if not 0 < operation.dims <= len(shape) or min(shape[-operation.dims :]) < 1:
        raise VerifyError(f"it cannot norm the last {operation.dims} dimensions: they must have a fixed size")
    if not 0 <= operation.epsilon < math.inf:
        raise VerifyError("epsilon must be a finite number of at least 0")
    for name in (operation.weight, operation.bias):
        if name is not None and tuple(tensor(name, torch.float32).shape) != shape[-operation.dims :]:
            raise VerifyError(f"{name} must have the shape of the last {operation.dims} dimensions")
