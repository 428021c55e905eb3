"""Data as users give it: batches, or samples that can be read by index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from mbqc.devices import fits, moved
from mbqc.errors import DataError, MbqcError, user_line

Batch = tuple[Tensor, ...]
"""Model inputs of one batch."""

LabelledBatch = tuple[Batch, Tensor | None]
"""Model inputs and their targets; None without labels."""

SWEEP_BATCH = 128
"""Samples a batch where samples are read in order, for passes that do not say how many they want."""


@dataclass(frozen=True)
class Samples:
    """Labelled samples that can be read by index, in any order and in batches of any size.

    Attributes:
        dataset: map-style; one that defines `__getitems__(indices)` is asked for a whole batch at once.
        settings: further arguments of the `torch.utils.data.DataLoader` that reads it.
        batch: samples a batch where the user's own loader says so.
        inputs: how many inputs the model takes.
    """

    dataset: Dataset[Any]
    settings: dict[str, Any]
    batch: int | None
    inputs: int

    def __len__(self) -> int:
        return len(cast("Sequence[object]", self.dataset))

    def batches(self, order: Iterable[Sequence[int]]) -> Iterator[LabelledBatch]:
        """The batches whose indices `order` gives, unchecked.

        Raises:
            DataError: the dataset raises (names the user's line), or gives no tensors.
        """
        loader = DataLoader(self.dataset, batch_sampler=[list(indices) for indices in order], **self.settings)
        return (split_batch(item, self.inputs, "training data") for item in told(loader, "training data"))

    def sweep(self) -> Iterator[LabelledBatch]:
        """All samples in order."""
        return self.batches(range(len(self))[at : at + SWEEP_BATCH] for at in range(0, len(self), SWEEP_BATCH))

    def on(self, device: torch.device) -> Samples:
        """The same samples for training on a device.

        Tensors stay there where they fit (`devices.fits`); other samples are read into pinned memory for a GPU, unless
        the dataset gives them on a GPU itself.

        Raises:
            DataError: as `batches`.
        """
        if device.type == "cpu":
            return self
        if isinstance(self.dataset, _Tensors) and fits(self.dataset.tensors, device):
            return replace(self, dataset=_Tensors(moved(self.dataset.tensors, device)))
        pins = device.type == "cuda" and self._come_from_cpu()
        return replace(self, settings=self.settings | {"pin_memory": pins})

    def _come_from_cpu(self) -> bool:
        """Whether a first batch of one sample lies on the CPU; torch pins nothing else."""
        plain = replace(self, settings={"collate_fn": self.settings.get("collate_fn")})  # without workers
        [(inputs, target)] = plain.batches([[0]])
        return all(part.device.type == "cpu" for part in (*inputs, target) if part is not None)

    def stay_on(self, device: torch.device) -> bool:
        """Whether all samples lie on a device."""
        return isinstance(self.dataset, _Tensors) and all(t.device == device for t in self.dataset.tensors)

    def targets(self) -> Tensor:
        """The targets of all samples; reads the data once unless it is tensors.

        Raises:
            DataError: a batch has none.
        """
        if isinstance(self.dataset, _Tensors):
            return self.dataset.tensors[-1]
        return join_targets([require_target(target, "training data") for _, target in self.sweep()], "training data")


class _Tensors(Dataset[Any]):
    """Tensors of equal first dimension as a dataset that gives whole batches."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        pick = torch.tensor(indices).to(self.tensors[0].device)
        return tuple(tensor[pick] for tensor in self.tensors)


def _as_it_is(batch: object) -> object:
    return batch


def samples_of(data: object, inputs: int) -> Samples | None:
    """The samples behind a map-style Dataset, a DataLoader over one, or a tuple of tensors; None for other batches.

    A DataLoader in the order of the samples or shuffled gives its samples and settings; training shuffles them anew in
    every epoch. A loader that draws in another way (a sampler of its own, with replacement) stays an iterable of
    batches. A TensorDataset is its tensors, where no worker or function of the user's makes its batches.

    Args:
        inputs: how many inputs the model takes; a tuple of one tensor more holds all samples and their targets.

    Raises:
        DataError: tensors of a tuple differ in their first dimension, or there is no sample.
    """
    if isinstance(data, DataLoader):
        if not _gives_each_sample_once(data):
            return None
        settings = {name: getattr(data, name) for name in ("collate_fn", "num_workers", "pin_memory", "timeout")}
        if data.num_workers:
            # not persistent_workers: each epoch and width has a reader of its own
            several = ("worker_init_fn", "multiprocessing_context", "prefetch_factor")
            settings |= {name: getattr(data, name) for name in several}
        plain = not data.num_workers and data.collate_fn is default_collate
        found = _samples(data.dataset, settings, data.batch_size, inputs, plain)
    elif isinstance(data, tuple) and len(data) == inputs + 1 and all(isinstance(part, Tensor) for part in data):
        if len({len(part) if part.dim() else -1 for part in data}) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in data)
            raise DataError(f"inputs and targets differ in their number of samples: {shapes}", where="training data")
        found = _samples(TensorDataset(*data), {}, None, inputs, plain=True)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        found = _samples(data, {}, None, inputs, plain=True)
    else:
        return None
    if not len(found):
        raise DataError("training data is empty", hint="train_data() must give at least one sample")
    return found


