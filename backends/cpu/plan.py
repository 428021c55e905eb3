"""From a Program at one choice of widths to native calls and, between them, operations that torch runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from torch import Tensor

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.forms import WeightForms
from mbqc.backends.cpu.layer_steps import LayerSteps
from mbqc.backends.cpu.memory import Layout
from mbqc.backends.cpu.packed import packed_name
from mbqc.backends.cpu.steps import StepBuilder
from mbqc.program.bind import Step
from mbqc.program.operations import Aten, Program


@dataclass(frozen=True, eq=False)
class NativeRun:
    """Neighbouring operations as one call of the library.

    Attributes:
        steps_each: how many steps each operation has.
        tables: what the steps point to; they live as long as the steps.
    """

    steps: ctypes.Array[abi.Step]
    steps_each: tuple[int, ...]
    tables: tuple[Tensor, ...]

    def ticks(self) -> ctypes.Array[ctypes.c_int64]:
        """Room for the times of a call."""
        return (ctypes.c_int64 * (len(self.steps) + 1))()

    def seconds_each(self, ticks: ctypes.Array[ctypes.c_int64]) -> list[float]:
        """Seconds of each operation, from `ticks` that hold nanoseconds at the start and after each step."""
        ends = [ticks[last] for last in accumulate(self.steps_each, initial=0)]
        return [1e-9 * (end - start) for start, end in pairwise(ends)]

    def kernels(self, isa: str) -> list[str]:
        """What runs each operation on an instruction set."""
        firsts = list(accumulate(self.steps_each, initial=0))[:-1]
        return [_kernel(self.steps[first], isa) for first in firsts]


def _kernel(step: abi.Step, isa: str) -> str:
    kind = abi.KINDS[step.kind]
    if kind == "conv" and step.body.conv.weights.packed:
        return packed_name(isa, step.body.conv.weights.field)
    return f"{isa} popcount" if kind == "popcount" else isa


Part = NativeRun | Aten


def plan(program: Program, forms: WeightForms, layout: Layout, batch: int, bound: Iterable[Step]) -> tuple[Part, ...]:
    """The parts of a bound Program, in order; `batch` as for `LayerSteps`."""
    parts: list[Part] = []
    for by_torch, steps in groupby(bound, key=lambda step: isinstance(step.operation, Aten)):
        if by_torch:
            parts += [step.operation for step in steps if isinstance(step.operation, Aten)]
        else:
            at = Addresses(program, layout)
            parts.append(_native_run(StepBuilder(at, LayerSteps(at, forms, batch)), steps))
    return tuple(parts)


def _native_run(builder: StepBuilder, bound: Iterable[Step]) -> NativeRun:
    groups = [builder.steps(operation) for operation in bound]
    steps = [step for group in groups for step in group]
    return NativeRun((abi.Step * len(steps))(*steps), tuple(map(len, groups)), tuple(builder.at.tables))
