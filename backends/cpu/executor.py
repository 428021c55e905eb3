"""Runs a Program: native calls, and torch for what has no integer form."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from weakref import WeakSet

from torch import Tensor

from mbqc.backend import Ceilings
from mbqc.backends.cpu.call import CallValues
from mbqc.backends.cpu.ceiling import measure
from mbqc.backends.cpu.forms import WeightForms
from mbqc.backends.cpu.memory import ArenaPool, layout
from mbqc.backends.cpu.native import Kernels, kernels
from mbqc.backends.cpu.packed import DEFAULT_COST, CostModel
from mbqc.backends.cpu.plan import NativeRun, Part, plan
from mbqc.program import aten
from mbqc.program.bind import Binder
from mbqc.program.operations import Program
from mbqc.widths import Widths

CACHED_PLANS = 32
"""Choices of widths whose plans are kept; a plan holds epilogue tables only, no weights."""


def load(program: Program, threads: int = 1) -> CpuExecutable:
    """Makes a Program ready to run, each call on up to `threads` threads of its own.

    Raises:
        BackendError: the kernels were not built, or this machine or the Program is beyond them.
    """
    return CpuExecutable(program, kernels(), threads)


class CpuExecutable:
    """A loaded Program: packed weights, plans of recent widths, and arenas for calls."""

    def __init__(self, program: Program, kernels: Kernels, threads: int, cost: CostModel = DEFAULT_COST) -> None:
        self._program = program
        self._kernels = kernels
        self._binder = Binder(program)
        self._forms = WeightForms.of(program, kernels, cost)
        geometries = [layer.geometry for layer in self._forms.layers.values()]
        self._layout = layout(program.listing, geometries, reuse=True)
        self._trace_layout = layout(program.listing, geometries, reuse=False)
        self._pool = ArenaPool()
        self._team = kernels.team(threads)
        self._plan = lru_cache(maxsize=CACHED_PLANS)(self._make_plan)
        self._runs: WeakSet[NativeRun] = WeakSet()  # of all plans that are kept

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """Outputs of the Program."""
        values = self._execute(inputs, widths, trace=False)
        return [values[name] for name in self._program.listing.outputs]

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """Every value of the Program by name; u8 values as uint8."""
        return self._execute(inputs, widths, trace=True)

    def profile(self, inputs: Sequence[Tensor], widths: Widths) -> tuple[float, ...]:
        """Seconds that each operation took in one run."""
        seconds: list[float] = []
        self._execute(inputs, widths, trace=False, seconds=seconds)
        return tuple(seconds)

    def memory(self) -> dict[str, int]:
        """Bytes held at this moment, by part; memory that two parts share counts with the first."""
        counted: set[int] = set()

        def size(tensors: Iterable[Tensor]) -> int:
            """Bytes of those that were not counted before."""
            new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            total = sum(count for address, count in new.items() if address not in counted)
            counted.update(new)
            return total

        return {
            "tensors as stored": size(self._program.tensors.values()),
            **{form: size(tensors) for form, tensors in self._forms.tensors().items()},
            "tables and steps": sum(size(run.tables) + ctypes.sizeof(run.steps) for run in self._runs),
            "numbers by layer and width": size(self._binder.tensors()),
            "arena at batch 1": self._layout.arena_bytes(1, self._team.threads),
        }

    def ceilings(self) -> Ceilings:
        """Measures the limits of this machine."""
        return measure(self._kernels, self._team.threads)

    def kernels(self, widths: Widths, batch: int) -> tuple[str, ...]:
        """The instruction set of each operation, and what else it does than 8-bit products; `torch` for fallbacks."""
        names: list[str] = []
        for part in self._plan(widths, False, self._forms.packed.batch_of_plan(batch)):
            names += part.kernels(self._kernels.isa) if isinstance(part, NativeRun) else ["torch"]
        return tuple(names)

    def prepare(self, widths: Widths, batch: int) -> None:
        """Makes what calls at these widths and batch size need: the plan, and other forms of weights."""
        self._plan(widths, False, self._forms.packed.batch_of_plan(batch))

    def _make_plan(self, widths: Widths, trace: bool, batch: int) -> tuple[Part, ...]:
        places = self._trace_layout if trace else self._layout
        parts = plan(self._program, self._forms, places, batch, self._binder.bind(widths))
        self._runs.update(part for part in parts if isinstance(part, NativeRun))
        return parts

    def _execute(
        self, inputs: Sequence[Tensor], widths: Widths, *, trace: bool, seconds: list[float] | None = None
    ) -> dict[str, Tensor]:
        """The outputs by name, or all values; `seconds` gets the time of each operation."""
        listing, places = self._program.listing, self._trace_layout if trace else self._layout
        batch = inputs[0].shape[0] if inputs else 1
        arena_bytes = places.arena_bytes(batch, self._team.threads)
        with self._pool.arena(arena_bytes) as arena, self._team.reserved() as team:
            values = CallValues(listing, places, arena, batch)
            for name, tensor in zip(listing.inputs, inputs, strict=True):
                values.take(name, tensor)
            values.allocate()
            for part in self._plan(widths, trace, self._forms.packed.batch_of_plan(batch)):
                start = time.perf_counter()
                if isinstance(part, NativeRun):
                    ticks = None if seconds is None else part.ticks()
                    self._kernels.run(part.steps, batch, values.bases, places.own, team, ticks)
                    spent = [] if ticks is None else part.seconds_each(ticks)
                else:
                    results = aten.call(part.call, values, self._program.tensors, batch)
                    for name, tensor in zip(part.outputs, results, strict=True):
                        values.define(name, tensor)
                    spent = [time.perf_counter() - start]
                if seconds is not None:
                    seconds += spent
            return {name: values.detached(name) for name in (listing.values if trace else listing.outputs)}
