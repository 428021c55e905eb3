"""Every backend equals `reference` bit for bit: all operations, widths, ladders and instruction sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from program_builder import Builder
from programs import KINDS, Case, chain, single
from torch import Tensor

from mbqc.backend import Executable
from mbqc.backends import cpu, reference
from mbqc.backends.cpu.native import ISA_VARIABLE, supported_isas
from mbqc.program.operations import Epilogue, Program
from mbqc.widths import Widths

quick = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def executables(program: Program) -> Iterator[tuple[str, Executable]]:
    """The Program on every backend and instruction set but the reference."""
    with pytest.MonkeyPatch.context() as patch:
        for isa in supported_isas():
            patch.setenv(ISA_VARIABLE, isa)
            yield f"cpu {isa}", cpu.load(program)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, signs of zeros and not-a-numbers included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = torch.int32 if a.dtype == torch.float32 else a.dtype
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def check(case: Case) -> None:
    expected = reference.load(case.program).trace(case.inputs, case.widths)
    for name, executable in executables(case.program):
        found = executable.trace(case.inputs, case.widths)
        for value in case.program.listing.values:
            assert same(found[value], expected[value]), f"{name}: {value} differs\n{case.program.listing}"
        for value, output in zip(case.program.listing.outputs, executable.run(case.inputs, case.widths), strict=True):
            assert same(output, expected[value]), f"{name}: output {value} differs from its trace"


@pytest.mark.parametrize("kind", KINDS)
def test_single_operation(kind: str) -> None:
    @settings(quick, max_examples=400 if kind == "conv" else 150)
    @given(single(kind))
    def run(case: Case) -> None:
        check(case)

    run()


@settings(quick, max_examples=150)
@given(chain())
def test_chain_of_operations(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_accumulators_beyond_the_float_mantissa(bits: int) -> None:
    """Sums above 2^24: the conversion to float32 rounds."""
    build = Builder(seed=3)
    codes = build.quantize(build.new_input((-1, 20_000)), build.new_grid())
    program = build.finish((build.linear(codes, 40, grid=None, corrected="both"),))
    inputs = [torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)).abs() * 10]
    check(Case(program, inputs, Widths((("layer0", bits),))))


@pytest.mark.parametrize("bits", [8, 5, 1])
@pytest.mark.parametrize(("gain", "grid"), [(1e12, True), (1e12, False), (1e-37, False)])
def test_multipliers_at_the_ends_of_the_float_range(bits: int, gain: float, grid: bool) -> None:
    """Totals beyond int32, and multipliers from which no power of two can be taken without loss."""
    build = Builder(seed=5)

    def conv(source: str, out: int, **options: Any) -> str:
        epilogue = Epilogue(gain=build.tensor(torch.full((out,), gain)))
        target = build.new_grid() if grid else None
        return build.conv(source, out, grid=target, corrected="both", epilogue=epilogue, **options)

    image = build.quantize(build.new_input((-1, 9, 9, 24)), build.new_grid())
    outputs = [
        conv(image, 40),
        conv(image, 40, kernel=(3, 3), stride=(2, 2)),
        conv(image, 24, kernel=(3, 3), padding=(1, 1, 1, 1), groups=24),
    ]
    program = build.finish(tuple(build.affine(v, grid=None) if grid else v for v in outputs))
    inputs = [torch.randn(1, 9, 9, 24, generator=torch.Generator().manual_seed(0))]
    check(Case(program, inputs, Widths(tuple((layer, bits) for layer in build.layers))))
