"""The C interface of the kernels: mirrors csrc/abi.h, where the fields are explained."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

from mbqc.backends.cpu import abi_floats
from mbqc.backends.cpu.abi_floats import Place as Place

VERSION = 5
BLOCK = 16
"""Outputs of one weight panel, and the longest vector of the kernels."""

QUAD = 4
"""Inputs that one dot product instruction takes."""

WORD = 32
"""Inputs of one bit that a lane takes."""

PANEL_BLOCKS = 2
"""Blocks of outputs that a dense kernel takes at once, at most."""

MAX_RANK = 8

MAX_PACKED_ROWS = 8
"""Rows that packed weights are for, at most."""


class Epilogue(ctypes.Structure):
    """The numbers of `mbqc.program.bind.BoundEpilogue`."""

    _fields_ = [
        ("multiplier", c_void_p),
        ("addend", c_void_p),
        ("window_multiplier", c_void_p),
        ("residual", Place),
        ("has_residual", c_int64),
        ("to_float", c_int64),
        ("in_range", c_int64),
        ("table_step", c_int64),
        ("residual_multiplier", c_float),
        ("low", c_float),
        ("high", c_float),
    ]


class Quantize(ctypes.Structure):
    """float32 [outer, channels, inner] to codes [outer, inner, channels]."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("outer", c_int64),
        ("channels", c_int64),
        ("inner", c_int64),
        ("scale", c_float),
        ("zero_point", c_float),
        ("high", c_float),
    ]


class Map(ctypes.Structure):
    """Rows of codes through an epilogue, to rows of the output `stride` elements apart."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("epilogue", Epilogue),
        ("rows", c_int64),
        ("length", c_int64),
        ("start", c_int64),
        ("stride", c_int64),
    ]


class StoredWeights(ctypes.Structure):
    """The 8-bit weights of a layer, and the width to run them at."""

    _fields_ = [
        ("codes", c_void_p),
        ("bits", c_int64),
        ("rounds", c_int64),
        ("shift", c_int64),
        ("panel", Place),
        ("added", c_void_p),
        ("positions", c_void_p),
        ("packed", c_void_p),
        ("field", c_int64),
    ]


class Conv(ctypes.Structure):
    """A dense or grouped convolution, or a linear layer."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("bordered", Place),
        ("pixel_sums", Place),
        ("windows", Place),
        ("columns", Place),
        ("planes", Place),
        ("epilogue", Epilogue),
        ("weights", StoredWeights),
        ("run_taps", c_int64),
        ("images", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("pixel_bytes", c_int64),
        ("groups", c_int64),
        ("out_height", c_int64),
        ("out_width", c_int64),
        ("out_channels", c_int64),
        ("kernel", c_int64 * 2),
        ("stride", c_int64 * 2),
        ("dilation", c_int64 * 2),
        ("padding", c_int64 * 4),
        ("border_code", c_int64),
        ("input_bits", c_int64),
    ]


class Depthwise(ctypes.Structure):
    """A convolution of each channel with a kernel of its own."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("columns", Place),
        ("epilogue", Epilogue),
        ("weights", StoredWeights),
        ("ones", c_void_p),
        ("images", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("out_height", c_int64),
        ("out_width", c_int64),
        ("kernel", c_int64 * 2),
        ("stride", c_int64 * 2),
        ("dilation", c_int64 * 2),
        ("padding", c_int64 * 4),
        ("border_code", c_int64),
    ]


class Pool(ctypes.Structure):
    """Average or maximum over windows."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("epilogue", Epilogue),
        ("images", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("out_height", c_int64),
        ("out_width", c_int64),
        ("kernel", c_int64 * 2),
        ("stride", c_int64 * 2),
        ("dilation", c_int64 * 2),
        ("padding", c_int64 * 2),
        ("zero_point", c_int64),
    ]


class Lookup(ctypes.Structure):
    """Codes through a table."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("table", c_void_p),
        ("count", c_int64),
        ("to_float", c_int64),
    ]


class Copy(ctypes.Structure):
    """The same bytes."""

    _fields_ = [("input", Place), ("output", Place), ("bytes", c_int64)]


class Permute(ctypes.Structure):
    """Dimensions in another order; the last one is bytes and stays."""

    _fields_ = [
        ("input", Place),
        ("output", Place),
        ("rank", c_int64),
        ("dims", c_int64 * MAX_RANK),
        ("order", c_int64 * MAX_RANK),
    ]


class _Body(ctypes.Union):
    _fields_ = [
        ("quantize", Quantize),
        ("map", Map),
        ("conv", Conv),
        ("depthwise", Depthwise),
        ("pool", Pool),
        ("lookup", Lookup),
        ("copy", Copy),
        ("permute", Permute),
        *abi_floats.FIELDS,
    ]


class Step(ctypes.Structure):
    """One kernel call: which kernel, and its arguments."""

    _fields_ = [("kind", c_int64), ("body", _Body)]


Arguments = Quantize | Map | Conv | Depthwise | Pool | Lookup | Copy | Permute | abi_floats.Arguments

KINDS = tuple(
    """
    quantize map conv popcount depthwise average_pool max_pool lookup copy permute layer_norm softmax activation
    embedding arithmetic matmul mean select
    """.split()  # noqa: SIM905 - words read best as a paragraph
)
_SHARED = {
    "popcount": "conv",
    "average_pool": "pool",
    "max_pool": "pool",
    "layer_norm": "float_rows",
    "softmax": "float_rows",
}
"""Fields of the body that are not named by their kind."""


def step(kind: str, arguments: Arguments) -> Step:
    """A step of one of `KINDS`."""
    return Step(KINDS.index(kind), _Body(**{_SHARED.get(kind, kind): arguments}))


def layout() -> tuple[int, ...]:
    """What `mbqc_layout` of a matching library reports."""
    floats = [structure for _, structure in abi_floats.FIELDS]
    integers = [Epilogue, StoredWeights, Quantize, Map, Conv, Depthwise, Pool, Lookup, Copy, Permute]
    structures: list[type[ctypes.Structure]] = [Place, *integers, *floats, Step]
    return (VERSION, *map(ctypes.sizeof, structures))
