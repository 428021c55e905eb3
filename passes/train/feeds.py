"""Batches for each width: the same for all, or from a coreset of each width's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mbqc.devices import moved
from mbqc.errors import DataError
from mbqc.passes.train.coreset.selection import CoresetSampler
from mbqc.passes.train.randomness import seed_everything
from mbqc.passes.train.task import Task
from mbqc.pipeline.data import Batch, LabelledBatch, Samples, require_target
from mbqc.pipeline.objective import require_in_range

WHAT = "training data"


@dataclass(frozen=True)
class Fed:
    """A batch, where the training computes.

    Attributes:
        indices: on the CPU, which samples it holds, None where data comes in batches of its own.
    """

    inputs: Batch
    target: Tensor
    indices: Tensor | None


class Round:
    """The batches of one round: one for all widths, or a next one for each width that asks."""

    def __init__(self, shared: Fed | None, own: Mapping[int, Iterator[Fed]]) -> None:
        self._shared, self._own = shared, own

    def batch(self, bits: int) -> Fed:
        """What a width trains on."""
        return self._shared if self._shared is not None else next(self._own[bits])


class Feeds:
    """The training data, epoch by epoch; what comes depends on nothing but seed, epoch and the data itself.

    Attributes:
        samples: how they are read by index, None where data comes in batches.
        batch: samples a batch over all ranks, where the data does not come in batches.
    """

    def __init__(self, task: Task) -> None:
        self._context, self._ranks = task.context, task.ranks
        self._classes = task.classes if task.context.loss is None else None  # a loss of the user's has its own targets
        self._subsets: dict[int, CoresetSampler] = {}
        samples, ranks = self._context.samples(), self._ranks
        self.samples = samples.on(ranks.device) if samples is not None else None
        if self.samples is None:
            self._all_batches = self._count_batches()
            return
        # a check makes the host wait for the device, so what stays there is checked once
        self._checked = ranks.device.type != "cpu" and self.samples.stay_on(ranks.device)
        if self._checked:
            for _ in self._checked_batches(self.samples.sweep()):
                pass
        counts = ranks.gather(torch.full((1,), len(self.samples), device=ranks.device)).tolist()
        if len(set(counts)) > 1:
            raise DataError(f"ranks have {counts} samples", where=WHAT, hint="give all samples to each rank")
        self.batch = min(self.samples.batch or task.options.batch, len(self.samples))
        if self.batch % ranks.world:
            raise DataError(f"{ranks.world} ranks cannot share a batch of {self.batch}", hint="train{batch=...}")
        self._everything = self._sampler(torch.arange(len(self.samples)))

    def __str__(self) -> str:
        if self.samples is None:
            return f"{self._all_batches} batches"
        return f"{len(self.samples)} samples in batches of {self.batch}"

    def _count_batches(self) -> int:
        """How many batches an epoch has; where the data does not say, by reading it once."""
        if isinstance(self._context.labelled, Iterator):
            raise DataError(
                "the training data is an iterator, which can be read only once", hint="give a list, or a DataLoader"
            )
        if self._ranks.world > 1:
            raise DataError(
                "several ranks share samples, but the training data comes in batches",
                hint="train_data() must give a Dataset, a DataLoader over one, or tensors",
            )
        try:
            count = len(cast("Sized", self._context.labelled))
        except TypeError:
            count = sum(1 for _ in self._context.labelled_batches())
        if not count:
            raise DataError("training data is empty", hint="train_data() must give at least one batch")
        return count

    def _sampler(self, indices: Tensor, take: int | None = None, bits: int = 0) -> CoresetSampler:
        seed = self._context.seed + bits  # widths draw apart from each other
        return CoresetSampler(indices, seed, take=take, rank=self._ranks.rank, world=self._ranks.world)

    def rounds(self, keep: float = 1.0) -> int:
        """Rounds of an epoch in which a width sees the share `keep` of the samples; a last, short batch is left out."""
        if self.samples is None:
            return self._all_batches
        return round(keep * len(self.samples)) // self.batch

    def use_coresets(self, subsets: Mapping[int, Tensor], take: int | None = None) -> None:
        """From now on each width trains on its own subset, int64 [size]; under `take` on so many of it, drawn anew."""
        self._subsets = {bits: self._sampler(indices, take, bits) for bits, indices in subsets.items()}

    def epoch(self, epoch: int) -> Iterator[Round]:
        """The rounds of an epoch."""
        seed_everything(f"{self._context.seed} {epoch} {self._ranks.rank}")
        if self.samples is None:
            yield from (Round(fed, {}) for fed in self._batches_as_they_come())
            return
        if not self._subsets:
            yield from (Round(fed, {}) for fed in self._read(self._everything, epoch))
            return
        own = {bits: self._read(sampler, epoch) for bits, sampler in self._subsets.items()}
        rounds = min(len(sampler) for sampler in self._subsets.values()) // (self.batch // self._ranks.world)
        yield from (Round(None, own) for _ in range(rounds))

    def read(self, indices: Tensor) -> Iterator[Fed]:
        """One sweep over this rank's part of some samples, int64 [n], in order."""
        assert self.samples is not None, "indices are of samples"
        yield from self._in_order(self.samples, indices[self._ranks.rank :: self._ranks.world])

    def inputs(self, most: int) -> Iterator[Batch]:
        """Inputs of at most `most` batches, drawn from all samples, the same ones on all ranks; no short last batch."""
        seed_everything(f"{self._context.seed} inputs {self._ranks.rank}")
        if self.samples is None:
            batches = itertools.islice(self._context.labelled_batches(), most)
            yield from (moved(inputs, self._ranks.device) for inputs, _ in batches)
            return
        draw = torch.Generator().manual_seed(self._context.seed % 2**63)
        order = torch.randperm(len(self.samples), generator=draw)[: most * self.batch]
        whole = order[: max(len(order) // self.batch, 1) * self.batch]
        yield from (fed.inputs for fed in self._in_order(self.samples, whole))

    def replay(self, epochs: int) -> None:
        """Reads what comes before an epoch, where only that brings the data into the state which it then had."""
        if self.samples is None:
            for epoch in range(epochs):
                for _ in self.epoch(epoch):
                    pass

    def _read(self, sampler: CoresetSampler, epoch: int) -> Iterator[Fed]:
        assert self.samples is not None, "a sampler is of samples"
        sampler.set_epoch(epoch)
        order, size = list(sampler), self.batch // self._ranks.world
        whole = len(order) // size * size
        yield from self._fed(self.samples, [order[at : at + size] for at in range(0, whole, size)])

    def _in_order(self, samples: Samples, indices: Tensor) -> Iterator[Fed]:
        order = indices.tolist()
        return self._fed(samples, [order[at : at + self.batch] for at in range(0, len(order), self.batch)])

    def _fed(self, samples: Samples, order: Sequence[Sequence[int]]) -> Iterator[Fed]:
        if not order:
            return
        batches = samples.batches(order)
        batches = batches if self._checked else self._checked_batches(batches)
        for (inputs, target), indices in zip(batches, order, strict=True):
            yield self._here(inputs, target, torch.tensor(indices))

    def _batches_as_they_come(self) -> Iterator[Fed]:
        for inputs, target in self._in_range(self._context.labelled_batches()):
            yield self._here(inputs, target, None)

    def _checked_batches(self, batches: Iterator[LabelledBatch]) -> Iterator[LabelledBatch]:
        return self._in_range(self._context.checked(batches, WHAT))

    def _in_range(self, batches: Iterator[LabelledBatch]) -> Iterator[LabelledBatch]:
        """Where targets are labels (what else they may be, the loss tells), a label that no class has is an error."""
        for inputs, target in batches:
            if self._classes is not None and target is not None and _may_be_labels(target):
                require_in_range(target, self._classes, WHAT)
            yield inputs, target

    def _here(self, inputs: Batch, target: Tensor | None, indices: Tensor | None) -> Fed:
        *inside, outside = moved((*inputs, require_target(target, WHAT)), self._ranks.device)
        return Fed(tuple(inside), outside, indices)


def _may_be_labels(target: Tensor) -> bool:
    return target.dim() == 1 and not target.is_floating_point() and not target.is_complex()
