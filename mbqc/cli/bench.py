"""`mbqc bench`: how long a call takes at each width, where the time goes, and how long other runtimes take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.layers import NOTICEABLE, LayerProfile, profile_layers
from mbqc.cli.options import (
    ArtifactArgument,
    BackendOption,
    DataOption,
    JsonOption,
    ThreadsOption,
    parse_widths,
    set_data_folder,
)
from mbqc.cli.output import Answer, Column, format_db, print_table, print_wrapped
from mbqc.cli.timing import Spent, in_turn, random_inputs, timed, torch_threads
from mbqc.errors import UsageError

if TYPE_CHECKING:
    from mbqc.peers import Batch, Call, Runner
    from mbqc.runtime import Compiled
    from mbqc.widths import Bits


@dataclass(frozen=True)
class Timing:
    """Milliseconds of whole calls.

    Attributes:
        runtime: `mbqc`, or another one with its precision.
        bits: the width, None for other runtimes.
        speed: median of the first row over this one's.
        sqnr: decibels of the outputs against the float model's, None without model.
        agreement: percent of samples whose largest output is the float model's, None unless outputs are scores.
    """

    runtime: str
    bits: str | None
    median_ms: float
    fifth_percentile_ms: float
    speed: float
    sqnr: float | None = None
    agreement: float | None = None

    @property
    def name(self) -> str:
        """For a table."""
        return self.runtime if self.bits is None else f"{self.runtime} {self.bits} bits"


@dataclass(frozen=True)
class Benchmark(Answer):
    """Times of whole calls, all in one run, taking turns.

    Attributes:
        missing: runtimes that could not be compared, and why.
        layers: times of operations, None unless asked for.
    """

    backend: str
    kernels: tuple[str, ...]
    batch: int
    threads: int
    repeats: int
    rows: tuple[Timing, ...]
    missing: dict[str, str]
    layers: LayerProfile | None

    def show(self) -> None:
        """Prints the tables, and what they do not show."""
        if self.layers is not None:
            self.layers.show()
            print()
        self._show_calls()
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        kinds = ", ".join(self.kernels)
        print(f"  {self.backend} backend ({kinds}), batch {self.batch}, {threads}, {self.repeats} calls a row.")
        others = ", ".join(f"{1 / row.speed:.2f} times as fast as {row.name}" for row in self.rows if row.bits is None)
        if others:
            print_wrapped(f"  {self.rows[0].name}: {others}.", indent=4)
        for name, reason in self.missing.items():
            print_wrapped(f"  {name}: {reason}.", indent=4)
        slow = [row.bits for row in self.rows if row.bits in tuple("234567") and row.speed < NOTICEABLE]
        if slow and self.layers is None and self.rows[0].bits == "8":
            print("  Widths that are not faster compute as 8 bits do: --layers says why.")

    def _show_calls(self) -> None:
        alone = all(row.bits is not None for row in self.rows)
        first = [row.bits or "" for row in self.rows] if alone else [row.name for row in self.rows]
        columns = [
            Column("bits" if alone else "runtime", first, left=True),
            Column("median ms", [f"{row.median_ms:.3f}" for row in self.rows]),
            Column("5 % ms", [f"{row.fifth_percentile_ms:.3f}" for row in self.rows]),
            Column(f"speed / {self.rows[0].bits}", [f"{row.speed:.2f}" for row in self.rows]),
        ]
        if self.layers is not None:
            totals = {profile.bits: f"{1e-3 * profile.total_us:.3f}" for profile in self.layers.widths}
            columns.insert(3, Column("operations ms", [totals.get(row.bits or "", "-") for row in self.rows]))
        if any(row.sqnr is not None for row in self.rows):
            columns.append(Column("SQNR dB", [format_db(row.sqnr) for row in self.rows]))
        if any(row.agreement is not None for row in self.rows):
            cells = ["-" if row.agreement is None else f"{row.agreement:.0f}" for row in self.rows]
            columns.append(Column("same top-1 %", cells))
        print_table(columns)


def bench(
    artifact: ArtifactArgument,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model file, for --against.", show_default=False)
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="WIDTHS", help="As for eval; the first is what the others are compared with.")
    ] = "8:4:2:1",
    batch: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 1,
    repeat: Annotated[int | None, typer.Option(min=1, help="Calls a row that count. [about 2 s]")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time every operation, beside the machine's limits.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Other runtimes: torch,onnxruntime,openvino, or some of them."),
    ] = None,
    data: DataOption = None,
    threads: ThreadsOption = 1,
    backend: BackendOption = "cpu",
    json: JsonOption = False,
) -> Benchmark:
    """Time an artifact at several widths.

    Whole calls, the widths taking turns: median and 5th percentile. Inputs are random, or with MODEL its calibration
    data. With --against other runtimes take turns too, on the same float model, their int8 calibrated on that data.
    """
    from mbqc.runtime import load

    peers = _peers(against, model)
    asked = parse_widths(bits)
    compiled = load(artifact, backend, threads=threads)
    for widths in asked.values():
        compiled.widths(widths)
    set_data_folder(data)
    with torch_threads(threads):
        rows, repeats, missing = _time_calls(compiled, asked, batch, repeat, threads, model, peers)
        inputs = random_inputs(compiled.program, batch)
        profile = profile_layers(compiled, inputs, asked, repeat) if layers else None
    names = (name for widths in asked.values() for name in compiled.executable.kernels(compiled.widths(widths), batch))
    return Benchmark(backend, tuple(dict.fromkeys(names)), batch, threads, repeats, rows, missing, profile)


def _peers(against: str | None, model: str | None) -> tuple[str, ...]:
    from mbqc.peers import parse_peers

    if against is None and model is not None:
        raise UsageError("a model file is for comparing", where=model, hint="--against torch,onnxruntime,openvino")
    if against is not None and model is None:
        raise UsageError(
            "the model file is missing", where="--against", hint="mbqc bench m.mbqc model.py --against ..."
        )
    return () if against is None else parse_peers(against)


def _time_calls(
    compiled: Compiled,
    asked: dict[str, Bits],
    batch: int,
    repeat: int | None,
    threads: int,
    model: str | None,
    peers: Sequence[str],
) -> tuple[tuple[Timing, ...], int, dict[str, str]]:
    """Whole calls of ours at every width, and of peers: rows, how often each was timed, and what is missing."""
    runners: dict[str, Runner] = {name: _runner(compiled, widths) for name, widths in asked.items()}
    missing: dict[str, str] = {}
    inputs, quality = random_inputs(compiled.program, batch), {}
    if model is not None:
        from mbqc.cli import against
        from mbqc.cli.quality import warn_of_another_model
        from mbqc.userfile import load_user_model

        user = load_user_model(model)
        subject = against.subject_of(user, batch, threads)
        warn_of_another_model(subject.net, compiled, model)
        compiled.check_inputs(subject.batches[0])  # before the long work
        others, missing = against.prepare(peers, subject)
        runners |= others
        inputs, quality = subject.batches[0], against.compare_outputs(user, subject, runners)
    times = in_turn("measuring", {name: timed(bind(inputs)) for name, bind in runners.items()}, repeat)
    spent = {name: Spent.of(single) for name, single in times.items()}
    first = next(iter(spent.values())).median_ms
    rows = tuple(
        Timing(
            runtime="mbqc" if name in asked else name,
            bits=name if name in asked else None,
            median_ms=found.median_ms,
            fifth_percentile_ms=found.fifth_percentile_ms,
            speed=first / found.median_ms,
            sqnr=quality[name][0] if quality else None,
            agreement=quality[name][1] if quality else None,
        )
        for name, found in spent.items()
    )
    return rows, len(next(iter(times.values()))), missing


def _runner(compiled: Compiled, widths: Bits) -> Runner:
    def bind(inputs: Batch) -> Call:
        def call() -> Batch:
            outputs = compiled(*inputs, bits=widths)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return call

    return bind
