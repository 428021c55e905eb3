"""What a pass may use beside its graph and its options: data, loss, seed, and where it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbqc.errors import DataError, UsageError

Batch = tuple[Tensor, ...]
"""Model inputs of one batch."""

LabelledBatch = tuple[Batch, Tensor | None]
"""Model inputs and their targets; None without labels."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Note:
    """Something the user should know: what was skipped, what falls back to float, what was assumed.

    Attributes:
        kind: `skip` a layer left in float, `fallback` an operation without an integer form, `warning` what may be
            wrong, `info` any other remark.
        subject: node or layer, empty where the note is about the whole model.
    """

    source: str
    kind: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.subject + ': ' if self.subject else ''}{self.message}"


@dataclass
class Report:
    """What passes say about a run, in order."""

    notes: list[Note] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def add(self, source: str, kind: str, subject: str, message: str) -> None:
        """Appends a note, once."""
        note = Note(source, kind, subject, message)
        if note not in self.notes:
            self.notes.append(note)


Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""`with progress("calibrating", total) as advance: advance()`: how long work is shown."""


def silent(description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Progress that shows nothing."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Context:
    """Data and surroundings of a compilation.

    Attributes:
        example_inputs: one valid input of the model; dimension 0 is the batch.
        calibration: batches of representative inputs, read once and kept; None where the user gave none: the example
            inputs then serve.
        labelled: batches with targets for passes that need a loss; None: calibration data without labels.
        loss: `loss(output, target) -> scalar`, None for the loss against the model's own prediction.
        seed: of everything random, not negative.
        report: notes of passes.
        progress: shows long work.
    """

    example_inputs: Batch
    calibration: Iterable[object] | None = None
    labelled: Iterable[object] | None = None
    loss: Callable[[object, Tensor], Tensor] | None = None
    seed: int = 0
    report: Report = field(default_factory=Report)
    progress: Progress = silent

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed={self.seed!r} must be a whole number from 0 to 2^63 - 1")
        for name, data in (("calibration", self.calibration), ("labelled", self.labelled)):
            # a tensor can be iterated too, sample by sample
            if isinstance(data, Tensor) or not isinstance(data, Iterable | None):
                kind = type(data).__name__
                raise DataError(f"{name} is of type {kind}, expected batches", hint=f"write {name}=[...] for one batch")
        if self.calibration is not None:  # several passes read it, an iterator could be read once only
            object.__setattr__(self, "calibration", tuple(self.calibration))

    def calibration_batches(self) -> list[Batch]:
        """Checked calibration batches.

        Raises:
            DataError: there is no batch, a batch is not made of tensors like the example inputs, or a number in it is
                not finite.
        """
        if self.calibration is None:
            return [self.example_inputs]
        batches = [inputs for inputs, _ in self._checked(self.calibration, "calibration data")]
        if not batches:
            raise DataError("calibration data is empty", hint="calibration_data() must give at least one batch")
        return batches

    def labelled_batches(self) -> Iterator[LabelledBatch]:
        """Checked batches with targets, read when asked for; without labelled data, calibration batches with None.

        Raises:
            DataError: as `calibration_batches`.
        """
        if self.labelled is None:
            yield from ((batch, None) for batch in self.calibration_batches())
            return
        empty = True
        for batch in self._checked(self.labelled, "training data"):
            empty = False
            yield batch
        if empty:
            raise DataError("training data is empty", hint="train_data() must give at least one batch")

    def _checked(self, data: Iterable[object], what: str) -> Iterator[LabelledBatch]:
        for index, item in enumerate(data):
            where = f"{what}, batch {index}"
            inputs, target = split_batch(item, len(self.example_inputs), where)
            for given, example in zip(inputs, self.example_inputs, strict=True):
                check_input(given, example, where)
            yield inputs, target


def split_batch(item: object, count: int, where: str | None = None) -> LabelledBatch:
    """A batch as (inputs, target): a tensor, a tuple of `count` inputs, or either with one target behind it.

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
    tensors = tuple(part for part in parts if isinstance(part, Tensor))
    if len(tensors) != len(parts) or len(parts) not in (count, count + 1):
        raise DataError(
            f"a batch has {len(parts)} parts, the model takes {count} input(s)",
            where=where,
            hint="give the inputs, or the inputs and one target",
        )
    return tensors[:count], tensors[count] if len(tensors) > count else None


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
