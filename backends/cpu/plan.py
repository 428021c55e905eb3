"""From a Program at one choice of widths to native calls and, between them, operations that torch runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from mbqc.backends.cpu import abi
from mbqc.backends.cpu.geometry import LayerData
from mbqc.backends.cpu.memory import Layout
from mbqc.backends.cpu.popcount import BitWeights
from mbqc.backends.cpu.steps import StepBuilder
from mbqc.program.bind import Step
from mbqc.program.operations import Aten, Program


@dataclass(frozen=True)
class NativeRun:
    """Neighbouring operations as one call of the library.

    Attributes:
        tables: what the steps point to; they live as long as the steps.
    """

    steps: ctypes.Array[abi.Step]
    tables: tuple[Tensor, ...]


Part = NativeRun | Aten


def plan(
    program: Program,
    layers: Mapping[str, LayerData],
    bit_weights: BitWeights,
    layout: Layout,
    bound: Iterable[Step],
) -> tuple[Part, ...]:
    """The parts of a bound Program, in order."""
    parts: list[Part] = []
    for by_torch, steps in groupby(bound, key=lambda step: isinstance(step.operation, Aten)):
        if by_torch:
            parts += [step.operation for step in steps if isinstance(step.operation, Aten)]
        else:
            parts.append(_native_run(StepBuilder(program, layers, bit_weights, layout), steps))
    return tuple(parts)


def _native_run(builder: StepBuilder, bound: Iterable[Step]) -> NativeRun:
    steps = [step for operation in bound for step in builder.steps(operation)]
    return NativeRun((abi.Step * len(steps))(*steps), tuple(builder.tables))
