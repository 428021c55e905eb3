"""Bound numbers against the real-valued meaning of a Program: dequantize, convolve in float64, compare."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from mbqc.backends import reference
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.program.bind import Binder, BoundEpilogue
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    AtenCall,
    AveragePool,
    Concat,
    Conv,
    Epilogue,
    Grid,
    Linear,
    Listing,
    Lookup,
    Program,
    Quantize,
    Value,
    Weight,
)
from mbqc.widths import Widths

every_width = pytest.mark.parametrize("bits", ALL_BITS)
every_ladder = pytest.mark.parametrize("ladder", ["round", "shift"])
every_correction = pytest.mark.parametrize("corrected", ["none", "mean", "both"])

OUT, IN = 4, 6
HALF_A_CODE = 0.5 + 1e-3
"""Rounding to a code, and float32: parts of a total stay below 2^11 codes, five roundings of 2^-24 of that are 1e-3."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(step: float, share: float, *layers: str) -> Grid:
    """A range of 255 steps at every width, with zero at a share of it."""
    scales = tuple(step * 255 / (2**b - 1) for b in ALL_BITS)
    return Grid(scales, tuple(round(share * (2**b - 1)) for b in ALL_BITS), layers)


GRIDS = {"in": grid(0.02, 0.4, "a"), "out": grid(0.05, 0.5, "b"), "full": grid(0.03, 0.3)}


def stored(layer: str, *shape: int) -> dict[str, Tensor]:
    """Codes with their extremes, scales, and moments that differ a little from those of the codes."""
    codes = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
    codes.flatten()[:2] = torch.tensor([-128, 127])
    scale = 0.002 * (1 + normal(shape[0]).abs())
    tensors = {"codes": codes, "scale": scale, "mean": 0.05 * normal(shape[0], seed=2), "std": 80 * scale}
    return {f"{layer}.{name}": tensor for name, tensor in tensors.items()}


def weight(layer: str, corrected: str = "none") -> Weight:
    return Weight(
        layer,
        f"{layer}.codes",
        f"{layer}.scale",
        f"{layer}.mean" if corrected != "none" else None,
        f"{layer}.std" if corrected == "both" else None,
    )


# The oracle: real numbers in float64


def real_weight(tensors: dict[str, Tensor], given: Weight, bits: int, ladder: Ladder) -> Tensor:
    """The weights that codes of `bits` bits stand for, from the definitions in words."""
    step = 2 ** (8 - bits)

    def value(code: int) -> float:
        if bits == 8:
            return float(code)
        if ladder == "shift" or bits == 1:  # the middle of the codes that share the top bits
            return float(floor(Fraction(code, step)) * step) + (step - 1) / 2
        return min(floor(Fraction(code, step) + Fraction(1, 2)), 2 ** (bits - 1) - 1) * step - 0.5

    codes = tensors[given.codes]
    values = torch.tensor([value(q) for q in codes.flatten().tolist()], dtype=torch.float64).reshape(codes.shape[0], -1)
    real = values * tensors[given.scale].double()[:, None]
    centred = real - real.mean(1, keepdim=True)
    if given.mean is None or bits == 8:  # stored codes keep the moments by themselves
        return real.reshape(codes.shape)
    if given.std is not None:
        centred = centred * (tensors[given.std].double() / centred.square().mean(1).sqrt())[:, None]
    return (centred + tensors[given.mean].double()[:, None]).reshape(codes.shape)


def width_of(given: Grid, widths: Widths) -> int:
    return max([widths.by_layer[name] for name in given.layers], default=8)


def real_value(codes: Tensor, given: Grid, widths: Widths) -> Tensor:
    bits = width_of(given, widths)
    return given.scales[bits - 1] * (codes.double() - given.zero_points[bits - 1])


