"""Operations on floats as kernel steps."""

from __future__ import annotations

import ctypes

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.geometry import extent
from mbqc.float_functions import GATES
from mbqc.program.float_operations import Activation, Embedding, FloatOperation, LayerNorm, Softmax


def float_step(at: Addresses, operation: FloatOperation) -> abi.Step:
    """The step of one operation."""
    match operation:
        case LayerNorm():
            return abi.step("layer_norm", _layer_norm(at, operation))
        case Softmax():
            return abi.step("softmax", _rows(at, operation, dims=1))
        case Activation():
            return abi.step("activation", _activation(at, operation))
        case Embedding():
            return abi.step("embedding", _embedding(at, operation))


def _rows(at: Addresses, operation: LayerNorm | Softmax, dims: int) -> abi.FloatRows:
    """Rows of the last `dims` dimensions."""
    shape = at.shape(operation.input)
    return abi.FloatRows(
        input=at.place(operation.input),
        output=at.place(operation.output),
        rows=extent(shape[:-dims]),
        length=extent(shape[-dims:]),
    )


def _layer_norm(at: Addresses, operation: LayerNorm) -> abi.FloatRows:
    rows, tensors = _rows(at, operation, operation.dims), at.program.tensors
    rows.weight, rows.bias = (
        None if name is None else at.pointer(tensors[name].contiguous()) for name in (operation.weight, operation.bias)
    )
    rows.epsilon = operation.epsilon
    return rows


def _activation(at: Addresses, operation: Activation) -> abi.Activation:
    gate = GATES[operation.function]
    terms = (ctypes.c_float * abi.MAX_TERMS)(*gate.terms)
    source, target = at.place(operation.input), at.place(operation.output)
    return abi.Activation(source, target, extent(at.shape(operation.input)), len(gate.terms), gate.limit, terms)


def _embedding(at: Addresses, operation: Embedding) -> abi.Embedding:
    table = at.program.tensors[operation.table].contiguous()
    source, target = at.place(operation.input), at.place(operation.output)
    return abi.Embedding(source, target, at.pointer(table), extent(at.shape(operation.input)), *table.shape)
