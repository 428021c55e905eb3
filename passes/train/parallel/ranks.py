"""Processes that train one model together, each on its share of the batch, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from mbqc.devices import CPU
from mbqc.errors import MbqcError, PassError, UsageError
from mbqc.passes.train.parallel.synchronised import SynchronisedBatchNorm

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for another that is alive; a killed one is seen at once."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. With one process every method does nothing.

    Attributes:
        rank: number of this process, 0 of the one that writes files and speaks to the user.
        world: how many there are.
        device: where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """After a backward, gives `parameters` the mean of all ranks' gradients; those without gradient keep none.

        All ranks must run the same widths, so that the same parameters have gradients. The mean is the gradient of the
        whole batch's mean loss where all ranks have as many samples; elsewhere scale the loss by
        `own samples * world / all samples` before the backward.

        Not torch's DistributedDataParallel: it takes one forward a backward, and warns of each width that uses all
        parameters as of each that does not.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def synchronised(self) -> AbstractContextManager[object]:
        """Within it, a BatchNorm in train mode normalizes with the batch of all ranks, and backward knows it."""
        return SynchronisedBatchNorm(self.world) if self.world > 1 else nullcontext()

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites `tensors` (a state dict; same names and shapes on all ranks) with those of rank 0."""
        if self.world > 1:
            for name in sorted(tensors):
                dist.broadcast(tensors[name].detach(), src=0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks: of losses, or of scores that each rank knows for its samples, zero for the others."""
        total = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def mean(self, value: float) -> float:
        """The mean over all ranks: of losses; NaN or infinite where one is."""
        if self.world == 1:  # on a GPU the sum would make the host wait
            return value
        return float(self.sum(torch.full((), value, dtype=torch.float64, device=self.device))) / self.world

    def of_first(self, value: Value) -> Value:
        """What rank 0 gave as `value`, on all ranks; anything that can be pickled."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def by_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on rank 0, where alone it runs, on all ranks; as `of_first`.

        Raises:
            MbqcError: on all ranks what `make` raised.
        """
        made: Value | MbqcError | None = None
        if self.is_first:
            try:
                made = make()
            except MbqcError as error:
                made = error
        made = self.of_first(made)
        if isinstance(made, MbqcError):
            raise made
        return cast("Value", made)

    def tensors_of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `tensors` of rank 0 on all ranks, on the CPU, whatever the others have."""
        if self.world == 1:
            return dict(tensors)
        found = {}
        forms = self.of_first({name: (value.shape, value.dtype) for name, value in tensors.items()})
        for name, (shape, dtype) in forms.items():
            own = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            value = own.to(self.device)
            dist.broadcast(value, src=0)
            found[name] = value.to(CPU)
        return found

    def gather(self, values: Tensor) -> Tensor:
        """`values` (same shape on all ranks) of all ranks, one behind the other in dimension 0."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.detach().contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether some rank says so: that it was told to stop, that its loss is not finite."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.full((), float(flag), device=self.device)))


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Ranks]:
    """The ranks of `torchrun`'s environment within the block, or this process alone where there is none.

    A process group that is there already is used and left as it is.

    Args:
        device: `cpu`, `cuda` for the GPU of this process's number on its machine, or `cuda:1` for one of several.
        patience: how long a rank waits for one that is alive but does not answer.

    Raises:
        UsageError: the environment is incomplete, the machine has fewer GPUs than processes, or one GPU was asked for
            by several processes.
        PassError: another rank was lost, before or within the block.
    """
    if dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
        with _own(device, world) as own, _lost_ranks_explained(rank, world):
            yield Ranks(rank, world, own)
        return
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        with _own(device, world) as own:
            yield Ranks(device=own)
        return
    if device.type == "cuda" and device.index is not None:
        raise UsageError(f"{device} is one GPU, but there are {world} processes", hint="cuda: to each its own")
    rank = _number("RANK")
    if not 0 <= rank < world:
        raise UsageError(f"RANK={rank} is not one of {world} processes", hint="start with torchrun")
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        raise UsageError("MASTER_ADDR and MASTER_PORT say where the processes meet", hint="start with torchrun")
    with _own(device, world) as own, _lost_ranks_explained(rank, world):
        store, _, _ = next(rendezvous("env://", timeout=patience))
        # torchrun's store outlives a group, and a second one in this process must not read what the first has left
        meeting = PrefixStore(f"mbqc {store.add(f'mbqc rank {rank}', 1)}", store)
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=world, timeout=patience)
        try:
            yield Ranks(rank, world, own)
        finally:
            dist.destroy_process_group()


@contextmanager
def _own(device: torch.device, world: int) -> Iterator[torch.device]:
    """The device of this process; a GPU is the current one within the block, as nccl and Triton want it."""
    if device.type != "cuda":
        yield device
        return
    local, found = device.index, torch.cuda.device_count()
    if local is None:
        local = _number("LOCAL_RANK") if world > 1 else 0
    if local >= found:
        raise UsageError(f"process {local} of this machine finds {found} GPUs", hint="one process for each GPU")
    with torch.cuda.device(local):
        yield torch.device("cuda", local)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}, expected a number", hint="start with torchrun")
    return int(text)


@contextmanager
def _lost_ranks_explained(rank: int, world: int) -> Iterator[None]:
    """Turns what torch raises when a rank does not answer into one error; all other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo names its source file
            raise
        other = f"rank {1 - rank}" if world == 2 else f"one of the {world - 1} other ranks"
        raise PassError(
            f"rank {rank} lost {other}, which ended or does not answer",
            hint="the last checkpoint is kept; start again with --resume",
        ) from error
