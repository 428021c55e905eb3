"""Fake-quantization and moment correction as autograd functions.

The torch branch of each is its definition; `kernels.kernels_for` decides which one runs. Forward values are equal bit
for bit, but for the sign of a zero; sums of gradients to rounding, since the order of float64 sums differs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mbqc import numerics
from mbqc.fused.kernels import alike, kernels_for
from mbqc.numerics import Ladder


def quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, rectify: bool = False) -> Tensor:
    """`x` on the unsigned grid of `bits`, `(clip(round(x / s) + z) - z) * s`, with LSQ's gradients.

    Gradients (arXiv 1902.08153, equation 3): at `x`, the one at the result where `x / s + z` lies within the range,
    zero outside; at `scale`, `round(x / s) - x / s` inside, the bound less z outside. None at `zero_point`.

    Args:
        x: of any shape and dtype; what has 16 bits is computed in float32 and rounded at the end.
        scale, zero_point: scalars, float32 as a rule.
        bits: 1 to 8.
        rectify: quantize `relu(x)`; no gradient passes at `x` where that is zero.
    """
    return cast(Tensor, _QuantizeActivation.apply(x, scale, zero_point, bits, rectify))  # type: ignore[no-untyped-call]


def quantize_weight(weight: Tensor, scale: Tensor, bits: int, ladder: Ladder) -> Tensor:
    """What the codes of `weight` at `bits` stand for (Double Rounding, arXiv 2502.01199, section 3).

    Gradients: at `weight`, the one at the result where `weight / s` lies within the stored range, zero outside; at
    `scale`, `value - weight / s` inside, the value outside, where value is in units of the scale.

    Args:
        weight: [channels, ...].
        scale: of a stored code [channels].
        bits: 1 to 8.
    """
    return cast(Tensor, _QuantizeWeight.apply(weight, scale, bits, ladder))  # type: ignore[no-untyped-call]


def correct_moments(
    quantized: Tensor, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder, *, both: bool, through: bool = False
) -> Tensor:
    """`numerics.correct_moments` of the codes in `quantized`, applied.

    Gradient: at `quantized` it is the gain of each channel times the one at the result; none at `weight` and `scale`.
    With `through` it is that of `gain * (quantized - mean) + mean of weight`, means and (with `both`) spreads included.

    Args:
        quantized: from `quantize_weight` [channels, ...].
        weight: the float weights that have the moments.
        scale: of a stored code [channels].
        bits: 1 to 7.
        both: mean and spread, not the mean alone.
    """
    corrected = cast(Tensor, _CorrectMoments.apply(quantized, weight, scale, bits, ladder, both))  # type: ignore[no-untyped-call]
    return cast(Tensor, _ThroughMoments.apply(corrected, quantized, weight, both)) if through else corrected  # type: ignore[no-untyped-call]


# After a convolution Python's own data has left the processor's caches: attributes that a backward need not look up
# again save time.


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, rectify: bool) -> Tensor:
        ctx.options = bits, rectify
        ctx.kernels = kernels = kernels_for(x, scale, zero_point, half=True)
        ctx.save_for_backward(x, scale, zero_point)
        if kernels is not None:
            return kernels.quantize_activations(x, scale, zero_point, bits, rectify)
        real = _widened(x, scale, rectify)
        codes = numerics.quantize(real, scale, zero_point, *numerics.activation_range(bits))
        return ((codes - zero_point) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bits, rectify = ctx.options
        x, scale, zero_point = ctx.saved_tensors
        if ctx.kernels is not None:
            gradient = alike(gradient, x)
            return *ctx.kernels.activation_gradients(x, gradient, scale, zero_point, bits, rectify), None, None, None
        low, high = numerics.activation_range(bits)
        used = _widened(x, scale, rectify)
        scaled = used * scale.reciprocal()
        real = scaled + zero_point
        inside = (real >= low) & (real <= high)
        codes = numerics.quantize(used, scale, zero_point, low, high)
        by_scale = gradient * (codes - zero_point - torch.where(inside, scaled, 0.0))
        at_scale = by_scale.sum(dtype=torch.float64).to(scale.dtype)
        passes = inside & (x > 0) if rectify else inside
        return torch.where(passes, gradient, 0.0), at_scale, None, None, None


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder) -> Tensor:
        ctx.kernels = kernels = kernels_for(weight, scale)
        if kernels is not None:
            quantized = kernels.quantize_weights(weight, scale, bits, ladder)
        else:
            stored = numerics.quantize_weight(weight, scale)
            values = numerics.code_values(numerics.narrow(stored, bits, ladder), bits, ladder)
            quantized = values * _per_channel(scale, weight)
        ctx.save_for_backward(weight, scale, quantized)
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, scale, quantized = ctx.saved_tensors
        if ctx.kernels is not None:
            return *ctx.kernels.weight_gradients(weight, scale, quantized, alike(gradient, weight)), None, None
        low, high = numerics.weight_range(numerics.STORED_BITS)
        reciprocal = _per_channel(scale.reciprocal(), weight)
        real = weight * reciprocal
        inside = (real >= low) & (real <= high)
        by_scale = gradient * (quantized * reciprocal - torch.where(inside, real, 0.0))
        at_scale = by_scale.flatten(1).sum(1, dtype=torch.float64).to(scale.dtype)
        return torch.where(inside, gradient, 0.0), at_scale, None, None


class _CorrectMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, quantized: Tensor, weight: Tensor, scale: Tensor, bits: int, ladder: Ladder, both: bool
    ) -> Tensor:
        offset, granularity = numerics.ladder_offset(bits, ladder), numerics.shift_granularity(weight.shape, bits)
        kernels = kernels_for(quantized, weight, scale) if quantized.stride() == weight.stride() else None
        if kernels is not None:
            corrected, gain = kernels.correct_moments(quantized, weight, scale, offset, both, granularity)
        else:
            mean, std = numerics.moments(weight)
            last = quantized.movedim(1, -1)  # the order of stored codes
            codes = torch.round(last / _per_channel(scale, last) - offset).flatten(1)
            found = numerics.correct_moments(codes, scale, mean, std if both else None, granularity)
            codes = found.shift.apply(codes) if found.shift is not None else codes
            values = (found.slope[:, None] * codes + found.offset[:, None]).to(quantized.dtype)
            corrected = values.reshape(last.shape).movedim(-1, 1)
            gain = (found.slope / scale).to(quantized.dtype)
        ctx.save_for_backward(gain)
        return corrected

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gain,) = ctx.saved_tensors
        if (kernels := kernels_for(gradient, gain)) is not None:
            return kernels.correction_gradients(gradient, gain), None, None, None, None, None
        return gradient * _per_channel(gain, gradient), None, None, None, None, None


class _ThroughMoments(torch.autograd.Function):
    """`corrected`, whose backward adds what reaches `quantized` and `weight` through mean and spread.

    With g the gradient, u and v the standardized `quantized` and `weight`, all means over a channel: at `quantized`
    `-gain (mean(g) + u mean(g u))`, at `weight` `mean(g) + v mean(g u)`; the terms with u and v only for spreads.
    """

    @staticmethod
    def forward(ctx: Any, corrected: Tensor, quantized: Tensor, weight: Tensor, both: bool) -> Tensor:
        ctx.both = both
        ctx.save_for_backward(quantized, weight)
        return corrected.view_as(corrected)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        quantized, weight = ctx.saved_tensors
        mean = gradient.flatten(1).mean(1, keepdim=True)
        if not ctx.both:
            level = mean.expand_as(gradient.flatten(1)).reshape(gradient.shape)
            return gradient, -level, level, None
        u, spread = _standardized(quantized)
        v, exact = _standardized(weight)
        along = (gradient.flatten(1) * u).mean(1, keepdim=True)
        gain = torch.where(spread > 0, exact / spread, 1.0)
        at_quantized, at_weight = -gain * (mean + u * along), mean + v * along
        return gradient, at_quantized.reshape(gradient.shape), at_weight.reshape(gradient.shape), None


def _standardized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and spread 1 in each channel [C, n], zeros where it is constant; and the spread [C, 1]."""
    flat = values.flatten(1)
    mean, spread = (part[:, None] for part in numerics.moments(values))
    spread = torch.where(flat.amin(1, keepdim=True) < flat.amax(1, keepdim=True), spread, 0.0)  # not rounding alone
    return torch.where(spread > 0, (flat - mean) / spread, 0.0), spread


def _widened(x: Tensor, scale: Tensor, rectify: bool) -> Tensor:
    """`x`, or its positive part, at least as precise as the scale: 16 bits are too few to round to the right code."""
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))
    return wide.relu() if rectify else wide


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] as [C, 1, ...] to broadcast against a weight."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
