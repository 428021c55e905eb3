"""Where each value of a Program lives: offsets in one arena, buffers reused when their value is no longer needed."""

from __future__ import annotations

from dataclasses import dataclass

from mbqc.ir.types import at_batch
from mbqc.program.operations import Listing, inputs_of, outputs_of

ALIGNMENT = 64
"""Bytes; a cache line, and the widest vector."""

ITEM_BYTES = {"u8": 1, "f32": 4, "i64": 8, "bool": 1}


@dataclass(frozen=True)
class Arena:
    """Offsets per sample: a batch of n samples uses `n * size` bytes and value v starts at `n * offsets[v]`."""

    offsets: dict[str, int]
    size: int


def plan(listing: Listing, values: frozenset[str]) -> Arena:
    """Places `values` so that two that are alive at once never overlap, each into the lowest gap that fits.

    A value is alive from the operation that defines it to the last one that reads it; graph outputs to the end.
    """
    first, last = lifetimes(listing)
    placed: list[tuple[int, int, int, int]] = []
    offsets: dict[str, int] = {}
    for name in sorted(values, key=lambda v: (-sample_bytes(listing, v), first[v], v)):
        size = -(-sample_bytes(listing, name) // ALIGNMENT) * ALIGNMENT
        taken = sorted((o, s) for o, s, start, end in placed if start <= last[name] and first[name] <= end)
        offset = 0
        for other, other_size in taken:
            if offset + size <= other:
                break
            offset = max(offset, other + other_size)
        offsets[name] = offset
        placed.append((offset, size, first[name], last[name]))
    return Arena(offsets, max((o + s for o, s, _, _ in placed), default=0))


def sample_bytes(listing: Listing, name: str) -> int:
    """Bytes of a value for a batch of one."""
    value = listing.values[name]
    count = 1
    for d in at_batch(value.shape, 1):
        count *= d
    return count * ITEM_BYTES[value.dtype]


def lifetimes(listing: Listing) -> tuple[dict[str, int], dict[str, int]]:
    """Index of the operation that defines each value (-1 for inputs), and of the last one that reads it."""
    first = dict.fromkeys(listing.inputs, -1)
    last = dict(first)
    for index, operation in enumerate(listing.operations):
        for name in outputs_of(operation):
            first[name] = last[name] = index
        for name in inputs_of(operation):
            last[name] = index
    for name in listing.outputs:
        last[name] = len(listing.operations)
    return first, last
