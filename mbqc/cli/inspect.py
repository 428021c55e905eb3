"""`mbqc inspect`: what is in an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.describe import (
    LayerRow,
    Notes,
    Sizes,
    describe_layers,
    describe_notes,
    describe_sizes,
    name_kind,
    show_layers,
)
from mbqc.cli.options import ArtifactArgument, BackendOption, JsonOption, parse_widths
from mbqc.cli.output import Answer, format_bytes, print_facts
from mbqc.cli.timing import random_inputs
from mbqc.errors import BackendError

if TYPE_CHECKING:
    from mbqc.artifact import Manifest
    from mbqc.program.operations import Program
    from mbqc.widths import Bits


@dataclass(frozen=True)
class Inspection(Answer):
    """An artifact.

    Attributes:
        mbqc: version of the compiler that wrote it.
        model: class of the float model.
        inputs, outputs: by name, dtype and shape, N being the batch.
        operations: how many of each kind.
        memory: bytes that the backend holds by part, None where it is not available here.
        unavailable: why it is not.
        program: text of the Program, None unless asked for.
    """

    artifact: str
    mbqc: str
    model: str
    pipeline: str
    traced_by: str
    ladder: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: tuple[LayerRow, ...]
    operations: dict[str, int]
    notes: Notes
    sizes: Sizes
    backend: str
    bits: tuple[str, ...]
    memory: dict[str, int] | None
    unavailable: str | None
    program: str | None

    def show(self) -> None:
        """Prints the Program, or all the rest."""
        if self.program is not None:
            print(self.program, end="")
            return
        facts = [
            ("model", self.model),
            ("inputs", ", ".join(f"{name} {kind}" for name, kind in self.inputs.items())),
            ("outputs", ", ".join(f"{name} {kind}" for name, kind in self.outputs.items())),
            ("pipeline", self.pipeline),
            ("made by", f"mbqc {self.mbqc}, traced by {self.traced_by}, {self.ladder} ladder"),
            ("operations", ", ".join(f"{name} {count}" for name, count in self.operations.items())),
        ]
        print_facts([*facts, *self.sizes.facts(), ("in memory", self._describe_memory())])
        print()
        self.notes.warn()
        show_layers(self.layers)
        self.notes.show()

    def _describe_memory(self) -> str:
        if self.memory is None:
            return f"unknown: {self.unavailable}"
        parts = ", ".join(f"{format_bytes(size)} {part}" for part, size in self.memory.items() if size)
        calls = f"after a call at {', '.join(self.bits)} bits"
        return f"{format_bytes(sum(self.memory.values()))} in the {self.backend} backend {calls}: {parts}"


def inspect(
    artifact: ArtifactArgument,
    bits: Annotated[
        str, typer.Option(metavar="WIDTHS", help="As for eval: called once each, before memory is counted.")
    ] = "8",
    backend: BackendOption = "cpu",
    program: Annotated[bool, typer.Option("--program", help="Print the Program, one line an operation.")] = False,
    json: JsonOption = False,
) -> Inspection:
    """Show what is in an artifact, and what a backend holds in memory for it."""
    from mbqc.artifact import read
    from mbqc.program.text import print_program

    asked = parse_widths(bits)
    found, manifest = read(artifact)
    listing = found.listing
    memory, unavailable = _measure_memory(found, manifest, backend, asked)
    return Inspection(
        artifact=str(artifact),
        mbqc=manifest.mbqc,
        model=manifest.model,
        pipeline=manifest.pipeline,
        traced_by=manifest.traced_by,
        ladder=listing.ladder,
        inputs=_types(found, listing.inputs),
        outputs=_types(found, listing.outputs),
        layers=describe_layers(found, manifest),
        operations=_count_operations(found),
        notes=describe_notes(manifest),
        sizes=describe_sizes(found, manifest, artifact.stat().st_size),
        backend=backend,
        bits=tuple(asked),
        memory=memory,
        unavailable=unavailable,
        program=print_program(found) if program else None,
    )


def _measure_memory(
    program: Program, manifest: Manifest, backend: str, asked: Mapping[str, Bits]
) -> tuple[dict[str, int] | None, str | None]:
    """Bytes by part after a call at each width, or why there is no such backend here."""
    from mbqc.runtime import make

    try:
        compiled = make(program, manifest, backend)
    except BackendError as error:
        return None, error.message
    inputs = random_inputs(program, batch=1)
    for widths in asked.values():
        compiled(*inputs, bits=widths)
    return compiled.executable.memory(), None


def _types(program: Program, names: tuple[str, ...]) -> dict[str, str]:
    from mbqc.program.text import format_value_type

    return {name: format_value_type(program.listing.values[name]) for name in names}


def _count_operations(program: Program) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(name_kind(operation) for operation in program.listing.operations))