@dataclass(frozen=True)
class Run:
    """What one operation made of quantized inputs."""

    operation: AnyOperation
    program: Program
    widths: Widths
    found: dict[str, Tensor]

    def real(self, name: str) -> Tensor:
        """The numbers that the codes of a value stand for."""
        return real_value(self.found[name], GRIDS[self._grid(name)], self.widths)

    def check(self, expected: Tensor) -> None:
        """The output lies within half a code of the real number, or at the end of the grid that is next to it."""
        if self.program.listing.values["y"].grid is None:
            torch.testing.assert_close(self.found["y"].double(), expected, rtol=1e-4, atol=1e-4)  # float32 sums
            return
        given = GRIDS[self._grid("y")]
        bits = width_of(given, self.widths)
        position = (expected / given.scales[bits - 1] + given.zero_points[bits - 1]).clamp(0, 2**bits - 1)
        codes = self.found["y"].double()
        assert float((codes - position).abs().max()) <= HALF_A_CODE
        assert len(codes.unique()) > 1  # there was something to compare

    def bound(self) -> BoundEpilogue:
        """The numbers of the operation's epilogue."""
        (step,) = [s for s in Binder(self.program).bind(self.widths) if s.operation is self.operation]
        return step.epilogues[0]

    def _grid(self, name: str) -> str:
        on = self.program.listing.values[name].grid
        assert on is not None
        return on


def run(
    operation: AnyOperation,
    inputs: dict[str, str],
    output: tuple[str | None, tuple[int, ...]],
    tensors: dict[str, Tensor],
    widths: Widths,
    ladder: Ladder = "round",
) -> Run:
    """Runs an operation on random inputs.

    Args:
        inputs: name of a value to name of its grid; x is [N, 7, 7, IN], another one has the shape of the output.
        output: its grid, None for float32, and its shape behind the batch.
    """
    on, shape = output
    dims = {name: (7, 7, IN) if name == "x" else shape for name in inputs}
    values = {"y": Value("f32" if on is None else "u8", (-1, *shape), on)}
    values |= {f"{name}.float": Value("f32", (-1, *dims[name])) for name in inputs}
    values |= {name: Value("u8", (-1, *dims[name]), grid) for name, grid in inputs.items()}
    quantize = tuple(Quantize(f"{name}.float", name, channels_last=False) for name in inputs)
    listing = Listing(ladder, tuple(f"{name}.float" for name in inputs), (), values, GRIDS, {}, (*quantize, operation))
    program = Program(listing, tensors)
    given = [2 * normal(2, *dims[name], seed=seed) for seed, name in enumerate(inputs)]
    return Run(operation, program, widths, reference.load(program).trace(given, widths))


def at(a: int, b: int = 8) -> Widths:
    return Widths((("a", a), ("b", b)))


def convolve(x: Tensor, weights: Tensor, **options: Any) -> Tensor:
    """A convolution of N x H x W x C in float64, padded with real zeros."""
    return F.conv2d(x.movedim(-1, 1), weights.movedim(-1, 1), **options).movedim(1, -1)


# Layers

CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 2}


def conv(epilogue: Epilogue, corrected: str = "none", **changes: Any) -> Conv:
    return Conv("x", "y", weight("a", corrected), **{**CONV, **changes}, epilogue=epilogue)


