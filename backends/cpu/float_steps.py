"""Operations on floats as kernel steps."""

from __future__ import annotations

import ctypes

from mbqc.backends.cpu import abi
from mbqc.backends.cpu import abi_floats as floats
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.geometry import extent
from mbqc.float_functions import GATES
from mbqc.program.arena import ITEM_BYTES
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
        case Arithmetic():
            return abi.step("arithmetic", _arithmetic(at, operation))
        case MatMul():
            return abi.step("matmul", _matmul(at, operation))
        case Mean():
            return abi.step("mean", floats.Mean(*_places(at, operation), *_parts(at, operation)))
        case Select():
            outer, size, inner = _parts(at, operation)
            inner *= ITEM_BYTES["f32"]
            return abi.step("select", floats.Select(*_places(at, operation), outer, size, operation.index, inner))


def _places(at: Addresses, operation: FloatOperation) -> tuple[abi.Place, abi.Place]:
    return at.place(operation.input), at.place(operation.output)


def _parts(at: Addresses, operation: Mean | Select) -> tuple[int, int, int]:
    """Extents before, of and behind the operation's dimension."""
    shape, dim = at.shape(operation.input), operation.dim
    return extent(shape[:dim]), shape[dim], extent(shape[dim + 1 :])


def _rows(at: Addresses, operation: LayerNorm | Softmax, dims: int) -> floats.FloatRows:
    """Rows of the last `dims` dimensions."""
    shape = at.shape(operation.input)
    source, target = _places(at, operation)
    return floats.FloatRows(source, target, rows=extent(shape[:-dims]), length=extent(shape[-dims:]))


def _layer_norm(at: Addresses, operation: LayerNorm) -> floats.FloatRows:
    rows = _rows(at, operation, operation.dims)
    rows.weight, rows.bias = (None if n is None else _tensor(at, n) for n in (operation.weight, operation.bias))
    rows.epsilon = operation.epsilon
    return rows


def _activation(at: Addresses, operation: Activation) -> floats.Activation:
    gate = GATES[operation.function]
    terms = (ctypes.c_float * floats.MAX_TERMS)(*gate.terms)
    count = extent(at.shape(operation.input))
    return floats.Activation(*_places(at, operation), count, len(gate.terms), gate.limit, terms)


def _embedding(at: Addresses, operation: Embedding) -> floats.Embedding:
    count, table = extent(at.shape(operation.input)), at.program.tensors[operation.table]
    return floats.Embedding(*_places(at, operation), _tensor(at, operation.table), count, *table.shape)


def _arithmetic(at: Addresses, operation: Arithmetic) -> floats.Arithmetic:
    source, target = _places(at, operation)
    step = floats.Arithmetic(source, target, sign=floats.SIGNS.index(operation.sign))
    step.count = extent(at.shape(operation.input))
    if operation.other is not None:
        step.other, step.period = at.place(operation.other), extent(at.shape(operation.other))
    else:
        name = str(operation.constant)
        step.constant, step.period = _tensor(at, name), at.program.tensors[name].numel()
    return step


def _matmul(at: Addresses, operation: MatMul) -> floats.MatMul:
    *matrices, rows, depth = at.shape(operation.input)
    other, columns = at.place(operation.other), at.shape(operation.other)[-1]
    return floats.MatMul(*_places(at, operation), other, extent(matrices), rows, depth, columns)


def _tensor(at: Addresses, name: str) -> int:
    return at.pointer(at.program.tensors[name].contiguous())
