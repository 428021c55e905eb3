"""The weight scale that all widths share."""

from __future__ import annotations

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.numerics import Ladder

CANDIDATES = 32
"""Scales tried for each channel, from the one that clips nothing down to a fifth of it."""


def joint_scale(weight: Tensor, bits: tuple[int, ...], ladder: Ladder) -> Tensor:
    """The scale with the least squared error over all of `bits` together, per output channel.

    Args:
        weight: float32 [channels, ...].
        bits: the widths that count alike: the sum of the logarithms of their errors is minimized.
        ladder: the one that will run; the best scales of the two differ at 3 and 2 bits.

    Returns:
        float32 [channels], positive; a channel of zeros gets the smallest normal number.
    """
    flat = weight.detach().flatten(1)
    low, high = numerics.weight_range(numerics.STORED_BITS)
    largest = torch.maximum(flat.amax(1) / high, flat.amin(1) / low).clamp(min=torch.finfo(torch.float32).tiny)
    best, best_cost = largest.clone(), torch.full_like(largest, torch.inf)
    for share in torch.linspace(1.0, 0.2, CANDIDATES).tolist():
        scale = (share * largest)[:, None]
        stored = numerics.quantize(flat, scale, 0.0, low, high)
        cost = torch.zeros_like(largest)
        for width in bits:
            values = numerics.code_values(numerics.narrow(stored, width, ladder), width, ladder) * scale
            cost += ((values - flat).square().mean(1) + torch.finfo(torch.float32).tiny).log()
        better = cost < best_cost
        best, best_cost = torch.where(better, scale[:, 0], best), torch.where(better, cost, best_cost)
    return best
