"""What a backend is: it loads a Program and runs it at any widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mbqc.program.operations import Program
from mbqc.widths import Widths


@dataclass(frozen=True)
class Peak:
    """The most that a kernel could do.

    Attributes:
        gops: 10^9 integer operations a second, a multiply-add counting as two.
        weight_bits: that it reads for each weight.
    """

    gops: float
    weight_bits: float = 8.0


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of a machine, for as many threads as a call has.

    Attributes:
        peaks: by the name that `Executable.kernels` gives a kernel.
        reads: GB/s for buffers of so many bytes, powers of two; the largest is beyond all caches.
    """

    peaks: Mapping[str, Peak]
    reads: Mapping[int, float]

    def read_seconds(self, count: int, buffer: int) -> float:
        """The least time in which `count` bytes can be read, out of a buffer of `buffer` bytes that is read in turn."""
        nearest = min(self.reads, key=lambda size: abs(math.log2(size / max(buffer, 1))))
        return count / self.reads[nearest] / 1e9


class Executable(Protocol):
    """A loaded Program. It may be run by several threads at once, at different widths."""

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """Outputs of the Program for checked inputs (shape, dtype, contiguous, on the CPU)."""
        ...

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """Every value of the Program by name, for comparing backends and measuring errors layer by layer."""
        ...

    def profile(self, inputs: Sequence[Tensor], widths: Widths) -> tuple[float, ...]:
        """Seconds that each operation of the Program took, in its order, in one run."""
        ...

    def prepare(self, widths: Widths, batch: int) -> None:
        """Makes ahead what the first such call would make: numbers of the widths, other forms of weights."""
        ...

    def kernels(self, widths: Widths, batch: int) -> tuple[str, ...]:
        """What runs each operation of the Program, in words for a table; `torch` for float fallbacks."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes held at this moment by part, in words for a table, the memory of a call on one sample included."""
        ...

    def ceilings(self) -> Ceilings | None:
        """Measures the limits of this machine, None where the backend knows none."""
        ...


class Backend(Protocol):
    """A module in `mbqc.backends` with this function."""

    def load(self, program: Program, threads: int = 1) -> Executable:
        """Makes a verified Program ready to run, each call on up to `threads` threads.

        Raises:
            BackendError: this machine or build cannot run it.
        """
        ...
