"""The integer arithmetic of mbqc: ranges, rounding, the width ladder, moment matching, requantization.

Training, lowering, the reference backend and the packers all call these functions; nothing else in the project
rounds, clips or narrows a code. All tensors are torch tensors; codes may be of any integer dtype or integer-valued
floats, and keep the dtype they came in.

Terms: `h` = STORED_BITS is the width of the stored weight codes, `l` any width from 1 to h, `D = h - l`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

STORED_BITS = 8
ALL_BITS = tuple(range(1, STORED_BITS + 1))

Ladder = Literal["round", "shift"]
"""How a lower width is derived from the stored code: top bits plus rounding bit, or top bits alone."""

CONSTANT_TOLERANCE = 1e-6
"""A channel whose standard deviation is below this share of its largest magnitude counts as constant."""


def weight_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed code of `bits` bits: (-2^(b-1), 2^(b-1) - 1)."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def activation_range(bits: int) -> tuple[int, int]:
    """Smallest and largest unsigned code of `bits` bits: (0, 2^b - 1)."""
    return 0, (1 << bits) - 1


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | float, qmin: int, qmax: int) -> Tensor:
    """Integer-valued codes `clip(round(x * (1 / scale) + zero_point), qmin, qmax)`, rounding half to even.

    The reciprocal is rounded first, because a kernel multiplies. `scale` and `zero_point` broadcast against `x`; the
    result has the dtype of `x`.
    """
    return torch.clamp(torch.round(x * scale.reciprocal() + zero_point), qmin, qmax)


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Stored codes of a weight whose sum, in every output channel, is that of the (clipped) numbers to half a code.

    Rounding to nearest leaves a channel's mean off by `scale / sqrt(12 K)` on average, which a depthwise layer (K = 9)
    passes on to all its outputs. So the few codes closest to a tie are rounded the other way. On MobileNetV2 at 8 bits
    logits gain 5 dB, as much as by correcting the mean at run time, which would cost a sum over every window.

    Args:
        weight: real numbers [channels, ...].
        scale: [channels].

    Returns:
        Integer-valued codes in the shape and dtype of `weight`.
    """
    low, high = weight_range(STORED_BITS)
    scaled = (weight.flatten(1) * scale.reciprocal()[:, None]).clamp(low, high)
    codes = torch.round(scaled)
    remainder = scaled - codes
    missing = torch.round(remainder.sum(1, keepdim=True, dtype=torch.float64)).to(codes.dtype)
    # at least twice as many remainders as are missing point that way, so no code moves away from its number or is
    # pushed out of the range
    order = (remainder * missing.sign()).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return (codes + missing.sign() * (rank < missing.abs())).reshape(weight.shape)


def narrow(codes: Tensor, bits: int, ladder: Ladder) -> Tensor:
    """Codes of `bits` bits from stored codes of STORED_BITS bits (Double Rounding, arXiv 2502.01199, second rounding).

    `round`: round half up in integers, `(q + 2^(D-1)) >> D`, then the clip (127 would become 8 at 4 bits).
    `shift`: `q >> D`, exactly the top bits. One bit is the sign bit in both.
    Always from the stored code: 8 -> 4 -> 2 differs from 8 -> 2 under `round`.
    """
    drop = STORED_BITS - bits
    if drop == 0:
        return codes
    if ladder == "shift" or bits == 1:
        return _floor_shift(codes, drop)
    # floor plus the next bit: `codes + 2^(D-1)` would overflow int8
    rounded = _floor_shift(codes, drop) + _floor_shift(codes, drop - 1) % 2
    return torch.clamp(rounded, *weight_range(bits))


def _floor_shift(codes: Tensor, drop: int) -> Tensor:
    if codes.is_floating_point():
        return torch.floor(codes / (1 << drop))
    return codes >> drop


def ladder_offset(bits: int, ladder: Ladder) -> float:
    """The constant `c` in `value = 2^D * code + c`, in units of the stored scale.

    Round half up errs by +1/2 stored code on average, so its value is `2^D q - 1/2`. A shift keeps the floor, so its
    value is the centre of the dropped range, `2^D (q + 1/2) - 1/2`; so is the value of the sign bit in both ladders.
    """
    drop = STORED_BITS - bits
    if drop == 0:
        return 0.0
    if ladder == "shift" or bits == 1:
        return 0.5 * (1 << drop) - 0.5
    return -0.5


def code_values(codes: Tensor, bits: int, ladder: Ladder) -> Tensor:
    """What narrowed codes stand for, in units of the stored scale: `2^D * code + c`."""
    return codes * float(1 << (STORED_BITS - bits)) + ladder_offset(bits, ladder)


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Population mean and standard deviation per output channel: `values` [C, ...] to two tensors [C]."""
    flat = values.flatten(1)
    mean = flat.mean(1)
    return mean, (flat - mean[:, None]).square().mean(1).sqrt()


def moment_gain(std: Tensor, quantized_std: Tensor, quantized_peak: Tensor) -> Tensor:
    """The factor that gives quantized weights the spread of the float ones (EMQNet, arXiv 2510.20673).

    `std / quantized_std` per channel, and 1 where the quantized channel is constant (`CONSTANT_TOLERANCE`).
    `quantized_peak` is the largest magnitude of the quantized channel.
    """
    constant = quantized_std <= CONSTANT_TOLERANCE * quantized_peak
    return torch.where(constant, torch.ones_like(std), std / torch.where(constant, torch.ones_like(std), quantized_std))


def requantize(total: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The last step of every integer epilogue: `total` to int64 codes, half to even, then the clamp.

    A total that is not a number becomes `low`, as `max(total, low)` does in vector instructions.
    """
    rounded = torch.round(total)
    return torch.clamp(torch.where(rounded > low, rounded, low), max=high).to(torch.int64)


def interpolate_grids(trained: dict[int, tuple[float, float]]) -> dict[int, tuple[float, int]]:
    """Activation scale and zero-point of every width from those of the trained widths.

    Args:
        trained: `bits -> (scale, zero_point)` with zero_point in code units, any non-empty subset of 1..8.

    Returns:
        `bits -> (scale, zero_point)` for 1..8, zero_point a whole number in [0, 2^b - 1]. Between trained widths
        `log2(scale)` and the zero-point's share of the range are interpolated linearly; outside them the clipping
        range `scale * (2^b - 1)` of the nearest trained width is kept.
    """
    known = sorted(trained)
    grids: dict[int, tuple[float, int]] = {}
    for bits in ALL_BITS:
        top = activation_range(bits)[1]
        below = max((b for b in known if b <= bits), default=None)
        above = min((b for b in known if b >= bits), default=None)
        if below is None or above is None:
            nearest = below if below is not None else above
            assert nearest is not None, "at least one trained width is needed"
            scale, zero = trained[nearest]
            nearest_top = activation_range(nearest)[1]
            scale, share = scale * nearest_top / top, zero / nearest_top
        else:
            weight = 0.0 if above == below else (bits - below) / (above - below)
            (s0, z0), (s1, z1) = trained[below], trained[above]
            scale = s0 ** (1 - weight) * s1**weight
            share = (1 - weight) * z0 / activation_range(below)[1] + weight * z1 / activation_range(above)[1]
        grids[bits] = (float(torch.tensor(scale, dtype=torch.float32)), min(max(round(share * top), 0), top))
    return grids
