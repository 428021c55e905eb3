"""Layers of few bits by counting ones equal `reference` bit for bit."""

from __future__ import annotations

import random

import pytest
import torch

from mbqc import numerics
from mbqc.backends import cpu, reference
from mbqc.backends.cpu import abi
from mbqc.backends.cpu.geometry import ConvGeometry
from mbqc.backends.cpu.plan import NativeRun
from mbqc.backends.cpu.popcount import MOST_PLANES, bit_panels
from mbqc.numerics import Ladder
from mbqc.widths import Widths
from tests.backends.compare import check
from tests.backends.program_builder import Builder, window_shape
from tests.backends.programs import Case, Draw, Drawing

PRODUCTS = [(w, x) for w in range(1, 5) for x in range(w, 5) if w * x <= MOST_PLANES]
"""Widths of weights and inputs that are counted; an input is never narrower than its layer."""


def counted(whole: Draw, weight_bits: int, input_bits: int) -> Case:
    """A convolution or linear layer whose input another layer reads as well, which may make it wider."""
    ladder: Ladder = "round" if whole(0, 1) else "shift"
    drawing = Drawing(whole, Builder(whole(0, 1 << 30), ladder))
    build = drawing.build
    channels = drawing.one_of(8, 16, 24, 32, 40, 64, 72, 96, 136)
    corrected, out = drawing.one_of("none", "none", "mean", "both"), drawing.one_of(1, 8, 16, 17, 32, 37, 64, 70)
    if drawing.one_of(True, False, False):
        source = drawing.codes((*drawing.one_of((-1,), (-1, 3), (-2,)), channels))
        epilogue = drawing.epilogue((*build.shape(source)[:-1], out))
        output = build.linear(source, out, grid=drawing.grid(), corrected=corrected, epilogue=epilogue)
        other = build.linear(source, 3, grid=None)
    else:
        source = drawing.image(channels, largest=20)
        window = drawing.window(*build.shape(source)[1:3])
        epilogue = drawing.epilogue(window_shape(build.shape(source), out, **window))
        output = build.conv(source, out, **window, grid=drawing.grid(), corrected=corrected, epilogue=epilogue)
        other = build.conv(source, 3, grid=None)
    output = output if build.values[output].dtype == "f32" else build.affine(output, grid=None)
    program = build.finish((output, other))
    batch = drawing.whole(0, 3)
    inputs = [2 * build.normal(batch, *build.shape(name)[1:]) for name in build.inputs]
    widths = Widths((("layer0", weight_bits), ("layer1", input_bits)))
    return Case(program, inputs, widths, threads=drawing.one_of(1, 1, 2, 3))


@pytest.mark.parametrize(("weight_bits", "input_bits"), PRODUCTS)
def test_layers_of_few_bits(weight_bits: int, input_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.popcount, "FEWEST_INPUTS", dict.fromkeys(range(1, MOST_PLANES + 1), 0))
    for index in range(100):
        check(counted(random.Random(f"{weight_bits} {input_bits} {index}").randint, weight_bits, input_bits))


def _two_layers(channels: int, groups: int = 1, corrected: str = "none") -> Builder:
    build = Builder(seed=1)
    source = build.quantize(build.new_input((-1, 6, 6, channels)), build.new_grid())
    value = build.conv(
        source, 16, (3, 3), padding=(1, 1, 1, 1), groups=groups, grid=build.new_grid(), corrected=corrected
    )
    build.conv(value, 8, grid=None)
    return build


def _kinds(executable: cpu.executor.CpuExecutable, widths: Widths) -> list[str]:
    parts = executable._plan(widths, False, 1)
    return [abi.KINDS[step.kind] for part in parts if isinstance(part, NativeRun) for step in part.steps]


@pytest.mark.parametrize(
    ("channels", "groups", "corrected", "bits", "kind"),
    [
        (32, 1, "both", 1, "popcount"),
        (32, 1, "none", 2, "popcount"),
        (32, 1, "none", 3, "conv"),  # nine pairs of planes
        (16, 1, "none", 2, "conv"),  # too few inputs for four pairs
        (16, 1, "none", 1, "popcount"),
        (16, 1, "both", 1, "conv"),  # the correction went into the codes, which are of 8 bits
        (28, 1, "none", 1, "conv"),  # no whole bytes
        (16, 2, "none", 1, "conv"),  # groups
    ],
)
def test_counting_serves_dense_layers_of_few_bits(
    channels: int, groups: int, corrected: str, bits: int, kind: str
) -> None:
    build = _two_layers(channels, groups, corrected)
    executable = cpu.load(build.finish((build.operations[-1].output,)))
    kinds = _kinds(executable, Widths((("layer0", bits), ("layer1", 8))))
    assert kinds == ["quantize", kind, "conv"]


def test_machines_without_the_instruction_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    build = _two_layers(16)
    program = build.finish((build.operations[-1].output,))
    monkeypatch.setattr(cpu.native.Kernels, "popcount", False)
    executable = cpu.load(program)
    widths = Widths((("layer0", 1), ("layer1", 1)))
    assert _kinds(executable, widths) == ["quantize", "conv", "conv"]
    inputs = [torch.randn(1, 6, 6, 16, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(executable.run(inputs, widths)[0], reference.load(program).run(inputs, widths)[0])


def test_bit_weights_are_made_once() -> None:
    build = _two_layers(32)
    executable = cpu.load(build.finish((build.operations[-1].output,)))
    inputs = [torch.zeros(1, 6, 6, 32)]
    weights = executable._forms.bits
    assert weights.tensors() == ()
    executable.run(inputs, Widths((("layer0", 1), ("layer1", 8))))
    row = 3 * 32 // 8
    assert sum(t.nbytes for t in weights.tensors()) == 32 * 3 * row  # the 16 outputs fill up a panel of 32
    executable.run(inputs, Widths((("layer0", 2), ("layer1", 8))))
    executable.trace(inputs, Widths((("layer0", 2), ("layer1", 8))))
    assert sum(t.nbytes for t in weights.tensors()) == 32 * 3 * row * 3


@pytest.mark.parametrize("bits", [1, 2])
def test_bit_panels_hold_every_code(bits: int) -> None:
    geometry = ConvGeometry(-1, 5, 5, 24, 3, 3, 20, kernel=(3, 3))
    low, high = numerics.weight_range(bits)
    codes = torch.randint(low, high + 1, (20, 3, 3, 24), generator=torch.Generator().manual_seed(bits)).to(torch.int8)
    panels = bit_panels(codes, bits, geometry)
    assert panels.shape == (1, bits, 3, 3, 32, 4)  # panels, planes, runs, words, outputs, bytes
    expanded = panels[0, ..., None] >> torch.arange(8) & 1
    bit = expanded.permute(3, 0, 1, 2, 4, 5).reshape(32, bits, 3, 96).long()
    values = bit[:, 0] - 2 * bit[:, 1] if bits == 2 else -bit[:, 0]
    assert torch.equal(values[:20, :, :72].reshape(20, 3, 3, 24).to(torch.int8), codes)
    assert not values[20:].any()
    assert not values[:, :, 72:].any()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_work(threads: int) -> None:
    build = _two_layers(32)
    program = build.finish((build.operations[-1].output,))
    inputs = [torch.randn(3, 6, 6, 32, generator=torch.Generator().manual_seed(0))]
    for bits in (1, 2):
        widths = Widths((("layer0", bits), ("layer1", bits)))
        expected = reference.load(program).run(inputs, widths)[0]
        executable = cpu.load(program, threads)
        assert all(torch.equal(executable.run(inputs, widths)[0], expected) for _ in range(20))
