"""What the cpu backend owes: every figure of its goals, measured in one command.

    OMP_NUM_THREADS=1 taskset -c 1 python examples/cpu_speed/acceptance.py [--json FILE] [--only SECTION] [--folder DIR]

One pinned core, nothing else running. Medians, and 5th percentiles in brackets; what is compared takes turns in one
process. MobileNetV2 and ResNet-20 need their weights (MBQC_DATA, MBQC_RESNET20_WEIGHTS), peers `pip install
'mbqc[peers]'`: what is missing is said and left out. `--folder` keeps compiled networks for the next time.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import bits
import convolution
import linear
import msgspec
import networks
import torch
from rich.console import Console
from rich.table import Table
from rows import Row


def main() -> None:
    """Measures, prints the table, writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--folder", type=Path, help="where compiled networks are kept")
    parser.add_argument("--only", choices=("convolutions", "networks", "linear", "bits"), help="one section")
    parser.add_argument("--repeats", type=int, default=100, help="of each call")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = given.folder or Path(folder)
        sections: dict[str, Callable[[], Iterator[Row]]] = {
            "convolutions": lambda: convolution.rows(given.repeats),
            "networks": lambda: networks.rows(kept, given.repeats),
            "linear": lambda: linear.rows(given.repeats),
            "bits": lambda: bits.rows(given.repeats),
        }
        chosen = [given.only] if given.only else list(sections)
        rows = [row for name in chosen for row in sections[name]()]
    Console(width=150).print(table_of(rows))
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode([dataclasses.asdict(row) for row in rows])))


def table_of(rows: list[Row]) -> Table:
    """Goals beside figures."""
    table = Table("item", title="median (5th percentile)")
    for title in ("measured", "owed", "aimed at"):
        table.add_column(title, justify="right")
    table.add_column("reached")
    table.add_column("note", overflow="fold")
    for row in rows:
        digits = 2 if row.unit == "x" else 1
        figures = f"{row.found:.{digits}f} ({row.low:.{digits}f}) {row.unit}"
        table.add_row(row.item, figures, f"{row.owed:g}", f"{row.aimed:g}", row.met, row.note)
    return table


if __name__ == "__main__":
    main()
