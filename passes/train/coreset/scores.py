"""How much each training sample matters at each width, from what the model says about it while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from mbqc.errors import DataError, WidthsError
from mbqc.passes.train.coreset.trajectories import Score, Trajectories, trajectories

__all__ = ["Recorder", "Score"]


class Recorder:
    """Collects what the model says about the training samples, width by width, and scores them.

    Ranks that share the work each observe their own samples and pass `torch.distributed.all_reduce` to
    `end_snapshot`: from then on every rank holds the same state and gives the same scores, bit for bit.

    Args:
        score: the formula; `tdds` keeps `2 * samples * classes` float32 numbers a width, the others a few a sample.
        samples: of the training data; a sample's index is its row.
        classes: of the logits.
        bits: the widths that are observed.
        device: where the state is kept, best that of the logits.

    Raises:
        DataError: there are no samples.
    """

    def __init__(
        self,
        score: Score,
        samples: int,
        classes: int,
        bits: Iterable[int],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if samples < 1:
            raise DataError("training data is empty", hint="train_data() must give at least one batch")
        self._score, self._classes, self._device = score, classes, torch.device(device)
        self._trajectories = {b: trajectories(score, samples, classes, self._device) for b in bits}

    def _of(self, bits: int) -> Trajectories:
        if bits not in self._trajectories:
            raise WidthsError(f"{bits} bits are not scored, only {', '.join(map(str, self._trajectories))}")
        return self._trajectories[bits]

    @torch.no_grad()
    def observe(self, bits: int, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Notes what the model says about samples at one width, without waiting where the state is on the device too.

        Within a snapshot observations of one sample are averaged (TDDS: its logits; forgetting: right if each was).

        Args:
            indices: int64 [n], rows of the training data.
            logits: [n, classes], any floating dtype.
            targets: integers [n], 0 to classes - 1.

        Raises:
            DataError: a shape or dtype is another one.
            WidthsError: the width is not among those to be scored.
        """
        own, n = self._of(bits), len(indices)
        if logits.shape != (n, self._classes) or not logits.is_floating_point():
            raise DataError(
                f"the model's output is {logits.dtype} {tuple(logits.shape)}, a score needs ({n}, {self._classes})",
                hint="train without scores: coreset=random",
            )
        if targets.shape != (n,) or targets.is_floating_point():
            raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}, a score needs whole numbers ({n},)")
        here, ahead = self._device, self._device.type != "cpu"  # what comes down from a device must have arrived
        targets = targets.to(here, torch.int64, non_blocking=ahead)
        own.observe(indices.to(here, non_blocking=ahead), logits.to(here, non_blocking=ahead), targets)

    @torch.no_grad()
    def end_snapshot(self, reduce: Callable[[Tensor], object] | None = None) -> None:
        """Ends the snapshot of every width: call it after each warm-up epoch and each pass over the data.

        Args:
            reduce: sums a tensor over all ranks in place, as `torch.distributed.all_reduce` does.
        """
        for own in self._trajectories.values():
            own.end_snapshot(reduce)

    def unseen(self, bits: int, reduce: Callable[[Tensor], object]) -> Tensor:
        """Indices, int64 on the CPU, of samples that no rank has observed in the open snapshot."""
        count = self._of(bits).tensors["count"].clone()
        reduce(count)
        return torch.nonzero(count == 0).flatten().cpu()

    def unscored(self, bits: int) -> Tensor:
        """Indices, int64 on the CPU, of samples that were in too few snapshots (an epoch may drop its last batch)."""
        own = self._of(bits)
        return torch.nonzero(own.tensors["snapshots"] < own.least).flatten().cpu()

    def scores(self, bits: int) -> Tensor:
        """One score a sample, float64 on the CPU, from the snapshots that have ended.

        Raises:
            DataError: a sample was in too few snapshots.
            WidthsError: the width is not among those to be scored.
        """
        own, missing = self._of(bits), self.unscored(bits)
        if len(missing):
            raise DataError(
                f"{len(missing)} samples have no score at {bits} bits, the first is sample {int(missing[0])}: "
                f"{self._score} needs {own.least} snapshot(s) of each",
                hint="more warm-up epochs, or a forward pass over the missing samples",
            )
        return own.scores().cpu()

    def state(self, reduce: Callable[[Tensor], object] | None = None) -> dict[str, Tensor]:
        """All that is known, for a checkpoint: the live tensors, not copies.

        Args:
            reduce: as in `end_snapshot`; ranks then get copies in which the open snapshot holds what all observed.
        """
        state = {
            f"{self._score}.{bits}.{name}": tensor
            for bits, own in self._trajectories.items()
            for name, tensor in own.tensors.items()
        }
        if reduce is not None:
            state = {name: tensor.clone() for name, tensor in state.items()}
            for name in filter(_is_open, state):
                reduce(state[name])
        return state

    def restore(self, state: Mapping[str, Tensor], rank: int = 0) -> None:
        """Continues from a stored state, or changes nothing. Only rank 0 takes the open snapshot over.

        Raises:
            DataError: it was stored with another score, other widths or other data.
        """
        own = self.state()
        unlike = set(own) ^ set(state) or {n for n in own if _form(own[n]) != _form(state[n])}
        if unlike:
            raise DataError(
                f"the stored scores do not fit: {min(unlike)!r} differs",
                hint="resume with the data, widths and score of the first run",
            )
        for name, tensor in own.items():
            if rank and _is_open(name):
                tensor.zero_()
            else:
                tensor.copy_(state[name])


def _is_open(name: str) -> bool:
    return name.endswith((".sum", ".count"))


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
