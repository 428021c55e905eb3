"""Linear layers on the cpu backend: few rows and many, packed weights or stored ones, all equal to `reference`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbqc.backends import cpu, reference
from mbqc.backends.cpu.executor import CpuExecutable
from mbqc.backends.cpu.native import ISA_VARIABLE, kernels, supported_isas
from mbqc.backends.cpu.packed import FIELDS, CostModel
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.program.operations import Epilogue, Program
from mbqc.widths import Widths
from tests.backends.compare import same
from tests.backends.program_builder import Builder

quick = settings(suppress_health_check=list(HealthCheck))

ALWAYS_PACKED = CostModel(smallest=0, rows_in_cache=8)
"""Packs layers of any size."""

INPUTS = (1, 3, 16, 33, 64, 100, 255, 256, 257, 259, 271, 287, 288, 290, 301, 512, 515)
OUTPUTS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 70)


def two_layers(inputs: int, outputs: int, corrected: str, ladder: Ladder, seed: int) -> Program:
    """A layer with float32 outputs, one with codes, a residual and bounds, and one of a single output."""
    build = Builder(seed, ladder)
    codes = build.quantize(build.new_input((-1, inputs)), build.new_grid())
    other = build.quantize(build.new_input((-1, outputs)), build.new_grid())
    real = build.linear(codes, outputs, grid=None, corrected=corrected, epilogue=Epilogue(low=-1.0))
    added = build.linear(codes, outputs, grid=build.new_grid(), corrected=corrected, epilogue=Epilogue(residual=other))
    return build.finish((real, build.affine(added, grid=None), build.linear(codes, 1, grid=None)))


def with_inputs_of(program: Program, input_bits: int, bits: int) -> Widths:
    """Layers of `bits`, but for the last, which gives the inputs their width; few bits of both: layers count ones."""
    *layers, last = program.listing.layers
    return Widths((*((layer, bits) for layer in layers), (last, input_bits)))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("cost", [ALWAYS_PACKED, CostModel(smallest=1 << 60)], ids=["packed", "stored"])
def test_any_shape(isa: str, cost: CostModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)

    @quick
    @given(
        st.sampled_from(INPUTS),
        st.sampled_from(OUTPUTS),
        st.integers(0, 20),
        st.sampled_from(ALL_BITS),
        st.sampled_from(["none", "mean", "both"]),
        st.sampled_from(["round", "shift"]),
        st.sampled_from([8, 3]),
        st.integers(1, 3),
        st.integers(0, 1000),
    )
    def run(
        inputs: int,
        outputs: int,
        rows: int,
        bits: int,
        corrected: str,
        ladder: Ladder,
        input_bits: int,
        threads: int,
        seed: int,
    ) -> None:
        program = two_layers(inputs, outputs, corrected, ladder, seed)
        random = torch.Generator().manual_seed(seed)
        x = [torch.randn(rows, size, generator=random) * 2 for size in (inputs, outputs)]
        widths = with_inputs_of(program, input_bits, bits)
        expected = reference.load(program).run(x, widths)
        found = CpuExecutable(program, kernels(), threads, cost).run(x, widths)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True)), program.listing

    run()


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("inputs", [4096, 8192 + 31])
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 30])
def test_large_layers_take_every_kernel(isa: str, inputs: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 4096 bytes apart are spread, panels beyond the first cache narrow in registers, copies are made."""
    monkeypatch.setenv(ISA_VARIABLE, isa)
    program = two_layers(inputs, 40, "mean", "round", seed=1)
    executable, definition = cpu.load(program, threads=2), reference.load(program)
    random = torch.Generator().manual_seed(0)
    x = [torch.randn(rows, size, generator=random) for size in (inputs, 40)]
    for bits in (8, 5, 4, 3, 2, 1):
        widths = with_inputs_of(program, 8, bits)
        found, expected = executable.run(x, widths), definition.run(x, widths)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True)), bits


@pytest.mark.parametrize("isa", supported_isas())
def test_each_block_of_a_copy_begins_a_group_though_the_last_one_is_not_full(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    program = two_layers(257, 48, "none", "round", seed=3)  # 65 quads of inputs: no multiple of two, four or eight
    executable, definition = CpuExecutable(program, kernels(), 1, ALWAYS_PACKED), reference.load(program)
    random = torch.Generator().manual_seed(0)
    x = [torch.randn(2, size, generator=random) for size in (257, 48)]
    for bits in (4, 2, 1):
        widths = with_inputs_of(program, 8, bits)
        found, expected = executable.run(x, widths), definition.run(x, widths)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True)), bits


def test_codes_at_the_ends_of_their_ranges() -> None:
    """The largest sums: every product has the same sign, and offsets are as large as can be."""
    for code in (-128, -1, 0, 127):
        build = Builder(seed=1)
        source = build.quantize(build.new_input((-1, 16_384)), build.new_grid())
        output = build.linear(source, 18, grid=None)
        build.tensors["t0"] = torch.full_like(build.tensors["t0"], code)
        program = build.finish((output, build.linear(source, 1, grid=None)))
        executable = CpuExecutable(program, kernels(), 1, ALWAYS_PACKED)
        for bits in ALL_BITS:
            x, widths = [torch.full((2, 16_384), 1e6)], with_inputs_of(program, 8, bits)
            assert same(executable.run(x, widths)[0], reference.load(program).run(x, widths)[0]), (code, bits)


def large() -> Program:
    build = Builder(seed=2)
    source = build.quantize(build.new_input((-1, 600)), build.new_grid())
    wide = build.linear(source, 600, grid=None)
    return build.finish((wide, build.linear(source, 10, grid=None)))


def test_copies_are_made_once_for_few_rows_and_counted() -> None:
    program = large()
    executable = cpu.load(program)
    x = torch.randn(5, 600)
    executable.run([x], with_inputs_of(program, 8, 4))
    executable.run([x[:1]], with_inputs_of(program, 8, 8))
    assert executable.memory()["packed weights"] == 0
    executable.prepare(with_inputs_of(program, 8, 4), batch=1)
    blocks = 38  # of 16 outputs; groups of two quads
    assert executable.memory()["packed weights"] == blocks * 75 * 64
    executable.run([x[:1]], with_inputs_of(program, 8, 4))
    executable.run([x[:2]], with_inputs_of(program, 8, 4))
    assert executable.memory()["packed weights"] == blocks * 75 * 64
    executable.run([x[:1]], with_inputs_of(program, 8, 1))
    assert executable.memory()["packed weights"] == blocks * (75 + 19) * 64


@pytest.mark.parametrize("bits", ALL_BITS)
def test_kernels_are_named(bits: int) -> None:
    program = large()
    executable = cpu.load(program)
    isa = kernels().isa
    packed = f"{isa} packed{FIELDS[bits]}" if bits in FIELDS else isa
    assert executable.kernels(with_inputs_of(program, 8, bits), 1) == (isa, packed, isa)
    assert executable.kernels(with_inputs_of(program, 8, bits), 100) == (isa, isa, isa)


def test_batches_share_a_plan_unless_other_layers_are_packed() -> None:
    """A layer of 600 x 600 gains from packing up to 4 rows; one of 10 outputs never does."""
    packed = cpu.load(large())._forms.packed
    assert [packed.batch_of_plan(batch) for batch in (0, 1, 4, 5, 9, 100)] == [0, 0, 0, 5, 5, 5]
    never = CpuExecutable(large(), kernels(), 1, CostModel(smallest=1 << 60))._forms.packed
    assert {never.batch_of_plan(batch) for batch in range(100)} == {0}