def _samples(dataset: Dataset[Any], settings: dict[str, Any], batch: int | None, inputs: int, plain: bool) -> Samples:
    """Samples of a dataset; where `plain` says that nothing else is asked of its reader, a TensorDataset is tensors."""
    if plain and type(dataset) is TensorDataset and len(dataset.tensors) == inputs + 1:
        return Samples(_Tensors(dataset.tensors), {"collate_fn": _as_it_is}, batch, inputs)
    return Samples(dataset, settings, batch, inputs)


def _gives_each_sample_once(loader: DataLoader[Any]) -> bool:
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return False
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) is SequentialSampler


def told(data: Iterable[object], what: str) -> Iterator[object]:
    """The items of `data`; what the user's code behind it raises is told with its line.

    Raises:
        DataError: it raised.
    """
    try:
        yield from data
    except MbqcError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} raised {type(error).__name__}: {error}", where=user_line(error)) from error


def split_batch(item: object, count: int, where: str | None = None) -> LabelledBatch:
    """A batch as (inputs, target): a tensor, a tuple of `count` inputs, or either with one target, or None, behind it.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(item, Tensor):
        parts: tuple[object, ...] = (item,)
    elif isinstance(item, tuple | list):
        parts = tuple(item)
    else:
        raise DataError(
            f"a batch is of type {type(item).__name__}", where=where, hint="give tensors, or tuples (inputs, target)"
        )
    if len(parts) == 2 and isinstance(parts[0], tuple | list):
        parts = (*parts[0], parts[1])
    if parts and parts[-1] is None:
        parts = parts[:-1]
    for index, part in enumerate(parts, 1):
        if not isinstance(part, Tensor):
            message = f"part {index} of {len(parts)} in a batch is of type {type(part).__name__}, not a torch.Tensor"
            raise DataError(message, where=where, hint="torch.as_tensor makes one of numbers or an array")
    tensors = cast("tuple[Tensor, ...]", parts)
    if len(parts) not in (count, count + 1):
        raise DataError(
            f"a batch has {len(parts)} parts, the model takes {count} input(s)",
            where=where,
            hint="give the inputs, or the inputs and one target",
        )
    return tensors[:count], tensors[count] if len(tensors) > count else None


def require_target(target: Tensor | None, where: str) -> Tensor:
    """The target of a batch that must have one.

    Raises:
        DataError: it has none.
    """
    if target is None:
        raise DataError("there are no targets", where=where, hint="give pairs (inputs, target)")
    return target


def join_targets(targets: Sequence[Tensor], what: str) -> Tensor:
    """The targets of several batches as one tensor.

    Raises:
        DataError: a target has no dimension 0, or another shape of a sample than the first one; says which.
    """
    for index, target in enumerate(targets):
        where = f"{what}, batch {index}"
        if target.dim() == 0:
            raise DataError("the target is one number for the whole batch", where=where, hint="one for each sample")
        if target.shape[1:] != targets[0].shape[1:]:
            shapes = f"{tuple(target.shape)}, that of batch 0 {tuple(targets[0].shape)}"
            raise DataError(f"the target has shape {shapes}", where=where, hint="give samples targets of one shape")
    return torch.cat(list(targets))


def check_input(given: Tensor, example: Tensor, where: str) -> None:
    """Refuses an input that does not fit the example input or is not finite.

    Raises:
        DataError: says which.
    """
    if given.dtype != example.dtype or given.shape[1:] != example.shape[1:] or given.dim() != example.dim():
        raise DataError(
            f"an input is {given.dtype} {tuple(given.shape)}, the example input {example.dtype} {tuple(example.shape)}",
            where=where,
        )
    if given.shape[0] == 0:
        raise DataError("the batch is empty", where=where)
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        raise DataError("an input holds NaN or infinity", where=where, hint="clean the data before compiling")
