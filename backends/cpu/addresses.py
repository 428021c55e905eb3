"""Where the values and tables of a Program lie, as the kernels are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.epilogues import readable
from mbqc.backends.cpu.memory import Layout
from mbqc.program.arena import ITEM_BYTES
from mbqc.program.bind import BoundEpilogue
from mbqc.program.operations import Program


@dataclass(frozen=True)
class Addresses:
    """Places of values in a layout, and the tables that steps point to: they must live as long as the steps."""

    program: Program
    layout: Layout
    tables: list[Tensor] = field(default_factory=list)

    def place(self, name: str) -> abi.Place:
        """The place of a value."""
        return self.layout.places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value, -k for k times the batch."""
        return self.program.listing.values[name].shape

    def is_float(self, name: str) -> bool:
        """Whether a value is float32."""
        return self.program.listing.values[name].dtype == "f32"

    def item_bytes(self, name: str) -> int:
        """Bytes of an element of a value."""
        return ITEM_BYTES[self.program.listing.values[name].dtype]

    def pointer(self, table: Tensor) -> int:
        """The address of a table, which is kept."""
        self.tables.append(table)
        return table.data_ptr()

    def epilogue(self, bound: BoundEpilogue, output: str, residual: str | None = None) -> abi.Epilogue:
        """An epilogue whose result goes to `output`."""

        def pointer(table: Tensor | None) -> int | None:
            return None if table is None else self.pointer(readable(table))

        return abi.Epilogue(
            multiplier=pointer(bound.multiplier),
            addend=pointer(bound.addend),
            window_multiplier=pointer(bound.window_multiplier),
            residual=self.place(output if residual is None else residual),
            has_residual=residual is not None,
            to_float=self.is_float(output),
            table_step=bound.multiplier.numel() > 1,
            residual_multiplier=bound.residual_multiplier,
            low=bound.low,
            high=bound.high,
        )
