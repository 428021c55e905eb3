"""The integer arithmetic of mbqc: ranges, rounding, the width ladder, moment matching, requantization.

Training, lowering, the reference backend and the packers all call these functions; nothing else in the project
rounds, clips or narrows a code. All tensors are torch tensors; codes may be of any integer dtype or integer-valued
floats, and keep the dtype they came in.

Terms: `h` = STORED_BITS is the width of the stored weight codes, `l` any width from 1 to h, `D = h - l`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

STORED_BITS = 8
ALL_BITS = tuple(range(1, STORED_BITS + 1))

Ladder = Literal["round", "shift"]
"""How a lower width is derived from the stored code: top bits plus rounding bit, or top bits alone."""

SHIFTED = ((1, 254), (2, 508), (4, 640))
"""Granularities of shifts, and up to how many codes in a channel (`shift_granularity`).

Kernels compare places in a channel as bytes, of which one fills up: 254 are left."""


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
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
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
    next_bit = _floor_shift(codes, drop - 1)
    rounded = _floor_shift(codes, drop) + (next_bit % 2 if codes.is_floating_point() else next_bit & 1)
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
    """Population mean and standard deviation per output channel: `values` [C, ...] to two tensors [C].

    Of float64 sums, rounded to the dtype of `values` at the end, so that the order of summation does not matter.
    """
    flat = values.flatten(1).to(torch.float64)
    mean = flat.mean(1)
    std = (flat - mean[:, None]).square().mean(1).sqrt()
    return mean.to(values.dtype), std.to(values.dtype)


@dataclass(frozen=True)
class Correction:
    """What gives a channel's codes the moments of its float weights: `W = slope * code + offset`, per output channel.

    Attributes:
        slope, offset: float64 [C].
        shift: where the mean goes into the codes; the offset is zero then.
    """

    slope: Tensor
    offset: Tensor
    shift: Shift | None


@dataclass(frozen=True)
class Shift:
    """What is added to a channel's codes: `whole`, and one more to the first `rest` times `granularity` of them.

    Attributes:
        whole, rest: int64 [C].
        granularity: see `shift_granularity`.
    """

    whole: Tensor
    rest: Tensor
    granularity: int

    def apply(self, codes: Tensor) -> Tensor:
        """`codes` [C, n], in the order kernel rows, kernel columns, inputs; the result stays in the stored range."""
        more = torch.arange(codes.shape[1], device=codes.device) < self.granularity * self.rest[:, None]
        return (codes + (self.whole[:, None] + more).to(codes.dtype)).clamp(*weight_range(STORED_BITS))


def shift_granularity(shape: Sequence[int], bits: int) -> int:
    """How many codes in a row are shifted alike where a corrected mean goes into codes; 0 where it is an offset.

    An offset costs a sum over every window: at 4 bits, 48 % of a depthwise layer, 22 % where 16 inputs become 96, 5 to
    14 % of ResNet-20's layers of 288 and 576 inputs. Where 960 inputs become 160 it costs 3 %, and shifting 9. Shifted
    codes can neither be counted in bits, which is faster for many inputs at 1 and 2 bits, nor packed as a linear
    layer's are. (A convolution of a single pixel would gain by that, but training knows no sizes.)

    Args:
        shape: of the layer's weight, [channels, ...]; a linear layer's has two dimensions.
        bits: 1 to 7.
    """
    size, steps = prod(shape[1:]), 1 if len(shape) == 2 else bits
    return next((step for step, most in SHIFTED[:steps] if size <= most), 0)


def correct_moments(codes: Tensor, scale: Tensor, mean: Tensor, std: Tensor | None, granularity: int) -> Correction:
    """EMQNet's weight bias correction (arXiv 2510.20673): `std / std_q * (W_q - mean_q) + mean`, per output channel.

    An offset common to all weights of a channel costs a sum over every window at run time. With a `granularity`, the
    codes themselves take the offset, in steps of the slope, so that their sum, rounded to a step, has it to half as
    many steps; codes that would leave the stored range stay at its end. Where no shift then gives the sum, as for next
    to no spread around a large mean, the channel keeps the slope of its codes.

    Args:
        codes: narrowed codes times 2^D [C, n], so in steps of the stored scale.
        scale: of a stored code [C].
        mean, std: [C], population moments of the float weights; without `std` the spread stays.
        granularity: of the shift; 0: an offset (`shift_granularity`).
    """
    whole, size = codes.to(torch.int32), codes.shape[1]
    scale, mean, total = scale.to(torch.float64), mean.to(torch.float64), whole.sum(1)
    slope = scale
    if std is not None:
        # whole numbers up to the root, so a constant channel is exactly constant: its gain is 1
        spread = (size * whole.square().sum(1) - total.square()).to(torch.float64).sqrt() / size
        slope = torch.where(spread > 0, std.to(torch.float64) / spread, scale)
    if not granularity:
        return Correction(slope, mean - slope * total / size, None)
    # both always: to ask whether all are reached would make the host wait for a GPU
    _, reached = _shift_to(codes, size * mean / slope, granularity)
    slope = torch.where(reached, slope, scale)
    shift, _ = _shift_to(codes, size * mean / slope, granularity)
    return Correction(slope, torch.zeros_like(slope), shift)


def _shift_to(codes: Tensor, total: Tensor, granularity: int) -> tuple[Shift, Tensor]:
    """The shift that brings the sum of each channel of `codes` [C, n] closest to `total` [C], and where that is close.

    `total` may be infinite or not a number: nothing is close to that.
    """
    size, (low, high) = codes.shape[1], weight_range(STORED_BITS)
    codes = codes.to(torch.float32)  # exact: a sum of a few thousand codes is far below 2^24
    target = torch.round(total.nan_to_num(torch.inf)).clamp(2 * size * low, 2 * size * high).to(torch.float32)

    def missing(whole: Tensor) -> Tensor:
        return target - (codes + whole[:, None]).clamp(low, high).sum(1)

    # the largest one that does not go beyond, by bisection: a sum grows with it, unevenly where codes are clipped
    whole = torch.full_like(target, low + 1)
    for step in (1 << bit for bit in reversed(range(STORED_BITS))):
        more = (whole + step).clamp(max=high - 1)  # one more still is a code
        whole = torch.where(missing(more) >= 0, more, whole)
    left, shifted = missing(whole), codes + whole[:, None]
    gains = torch.nn.functional.pad(((shifted >= low) & (shifted < high)).to(torch.int64), (0, -size % granularity))
    by_group = gains.reshape(len(codes), -1, granularity).sum(2)
    gained = by_group.cumsum(1)  # by one more for the first 1, 2, ... groups
    rest = (2 * gained - by_group < 2 * left[:, None]).sum(1)  # nearer than without this group
    reached = (left >= 0) & (left <= gained[:, -1])
    return Shift(whole.to(torch.int64), rest, granularity), reached


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
