"""The kernels for given tensors: native code on the CPU, Triton on a GPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.numerics import Ladder


class Kernels(Protocol):
    """The fused operations. Tensors are as `kernels_for` allows them; those of one shape have the same strides.

    Scales and zero-points are read where they are: nothing waits for a GPU.
    """

    def quantize_activations(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool) -> Tensor:
        """`x`, or its positive part where `rectify`, on the grid of `bits`; one `scale` and `zero`."""

    def activation_gradients(
        self, x: Tensor, gradient: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients at `x` and at `scale`."""

    def quantize_weights(self, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder) -> Tensor:
        """`weight` [channels, ...] on the grid of `bits`; `scale` [channels]."""

    def weight_gradients(
        self, weight: Tensor, scale: Tensor, quantized: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients at `weight` and at `scale`."""

    def correct_moments(
        self, quantized: Tensor, weight: Tensor, scale: Tensor, offset: float, both: bool, granularity: int
    ) -> tuple[Tensor, Tensor]:
        """Corrected weights and the gain [channels]; `offset` is the ladder's, `granularity` the shift's."""

    def correction_gradients(self, gradient: Tensor, gain: Tensor) -> Tensor:
        """Each channel of `gradient`, outermost in memory, times its gain."""


class Steps(NamedTuple):
    """The values of a width, `step * code + offset` for codes from `low` to `high`, in units of the stored scale."""

    step: float
    offset: float
    low: float
    high: float
    half_up: bool  # how a stored code is narrowed; else the floor

    @staticmethod
    def of(bits: int, ladder: Ladder) -> Steps:
        """Those of `bits`, 1 to 8."""
        low, high = numerics.weight_range(bits)
        half_up = ladder == "round" and 1 < bits < numerics.STORED_BITS
        return Steps(1 << (numerics.STORED_BITS - bits), numerics.ladder_offset(bits, ladder), low, high, half_up)


def kernels_for(tensor: Tensor, *others: Tensor, half: bool = False) -> Kernels | None:
    """The kernels that run on these tensors, None where torch has to.

    They take dense float32 tensors on one device. With `half`, `tensor` may have 16 bits on a GPU: its kernels compute
    in float32 all the same.
    """
    if tensor.dtype != torch.float32 and not (half and tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.half)):
        return None
    for each in others:
        if each.dtype != torch.float32 or each.device != tensor.device or not _is_dense(each):
            return None
    if not _is_dense(tensor):
        return None
    if tensor.is_cpu:
        return _on_cpu()
    return _on_gpu() if tensor.is_cuda else None


def alike(gradient: Tensor, tensor: Tensor) -> Tensor:
    """`gradient` with the strides of the dense `tensor`, copied where it has others."""
    return gradient if gradient.stride() == tensor.stride() else torch.empty_like(tensor).copy_(gradient)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


@cache
def _on_cpu() -> Kernels | None:
    from mbqc.fused.native import library_in

    return library_in(Path(__file__).parent)


@cache
def _on_gpu() -> Kernels | None:
    if find_spec("triton") is None:  # part of torch where that is built for CUDA on Linux
        return None
    from mbqc.fused.gpu import in_triton  # now: Triton takes long to import

    return in_triton()
