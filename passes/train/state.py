"""Where a training stands: what changes from round to round beside tensors. Checkpoints hold it as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mbqc.ir.annotations import Switching
from mbqc.passes.train.collapse import Watch
from mbqc.pipeline.training import EpochRecord


@dataclass
class Mean:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """One more value."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean so far, 0 of nothing."""
        return self.total / self.count if self.count else 0.0


@dataclass
class State:
    """Attributes:
    switching: from what each layer draws its width, as it was measured before training.
    exact, before: the metric of the float model and of each width before training.
    epoch, round: the next round, both counted from 0.
    done: rounds since the start.
    steps: forward and backward passes since the start, one for each width and batch.
    losses, clamped: of this epoch so far, by width.
    watch: on losses since the start.
    records: of the epochs before.
    seconds: by part.
    """

    switching: dict[str, Switching] = field(default_factory=dict)
    exact: float | None = None
    before: dict[int, float] = field(default_factory=dict)
    epoch: int = 0
    round: int = 0
    done: int = 0
    steps: int = 0
    losses: dict[int, Mean] = field(default_factory=dict)
    clamped: dict[int, Mean] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    records: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Adds the seconds spent inside to a part, without those that parts inside it take."""
        start, known = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - known
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start - inside
