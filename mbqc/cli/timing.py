"""Measuring: calls that take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mbqc.cli.progress import show_progress
from mbqc.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from mbqc.program.operations import Program

TARGET_SECONDS = 2.0
"""How long one of the calls is measured where `--repeat` is not given."""

FEWEST, MOST = 5, 1000

TURN = 5
"""Calls that are measured one after the other, before it is another one's turn."""

WARM_UP = 3
"""Calls before them that are not: the caches hold what the others left."""

Result = TypeVar("Result")


def in_turn(what: str, calls: Mapping[str, Callable[[], Result]], repeat: int | None) -> dict[str, list[Result]]:
    """The results of calls that take turns, `repeat` of each, or for about two seconds each."""
    for call in calls.values():
        call()  # prepares what it needs
    slowest = max(_seconds(call) for call in calls.values())
    count = repeat or min(max(int(TARGET_SECONDS / max(slowest, 1e-6)), FEWEST), MOST)
    results: dict[str, list[Result]] = {name: [] for name in calls}
    turns = -(-count // TURN)
    with show_progress(what, turns) as advance:
        for turn in range(turns):
            for name, call in calls.items():
                for _ in range(WARM_UP):
                    call()
                results[name] += [call() for _ in range(min(TURN, count - turn * TURN))]
            advance()
    return results


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A call that returns the milliseconds that `call` takes."""
    return lambda: 1e3 * _seconds(call)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spent:
    """Milliseconds of many calls."""

    median_ms: float
    fifth_percentile_ms: float

    @staticmethod
    def of(times: list[float]) -> Spent:
        """Of the times of single calls."""
        return Spent(statistics.median(times), sorted(times)[len(times) // 20])


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's own threads, which run float fallbacks."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_inputs(program: Program, batch: int) -> tuple[Tensor, ...]:
    """Normal numbers; zeros for whole numbers, which may be indices.

    Raises:
        UsageError: there is no memory for so many samples.
    """
    import torch

    from mbqc.ir.types import at_batch
    from mbqc.program.operations import TORCH_DTYPES

    values = [program.listing.values[name] for name in program.listing.inputs]
    try:
        return tuple(
            torch.randn(at_batch(value.shape, batch))
            if value.dtype == "f32"
            else torch.zeros(at_batch(value.shape, batch), dtype=TORCH_DTYPES[value.dtype])
            for value in values
        )
    except (RuntimeError, TypeError) as error:  # torch takes a size beyond 64 bits for one of a wrong type
        raise UsageError(f"{batch} samples do not fit into memory", where="--batch", hint="fewer") from error
