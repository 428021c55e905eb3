"""What the runs were to reach, and what they reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from experiments import SERVED, WIDTHS
from records import RESULTS, Measured, Record, everything, find


@dataclass(frozen=True)
class Goal:
    """One figure and its bound.

    Attributes:
        text: what is measured, larger is better.
        unit: behind the figures.
        bound: what it should be at least.
        found: what it is, None while runs are missing.
    """

    text: str
    unit: str
    bound: float
    found: float | None

    @property
    def met(self) -> str:
        """`yes`, `no`, or `not run`."""
        return "not run" if self.found is None else "yes" if self.found >= self.bound else "no"


def points(text: str, bound: float, row: Measured, other: Measured, bits: Iterable[int]) -> Goal:
    """By how many points `row` is above `other` at the worst of some widths, in the mean over seeds."""
    known = row.by_seed and other.by_seed
    found = min(mean(row.accuracy(b)) - mean(other.accuracy(b)) for b in bits) if known else None
    return Goal(text, "points", bound, found)


def times_less(what: str, figure: Callable[[Record], float], bound: float, row: Measured, other: Measured) -> Goal:
    """How many times the figure of `row` that of `other` is."""
    known = row.by_seed and other.by_seed and (figure is not cost or (row.timed and other.timed))
    found = other.total(figure) / row.total(figure) if known else None
    return Goal(f"its {what}, times less", "x", bound, found)


def cost(record: Record) -> float:
    """Seconds of a run."""
    return record.cost


def steps(record: Record) -> float:
    """Forward and backward passes of a run."""
    return record.steps


def goals(seeds: Sequence[int], folder: Path = RESULTS) -> list[Goal]:
    """All of them, in the order in which they matter."""
    ours, switchable = (find("bn", name, seeds, folder) for name in ("corrected, frozen", "switchable"))
    return [
        points("corrected, frozen above switchable, 8 and 4 bits", -0.3, ours, switchable, (8, 4)),
        points("corrected, frozen above switchable, 2 bits", -1.0, ours, switchable, (2,)),
        points("corrected, frozen above switchable, 3 bits (never trained)", 1.0, ours, switchable, (3,)),
        _untrained(ours),
        _agreement(everything(seeds, folder)),
        *_served("serving", "one run, 8, 4, 2 bits", -0.5, 2.3, seeds, folder),
        *_served("serving", "one run, 28 % of the data, no warm-up", -1.5, 7.88, seeds, folder),
        *_served("serving_long", "one run, 20 % of the data", -0.5, 10.0, seeds, folder),
        *_served("serving_long", "one run, 5 and 2 bits, 10 epochs", -0.5, 10.0, seeds, folder),
    ]


def _served(name: str, title: str, bound: float, times: float, seeds: Sequence[int], folder: Path) -> tuple[Goal, Goal]:
    """A run that serves the widths 8 to 2 against a training for each; long ones were paused, so their steps count."""
    row, apart = find(name, title, seeds, folder), find(name, "seven separate trainings", seeds, folder)
    text = f"{name}, {title}: above separate trainings, 8 to 2 bits"
    what, figure = ("steps", steps) if name == "serving_long" else ("time", cost)
    return points(text, bound, row, apart, SERVED), times_less(what, figure, times, row, apart)


def _untrained(row: Measured) -> Goal:
    known = [mean(row.accuracy(b)) for b in (8, 7, 6, 5)] if row.by_seed else []
    found = min(known[1:]) - known[0] if known else None
    return Goal("corrected, frozen: 7, 6, 5 bits (never trained) above 8 bits", "points", -0.5, found)


def _agreement(records: Iterable[Record]) -> Goal:
    gaps = [-abs(record.program[bits] - record.graph[bits]) for record in records for bits in WIDTHS]
    return Goal("Program against its graph, the worst of all runs and widths", "points", -0.1, min(gaps, default=None))
