"""The numbers of an epilogue as the kernels take them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.backends.cpu.abi import BLOCK
from mbqc.program.bind import BoundEpilogue

SAFE_TOTAL = 2.0**30
"""Bound of totals that are in int32's range, with room for rounding."""


def scaled(bound: BoundEpilogue, bits: int) -> tuple[BoundEpilogue, int]:
    """A layer's numbers for accumulators that are 2^(8 - bits) times too large, as kernels leave them.

    Returns:
        the numbers, and by how many bits accumulators must be shifted first: none, unless a multiplier is so small that
        the power of two cannot be taken from it.
    """
    drop = torch.tensor(numerics.STORED_BITS - bits)
    multiplier = torch.ldexp(bound.multiplier, -drop)
    if torch.equal(torch.ldexp(multiplier, drop), bound.multiplier):
        return replace(bound, multiplier=multiplier), 0
    return bound, int(drop)


def in_range(bound: BoundEpilogue, inputs: int) -> bool:
    """Whether no total of a layer with so many inputs an output leaves int32, so that kernels need no cap."""
    largest_code = numerics.activation_range(numerics.STORED_BITS)[1]
    largest_weight = -numerics.weight_range(numerics.STORED_BITS)[0]
    parts = [
        bound.multiplier.abs().max() * (inputs * largest_code * largest_weight),
        bound.addend.abs().max(),
        torch.tensor(abs(bound.residual_multiplier) * largest_code),
    ]
    if bound.window_multiplier is not None:
        parts.append(bound.window_multiplier.abs().max() * (inputs * largest_code))
    return bool(torch.stack(parts).sum() < SAFE_TOTAL)


def readable(table: Tensor) -> Tensor:
    """A table from any of whose entries a whole vector can be read; one entry stands for all."""
    if table.numel() == 1:
        return table.expand(BLOCK).contiguous()
    return torch.nn.functional.pad(table, (0, BLOCK - 1))