@every_ladder
@every_correction
@every_width
def test_a_convolution_computes_with_the_real_weights_of_its_width(bits: int, corrected: str, ladder: Ladder) -> None:
    """Padded, in groups, with a bias, to codes of another layer's width."""
    tensors = {**stored("a", OUT, 3, 3, IN // 2), "bias": normal(OUT)}
    ran = run(conv(Epilogue(shift="bias"), corrected), {"x": "in"}, ("out", (7, 7, OUT)), tensors, at(bits, 6), ladder)
    real = convolve(ran.real("x"), real_weight(tensors, weight("a", corrected), bits, ladder), padding=1, groups=2)
    ran.check(real + tensors["bias"].double())


@every_correction
@every_width
def test_the_epilogue_is_gain_then_shift_then_residual_then_clamp(bits: int, corrected: str) -> None:
    tensors = {**stored("a", OUT, 3, 3, IN), "gain": 1 + normal(OUT, seed=3) / 4, "shift": normal(OUT, seed=4)}
    epilogue = Epilogue("gain", "shift", "other", low=-1.5, high=2.5)
    for on in ("out", None):
        operation = conv(epilogue, corrected, groups=1, stride=(2, 1), padding=(1, 0, 0, 2), dilation=(1, 2))
        ran = run(operation, {"x": "in", "other": "full"}, (on, (3, 5, OUT)), tensors, at(bits))
        padded = F.pad(ran.real("x"), (0, 0, 0, 2, 1, 0))
        real = convolve(padded, real_weight(tensors, operation.weight, bits, "round"), stride=(2, 1), dilation=(1, 2))
        real = real * tensors["gain"].double() + tensors["shift"].double() + ran.real("other")
        ran.check(real.clamp(-1.5, 2.5))


@every_ladder
@every_correction
@every_width
def test_a_linear_layer_computes_with_the_real_weights_of_its_width(bits: int, corrected: str, ladder: Ladder) -> None:
    tensors = stored("a", OUT, IN)
    operation = Linear("x", "y", weight("a", corrected), Epilogue())
    ran = run(operation, {"x": "in"}, (None, (7, 7, OUT)), tensors, at(bits), ladder)
    ran.check(ran.real("x") @ real_weight(tensors, operation.weight, bits, ladder).T)


@every_width
def test_padding_means_zero_at_every_width(bits: int) -> None:
    """A window that lies in the padding alone gives the bias."""
    tensors = {**stored("a", OUT, 1, 1, IN), "bias": normal(OUT)}
    operation = conv(Epilogue(shift="bias"), "both", groups=1)
    ran = run(operation, {"x": "in"}, (None, (9, 9, OUT)), tensors, at(bits))
    # float32: a sum of IN codes of up to 255, scaled, against the addend that cancels it
    torch.testing.assert_close(ran.found["y"][0, 0, 0], tensors["bias"], rtol=0, atol=1e-5)


# When the window's sum is needed


@every_ladder
@every_correction
@every_width
def test_eight_bits_and_only_they_do_without_the_windows_sum(bits: int, corrected: str, ladder: Ladder) -> None:
    tensors = stored("a", OUT, 3, 3, IN // 2)
    ran = run(conv(Epilogue(), corrected), {"x": "in"}, ("out", (7, 7, OUT)), tensors, at(bits), ladder)
    assert (ran.bound().window_multiplier is None) == (bits == 8)


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_correction_without_offset_does_without_the_windows_sum(bits: int) -> None:
    """Codes that sum to zero, and a mean of zero: the line from codes to weights goes through the origin."""
    codes = torch.tensor([[[[64, -64]]], [[[-64, 64]]]], dtype=torch.int8)
    codes = codes if bits > 1 else torch.zeros_like(codes)  # signs are no odd function
    for mean in (0.0, 0.25):
        tensors = {"a.codes": codes.repeat(1, 1, 1, 3), "a.scale": torch.ones(2), "a.mean": torch.tensor([0.0, mean])}
        ran = run(conv(Epilogue(), "mean", groups=1), {"x": "in"}, ("out", (9, 9, 2)), tensors, at(bits))
        window = ran.bound().window_multiplier
        assert (window is None) == (mean == 0)
        assert window is None or window.tolist() == [0.0, pytest.approx(mean * 0.02 * 255 / (2**bits - 1) / 0.05)]


# Rows a width


def rows(values: Tensor) -> Tensor:
    """[8, C] with row b - 1 being b times the values."""
    return torch.arange(1, 9)[:, None] * values


@every_width
def test_a_layer_reads_the_row_of_its_own_width(bits: int) -> None:
    tensors = stored("a", OUT, 3, 3, IN // 2) | {"gain": rows(torch.ones(OUT)), "shift": rows(normal(OUT))}
    ran = run(conv(Epilogue("gain", "shift")), {"x": "in"}, (None, (7, 7, OUT)), tensors, at(bits, 9 - bits))
    real = convolve(ran.real("x"), real_weight(tensors, weight("a"), bits, "round"), padding=1, groups=2)
    ran.check(bits * (real + normal(OUT).double()))


def test_an_operation_without_a_layer_reads_the_row_of_eight_bits() -> None:
    tensors = {"gain": rows(torch.ones(IN))}
    ran = run(Affine("x", "y", Epilogue("gain")), {"x": "in"}, (None, (7, 7, IN)), tensors, at(3))
    ran.check(8 * ran.real("x"))


# Operations without weights


@every_width
def test_an_affine_moves_codes_between_grids_of_two_widths(bits: int) -> None:
    tensors = {"gain": 1 + normal(IN, seed=3) / 4, "shift": normal(IN, seed=4)}
    operation = Affine("x", "y", Epilogue("gain", "shift", "other", low=0.0))
    ran = run(operation, {"x": "in", "other": "full"}, ("out", (7, 7, IN)), tensors, at(bits, 9 - bits))
    real = ran.real("x") * tensors["gain"].double() + tensors["shift"].double() + ran.real("other")
    ran.check(real.clamp(min=0))


@every_width
def test_an_average_counts_padding_as_zeros(bits: int) -> None:
    operation = AveragePool("x", "y", (3, 2), (1, 1), (1, 1, 1, 0), Epilogue(low=-0.5))
    for on in ("out", None):
        ran = run(operation, {"x": "in"}, (on, (7, 7, IN)), {}, at(bits))
        padded = F.pad(ran.real("x"), (0, 0, 1, 0, 1, 1)).movedim(-1, 1)
        ran.check(F.avg_pool2d(padded, (3, 2), 1).movedim(1, -1).clamp(min=-0.5))


@every_width
def test_parts_of_a_concatenation_are_brought_to_one_grid(bits: int) -> None:
    ran = run(Concat(("x", "other"), "y", dim=3), {"x": "in", "other": "full"}, ("out", (7, 7, IN)), {}, at(bits))
    ran.check(torch.cat([ran.real("x"), ran.real("other")], dim=3))


@every_width
def test_a_table_holds_its_functions_of_every_code(bits: int) -> None:
    functions = (AtenCall("hardswish.default"), AtenCall("leaky_relu.default", (0.5,)))
    for on in ("out", None):
        ran = run(Lookup("x", "y", functions), {"x": "in"}, (on, (7, 7, IN)), {}, at(bits))
        real = ran.real("x")
        real = real * (real + 3).clamp(0, 6) / 6
        ran.check(torch.where(real < 0, real / 2, real))


@every_width
def test_a_table_has_256_entries_of_which_those_past_the_width_repeat_the_last(bits: int) -> None:
    ran = run(Lookup("x", "y", (AtenCall("sigmoid.default"),)), {"x": "in"}, ("out", (7, 7, IN)), {}, at(bits))
    (table,) = [step.table for step in Binder(ran.program).bind(ran.widths) if step.table is not None]
    assert table.dtype == torch.uint8
    assert table.shape == (256,)
    assert set(table[2**bits - 1 :].tolist()) == {int(table[2**bits - 1])}


@every_width
def test_quantizing_multiplies_by_the_float_reciprocal_of_the_scale(bits: int) -> None:
    ran = run(Affine("x", "y", Epilogue()), {"x": "in"}, (None, (7, 7, IN)), {}, at(bits))
    scale, zero = GRIDS["in"].scales[bits - 1], GRIDS["in"].zero_points[bits - 1]
    codes = torch.round((2 * normal(2, 7, 7, IN)) * (1 / torch.tensor(scale)) + zero).clamp(0, 2**bits - 1)
    assert torch.equal(ran.found["x"].float(), codes)


# Bounds


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (None, 1.0), (0.0, 6.0), (-1.0, 1.0), (None, None)])
@every_width
def test_clamp_bounds_become_codes_of_the_outputs_width(bits: int, low: float | None, high: float | None) -> None:
    ran = run(Affine("x", "y", Epilogue(low=low, high=high)), {"x": "in"}, ("out", (7, 7, IN)), {}, at(8, bits))
    scale, zero, top = GRIDS["out"].scales[bits - 1], GRIDS["out"].zero_points[bits - 1], 2**bits - 1
    expected = [0.0 if low is None else min(max(round(low / scale + zero), 0), top)]
    expected += [top if high is None else min(max(round(high / scale + zero), 0), top)]
    assert [ran.bound().low, ran.bound().high] == expected


def test_one_binder_serves_every_width() -> None:
    """What it keeps of one width never shows at another."""
    tensors = stored("a", OUT, 3, 3, IN // 2)
    program = run(conv(Epilogue(), "both"), {"x": "in"}, ("out", (7, 7, OUT)), tensors, at(8)).program
    shared = Binder(program)
    for bits in (8, 2, 8, 5, 2):
        (again, fresh) = (binder.bind(at(bits))[-1].epilogues[0] for binder in (shared, Binder(program)))
        assert torch.equal(again.multiplier, fresh.multiplier)
        assert torch.equal(again.addend, fresh.addend)
