"""What is in an artifact, for `compile` and `inspect`: layers, notes and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbqc.cli.output import Column, format_bytes, format_count, format_db, print_table, print_wrapped, warn

if TYPE_CHECKING:
    from mbqc.artifact import Manifest
    from mbqc.program.operations import AnyOperation, Program

SHOWN_WIDTHS = (8, 6, 4, 3, 2, 1)
SQNR_RANKS = {8: 0, 6: 5, 4: 0, 3: 4, 2: 0, 1: 2}
"""Which widths go first where the table is too wide."""


@dataclass(frozen=True)
class LayerRow:
    """A quantized layer.

    Attributes:
        output: shape, with N for the batch and channels last.
        pinned: width kept under a uniform width.
        kernel: what runs it on the backend, empty where none was asked.
        sqnr: decibels by width against the float model, None for no difference at all.
    """

    layer: str
    operation: str
    output: str
    pinned: int | None
    kernel: str
    weight_bytes: int
    sqnr: dict[str, float]
    sensitivity: float | None
    sensitivity_error: float | None


@dataclass(frozen=True)
class Sizes:
    """Numbers of the float model, and bytes: of the int8 codes, of all stored tensors, of the whole file."""

    parameters: int
    weight_bytes: int
    tensor_bytes: int
    artifact_bytes: int

    def facts(self) -> list[tuple[str, str]]:
        """For `print_facts`."""
        each = f", {self.artifact_bytes / self.parameters:.2f} bytes a parameter" if self.parameters else ""
        tables = format_bytes(self.tensor_bytes - self.weight_bytes)
        return [
            ("parameters", format_count(self.parameters)),
            ("weights", f"{format_bytes(self.weight_bytes)} as int8, {tables} of other tensors"),
            ("artifact", format_bytes(self.artifact_bytes) + each),
        ]


@dataclass(frozen=True)
class Notes:
    """What passes reported, by kind; each a text of source, subject and message."""

    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    fallbacks: tuple[str, ...]
    remarks: tuple[str, ...]

    def warn(self) -> None:
        """Prints the warnings on stderr."""
        for message in self.warnings:
            warn(message)

    def show(self) -> None:
        """Prints what runs in float, and what else passes remarked."""
        groups = {"layers left in float": self.skipped, "operations in float": self.fallbacks, "remarks": self.remarks}
        for title, lines in groups.items():
            if lines:
                print(title)
                for line in lines:
                    print_wrapped(f"  {line}", indent=4)
                print()


def describe_layers(program: Program, manifest: Manifest, kernels: Sequence[str] = ()) -> tuple[LayerRow, ...]:
    """A row for every layer in the order in which they run; a layer that is called twice has one row.

    Args:
        kernels: what runs each operation of the program.
    """
    from mbqc.ir.types import format_dims
    from mbqc.program.operations import Conv, Linear

    rows: dict[str, LayerRow] = {}
    for index, operation in enumerate(program.listing.operations):
        if isinstance(operation, Conv | Linear) and operation.weight.layer not in rows:
            layer = operation.weight.layer
            info = program.listing.layers[layer]
            rows[layer] = LayerRow(
                layer=layer,
                operation=name_kind(operation),
                output=format_dims(program.listing.values[operation.output].shape),
                pinned=info.pinned,
                kernel=kernels[index] if kernels else "",
                weight_bytes=program.tensors[operation.weight.codes].nbytes,
                sqnr=dict(manifest.sqnr.get(layer, {})),
                sensitivity=info.sensitivity,
                sensitivity_error=info.sensitivity_error,
            )
    return tuple(rows.values())


def name_kind(operation: AnyOperation) -> str:
    """The kind of an operation in a word."""
    from mbqc.program.float_operations import Activation, Arithmetic
    from mbqc.program.operations import Aten, Conv

    if isinstance(operation, Aten):
        return f"aten.{operation.call.name}"
    if isinstance(operation, Activation):
        return operation.function
    if isinstance(operation, Arithmetic):
        return operation.sign
    if isinstance(operation, Conv) and operation.groups > 1:
        return "grouped"
    return type(operation).__name__.lower()


def show_layers(rows: Sequence[LayerRow]) -> None:
    """Prints the table of layers, and what its numbers mean."""
    columns = [
        Column("layer", [row.layer for row in rows], left=True),
        Column("kind", [row.operation for row in rows], rank=1, left=True),
        Column("output", [row.output for row in rows], rank=3),
        Column("bytes", [format_bytes(row.weight_bytes) for row in rows], rank=1),
        Column("pin", ["" if row.pinned is None else str(row.pinned) for row in rows]),
    ]
    if any(row.kernel for row in rows):
        columns.insert(3, Column("kernel", [row.kernel for row in rows], rank=6, left=True))
    measured = any(row.sqnr for row in rows)
    if measured:
        columns += [
            Column(f"{bits}b", [format_db(row.sqnr.get(str(bits))) for row in rows], SQNR_RANKS[bits])
            for bits in SHOWN_WIDTHS
        ]
    sensitive = any(row.sensitivity is not None for row in rows)
    if sensitive:
        columns.append(Column("sensitivity", [_sensitivity(row) for row in rows], rank=1))
    print_table(columns)
    print("  pin: the width a layer keeps unless it is named.")
    if measured:
        print("  8b to 1b: SQNR of the layer's output in dB at that uniform width.")
    if sensitive:
        print("  sensitivity: Hessian trace per parameter, and its standard error.")
    print()


def _sensitivity(row: LayerRow) -> str:
    if row.sensitivity is None:
        return "-"
    error = row.sensitivity_error or 0.0
    return f"{row.sensitivity:.1e} ±{error / row.sensitivity:4.0%}" if row.sensitivity else f"0 ± {error:.1e}"


def describe_sizes(program: Program, manifest: Manifest, artifact_bytes: int) -> Sizes:
    """The sizes of an artifact; weights that several layers share count once."""
    import torch

    codes = sum(tensor.nbytes for tensor in program.tensors.values() if tensor.dtype == torch.int8)
    everything = sum(tensor.nbytes for tensor in program.tensors.values())
    return Sizes(manifest.parameters, codes, everything, artifact_bytes)


def describe_notes(manifest: Manifest) -> Notes:
    """The notes of an artifact; what many nodes have in common is said once."""

    def lines(*kinds: str) -> tuple[str, ...]:
        chosen = [note for note in manifest.notes if note.kind in kinds]
        counts = Counter(note.message for note in chosen)
        result = []
        for message in counts:
            subjects = [note.subject for note in chosen if note.message == message and note.subject]
            result.append(f"{_enumerate(subjects)}: {message}" if subjects else message)
        return tuple(result)

    return Notes(lines("warning"), lines("skip"), lines("fallback"), lines("info"))


def _enumerate(names: Sequence[str], most: int = 4) -> str:
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
