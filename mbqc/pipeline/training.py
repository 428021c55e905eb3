"""What training reports: records that history.json holds and commands show."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: counted from 1.
        steps: forward and backward passes since the start, one for each width and batch.
        rate: learning rate of the weights at the end of the epoch.
        loss: mean training loss by width.
        metric: on the evaluation data, by trained width; empty where there is none, or it was not asked for.
        clamped: by width, share of scale steps whose rate ALRS clamped to zero; empty without ALRS.
        frozen: whether BatchNorm statistics stood still at the end of the epoch.
    """

    epoch: int
    steps: int
    rate: float
    loss: dict[int, float]
    metric: dict[int, float]
    clamped: dict[int, float]
    frozen: bool


@dataclass(frozen=True)
class TrainingResult:
    """A training as a whole.

    Attributes:
        trained: the widths that were trained.
        exact: metric of the float model before training; None without evaluation data.
        before, after: metric of the quantized graph by width from 8 to 1; empty without evaluation data.
        pooled, separate: as `after`, with BatchNorm statistics re-estimated over all trained widths together, or for
            each width; empty where that was not asked for.
        epochs: their records.
        seconds: by part: loading, training, scoring, selecting, evaluating, BatchNorm, checkpoints.
    """

    trained: tuple[int, ...]
    exact: float | None
    before: dict[int, float]
    after: dict[int, float]
    pooled: dict[int, float] = field(default_factory=dict)
    separate: dict[int, float] = field(default_factory=dict)
    epochs: tuple[EpochRecord, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
