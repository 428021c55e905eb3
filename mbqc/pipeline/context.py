"""What a pass may use beside its graph and its options: data, loss, seed, and where it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mbqc.devices import CPU
from mbqc.errors import DataError, UsageError
from mbqc.pipeline.data import Batch, LabelledBatch, Samples, check_input, samples_of, split_batch, told
from mbqc.pipeline.training import TrainingResult

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
    """What passes say about a run, in order.

    Attributes:
        seconds: by pass.
        training: what training did; None where no pass trained.
    """

    notes: list[Note] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    training: TrainingResult | None = None

    def add(self, source: str, kind: str, subject: str, message: str) -> None:
        """Appends a note, once."""
        note = Note(source, kind, subject, message)
        if note not in self.notes:
            self.notes.append(note)


class Advance(Protocol):
    """Tells that one more step of long work is done, and how it stands."""

    def __call__(self, status: str = "") -> None: ...


Progress = Callable[[str, int | None], AbstractContextManager[Advance]]
"""`with progress("calibrating", total) as advance: advance()`: how long work is shown."""


def silent(description: str, total: int | None) -> AbstractContextManager[Advance]:
    """Progress that shows nothing."""
    return nullcontext(lambda status="": None)


@dataclass(frozen=True)
class Context:
    """Data and surroundings of a compilation.

    Attributes:
        example_inputs: one valid input of the model; dimension 0 is the batch.
        calibration: batches of representative inputs, read once and kept; None where the user gave none: the example
            inputs then serve.
        labelled: data with targets for passes that need a loss: batches, a DataLoader, a map-style Dataset, or all
            samples as a tuple of tensors (inputs..., target). None: calibration data without labels.
        loss: `loss(output, target) -> scalar`, None for cross entropy of labels in training, and for
            the model's own prediction where curvature is measured.
        evaluation: batches with targets on which training is judged.
        metric: `metric(output, target)` of all outputs and targets at once, higher is better; None for top-1 accuracy
            in percent.
        seed: of everything random, not negative.
        report: notes of passes.
        progress: shows long work.
        folder: where training keeps checkpoints, history and curves; None to keep nothing.
        resume: go on from the newest checkpoint in `folder`.
        device: where training computes, from `devices.find_device`; all other passes compute on the CPU.
    """

    example_inputs: Batch
    calibration: Iterable[object] | None = None
    labelled: Iterable[object] | Dataset[Any] | None = None
    loss: Callable[[Any, Tensor], Tensor] | None = None
    evaluation: Iterable[object] | None = None
    metric: Callable[[Any, Tensor], float] | None = None
    seed: int = 0
    report: Report = field(default_factory=Report)
    progress: Progress = silent
    folder: Path | None = None
    resume: bool = False
    device: torch.device = CPU

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed={self.seed!r} must be a whole number from 0 to 2^63 - 1")
        for name in ("calibration", "labelled", "evaluation"):
            data = getattr(self, name)
            indexed = name == "labelled" and isinstance(data, Dataset)
            # a tensor can be iterated too, sample by sample
            if isinstance(data, Tensor) or not (isinstance(data, Iterable | None) or indexed):
                kind = type(data).__name__
                raise DataError(f"{name} is of type {kind}, expected batches", hint=f"write {name}=[...] for one batch")
        if self.calibration is not None:  # several passes read it, an iterator could be read once only
            object.__setattr__(self, "calibration", tuple(told(self.calibration, "calibration data")))
        if isinstance(self.evaluation, Iterator):
            object.__setattr__(self, "evaluation", tuple(told(self.evaluation, "evaluation data")))

    def calibration_batches(self) -> list[Batch]:
        """Checked calibration batches.

        Raises:
            DataError: there is no batch, a batch is not made of tensors like the example inputs, or a number in it is
                not finite.
        """
        if self.calibration is None:
            return [self.example_inputs]
        return [inputs for inputs, _ in self.checked(self.calibration, "calibration data")]

    def labelled_batches(self) -> Iterator[LabelledBatch]:
        """Checked batches with targets, read when asked for; without labelled data, calibration batches with None.

        Raises:
            DataError: as `calibration_batches`.
        """
        if self.labelled is None:
            yield from ((batch, None) for batch in self.calibration_batches())
            return
        samples = self.samples()
        yield from self.checked(samples.sweep() if samples is not None else self._labelled_batches(), "training data")

    def samples(self) -> Samples | None:
        """The labelled data as samples that can be read by index, None where it is batches in an order of its own.

        Raises:
            DataError: it has no sample, or inputs and targets differ in number.
        """
        return samples_of(self.labelled, len(self.example_inputs))

    def _labelled_batches(self) -> Iterable[object]:
        assert isinstance(self.labelled, Iterable), "a Dataset is samples"
        return told(self.labelled, "training data")

    def checked(self, data: Iterable[object], what: str) -> Iterator[LabelledBatch]:
        """Batches as (inputs, target), checked against the example inputs.

        Raises:
            DataError: there is no batch, or one is malformed or not finite; says which.
        """
        index = -1
        for index, item in enumerate(data):
            where = f"{what}, batch {index}"
            inputs, target = split_batch(item, len(self.example_inputs), where)
            for given, example in zip(inputs, self.example_inputs, strict=True):
                check_input(given, example, where)
            yield inputs, target
        if index < 0:
            raise DataError(f"{what} is empty", hint="give at least one batch")
