"""Bound numbers against the real-valued meaning of a Program: dequantize, convolve in float64, compare."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor, prod
from statistics import pstdev
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mbqc import numerics
from mbqc.backends import reference
from mbqc.ir.modules import MomentCorrection, WeightQuantizer
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.program.bind import Binder, BoundEpilogue, weight_codes, weight_line
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
    codes, scales = tensors[given.codes], tensors[given.scale].tolist()
    narrow = [[narrowed(code, bits, ladder) for code in channel] for channel in codes.flatten(1).tolist()]
    if given.mean is None or bits == 8:  # stored codes keep the moments by themselves
        middle = 0 if bits == 8 else (2 ** (8 - bits) - 1) / 2 if ladder == "shift" or bits == 1 else -0.5
        real = [[scale * (code + middle) for code in channel] for channel, scale in zip(narrow, scales, strict=True)]
    else:
        stds = [None] * len(scales) if given.std is None else tensors[given.std].tolist()
        alike = shifted_alike(codes[0].numel(), codes.dim() > 2, bits)
        real = [corrected(*of, alike) for of in zip(narrow, scales, tensors[given.mean].tolist(), stds, strict=True)]
    return torch.tensor(real, dtype=torch.float64).reshape(codes.shape)


def shifted_alike(size: int, convolves: bool, bits: int) -> int:
    """How many codes in a row take a mean alike; 0: none does."""
    if size <= 254:
        return 1
    if not convolves or bits == 1:
        return 0
    if size <= 508:
        return 2
    return 4 if size <= 640 and bits > 2 else 0


def narrowed(code: int, bits: int, ladder: Ladder) -> int:
    """In steps of the stored scale: the multiple of 2^D below a code, or the nearest one that `bits` bits hold."""
    step = 2 ** (8 - bits)
    if ladder == "shift" or bits in (1, 8):
        return floor(Fraction(code, step)) * step
    return min(floor(Fraction(code, step) + Fraction(1, 2)), 2 ** (bits - 1) - 1) * step


def corrected(codes: list[int], scale: float, mean: float, std: float | None, alike: int) -> list[float]:
    """One channel with the moments of the float weights: as a line over its codes, or in groups of codes."""
    spread = pstdev(codes)
    slope = scale if std is None or spread == 0 else std / spread
    if not alike:
        middle = Fraction(sum(codes), len(codes))
        return [slope * float(code - middle) + mean for code in codes]
    found, reached = raised(codes, round(len(codes) * mean / slope), alike)
    if not reached:
        slope = scale
        found, _ = raised(codes, round(len(codes) * mean / slope), alike)
    return [slope * code for code in found]


def raised(codes: list[int], wanted: int, alike: int) -> tuple[list[int], bool]:
    """127 less than `codes`, and one more for the first group, the second, ... and again for the first, up to a sum.

    That is while it comes closer; at most 254 more for each, and within the range of stored codes. And whether such
    sums lie on both sides of the one wanted.
    """
    free = [code - 127 for code in codes]
    lowest = total = sum(max(code, -128) for code in free)
    for first in list(range(0, len(codes), alike)) * 254:
        group = range(first, min(first + alike, len(codes)))
        gain = sum(-128 <= free[position] < 127 for position in group)
        if abs(total + gain - wanted) >= abs(total - wanted) and total + gain >= wanted:
            break
        total += gain
        for position in group:
            free[position] += 1
    clipped = [min(max(code, -128), 127) for code in free]
    assert sum(clipped) == total
    return clipped, lowest <= wanted <= sum(min(code + 127, 127) for code in codes)


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


WIDE = {"groups": 1, "padding": (7, 7, 7, 7)}
"""Beside a kernel of 15 x 15: 1350 inputs an output, too many for a mean in the codes."""


@every_ladder
@every_correction
@every_width
def test_many_inputs_an_output_take_a_mean_as_an_offset(bits: int, corrected: str, ladder: Ladder) -> None:
    tensors = stored("a", OUT, 15, 15, IN)
    ran = run(conv(Epilogue(), corrected, **WIDE), {"x": "in"}, (None, (7, 7, OUT)), tensors, at(bits), ladder)
    ran.check(convolve(ran.real("x"), real_weight(tensors, weight("a", corrected), bits, ladder), padding=7))


@every_width
@pytest.mark.parametrize(
    "shape", [(1,), (254,), (255,), (3, 3, 30), (1, 1, 448), (2, 2, 127), (1, 3, 200), (3, 3, 71), (3, 3, 72)]
)
def test_channels_of_every_kind_are_corrected(bits: int, shape: tuple[int, ...]) -> None:
    """Constant, zero, without a spread to gain, with next to none around a large mean, with a mean beyond the range."""
    inputs = prod(shape)
    codes = torch.randint(-128, 128, (6, inputs), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    codes[1], codes[2], codes[3] = 77, 0, torch.arange(inputs) % 2 + 95
    tensors = {
        "a.codes": codes.reshape(6, *shape),
        "a.scale": torch.full((6,), 0.01),
        "a.mean": torch.tensor([0.1, 0.77, 0, 0.95, 2, -2]),
    }
    tensors["a.std"] = torch.tensor([0.6, 0.0, 0.0, 0.005, 0.7, 0.7])
    line = weight_line(weight("a", "both"), tensors, bits, "round")
    found = line.slope[:, None] * weight_codes(codes, bits, "round", line.shift) + line.offset[:, None]
    expected = real_weight(tensors, weight("a", "both"), bits, "round").flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64
    assert torch.equal(line.code_sum, weight_codes(codes, bits, "round", line.shift).sum(1).double())


SHAPES = [(3, 9), (3, 254), (3, 255), (4, 2, 5), (4, 1, 3, 3), (3, 2, 2, 3), (2, 40, 3, 3), (2, 64, 3, 3), (2, 200, 3)]


@given(
    st.sampled_from(SHAPES),
    st.integers(1, 7),
    st.sampled_from(["round", "shift"]),
    st.sampled_from(["mean", "both"]),
    st.integers(0, 1 << 30),
    st.floats(-3, 3),
)
def test_the_quantized_graph_has_the_very_weights_that_the_program_has(
    shape: tuple[int, ...], bits: int, ladder: Ladder, moments: str, seed: int, mean: float
) -> None:
    """Linear and Conv1d and Conv2d: the graph's [out, in, kernel...] are the Program's [out, kernel..., in]."""
    real = normal(*shape, seed=seed) + mean
    quantizer = WeightQuantizer("a", shape[0], ladder)
    quantizer.scale.data = real.flatten(1).abs().amax(1) / 100  # some are clipped
    with torch.no_grad():
        quantized = quantizer(real, at(bits))
        in_graph = MomentCorrection("a", moments, ladder)(quantized, real, quantizer.scale, at(bits))
    last = quantizer.codes(real).movedim(1, -1)
    codes = last.flatten(1)
    tensors = dict(zip(("a.mean", "a.std"), numerics.moments(real), strict=True))
    tensors |= {"a.codes": last, "a.scale": quantizer.scale.detach()}
    line = weight_line(weight("a", moments), tensors, bits, ladder)
    in_program = weight_codes(codes, bits, ladder, line.shift)
    in_codes = (in_graph.movedim(1, -1).flatten(1).double() - line.offset[:, None]) / line.slope[:, None]
    assert torch.equal(torch.round(in_codes), in_program.double())
    # three float32 roundings of numbers up to 128 codes or the offset
    rounding = 3 * 2.0**-24 * (256 + line.offset.abs() / line.slope)[:, None]
    assert bool(((in_codes - in_program).abs() <= rounding).all())


# When the window's sum is needed


@every_ladder
@every_correction
@every_width
@pytest.mark.parametrize("kernel", [3, 15])
def test_lower_widths_need_the_windows_sum_but_where_few_codes_hold_their_mean(
    bits: int, corrected: str, ladder: Ladder, kernel: int
) -> None:
    tensors = stored("a", OUT, kernel, kernel, IN)
    operation = conv(Epilogue(), corrected, groups=1, padding=(kernel // 2,) * 4)
    ran = run(operation, {"x": "in"}, ("out", (7, 7, OUT)), tensors, at(bits), ladder)
    assert (ran.bound().window_multiplier is None) == (bits == 8 or (corrected != "none" and kernel == 3))


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_correction_without_offset_does_without_the_windows_sum(bits: int) -> None:
    """Many codes that sum to zero, and a mean of zero: the line from codes to weights goes through the origin."""
    codes = torch.tensor([64, -64] * 3, dtype=torch.int8).repeat(2, 15, 15, 1)
    codes = codes if bits > 1 else torch.zeros_like(codes)  # signs are no odd function
    for mean in (0.0, 0.25):
        tensors = {"a.codes": codes, "a.scale": torch.ones(2), "a.mean": torch.tensor([0.0, mean])}
        ran = run(conv(Epilogue(), "mean", **WIDE), {"x": "in"}, ("out", (7, 7, 2)), tensors, at(bits))
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
