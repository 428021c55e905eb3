"""Many callers at once, each at a width of its own: `python -m tests.backends.stress --calls 10000`.

Two models, on one and on several threads of their own, with a part that torch runs on its threads meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import torch
import typer
from rich.progress import track

from mbqc.backends import cpu, reference
from mbqc.numerics import ALL_BITS
from tests.backends.compare import same
from tests.backends.networks import images, residual_network, uniform

BATCHES = (1, 3, 20)
"""The last is large enough for torch to use its threads."""


def results(calls: int, callers: int = 8) -> Iterator[bool]:
    """Whether each of so many calls gave what the reference gives."""
    programs = [residual_network(with_float=True), residual_network(seed=8)]
    definitions = [reference.load(program) for program in programs]
    executables = [(which, cpu.load(program, threads)) for threads in (1, 2) for which, program in enumerate(programs)]
    jobs = list(itertools.product(executables, BATCHES, ALL_BITS))
    expected = {
        (which, batch, bits): definitions[which].run([images(batch)], uniform(programs[which], bits))
        for which, batch, bits in itertools.product(range(len(programs)), BATCHES, ALL_BITS)
    }

    def right(call: int) -> bool:
        (which, executable), batch, bits = jobs[call % len(jobs)]
        found = executable.run([images(batch)], uniform(programs[which], bits))
        return all(same(a, b) for a, b in zip(found, expected[which, batch, bits], strict=True))

    with ThreadPoolExecutor(callers) as pool:
        yield from pool.map(right, range(calls))


def main(
    calls: Annotated[int, typer.Option(min=1)] = 10_000,
    callers: Annotated[int, typer.Option(min=1, help="Threads that call.")] = 8,
    torch_threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
) -> None:
    """Calls, shows progress and counts wrong results."""
    torch.set_num_threads(torch_threads)
    wrong = sum(not right for right in track(results(calls, callers), "calls", total=calls))
    print(f"{calls} calls, {wrong} wrong")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
