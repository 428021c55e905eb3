"""Where the time of a call goes: each operation at each width, beside the limits of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from mbqc.cli.describe import name_kind
from mbqc.cli.output import Column, format_bytes, print_table, print_wrapped
from mbqc.cli.timing import in_turn

if TYPE_CHECKING:
    from torch import Tensor

    from mbqc.backend import Ceilings
    from mbqc.program.operations import AnyOperation, Program
    from mbqc.program.work import Work
    from mbqc.runtime import Compiled
    from mbqc.widths import Bits, Widths

Limit = Literal["compute", "memory"]

BOUND = 0.5
"""An operation that takes less than twice the time that a limit allows is bound by it."""

NOTICEABLE = 1.1
"""A width that is less than so many times as fast as another one is not faster."""

SHOWN_READS = (1 << 14, 1 << 18, 1 << 22, 1 << 27)


@dataclass(frozen=True)
class OperationTiming:
    """One operation at one width.

    Attributes:
        operation: the layer, or the value that it makes.
        bits: of the weights, None where there are none.
        gops: 10^9 operations a second, a multiply-add counting as two; None without multiply-adds.
        gb_per_s: 10^9 bytes of inputs, outputs and weights a second.
        limit: what bounds it more, None where the backend knows no limits.
        floor_us: the least time that this limit allows.
        speed: the time at the width above over this one's.
    """

    operation: str
    kind: str
    bits: int | None
    kernel: str
    median_us: float
    gops: float | None
    gb_per_s: float
    limit: Limit | None
    floor_us: float | None
    speed: float

    @property
    def attained(self) -> float:
        """The part of the limit that it reaches, 0 without limit."""
        return self.floor_us / self.median_us if self.floor_us is not None and self.median_us else 0.0


@dataclass(frozen=True)
class WidthProfile:
    """All operations at one width.

    Attributes:
        total_us: of all operations.
        speed: the total at the width above over this one's.
        reason: why it is not faster than the width above, empty where it is.
    """

    bits: str
    total_us: float
    gops: float
    speed: float
    reason: str
    operations: tuple[OperationTiming, ...]


@dataclass(frozen=True)
class LayerProfile:
    """Operations by width, medians of `repeats` runs that took turns, and the measured limits."""

    repeats: int
    ceilings: Ceilings | None
    widths: tuple[WidthProfile, ...]

    def show(self) -> None:
        """Prints a table for each width, what it adds up to, and why a width is not faster."""
        above = ""
        for profile in self.widths:
            print(f"{profile.bits} bits")
            print_table(_columns(profile, above))
            rate = f", {profile.gops:.0f} GOP/s" if profile.gops else ""
            print(f"  total: {profile.total_us:.0f} us{rate}")
            if above:
                print_wrapped(f"  {profile.speed:.2f} times as fast as {above} bits{profile.reason}", indent=2)
            print()
            above = profile.bits
        if self.ceilings is not None:
            _show_ceilings(self.ceilings)


def profile_layers(
    compiled: Compiled, inputs: Sequence[Tensor], asked: Mapping[str, Bits], repeat: int | None
) -> LayerProfile:
    """Measures all operations at the widths in `asked`, which take turns, and then the limits of the machine."""
    checked, batch = compiled.check_inputs(tuple(inputs)), len(inputs[0])
    widths = {name: compiled.widths(bits) for name, bits in asked.items()}
    runs = {name: partial(compiled.executable.profile, checked, chosen) for name, chosen in widths.items()}
    found = in_turn("measuring operations", runs, repeat)
    ceilings = compiled.executable.ceilings()
    profiles: list[WidthProfile] = []
    for name, times in found.items():
        kernels = compiled.executable.kernels(widths[name], batch)
        seconds = [statistics.median(column) for column in zip(*times, strict=True)]
        above = profiles[-1] if profiles else None
        profiles.append(_profile(compiled.program, name, widths[name], batch, kernels, seconds, ceilings, above))
    return LayerProfile(len(next(iter(found.values()))), ceilings, tuple(profiles))


def _profile(
    program: Program,
    bits: str,
    widths: Widths,
    batch: int,
    kernels: Sequence[str],
    seconds: Sequence[float],
    ceilings: Ceilings | None,
    above: WidthProfile | None,
) -> WidthProfile:
    from mbqc.program.operations import Conv, Linear
    from mbqc.program.work import work_of

    operations = program.listing.operations
    works = [work_of(program, operation, batch) for operation in operations]
    stored = [int(w.weights * _weight_bits(ceilings, kernel) / 8) for w, kernel in zip(works, kernels, strict=True)]
    rows = []
    for index, operation in enumerate(operations):
        work, spent = works[index], max(seconds[index], 1e-9)
        limit, floor = _floor(ceilings, kernels[index], work, stored[index], sum(stored))
        rows.append(
            OperationTiming(
                operation=_name(operation),
                kind=name_kind(operation),
                bits=widths.by_layer[operation.weight.layer] if isinstance(operation, Conv | Linear) else None,
                kernel=kernels[index],
                median_us=1e6 * spent,
                gops=2e-9 * work.multiply_adds / spent if work.multiply_adds else None,
                gb_per_s=1e-9 * (work.value_bytes + stored[index]) / spent,
                limit=limit,
                floor_us=None if floor is None else 1e6 * floor,
                speed=above.operations[index].median_us / (1e6 * spent) if above else 1.0,
            )
        )
    total = sum(row.median_us for row in rows)
    speed = above.total_us / total if above else 1.0
    reason = explain(rows, above.operations) if above and speed < NOTICEABLE else ""
    gops = 2e-3 * sum(work.multiply_adds for work in works) / total
    return WidthProfile(bits, total, gops, speed, reason, tuple(rows))


def _weight_bits(ceilings: Ceilings | None, kernel: str) -> float:
    peak = ceilings.peaks.get(kernel) if ceilings is not None else None
    return peak.weight_bits if peak is not None else 8.0


def _floor(
    ceilings: Ceilings | None, kernel: str, work: Work, weight_bytes: int, all_weights: int
) -> tuple[Limit | None, float | None]:
    """The limit that allows an operation less, and the seconds that it allows.

    Weights come from where all weights of the model fit, values from where they fit themselves: the operation before
    has just written them.
    """
    if ceilings is None:
        return None, None
    memory = ceilings.read_seconds(weight_bytes, all_weights)
    memory += ceilings.read_seconds(work.value_bytes, work.value_bytes)
    peak = ceilings.peaks.get(kernel)
    compute = 2e-9 * work.multiply_adds / peak.gops if peak is not None else 0.0
    return ("compute", compute) if compute > memory else ("memory", memory)


def _name(operation: AnyOperation) -> str:
    from mbqc.program.operations import Conv, Linear, outputs_of

    return operation.weight.layer if isinstance(operation, Conv | Linear) else outputs_of(operation)[0]


def explain(rows: Sequence[OperationTiming], above: Sequence[OperationTiming]) -> str:
    """Why operations are not faster than those at the width above: what bounds them, and that it did not change."""
    total = sum(row.median_us for row in rows)
    reasons = []
    for limit, of_what in (("compute", "the peak of their kernels"), ("memory", "the read bandwidth")):
        bound = [i for i, row in enumerate(rows) if row.limit == limit and row.attained >= BOUND]
        if not bound:
            continue
        spent, floor = (sum(getattr(rows[i], name) for i in bound) for name in ("median_us", "floor_us"))
        before = sum(above[i].floor_us or 0.0 for i in bound)
        change = (
            "which is the same"
            if abs(floor / before - 1) < 0.02
            else f"which allows {before / floor:.2f} times as much"
        )
        reasons.append(
            f"{spent / total:.0%} of the time is bound by {limit}, at {floor / spent:.0%} of {of_what}, {change}"
        )
    rest = sum(row.median_us for row in rows if row.attained < BOUND) / total
    if rest >= 0.005:
        reasons.append(f"{rest:.0%} stays below half of both limits")
    return ": " + "; ".join(reasons) if reasons else ""


def _columns(profile: WidthProfile, above: str) -> list[Column]:
    rows = profile.operations
    columns = [
        Column("operation", [row.operation for row in rows], left=True),
        Column("kind", [row.kind for row in rows], rank=3, left=True),
        Column("bits", ["" if row.bits is None else str(row.bits) for row in rows], rank=2),
        Column("kernel", [row.kernel for row in rows], rank=1, left=True),
        Column("us", [f"{row.median_us:.1f}" for row in rows]),
        Column("rate", [_rate(row) for row in rows]),
    ]
    if any(row.limit for row in rows):
        columns.append(Column("of limit", [f"{row.attained:.0%} {row.limit}" for row in rows]))
    if above:
        columns.append(Column(f"/ {above}", [f"{row.speed:.2f}" for row in rows]))
    return columns


def _rate(row: OperationTiming) -> str:
    return f"{row.gb_per_s:.1f} GB/s" if row.gops is None else f"{row.gops:.0f} GOP/s"


def _show_ceilings(ceilings: Ceilings) -> None:
    distinct = {peak.gops: name for name, peak in reversed(list(ceilings.peaks.items()))}  # kernels that share a limit
    peaks = ", ".join(f"{name} {gops:.0f} GOP/s" for gops, name in reversed(list(distinct.items())))
    reads = ", ".join(f"{ceilings.reads[size]:.0f} GB/s of {format_bytes(size)}" for size in SHOWN_READS)
    print_wrapped(f"  limits measured here: {peaks}; reads {reads}.", indent=2)
    print_wrapped(
        "  of limit: the time that the nearer limit allows, as part of the time taken. The limit is compute (two "
        "operations a multiply-add) or memory (inputs, outputs and weights, each read once from where they fit).",
        indent=2,
    )
