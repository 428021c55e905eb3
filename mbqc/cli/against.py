"""Other runtimes on the same float model, in the same process."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbqc.cli.progress import show_progress
from mbqc.cli.quality import Judge
from mbqc.peers import Batch, Runner, Subject, find_peer
from mbqc.pipeline import Context
from mbqc.userfile import UserModel

COMPARED_SAMPLES = 64
"""Of the calibration data, at most, on which outputs are compared with the float model's."""


def subject_of(user: UserModel, batch: int, threads: int) -> Subject:
    """The float model of a model file with its calibration data in batches of one size.

    Raises:
        ModelError, DataError: the model file is wrong.
    """
    context = Context(user.example_inputs(), user.data("calibration_data"))
    return Subject(user.model().eval(), regroup(context.calibration_batches(), batch), threads)


def regroup(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same samples in batches of `size`: those left over are dropped, too few are repeated."""
    joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    if len(joined[0]) < size:
        joined = tuple(torch.cat([part] * -(-size // len(part)))[:size] for part in joined)
    whole = len(joined[0]) // size
    return [tuple(part[i * size : (i + 1) * size].contiguous() for part in joined) for i in range(whole)]


def prepare(names: Sequence[str], subject: Subject) -> tuple[dict[str, Runner], dict[str, str]]:
    """What can take part of the peers in `names`, and for the others why they cannot."""
    runners: dict[str, Runner] = {}
    missing: dict[str, str] = {}
    with show_progress("preparing other runtimes", len(names)) as advance:
        for name in names:
            try:
                with _quiet():
                    made = find_peer(name).runners(subject)
                    for bind in made.values():
                        bind(subject.batches[0])()
                runners |= made
            except ModuleNotFoundError as error:
                missing[name] = f"not compared, {error.name} is not installed: pip install 'mbqc[peers]'"
            except Exception as error:  # of other software, which must not end the comparison
                said = next(iter(str(error).strip().splitlines()), "")
                missing[name] = f"not compared, it cannot run this model: {type(error).__name__}: {said}"
            advance()
    return runners, missing


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what quantizers print while they work."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def compare_outputs(
    user: UserModel, subject: Subject, runners: Mapping[str, Runner]
) -> dict[str, tuple[float, float | None]]:
    """SQNR in decibels and percent of equal top-1 of each runner against the float model, on calibration data."""
    batch = len(subject.batches[0][0])
    batches = subject.batches[: -(-COMPARED_SAMPLES // batch)]
    exact = _outputs(find_peer("torch").runners(subject)["torch float32"], batches)
    judge = Judge(user, exact, None)
    found = {name: _outputs(bind, batches) for name, bind in runners.items()}
    return {name: (judge.sqnr(outputs), judge.agreement(outputs)) for name, outputs in found.items()}


def _outputs(bind: Runner, batches: Sequence[Batch]) -> Batch:
    def copy(part: Tensor | npt.NDArray[np.generic]) -> Tensor:
        return part.clone() if isinstance(part, Tensor) else torch.tensor(part)

    each = [[copy(part) for part in bind(batch)()] for batch in batches]
    return tuple(torch.cat(parts) for parts in zip(*each, strict=True))
