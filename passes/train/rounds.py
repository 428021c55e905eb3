"""What each round of training does: the widths of its steps, and the share of the learning rate that is left.

A round is one batch (under coresets one batch a width) and a step for each of its widths. All draws depend on nothing
but seed, epoch and round, so training can go on from any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

from torch import fx

from mbqc.errors import PassError
from mbqc.ir.annotations import Switching, annotation
from mbqc.ir.quantized import layer_nodes, quantized_layers
from mbqc.widths import Widths

Schedule = Literal["cosine", "constant"]


def rate_factor(schedule: Schedule, warmup: float, done: int, rounds: int) -> float:
    """The share of the highest learning rate in the round before which `done` of all `rounds` were.

    It grows over the share `warmup` of the rounds, from the first one on, then stays, or falls to 0 along a cosine.
    """
    share = done / rounds
    if share < warmup:
        return min((done + 1) / (warmup * rounds), 1.0)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (share - warmup) / (1.0 - warmup))) if warmup < 1.0 else 1.0


def sandwich(bits: Sequence[int], draw: Random) -> list[int]:
    """The highest of `bits` (falling), a random one between, and the lowest."""
    between = [draw.choice(bits[1:-1])] if len(bits) > 2 else []
    return [bits[0], *between, bits[-1]]


def draws_of(graph: fx.GraphModule, kind: Literal["uniform", "hasb"], bits: Sequence[int]) -> dict[str, Switching]:
    """From what each layer draws its width: `hasb`'s annotation, or uniformly from `bits`.

    Raises:
        PassError: `hasb` draws widths that are not among `bits`.
    """
    if kind == "uniform":
        return dict.fromkeys(quantized_layers(graph), Switching(tuple(bits), (1 / len(bits),) * len(bits)))
    draws = {str(node.target): annotation(node, Switching) for node in layer_nodes(graph)}
    for layer, own in draws.items():
        if not set(own.bits) <= set(bits):
            untrained = ", ".join(str(b) for b in own.bits if b not in bits)
            raise PassError(
                f"layer {layer} would switch to {untrained} bits, which are not trained",
                hint=f"hasb{{bits={':'.join(map(str, bits))}}}",
            )
    return draws


def switched(
    widths: Widths, pinned: Mapping[str, int | None], draws: Mapping[str, Switching], chance: float, draw: Random
) -> Widths:
    """`widths` in which each layer that is not pinned has drawn a width of its own with probability `chance`.

    Source: arXiv 2502.01199, algorithm A.3.
    """
    layers = []
    for layer, bits in widths.layers:
        own = draws[layer]
        drawn = draw.random() < chance
        chosen = draw.choices(own.bits, own.probabilities)[0]
        layers.append((layer, chosen if drawn and pinned[layer] is None else bits))
    return Widths(tuple(layers))
