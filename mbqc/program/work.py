"""How much there is to do in each operation of a Program, whatever runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbqc.ir.types import at_batch
from mbqc.program.arena import ITEM_BYTES
from mbqc.program.operations import AnyOperation, Conv, Linear, Program, inputs_of, outputs_of


@dataclass(frozen=True)
class Work:
    """What one operation has to do in one run.

    Attributes:
        multiply_adds: of a convolution or linear layer, those on padding included; 0 for all else.
        weights: how many weights it reads.
        value_bytes: of its inputs and outputs.
    """

    multiply_adds: int
    weights: int
    value_bytes: int


def work_of(program: Program, operation: AnyOperation, batch: int) -> Work:
    """The work of an operation of `program` on `batch` samples."""
    values = program.listing.values

    def count(name: str) -> int:
        return math.prod(at_batch(values[name].shape, batch))

    names = (*dict.fromkeys(inputs_of(operation)), *outputs_of(operation))
    value_bytes = sum(count(name) * ITEM_BYTES[values[name].dtype] for name in names)
    if not isinstance(operation, Conv | Linear):
        return Work(0, 0, value_bytes)
    codes = program.tensors[operation.weight.codes]
    return Work(count(operation.output) * codes[0].numel(), codes.numel(), value_bytes)
