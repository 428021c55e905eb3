"""What a training leaves for people: history.json after every epoch, and curves of loss and metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import msgspec

from mbqc.errors import CheckpointError
from mbqc.files import write_atomically
from mbqc.pipeline.training import EpochRecord, TrainingResult

HISTORY, CURVES = "history.json", "curves.png"


def write_history(folder: Path, result: TrainingResult) -> None:
    """Writes as JSON what is known so far: metrics by width, epochs, and where the time went.

    Raises:
        CheckpointError: the file cannot be written.
    """
    seconds = {part: round(value, 3) for part, value in result.seconds.items()}
    text = msgspec.json.format(msgspec.json.encode(replace(result, seconds=seconds)), indent=2)
    _write(folder / HISTORY, text)


def draw_curves(folder: Path, records: Sequence[EpochRecord], exact: float | None) -> bool:
    """Draws loss and metric of each width over the epochs; False where matplotlib is not installed.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    judged = [record for record in records if record.metric]
    figure = Figure(figsize=(10, 4) if judged else (5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    # a sandwich may leave a width out of an epoch
    for bits in sorted({bits for record in records for bits in record.loss}, reverse=True):
        seen = [record for record in records if bits in record.loss]
        axes[0].plot([r.epoch for r in seen], [r.loss[bits] for r in seen], label=f"{bits} bits")
        if judged:
            known = [record for record in judged if bits in record.metric]
            axes[1].plot([r.epoch for r in known], [r.metric[bits] for r in known], label=f"{bits} bits")
    if judged and exact is not None:
        axes[1].axhline(exact, linestyle=":", color="grey", label="float")
    frozen = next((record.epoch for record in records if record.frozen), None)
    for axis, name in zip(axes, ("training loss", "metric on the evaluation data"), strict=False):
        axis.set(xlabel="epoch", ylabel=name)
        if frozen is not None:
            axis.axvspan(frozen - 0.5, records[-1].epoch, alpha=0.1, color="grey")
        axis.legend()
    picture = BytesIO()
    figure.savefig(picture, dpi=120)
    _write(folder / CURVES, picture.getvalue())
    return True


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"cannot write: {error.strerror or error}", where=str(path)) from error
