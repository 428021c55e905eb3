"""The C interface of operations on floats: a part of `abi`."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

MAX_TERMS = 8
"""Terms of an activation's polynomial."""

SIGNS = ("add", "sub", "mul", "div")


class Place(ctypes.Structure):
    """Memory at `bases[base] + max(batch, 1) * sample + fixed`; base 0 is the arena."""

    _fields_ = [("base", c_int64), ("sample", c_int64), ("fixed", c_int64)]


class FloatRows(ctypes.Structure):
    """LayerNorm or softmax of rows."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("length", c_int64),
        ("epsilon", c_float),
    ]


class Activation(ctypes.Structure):
    """The numbers of `mbqc.float_functions.Gate`."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("count", c_int64),
        ("term_count", c_int64),
        ("limit", c_float),
        ("terms", c_float * MAX_TERMS),
    ]


class Embedding(ctypes.Structure):
    """Rows of a table."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("table", c_void_p),
        ("count", c_int64),
        ("rows", c_int64),
        ("length", c_int64),
    ]


class Arithmetic(ctypes.Structure):
    """Numbers with others that repeat, or with a constant."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("other", Place),
        ("constant", c_void_p),
        ("count", c_int64),
        ("period", c_int64),
        ("sign", c_int64),
    ]


class MatMul(ctypes.Structure):
    """Products of matrices."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("other", Place),
        ("matrices", c_int64),
        ("rows", c_int64),
        ("depth", c_int64),
        ("columns", c_int64),
    ]


class Mean(ctypes.Structure):
    """[outer, size, inner] to [outer, inner]."""

    _fields_ = [("input", Place), ("output", Place), ("outer", c_int64), ("size", c_int64), ("inner", c_int64)]


class Select(ctypes.Structure):
    """One of `size` parts of `bytes` each."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("outer", c_int64),
        ("size", c_int64),
        ("index", c_int64),
        ("bytes", c_int64),
    ]


Arguments = FloatRows | Activation | Embedding | Arithmetic | MatMul | Mean | Select

FIELDS: tuple[tuple[str, type[ctypes.Structure]], ...] = (
    ("float_rows", FloatRows),
    ("activation", Activation),
    ("embedding", Embedding),
    ("arithmetic", Arithmetic),
    ("matmul", MatMul),
    ("mean", Mean),
    ("select", Select),
)
"""Fields of a step's body."""
