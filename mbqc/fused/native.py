"""The native library: found, checked, and called with tensors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.errors import BackendError
from mbqc.fused.kernels import Kernels, Steps
from mbqc.numerics import Ladder

VERSION = 4
"""Of the C interface, csrc/weights.cpp."""


class Shape(ctypes.Structure):
    """MbqcShape in csrc/weights.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("channels", "inputs", "positions", "inputs_last"))


class LadderValues(ctypes.Structure):
    """MbqcLadder in csrc/weights.cpp."""

    _fields_ = (*((name, ctypes.c_float) for name in ("step", "offset", "low", "high")), ("half_up", ctypes.c_int64))


@dataclass(frozen=True)
class _Native:
    library: ctypes.CDLL

    def quantize_activations(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool) -> Tensor:
        y = torch.empty_like(x)
        low, high = numerics.activation_range(bits)
        self.library.mbqc_quantize_activations(
            x.data_ptr(), y.data_ptr(), x.numel(), scale.data_ptr(), zero.data_ptr(), low, high, rectify
        )
        return y

    def activation_gradients(
        self, x: Tensor, gradient: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        dx, at_scale = torch.empty_like(x), torch.empty_like(scale)
        low, high = numerics.activation_range(bits)
        self.library.mbqc_activation_gradients(
            x.data_ptr(),
            gradient.data_ptr(),
            dx.data_ptr(),
            at_scale.data_ptr(),
            x.numel(),
            scale.data_ptr(),
            zero.data_ptr(),
            low,
            high,
            rectify,
        )
        return dx, at_scale

    def quantize_weights(self, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder) -> Tensor:
        y = torch.empty_like(weight)
        values = LadderValues(*Steps.of(bits, ladder))
        self.library.mbqc_quantize_weights(weight.data_ptr(), scale.data_ptr(), y.data_ptr(), _shape(weight), values)
        return y

    def weight_gradients(
        self, weight: Tensor, scale: Tensor, quantized: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        at_weight, at_scale = torch.empty_like(weight), torch.empty_like(scale)
        self.library.mbqc_weight_gradients(
            weight.data_ptr(),
            scale.data_ptr(),
            quantized.data_ptr(),
            gradient.data_ptr(),
            at_weight.data_ptr(),
            at_scale.data_ptr(),
            len(weight),
            weight.numel() // len(weight),
        )
        return at_weight, at_scale

    def correct_moments(
        self, quantized: Tensor, weight: Tensor, scale: Tensor, offset: float, both: bool, granularity: int
    ) -> tuple[Tensor, Tensor]:
        out, gain = torch.empty_like(quantized), torch.empty_like(scale)
        self.library.mbqc_correct_moments(
            quantized.data_ptr(),
            weight.data_ptr(),
            scale.data_ptr(),
            out.data_ptr(),
            gain.data_ptr(),
            _shape(weight),
            offset,
            both,
            granularity,
        )
        return out, gain

    def correction_gradients(self, gradient: Tensor, gain: Tensor) -> Tensor:
        result = torch.empty_like(gradient)
        channels = len(gain)
        self.library.mbqc_correction_gradients(
            gradient.data_ptr(), gain.data_ptr(), result.data_ptr(), channels, gradient.numel() // channels
        )
        return result


def _shape(weight: Tensor) -> Shape:
    channels, inputs = weight.shape[:2]
    return Shape(channels, inputs, weight.shape[2:].numel(), not weight.is_contiguous())


def library_in(folder: Path) -> Kernels | None:
    """The operations of the library in `folder`; None where there is none.

    Raises:
        BackendError: it cannot be loaded or is another version's.
    """
    path = next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_native{suffix}").exists()), None)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.mbqc_fused_version.restype = ctypes.c_int64
        version = library.mbqc_fused_version()
    except (OSError, AttributeError) as error:
        message = f"the training kernels cannot be loaded: {error}"
        raise BackendError(message, where=str(path), hint="reinstall mbqc") from error
    if version != VERSION:
        message = "the training kernels were built from another version"
        raise BackendError(message, where=str(path), hint="reinstall mbqc")
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.mbqc_quantize_activations.argtypes = [pointer] * 2 + [whole] + [pointer] * 2 + [real] * 2 + [whole]
    library.mbqc_quantize_activations.restype = None
    library.mbqc_activation_gradients.argtypes = [pointer] * 4 + [whole] + [pointer] * 2 + [real] * 2 + [whole]
    library.mbqc_activation_gradients.restype = None
    library.mbqc_quantize_weights.argtypes = [pointer] * 3 + [Shape, LadderValues]
    library.mbqc_quantize_weights.restype = None
    library.mbqc_weight_gradients.argtypes = [pointer] * 6 + [whole] * 2
    library.mbqc_weight_gradients.restype = None
    library.mbqc_correct_moments.argtypes = [pointer] * 5 + [Shape, real, whole, whole]
    library.mbqc_correct_moments.restype = None
    library.mbqc_correction_gradients.argtypes = [pointer] * 3 + [whole] * 2
    library.mbqc_correction_gradients.restype = None
    return _Native(library)
