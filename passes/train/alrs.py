"""ALRS: adaptive learning rates of scales (Double Rounding, arXiv 2502.01199, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mbqc.numerics import STORED_BITS

Rule = Literal["off", "paper", "layer", "channel"]

LARGEST_NORM = 1.0
"""To which the gradient of each scale tensor is clipped."""


def width_factor(bits: int) -> float:
    """The paper's eta: 10^(-D/2) for even D = 8 - bits, 5 * 10^(-(D+1)/2) for odd; 8: 1, 6: 0.1, 4: 0.01, 2: 0.001."""
    drop = STORED_BITS - bits
    return 10.0 ** -(drop // 2) if drop % 2 == 0 else 5.0 * 10.0 ** -((drop + 1) // 2)


def rates(
    rule: Rule, rate: float, bits: int, gradient: Tensor, tensor_of: Tensor, tensors: int
) -> tuple[Tensor, float]:
    """The learning rate of every scale for a step at one width; and, of those with a gradient, the share clamped to 0.

        paper    eta_b (lambda - (1/L) sum_i min(max |clip(g_i)|, 1))    one for all
        layer    eta_b (lambda - min(max |clip(g_i)|, 1))                one for each of the L scale tensors
        channel  eta_b (lambda - min(|clip(g)|, 1))                      one for each scale

    `g_i` is the gradient of a scale tensor, clipped to norm 1; lambda is `rate`. As printed a rate can be negative,
    which would climb; here it is clamped at 0. With the learning rate as lambda that is nearly every step.

    Args:
        rule: `off` gives `rate` everywhere.
        rate: lambda, with its schedule.
        bits: the width of the step.
        gradient: float [n], of all scales.
        tensor_of: int64 [n], which of the scale tensors each of them belongs to, 0 to `tensors` - 1.
    """
    if rule == "off":
        return torch.full_like(gradient, rate), 0.0
    norm = gradient.new_zeros(tensors).index_add_(0, tensor_of, gradient.square()).sqrt()
    clipped = gradient.abs() * (LARGEST_NORM / norm.clamp(min=LARGEST_NORM))[tensor_of]
    size = clipped.clamp(max=1.0)
    if rule != "channel":
        size = gradient.new_zeros(tensors).scatter_reduce_(0, tensor_of, size, "amax")
        size = size.mean().expand(tensors)[tensor_of] if rule == "paper" else size[tensor_of]
    found = width_factor(bits) * (rate - size)
    moving = gradient != 0
    return found.clamp(min=0.0), float((found[moving] <= 0).double().mean()) if bool(moving.any()) else 0.0
