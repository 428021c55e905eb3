"""Coresets: the share of the training data that a width trains on, and the order in which it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from mbqc.errors import DataError, PipelineError

Selection = Literal["top", "stratified"]
"""`top` the highest scores; `stratified` all ranges of scores alike."""

DROPPED = 20
"""`stratified` leaves out one sample in so many, the hardest: often mislabelled (arXiv 2210.15809)."""

RANGES = 10
"""`stratified`: ranges of scores, equally wide."""

BATCH = "samples in a batch"


def share_size(samples: int, keep: float, least: int, of: str) -> int:
    """How many samples the share `keep` is, `round(keep * samples)`.

    Args:
        least: how many it must be, namely as many as there are `of`.

    Raises:
        PipelineError: `keep` is outside (0, 1].
        DataError: it is fewer.
    """
    if not 0 < keep <= 1:
        raise PipelineError(f"a coreset cannot keep {keep} of the data", hint="a share above 0, at most 1")
    size = round(keep * samples)
    if size < least:
        raise DataError(
            f"a coreset of {size} samples ({keep:g} of {samples}) is smaller than the {least} {of}",
            hint="keep more of the data",
        )
    return size


def coreset_size(targets: Tensor, keep: float, batch: int = 1) -> int:
    """Samples in a coreset that goes by scores; worth calling before training starts, with the (global) batch size.

    Args:
        targets: integer labels [n].
        keep: share of the samples, in (0, 1].
        batch: samples in a batch.

    Raises:
        PipelineError: `keep` is outside (0, 1].
        DataError: no samples, no labels, or a coreset smaller than a batch or than the classes.
    """
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise DataError(
            f"targets are {targets.dtype} {tuple(targets.shape)}, a score needs one whole-number label a sample",
            hint="coreset=random, or train on the full data",
        )
    if not len(targets):
        raise DataError("training data is empty", hint="train_data() must give at least one batch")
    if int(targets.min()) < 0:
        raise DataError(f"label {int(targets.min())} is negative", hint="labels count from 0")
    share_size(len(targets), keep, len(torch.unique(targets)), "classes in the data")
    return share_size(len(targets), keep, batch, BATCH)


def select(
    scores: Tensor,
    targets: Tensor,
    keep: float,
    selection: Selection,
    generator: torch.Generator,
) -> Tensor:
    """The coreset: sorted indices, int64 [round(keep * n)] on the CPU.

    Of equal scores the one with the lower index is kept. Equal arguments give equal coresets on every rank.

    Args:
        scores: [n], higher is harder.
        targets: integer labels [n].
        keep: share of the samples, in (0, 1].
        generator: draws within a range of scores, for `stratified`; on the CPU.

    Raises:
        PipelineError: `keep` is outside (0, 1].
        DataError: as `coreset_size`; or scores are not finite, or not one a sample.
    """
    scores, targets = scores.detach().cpu().double(), targets.cpu()
    size = coreset_size(targets, keep)
    if scores.shape != targets.shape:
        raise DataError(f"there are {tuple(scores.shape)} scores for {len(targets)} samples")
    if not bool(torch.isfinite(scores).all()):
        first = int(torch.nonzero(~torch.isfinite(scores))[0])
        raise DataError(
            f"the score of sample {first} is {float(scores[first])}", hint="the model's output was not finite"
        )
    match selection:
        case "top":
            chosen = scores.argsort(descending=True, stable=True)[:size]
        case "stratified":
            chosen = _stratified(scores, size, generator)
    return chosen.sort().values


def _stratified(scores: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """As many from each range of scores, drawn at random, without the hardest samples (arXiv 2210.15809, algorithm 1).

    A range with too few gives all it has, the others share the rest. Fewer than 5 % are left out where `size` needs it.
    """
    total = len(scores)
    candidates = scores.argsort(stable=True)[: total - min(total // DROPPED, total - size)]
    low, high = scores[candidates[0]], scores[candidates[-1]]
    ranges = torch.zeros(total, dtype=torch.int64)
    if high > low:
        ranges = ((scores - low) / (high - low) * RANGES).clamp(max=RANGES - 1).long()
    quotas = _shared_out(size, ranges[candidates].bincount(minlength=RANGES))
    order = candidates[torch.randperm(len(candidates), generator=generator)]
    return _first_of_each(order, ranges, quotas)


def _shared_out(size: int, available: Tensor) -> Tensor:
    """`size` in equal parts, none above what is available; the smallest first, so that its lack falls to the others."""
    quotas, left = torch.zeros_like(available), len(available)
    for part in available.argsort(stable=True).tolist():
        quotas[part] = min(int(available[part]), size // left)
        size, left = size - int(quotas[part]), left - 1
    return quotas


def _first_of_each(order: Tensor, groups: Tensor, quotas: Tensor) -> Tensor:
    """The first `quotas[g]` samples of each group g in `order`; `groups` holds the group of every sample."""
    order = order[groups[order].argsort(stable=True)]  # group after group, within a group as before
    sizes = groups[order].bincount(minlength=len(quotas))
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(order)) - starts[groups[order]]
    return order[place < quotas[groups[order]]]


class CoresetSampler(Sampler[int]):
    """Gives samples in a random order that follows from seed and epoch; the full data is a coreset too.

    Several ranks share each epoch: rank r takes positions r, r + world, ... of the common order. So batches of n on
    every rank are together the batch of `n * world` of one process. Ranks get the same number; up to `world - 1`
    samples at the end of the order are left out of the epoch.

    Args:
        indices: different samples, int64 [m].
        seed: together with the epoch it fixes the order, the same on all ranks.
        take: samples of an epoch, drawn anew from `indices` each time; None takes all.
        rank: this process, 0 to world - 1.
        world: processes.

    Raises:
        DataError: no indices, double or negative ones; more to take than there are; fewer than processes.
        PipelineError: the rank is outside the world.
    """

    def __init__(self, indices: Tensor, seed: int, *, take: int | None = None, rank: int = 0, world: int = 1) -> None:
        if indices.dim() != 1 or indices.dtype != torch.int64 or not len(indices) or int(indices.min()) < 0:
            raise DataError(f"a coreset is {indices.dtype} {tuple(indices.shape)}, expected indices of samples")
        if len(torch.unique(indices)) < len(indices):
            raise DataError("a coreset names a sample twice")
        size = len(indices) if take is None else take
        if not world <= size <= len(indices):
            raise DataError(f"an epoch takes {size} of {len(indices)} samples on {world} ranks")
        if not 0 <= rank < world:
            raise PipelineError(f"rank {rank} is outside a world of {world}")
        self._indices, self._seed, self._epoch = indices.cpu(), seed, 0
        self._rank, self._world, self._common = rank, world, size // world * world

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, whose order comes next."""
        self._epoch = epoch

    def order(self) -> Tensor:
        """The samples of this rank in this epoch, in order, int64: what iterating gives, for data kept as tensors."""
        # torch's generator reads 32 bits of a seed, and neighbouring seeds and epochs must not coincide
        mixed = int(np.random.SeedSequence(self._seed, spawn_key=(self._epoch,)).generate_state(1)[0])
        order = torch.randperm(len(self._indices), generator=torch.Generator().manual_seed(mixed))
        return self._indices[order[self._rank : self._common : self._world]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self._common // self._world
