"""How much each training sample matters at each width, from what the model says about it while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from mbqc.errors import DataError, WidthsError
from mbqc.passes.train.trajectories import El2n, Entropy, Forgetting, Random, Tdds, Trajectories

Score = Literal["tdds", "el2n", "entropy", "forgetting", "random"]
"""What ranks the samples; higher is harder, or says more."""


class Recorder:
    """Collects what the model says about the training samples, width by width, and scores them.

    Ranks that share the work each observe their own samples and pass `torch.distributed.all_reduce` to
    `end_snapshot`: from then on every rank holds the same state and gives the same scores, bit for bit.

    Args:
        score: the formula; `tdds` keeps `2 * samples * classes` float32 numbers a width, the others a few a sample.
        samples: of the training data; a sample's index is its row.
        classes: of the logits.
        bits: the widths that are observed.
        seed: of `random`; every width draws its own.
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
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if samples < 1:
            raise DataError("training data is empty", hint="train_data() must give at least one batch")
        self._score, self._classes, self._device = score, classes, torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        self._records = {b: self._new(samples, generator) for b in bits}

    def _new(self, samples: int, generator: torch.Generator) -> Trajectories:
        match self._score:
            case "tdds":
                return Tdds(samples, self._device, self._classes)
            case "el2n":
                return El2n(samples, self._device)
            case "entropy":
                return Entropy(samples, self._device)
            case "forgetting":
                return Forgetting(samples, self._device)
            case "random":
                return Random(samples, self._device, generator)

    def _of(self, bits: int) -> Trajectories:
        if bits not in self._records:
            raise WidthsError(f"{bits} bits are not scored, only {', '.join(map(str, self._records))}")
        return self._records[bits]

    @torch.no_grad()
    def observe(self, bits: int, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Notes what the model says about samples at one width; waits for no device.

        Within a snapshot observations of one sample are averaged (TDDS: its logits; forgetting: right if each was).

        Args:
            indices: int64 [n], rows of the training data.
            logits: [n, classes], any floating dtype.
            targets: integers [n], 0 to classes - 1.

        Raises:
            DataError: a shape or dtype is another one.
            WidthsError: the width is not among those to be scored.
        """
        record, n = self._of(bits), len(indices)
        if logits.shape != (n, self._classes) or not logits.is_floating_point():
            raise DataError(
                f"the model's output is {logits.dtype} {tuple(logits.shape)}, a score needs ({n}, {self._classes})",
                hint="train without scores: selection=fresh",
            )
        if targets.shape != (n,) or targets.is_floating_point():
            raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}, a score needs whole numbers ({n},)")
        here = self._device
        targets = targets.to(here, torch.int64, non_blocking=True)
        record.observe(indices.to(here, non_blocking=True), logits.to(here, non_blocking=True), targets)

    @torch.no_grad()
    def end_snapshot(self, reduce: Callable[[Tensor], object] | None = None) -> None:
        """Ends the snapshot of every width: call it after each warm-up epoch and each pass over the data.

        Args:
            reduce: sums a tensor over all ranks in place, as `torch.distributed.all_reduce` does.
        """
        for record in self._records.values():
            record.end_snapshot(reduce)

    def unscored(self, bits: int) -> Tensor:
        """Indices, int64 on the CPU, of samples that were in too few snapshots (an epoch may drop its last batch)."""
        record = self._of(bits)
        return torch.nonzero(record.tensors["snapshots"] < record.least).flatten().cpu()

    def scores(self, bits: int) -> Tensor:
        """One score a sample, float64 on the CPU, from the snapshots that have ended.

        Raises:
            DataError: a sample was in too few snapshots.
            WidthsError: the width is not among those to be scored.
        """
        record, missing = self._of(bits), self.unscored(bits)
        if len(missing):
            raise DataError(
                f"{len(missing)} samples have no score at {bits} bits, the first is sample {int(missing[0])}: "
                f"{self._score} needs {record.least} snapshot(s) of each",
                hint="more warm-up epochs, or a forward pass over the missing samples",
            )
        return record.scores().cpu()

    def state(self) -> dict[str, Tensor]:
        """All that is known, the open snapshot included, for a checkpoint: the live tensors, not copies."""
        return {
            f"{self._score}.{bits}.{name}": tensor
            for bits, record in self._records.items()
            for name, tensor in record.tensors.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a stored state, or changes nothing.

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
            tensor.copy_(state[name])


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
