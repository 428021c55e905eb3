"""What a backend is: it loads a Program and runs it at any widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from mbqc.program.operations import Program
from mbqc.widths import Widths


class Executable(Protocol):
    """A loaded Program. It may be run by several threads at once, at different widths."""

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """Outputs of the Program for checked inputs (shape, dtype, contiguous, on the CPU)."""
        ...

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """Every value of the Program by name, for comparing backends and measuring errors layer by layer."""
        ...

    def kernels(self) -> tuple[str, ...]:
        """What runs each operation of the Program, in words for a table: `int8`, `torch`, ..."""
        ...


class Backend(Protocol):
    """A module in `mbqc.backends` with this function."""

    def load(self, program: Program, threads: int = 1) -> Executable:
        """Makes a verified Program ready to run, each call on up to `threads` threads.

        Raises:
            BackendError: this machine or build cannot run it.
        """
        ...
