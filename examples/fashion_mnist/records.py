"""What runs measured: one JSON file a run, and a table's row over its runs and seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import msgspec
from experiments import TABLES, Row, table

from mbqc.files import write_atomically

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Record:
    """One run. Accuracies are percent of the 10 000 test images, by width from 8 to 1.

    Attributes:
        passes: the pipeline as the experiment asks for it.
        pipeline: the one that ran.
        seed: of the float network and of the run.
        exact: of the float network.
        before, after: of the quantized graph before and after training; equal where nothing was trained.
        graph: of the one that was lowered, which differs from `after` where BatchNorm was re-estimated.
        program: of the Program on the `cpu` backend.
        mixed: of the Program, mean over random widths by layer (`evidence.MIXED`); None in records from before that.
        pooled, separate: of the graph with BatchNorm statistics re-estimated; empty where that was not asked for.
        clamped: share of scale steps whose rate ALRS clamped to zero, by trained width; empty without ALRS.
        steps: forward and backward passes, one for each width and batch.
        seconds: by part of training; `all` of the compilation as a whole.
        timed: whether the run had its core for itself; else the seconds say nothing.
        environment: versions, commit, processor, and how many runs shared it.
    """

    passes: str
    pipeline: str
    seed: int
    exact: float
    before: dict[int, float]
    after: dict[int, float]
    graph: dict[int, float]
    program: dict[int, float]
    pooled: dict[int, float]
    separate: dict[int, float]
    clamped: dict[int, float]
    steps: int
    seconds: dict[str, float]
    timed: bool
    environment: dict[str, str]
    mixed: float | None = None

    @property
    def cost(self) -> float:
        """Seconds of all that training needs; judging it and saving checkpoints are no part of it."""
        return sum(s for part, s in self.seconds.items() if part not in ("all", "evaluating", "checkpoints"))


def record_file(passes: str, seed: int, folder: Path = RESULTS) -> Path:
    """Where the record of a run lies: the pipeline's text, with what file names cannot hold as dashes."""
    return folder / f"{re.sub(r'[^a-z0-9.=_]+', '-', passes).strip('-')}-seed{seed}.json"


def save(record: Record, folder: Path = RESULTS) -> None:
    """Writes a record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(record), indent=1)
    write_atomically(record_file(record.passes, record.seed, folder), content + b"\n")


def load(passes: str, seed: int, folder: Path = RESULTS) -> Record | None:
    """The record of a run, None where there is none yet.

    Raises:
        ValueError: the file holds something else.
    """
    file = record_file(passes, seed, folder)
    if not file.is_file():
        return None
    record = msgspec.json.decode(file.read_bytes(), type=Record)
    if (record.passes, record.seed) != (passes, seed):
        raise ValueError(f"{file} holds the run {record.passes!r} of seed {record.seed}")
    return record


@dataclass(frozen=True)
class Measured:
    """A row of a table with its records.

    Attributes:
        by_seed: the row's records by pipeline; only of seeds for which none is missing.
    """

    row: Row
    by_seed: dict[int, dict[str, Record]]

    def accuracy(self, bits: int) -> list[float]:
        """Of the Program, for each seed; empty where the row does not serve the width."""
        run = self.row.serves.get(bits)
        return [] if run is None else [records[run].program[bits] for records in self.by_seed.values()]

    @property
    def timed(self) -> bool:
        """Whether the seconds of all runs say something."""
        return all(record.timed for records in self.by_seed.values() for record in records.values())

    def total(self, figure: Callable[[Record], float]) -> float:
        """Summed over the row's runs, mean over seeds; there must be a seed."""
        return mean(sum(map(figure, records.values())) for records in self.by_seed.values())


def measured(row: Row, seeds: Sequence[int], folder: Path = RESULTS) -> Measured:
    """A row with what has been recorded of it."""
    by_seed = {}
    for seed in seeds:
        found = {run: load(run, seed, folder) for run in row.runs}
        records = {run: record for run, record in found.items() if record is not None}
        if len(records) == len(found):
            by_seed[seed] = records
    return Measured(row, by_seed)


def find(name: str, title: str, seeds: Sequence[int], folder: Path = RESULTS) -> Measured:
    """A row of a table, by their names."""
    return measured(table(name).row(title), seeds, folder)


def everything(seeds: Sequence[int], folder: Path = RESULTS) -> Iterator[Record]:
    """All records that the tables use, each once."""
    runs = dict.fromkeys(run for each in TABLES for row in each.rows for run in row.runs)
    for run in runs:
        for seed in seeds:
            if (record := load(run, seed, folder)) is not None:
                yield record
