"""Random Programs, cpu against reference: `python -m tests.backends.fuzz --count 10000 --seed 0`.

A case depends on its kind, the seed and its index alone; a failure says how to run it again.
"""

from __future__ import annotations

import faulthandler
import random
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tests.backends.compare import check
from tests.backends.programs import KINDS, draw_case


def failure(kind: str, seed: int, index: int) -> str | None:
    """What is wrong with one case, if anything."""
    try:
        check(draw_case(random.Random(f"{kind} {seed} {index}").randint, kind))
    except Exception as error:  # whatever goes wrong, the next case is worth knowing too
        return f"--kind {kind} --seed {seed} --first {index} --count 1\n{type(error).__name__}: {error}"
    return None


def main(
    count: Annotated[int, typer.Option(min=1, help="How many cases, over all kinds.")] = 10_000,
    seed: int = 0,
    first: Annotated[int, typer.Option(min=0, help="Index of each kind's first case.")] = 0,
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(KINDS)}; default all in turn.")] = None,
) -> None:
    """Compares, shows progress and says how to run each failure again."""
    faulthandler.enable()  # a kernel that touches a fence ends the process
    kinds = KINDS if kind is None else (kind,)
    console, wrong = Console(stderr=True), 0
    with Progress(console=console) as progress:
        task = progress.add_task("", total=count)
        for case in range(count):
            name, index = kinds[case % len(kinds)], first + case // len(kinds)
            progress.update(task, completed=case, description=f"{name} {index}, {wrong} wrong")
            if message := failure(name, seed, index):
                wrong += 1
                console.print(message, markup=False, soft_wrap=True)
        progress.update(task, completed=count)
    print(f"{count} cases, {wrong} wrong")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
