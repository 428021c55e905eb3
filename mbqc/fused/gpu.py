"""The operations in Triton, called with tensors. So far they ran in Triton's interpreter only, on no GPU."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mbqc import numerics
from mbqc.fused import triton_kernels
from mbqc.fused.kernels import Kernels, Steps
from mbqc.numerics import Ladder

BLOCK = 1024
"""Elements that a program has in registers at a time."""


def in_triton() -> Kernels:
    """The operations on the GPU that has the tensors. No call waits for it; the same call gives the same bits."""
    return _Triton()


class _Triton:
    def quantize_activations(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool) -> Tensor:
        y, high = torch.empty_like(x), float(numerics.activation_range(bits)[1])
        programs = triton.cdiv(x.numel(), BLOCK)
        arguments = (x, y, scale, zero, high, x.numel())
        _launch(triton_kernels.quantize_activations, programs, *arguments, rectify=rectify, block=BLOCK)
        return y

    def activation_gradients(
        self, x: Tensor, gradient: Tensor, scale: Tensor, zero: Tensor, bits: int, rectify: bool
    ) -> tuple[Tensor, Tensor]:
        dx, high = torch.empty_like(x), float(numerics.activation_range(bits)[1])
        programs = triton.cdiv(x.numel(), BLOCK)
        sums = scale.new_empty(programs, dtype=torch.float64)
        arguments = (x, gradient, dx, sums, scale, zero, high, x.numel())
        _launch(triton_kernels.activation_gradients, programs, *arguments, rectify=rectify, block=BLOCK)
        return dx, sums.sum().to(scale.dtype).reshape(scale.shape)

    def quantize_weights(self, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder) -> Tensor:
        y, steps = torch.empty_like(weight), Steps.of(bits, ladder)
        _launch(
            triton_kernels.quantize_weights,
            len(weight),
            *(weight, scale, y, *_inputs_and_positions(weight)),
            *map(float, steps[:4]),
            inputs_last=not weight.is_contiguous(),
            half_up=steps.half_up,
            block=_block_of(weight),
        )
        return y

    def weight_gradients(
        self, weight: Tensor, scale: Tensor, quantized: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        dw, dscale = torch.empty_like(weight), torch.empty_like(scale)
        arguments = (weight, scale, quantized, gradient, dw, dscale, weight.shape[1:].numel())
        _launch(triton_kernels.weight_gradients, len(weight), *arguments, block=_block_of(weight))
        return dw, dscale

    def correct_moments(
        self, quantized: Tensor, weight: Tensor, scale: Tensor, offset: float, both: bool, granularity: int
    ) -> tuple[Tensor, Tensor]:
        out, gain = torch.empty_like(quantized), torch.empty_like(scale)
        arguments = (quantized, weight, scale, out, gain, offset)
        block = _block_of(weight)
        if not granularity:
            n = weight.shape[1:].numel()
            _launch(triton_kernels.correct_with_offset, len(weight), *arguments, n, both=both, block=block)
            return out, gain
        assert weight.shape[1:].numel() <= block
        _launch(
            triton_kernels.correct_with_shift,
            len(weight),
            *(*arguments, *_inputs_and_positions(weight)),
            inputs_last=not weight.is_contiguous(),
            both=both,
            granularity=granularity,
            block=block,
        )
        return out, gain

    def correction_gradients(self, gradient: Tensor, gain: Tensor) -> Tensor:
        return gradient * gain.reshape(-1, *[1] * (gradient.dim() - 1))  # one read and one write as it is


def _launch(kernel: Any, programs: int, *arguments: Tensor | float, **constants: int) -> None:
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        # a multiplication and an addition round twice (the numerics contract)
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=False)


def _block_of(weight: Tensor) -> int:
    """A whole channel where it fits."""
    return min(BLOCK, int(triton.next_power_of_2(max(1, weight.shape[1:].numel()))))


def _inputs_and_positions(weight: Tensor) -> tuple[int, int]:
    return weight.shape[1], weight.shape[2:].numel()
