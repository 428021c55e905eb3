"""A training that has lost what the model knew, though every number in it is finite.

Too high a rate seldom overflows: Adam's steps are no longer than the rate, and BatchNorm takes the size of weights out
again. The loss jumps, comes back to that of an answer which is the same for every sample, and stays there. Growth
alone says nothing: of a model with next to no loss, a healthy training makes a hundred times as much for a while.

A loss of the wrong sign falls, as a right one does, and is not seen here: only the metric tells. Nor is a training that
never came to know anything: how large a loss may be, only the blind one could say, and that of a batch of one sample or
class, of a quiet batch, or of outputs which have all become huge says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

ROUNDS = 50
"""Without an answer until a width counts as lost: later than need be, since a model can recover."""
ANSWERED = 4
"""Of these rounds that an answer takes back: with small batches a model that knows nothing has luck at times."""


@dataclass
class Course:
    """How a width has done: its lowest loss, and the rounds without an answer less those taken back."""

    lowest: float = math.inf
    lost: int = 0


@dataclass
class Watch:
    """Compares losses with that of one answer for all samples of a batch, which the caller measures.

    Attributes:
        blind: this loss on the first batch of an epoch, of the first epoch in which the model had halved it there; None
            until then: it knew little, the batch is a single sample or class, or the loss is not finite. Of all batches
            some would be halved by luck.
        signed: a loss was negative, so that half of it means nothing, and nothing is told any more.
        courses: by width.
    """

    blind: float | None = None
    signed: bool = False
    courses: dict[int, Course] = field(default_factory=dict)

    def begin(self, loss: float, here: Callable[[], float]) -> None:
        """The first loss of an epoch; `here` as for `add`."""
        if self.blind is None and not self.signed:
            blind = here()
            self.blind = blind if 0 <= loss < blind / 2 < math.inf else None

    def add(self, bits: int, loss: float, here: Callable[[], float]) -> bool:
        """One more loss of a width; whether the width once halved the blind loss, but is lost now.

        Args:
            here: the loss of one answer for all samples of this batch, since one batch may be louder than another.
        """
        if loss < 0:
            self.blind, self.signed = None, True
        if self.blind is None:
            return False
        course = self.courses.setdefault(bits, Course())
        no_answer = course.lowest < self.blind / 2 and loss >= 0.9 * self.blind and loss >= 0.9 * here()
        course.lost = course.lost + 1 if no_answer else max(0, course.lost - ANSWERED)
        course.lowest = min(course.lowest, loss)
        return course.lost >= ROUNDS

    def begin_anew(self) -> None:
        """Other samples come from now on, of which no loss may ever have been low."""
        self.courses.clear()

    @property
    def in_doubt(self) -> bool:
        """Whether a width may be about to be lost."""
        return self.blind is not None and any(course.lost for course in self.courses.values())
