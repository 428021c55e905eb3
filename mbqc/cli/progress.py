"""Progress of long work, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbqc.pipeline.context import Advance

FIRST_LINE_SECONDS = 2.0


@contextmanager
def show_progress(description: str, total: int | None) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere a line after two seconds, and then each time the work has taken twice as long.

    What `advance` is told of how the work stands is shown behind it.

    Args:
        total: how many steps there are, None where nobody knows.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        columns = [*Progress.get_default_columns(), TextColumn("{task.fields[status]}")]
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total, status="")
            yield lambda status="": bar.update(task, advance=1, status=status)
        return

    start, done, due = time.monotonic(), 0, FIRST_LINE_SECONDS

    def advance(status: str = "") -> None:
        nonlocal done, due
        done += 1
        elapsed = time.monotonic() - start
        if elapsed >= due:
            of_all = f" of {total}" if total is not None else ""
            print(
                f"{description}: {done}{of_all} after {elapsed:.0f} s{f'; {status}' if status else ''}",
                file=sys.stderr,
                flush=True,
            )
            due = 2 * elapsed

    yield advance
