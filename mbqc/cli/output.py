"""How commands answer: records that print as text or as JSON, tables that fit the terminal, numbers for people."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mbqc.errors import MbqcError, UsageError

SHORTEST_NAME = 12
"""Letters of a name that a table keeps on the narrowest terminal."""


class Answer(ABC):
    """What a command found out. A subclass is a dataclass whose fields are the JSON of `--json`."""

    @abstractmethod
    def show(self) -> None:
        """Prints it for people."""


def print_json(record: object) -> None:
    """A dataclass or plain data as indented JSON; numbers that are not finite become null."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())


def warn(message: str) -> None:
    """A warning, on stderr, where it is seen when the answer goes into a file."""
    print(f"warning: {message}", file=sys.stderr)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        cells: one text a row.
        rank: where the table is too wide, columns of the highest rank go first; rank 0 stays.
        left: whether it is aligned left.
    """

    title: str
    cells: Sequence[str]
    rank: int = 0
    left: bool = False


def print_table(columns: Iterable[Column]) -> None:
    """Prints as many of the columns as fit the terminal; where that is not enough, the first one loses letters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    shown = list(columns)
    while sum(_width(column) + 2 for column in shown) - 2 > console.width:
        last = max(column.rank for column in shown)
        if last == 0:
            break
        shown.remove(next(column for column in reversed(shown) if column.rank == last))
    if shown:
        shown[0] = _shortened(shown[0], console.width - sum(_width(column) + 2 for column in shown[1:]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        table.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    console.print(table)


def _shortened(column: Column, width: int) -> Column:
    """The ends of names are kept: layers of one network tend to differ there."""
    most = max(width, SHORTEST_NAME)
    cells = [text if len(text) <= most else f"…{text[1 - most :]}" for text in column.cells]
    return replace(column, cells=cells)


def _width(column: Column) -> int:
    return max(len(text) for text in (column.title, *column.cells))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and a text, aligned."""
    lines = [(name, text) for name, text in facts if text]
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        print_wrapped(f"{name:<{width}}  {text}", indent=width + 2)


def print_wrapped(text: str, indent: int) -> None:
    """Prints one entry on lines that fit the terminal; a word is never cut."""
    columns = shutil.get_terminal_size().columns
    print(textwrap.fill(text, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False))


def format_bytes(count: int) -> str:
    """`1.5 MB`, with powers of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count} B"


def format_count(count: int) -> str:
    """Thousands apart: `3 504 872`."""
    return f"{count:,}".replace(",", " ")


def format_db(value: float | None) -> str:
    """Decibels with one decimal; no noise at all is `exact`."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.1f}" if math.isfinite(value) else "exact"


def format_metric(value: float | None, *, percent: bool) -> str:
    """Percent with two decimals; what has no unit with at least four digits, for it may be small."""
    if value is None:
        return "-"
    return f"{value:.2f}" if percent or abs(value) >= 100 else f"{value:.4g}"


def write_output(path: Path, content: bytes) -> None:
    """Writes a result atomically.

    Raises:
        MbqcError: the folder is missing or not writable, or the disk is full.
    """
    from mbqc.files import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise MbqcError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def require_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuses an output path on which long work, or a file that the command reads, would be lost.

    Raises:
        UsageError: the path is one of `inputs`.
        MbqcError: the folder is missing or not writable, or the path is a folder.
    """
    from mbqc.files import check_writable

    if path.resolve() in [given.resolve() for given in inputs]:
        raise UsageError("cannot write: it would replace a file that this command reads", where=str(path))
    try:
        check_writable(path)
    except OSError as error:
        raise MbqcError(f"cannot write: {error.strerror or error}", where=str(path)) from error
