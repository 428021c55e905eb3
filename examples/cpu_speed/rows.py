"""A row of the table: what was measured, what is owed, what is aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mbqc.backend import Executable


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        item: what was measured.
        found, low: of medians and of 5th percentiles, in `unit`.
        unit: `x` for how many times as fast, `%` for a share of the peak or a loss, `us`, `s`.
        owed, aimed: the goals; a smaller figure is better where `aimed` is smaller.
        note: what the figure rests on.
    """

    item: str
    found: float
    low: float
    unit: str
    owed: float
    aimed: float
    note: str = ""

    @property
    def met(self) -> str:
        """Which goal the better of both figures reaches."""
        sign = 1 if self.aimed >= self.owed else -1
        best = max(sign * self.found, sign * self.low)
        return "aimed" if best >= sign * self.aimed else "owed" if best >= sign * self.owed else "no"


def summary(times: Sequence[float]) -> tuple[float, float]:
    """Median and 5th percentile."""
    return statistics.median(times), sorted(times)[len(times) // 20]


def peak_of(executable: Executable) -> float:
    """The most that 8-bit products can do on this machine, in GOP/s, measured now."""
    ceilings = executable.ceilings()
    assert ceilings is not None, "the cpu backend measures its limits"
    return max(peak.gops for peak in ceilings.peaks.values() if peak.weight_bits == 8)
