"""Every backend equals `reference` bit for bit: all operations, widths, ladders and instruction sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mbqc.numerics import ALL_BITS
from mbqc.program.operations import AtenCall, Epilogue, Grid, Reference
from mbqc.widths import Widths
from tests.backends.compare import check
from tests.backends.fuzz import failure
from tests.backends.program_builder import Builder
from tests.backends.programs import KINDS, Case


@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_programs(kind: str) -> None:
    """The first cases of tests/backends/fuzz.py."""
    for index in range(300 if kind in ("conv", "chain") else 100):
        assert failure(kind, 0, index) is None


def test_float_fallbacks_read_row_major_values() -> None:
    """Torch's gelu gives other last bits on values that lie in memory in another order."""
    build = Builder(seed=4)
    image = build.quantize(build.new_input((-1, 9, 9, 24)), build.new_grid())
    real = build.conv(image, 24, (3, 3), groups=24, grid=None)
    program = build.finish((build.aten(AtenCall("gelu.default", (Reference(real),)), build.shape(real)),))
    inputs = [torch.randn(3, 9, 9, 24, generator=torch.Generator().manual_seed(0))]
    check(Case(program, inputs, Widths((("layer0", 8),))))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("width", [7, 14, 20])
@pytest.mark.parametrize("channels", [4, 40])
def test_borders_of_zero(channels: int, width: int, threads: int) -> None:
    """As after a relu: rows of the kernel in the border are left out, for an image of one row all but one."""
    build = Builder(seed=7)
    outputs = []
    for height, stride in [(1, 1), (2, 1), (3, 1), (7, 1), (7, 2)]:
        grid = build.new_grid()
        build.grids[grid] = Grid(build.grids[grid].scales, (0,) * len(ALL_BITS), ())
        image = build.quantize(build.new_input((-1, height, stride * width, channels)), grid)
        for out, groups in [(70, 1), (20, 2)]:
            window: dict[str, Any] = {"stride": (stride, stride), "padding": (1, 1, 1, 1)}
            result = build.conv(image, out, (3, 3), groups=groups, corrected="mean", grid=build.new_grid(), **window)
            outputs.append(build.affine(result, grid=None))
    program = build.finish(tuple(outputs))
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, *build.shape(name)[1:], generator=random) for name in build.inputs]
    check(Case(program, inputs, Widths(tuple((layer, 4) for layer in build.layers)), threads))


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_accumulators_beyond_the_float_mantissa(bits: int) -> None:
    """Sums above 2^24: the conversion to float32 rounds."""
    build = Builder(seed=3)
    codes = build.quantize(build.new_input((-1, 20_000)), build.new_grid())
    program = build.finish((build.linear(codes, 40, grid=None, corrected="both"),))
    inputs = [torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)).abs() * 10]
    check(Case(program, inputs, Widths((("layer0", bits),))))


@pytest.mark.parametrize("bits", [8, 2, 1])
@pytest.mark.parametrize("code", [-128, -1, 127])
def test_the_largest_accumulators(bits: int, code: int) -> None:
    """As many inputs as 32 bits allow, all of the largest code."""
    inputs = (2**31 - 1) // (255 * 128)
    build = Builder(seed=6)
    codes = build.quantize(build.new_input((-1, inputs)), build.new_grid())
    result = build.linear(codes, 3, grid=None)
    build.tensors["t0"].fill_(code)
    assert build.tensors["t0"].dtype == torch.int8
    program = build.finish((result,))
    check(Case(program, [torch.full((2, inputs), 100.0)], Widths((("layer0", bits),))))


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
