"""`mbqc bench`: how long a call takes at each width."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.options import ArtifactArgument, BackendOption, JsonOption, parse_widths
from mbqc.cli.output import Answer, Column, print_table
from mbqc.cli.progress import show_progress

if TYPE_CHECKING:
    from torch import Tensor

    from mbqc.runtime import Compiled
    from mbqc.widths import Bits

TARGET_SECONDS = 2.0
"""How long one width is measured where `--repeat` is not given."""

FEWEST, MOST = 5, 1000
NOTICEABLE = 1.1


@dataclass(frozen=True)
class Timing:
    """Milliseconds of whole calls at one width.

    Attributes:
        speed: median of the first width over this one's.
    """

    bits: str
    median_ms: float
    fifth_percentile_ms: float
    speed: float


@dataclass(frozen=True)
class Benchmark(Answer):
    """Times by width, all in one run, the widths taking turns."""

    backend: str
    kernels: tuple[str, ...]
    batch: int
    threads: int
    repeats: int
    rows: tuple[Timing, ...]

    def show(self) -> None:
        """Prints the table and what it does not show."""
        print_table(
            [
                Column("bits", [row.bits for row in self.rows], left=True),
                Column("median ms", [f"{row.median_ms:.3f}" for row in self.rows]),
                Column("5 % ms", [f"{row.fifth_percentile_ms:.3f}" for row in self.rows]),
                Column(f"speed / {self.rows[0].bits}", [f"{row.speed:.2f}" for row in self.rows]),
            ]
        )
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        kinds = ", ".join(self.kernels)
        print(f"  {self.backend} backend ({kinds}), batch {self.batch}, {threads}, {self.repeats} calls a width.")
        slow = [row.bits for row in self.rows if row.bits in set("234567") and row.speed < NOTICEABLE]
        if slow and self.rows[0].bits == "8":
            print("  2 to 7 bits compute as int8 here: they can save memory traffic only.")


def bench(
    artifact: ArtifactArgument,
    bits: Annotated[
        str, typer.Option(metavar="WIDTHS", help="As for eval; the first is what the others are compared with.")
    ] = "8:4:2:1",
    batch: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 1,
    repeat: Annotated[int | None, typer.Option(min=1, help="Calls a width. [about 2 s]")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    backend: BackendOption = "cpu",
    json: JsonOption = False,
) -> Benchmark:
    """Time an artifact at several widths.

    Whole calls on random inputs, the widths taking turns: median and 5th percentile.
    """
    from mbqc.runtime import load

    asked = parse_widths(bits)
    compiled = load(artifact, backend)
    for widths in asked.values():
        compiled.widths(widths)
    with _torch_threads(threads):
        times = _measure(compiled, _random_inputs(compiled, batch), asked, repeat)
    first = statistics.median(next(iter(times.values())))
    rows = tuple(
        Timing(name, median, sorted(spent)[len(spent) // 20], first / median)
        for name, spent in times.items()
        for median in [statistics.median(spent)]
    )
    kernels = tuple(dict.fromkeys(compiled.executable.kernels()))
    return Benchmark(backend, kernels, batch, threads, len(next(iter(times.values()))), rows)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _random_inputs(compiled: Compiled, batch: int) -> list[Tensor]:
    """Normal numbers; zeros for whole numbers, which may be indices."""
    import torch

    from mbqc.ir.types import at_batch
    from mbqc.program.operations import TORCH_DTYPES

    values = [compiled.program.listing.values[name] for name in compiled.program.listing.inputs]
    return [
        torch.randn(at_batch(value.shape, batch))
        if value.dtype == "f32"
        else torch.zeros(at_batch(value.shape, batch), dtype=TORCH_DTYPES[value.dtype])
        for value in values
    ]


def _measure(
    compiled: Compiled, inputs: list[Tensor], asked: dict[str, Bits], repeat: int | None
) -> dict[str, list[float]]:
    """Milliseconds of every call, by width."""

    def call(bits: Bits) -> float:
        start = time.perf_counter()
        compiled(*inputs, bits=bits)
        return 1e3 * (time.perf_counter() - start)

    for bits in asked.values():
        call(bits)  # makes what a width needs
    slowest = max(call(bits) for bits in asked.values())
    count = repeat or min(max(int(1e3 * TARGET_SECONDS / max(slowest, 1e-3)), FEWEST), MOST)
    times: dict[str, list[float]] = {name: [] for name in asked}
    with show_progress("measuring", count) as advance:
        for _ in range(count):
            for name, bits in asked.items():
                times[name].append(call(bits))
            advance()
    return times
