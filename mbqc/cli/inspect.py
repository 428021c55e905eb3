"""`mbqc inspect`: what is in an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.describe import LayerRow, Notes, Sizes, describe_layers, describe_notes, describe_sizes, show_layers
from mbqc.cli.options import ArtifactArgument, JsonOption
from mbqc.cli.output import Answer, print_facts

if TYPE_CHECKING:
    from mbqc.program.operations import Program


@dataclass(frozen=True)
class Inspection(Answer):
    """An artifact.

    Attributes:
        mbqc: version of the compiler that wrote it.
        model: class of the float model.
        inputs, outputs: by name, dtype and shape, N being the batch.
        operations: how many of each kind.
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
        print_facts([*facts, *self.sizes.facts()])
        print()
        self.notes.warn()
        show_layers(self.layers)
        self.notes.show()


def inspect(
    artifact: ArtifactArgument,
    program: Annotated[bool, typer.Option("--program", help="Print the Program, one line an operation.")] = False,
    json: JsonOption = False,
) -> Inspection:
    """Show what is in an artifact."""
    from mbqc.artifact import read
    from mbqc.program.text import print_program

    found, manifest = read(artifact)
    listing = found.listing
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
        program=print_program(found) if program else None,
    )


def _types(program: Program, names: tuple[str, ...]) -> dict[str, str]:
    from mbqc.program.text import format_value_type

    return {name: format_value_type(program.listing.values[name]) for name in names}


def _count_operations(program: Program) -> dict[str, int]:
    from collections import Counter

    from mbqc.program.operations import Aten

    kinds = (
        f"aten.{item.call.name}" if isinstance(item, Aten) else type(item).__name__.lower()
        for item in program.listing.operations
    )
    return dict(Counter(kinds))
