"""One Program on the cpu backend, with every instruction set, against the reference: bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mbqc.backends import reference
from mbqc.backends.cpu.native import ISA_VARIABLE, supported_isas
from mbqc.program.operations import Program
from tests.backends.fences import FencedExecutable
from tests.backends.programs import Case


def executables(program: Program, threads: int) -> Iterator[tuple[str, FencedExecutable]]:
    """The Program on every instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        for isa in supported_isas():
            patch.setenv(ISA_VARIABLE, isa)
            yield f"cpu {isa}, {threads} threads", FencedExecutable(program, threads)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, signs of zeros and not-a-numbers included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = torch.int32 if a.dtype == torch.float32 else a.dtype
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def check(case: Case) -> None:
    """Every value, and every output when memory is reused.

    Raises:
        AssertionError: one differs, or a kernel wrote where it must not.
    """
    expected = reference.load(case.program).trace(case.inputs, case.widths)
    for name, executable in executables(case.program, case.threads):
        found = executable.trace(case.inputs, case.widths)
        for value in case.program.listing.values:
            assert same(found[value], expected[value]), f"{name}: {value} differs\n{case.program.listing}"
        for value, output in zip(case.program.listing.outputs, executable.run(case.inputs, case.widths), strict=True):
            assert same(output, expected[value]), f"{name}: output {value} differs from its trace"
