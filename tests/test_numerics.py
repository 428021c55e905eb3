"""The laws of the integer arithmetic, exhaustive over all 256 stored codes and all widths where that is possible."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbqc import numerics
from mbqc.numerics import ALL_BITS, Ladder

laws = settings(deadline=None, derandomize=True, database=None)

CODES = range(-128, 128)
LADDERS: tuple[Ladder, ...] = ("round", "shift")
every_ladder = pytest.mark.parametrize("ladder", LADDERS)
every_width = pytest.mark.parametrize("bits", ALL_BITS)
lower_width = pytest.mark.parametrize("bits", [b for b in ALL_BITS if b < 8])


def stored_codes(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(list(CODES)).to(dtype)


def oracle(code: int, bits: int, ladder: Ladder) -> int:
    """One narrowed code by the words of the definition, in exact fractions: half up and clip, or floor."""
    step = 2 ** (8 - bits)
    if bits == 1:
        return -1 if code < 0 else 0
    if ladder == "shift":
        return math.floor(Fraction(code, step))
    return min(math.floor(Fraction(code, step) + (Fraction(1, 2) if step > 1 else 0)), 2 ** (bits - 1) - 1)


def errors(bits: int, ladder: Ladder) -> Tensor:
    """Value minus stored code, for all codes; exact, since every number is a multiple of 1/2."""
    codes = stored_codes()
    return numerics.code_values(numerics.narrow(codes, bits, ladder), bits, ladder).double() - codes


# Ranges


@every_width
def test_ranges_hold_two_to_the_bits_codes(bits: int) -> None:
    low, high = numerics.weight_range(bits)
    assert (low, high) == (-(2**bits) // 2, 2**bits // 2 - 1)
    assert numerics.activation_range(bits) == (0, 2**bits - 1)


# The second rounding


@every_ladder
@every_width
def test_narrowing_is_its_definition(bits: int, ladder: Ladder) -> None:
    assert numerics.narrow(stored_codes(), bits, ladder).tolist() == [oracle(q, bits, ladder) for q in CODES]


@every_ladder
@every_width
def test_narrowed_codes_are_exactly_the_codes_of_the_width(bits: int, ladder: Ladder) -> None:
    low, high = numerics.weight_range(bits)
    assert set(numerics.narrow(stored_codes(), bits, ladder).tolist()) == set(range(low, high + 1))


@every_ladder
@every_width
def test_narrowing_is_monotone(bits: int, ladder: Ladder) -> None:
    assert bool((numerics.narrow(stored_codes(), bits, ladder).diff() >= 0).all())


@every_ladder
@every_width
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.float16, torch.float32, torch.float64])
def test_any_dtype_of_codes_gives_the_same_codes_in_that_dtype(bits: int, ladder: Ladder, dtype: torch.dtype) -> None:
    narrowed = numerics.narrow(stored_codes(dtype), bits, ladder)
    assert narrowed.dtype == dtype
    assert narrowed.tolist() == numerics.narrow(stored_codes(), bits, ladder).tolist()


@every_ladder
def test_one_bit_is_the_sign(ladder: Ladder) -> None:
    assert numerics.narrow(stored_codes(), 1, ladder).tolist() == [-1] * 128 + [0] * 128


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_largest_code_rounds_up_and_is_clipped(bits: int) -> None:
    assert int(numerics.narrow(torch.tensor(127), bits, "round")) == 2 ** (bits - 1) - 1


def differing(ladder: Ladder) -> list[int]:
    """The stored codes whose 2 bits, taken from their 4 bits, are not their 2 bits."""
    codes = stored_codes()
    through_four = numerics.narrow(numerics.narrow(codes, 4, ladder) * 16, 2, ladder)
    return [int(q) for q in codes[through_four != numerics.narrow(codes, 2, ladder)]]


def test_two_bits_come_from_the_stored_code_not_from_four_bits() -> None:
    """Eight codes below each threshold of 2 bits are rounded up twice; at the uppermost threshold the clip hides it."""
    assert differing("round") == [q for threshold in (-96, -32, 32) for q in range(threshold - 8, threshold)]
    assert differing("shift") == []

    def half_up(q: int, step: int) -> int:
        return math.floor(Fraction(q, step) + Fraction(1, 2))

    assert sum(half_up(half_up(q, 16), 4) != half_up(q, 64) for q in CODES) == 32  # without any clip


# What narrowed codes stand for


def test_stored_codes_stand_for_themselves() -> None:
    for ladder in LADDERS:
        assert errors(8, ladder).count_nonzero() == 0


@lower_width
def test_a_shifted_code_errs_by_at_most_half_a_step_less_half_a_code(bits: int) -> None:
    """The value is the middle of the 2^D codes that share it, so the bound is (2^D - 1) / 2, and it is reached."""
    assert float(errors(bits, "shift").abs().max()) == (2 ** (8 - bits) - 1) / 2


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_rounded_code_errs_by_at_most_half_a_step_less_half_a_code_where_it_is_not_clipped(bits: int) -> None:
    """Clipped are the codes from 128 - 2^(D-1) up, and only they: they stay below by up to a step less half a code."""
    step = 2 ** (8 - bits)
    found = errors(bits, "round")
    clipped = stored_codes() >= 128 - step // 2
    assert float(found[~clipped].abs().max()) == step / 2 - 0.5
    assert found[clipped].tolist() == [128 - step - 0.5 - q for q in range(128 - step // 2, 128)]
    assert float(found.abs().max()) == step - 0.5


def test_one_bit_means_the_middle_of_each_half() -> None:
    for ladder in LADDERS:
        assert numerics.code_values(torch.tensor([-1, 0]), 1, ladder).tolist() == [-64.5, 63.5]


@every_width
def test_offsets_make_the_mean_error_zero_but_for_the_clip(bits: int) -> None:
    """Over all 256 codes. The clip takes one step of 2^D from each of 2^(D-1) codes: 2^(2D-1) / 256 on average."""
    assert float(errors(bits, "shift").mean()) == 0
    drop = 8 - bits
    clip = 2 ** (2 * drop - 1) / 256 if 1 < bits < 8 else 0
    assert float(errors(bits, "round").mean()) == -clip


# Moments


def channels(draw: st.DrawFn) -> tuple[Tensor, int, Ladder]:
    """Float weights [C, n] of every kind, one kind a channel, with a width and a ladder."""
    count = draw(st.sampled_from([1, 2, 9, 64, 1000]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    size = 10 ** draw(st.floats(-6, 3))
    normal = torch.randn(4, count, generator=random) * size
    normal[0] += 3 * size
    normal[2] = normal[2, 0]  # a constant
    normal[3] = 0
    return normal, draw(st.sampled_from(ALL_BITS)), draw(st.sampled_from(LADDERS))


@laws
@given(st.composite(channels)())
def test_gain_and_shift_restore_both_moments(case: tuple[Tensor, int, Ladder]) -> None:
    weight, bits, ladder = case
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    stored = numerics.quantize(weight, scale, 0.0, -128, 127)
    quantized = numerics.code_values(numerics.narrow(stored, bits, ladder), bits, ladder) * scale
    (mean, std), (quantized_mean, quantized_std) = numerics.moments(weight), numerics.moments(quantized)
    gain = numerics.moment_gain(std, quantized_std, quantized.abs().amax(1))
    corrected = gain[:, None] * (quantized - quantized_mean[:, None]) + mean[:, None]
    found_mean, found_std = numerics.moments(corrected)
    # float32 rounding of the subtraction and of the sums, relative to the largest number on the way
    rounding = 1e-5 * torch.maximum(weight.abs().amax(1), gain * quantized.abs().amax(1))
    assert bool(((found_mean - mean).abs() <= rounding).all())
    is_constant = torch.tensor([len(set(row)) == 1 for row in stored_values(stored, bits, ladder)])
    expected = torch.where(is_constant, torch.zeros_like(std), std)  # a constant cannot be spread
    assert bool(((found_std - expected).abs() <= rounding).all())
    assert bool((gain[is_constant] == 1).all())


def stored_values(stored: Tensor, bits: int, ladder: Ladder) -> list[list[float]]:
    return [list(map(float, row)) for row in numerics.narrow(stored, bits, ladder).tolist()]


def test_moments_are_those_of_the_population() -> None:
    mean, std = numerics.moments(torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]]))
    assert mean.tolist() == [2.0, 5.0]
    assert std.tolist() == [1.0, 0.0]


# Quantization

scales = st.floats(2.0**-100, 2.0**100, width=32)
reals = st.floats(allow_nan=False, width=32)


@laws
@given(scales, st.integers(0, 255), st.sampled_from(ALL_BITS))
def test_quantizing_codes_again_gives_the_same_codes(scale: float, zero: int, bits: int) -> None:
    low, high = numerics.activation_range(bits)
    codes, step = torch.arange(low, high + 1), torch.tensor(scale)
    assert torch.equal(numerics.quantize((codes - zero) * step, step, zero, low, high), codes.float())


@laws
@given(st.lists(reals, min_size=2), scales, st.sampled_from(ALL_BITS))
def test_quantization_is_monotone_and_in_range(values: list[float], scale: float, bits: int) -> None:
    low, high = numerics.weight_range(bits)
    x = torch.tensor(sorted(values))
    codes = numerics.quantize(x, torch.tensor(scale), 0.0, low, high)
    assert bool((codes.diff() >= 0).all())
    assert set(codes.tolist()) <= set(range(low, high + 1))


def test_quantization_rounds_ties_to_even_and_clips() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 2.75, 300.0, -300.0])
    assert numerics.quantize(x, torch.tensor(1.0), 0.0, -128, 127).tolist() == [-2, 0, 0, 2, 2, 3, 127, -128]
    assert numerics.quantize(x, torch.tensor(0.5), 10.0, 0, 255).tolist() == [7, 9, 11, 13, 15, 16, 255, 0]


def test_quantization_multiplies_by_the_rounded_reciprocal() -> None:
    """45.5 / 7 is a tie and would go to 6; times float32(1 / 7) it lies above. A kernel can only multiply."""
    assert numerics.quantize(torch.tensor(45.5), torch.tensor(7.0), 0.0, 0, 255).item() == 7


# Stored weights: rounded so that each channel keeps its sum


def scaled_weights(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Weights [4, n] and scales at which nothing is clipped."""
    count = draw(st.sampled_from([1, 2, 9, 100]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    weight = torch.randn(4, count, generator=random, dtype=torch.float64) + torch.tensor([[0.0], [0.4], [-3.0], [0.0]])
    weight[3] = draw(st.sampled_from([0.0, 0.3, -1.0]))  # a constant
    return weight, weight.abs().amax(1).clamp(min=1e-3) / draw(st.floats(1.0, 126.0))


@laws
@given(st.composite(scaled_weights)())
def test_stored_codes_keep_the_sum_of_each_channel(case: tuple[Tensor, Tensor]) -> None:
    weight, scale = case
    scaled, codes = weight / scale[:, None], numerics.quantize_weight(weight, scale)
    assert set(codes.flatten().tolist()) <= set(range(-128, 128))
    # half a code; 1 / s is rounded before it multiplies
    assert float((codes.sum(1) - scaled.sum(1)).abs().max()) <= 0.5 + 1e-9


@laws
@given(st.composite(scaled_weights)())
def test_stored_codes_are_one_of_the_two_next_to_the_weight_and_farther_only_next_to_a_tie(
    case: tuple[Tensor, Tensor],
) -> None:
    """In each channel all codes that were rounded the other way lay closer to a tie than those that were not."""
    weight, scale = case
    scaled, codes = weight * scale.reciprocal()[:, None], numerics.quantize_weight(weight, scale)
    assert bool(((codes - scaled).abs() < 1).all())
    for real, code in zip(scaled, codes, strict=True):
        nearest = torch.round(real)
        moved = code - nearest
        assert len(set(moved.tolist()) - {0.0}) <= 1  # all in one direction
        if not bool(moved.any()):
            continue
        pull = (real - nearest) * moved.sum().sign()
        assert float(pull[moved != 0].min()) >= float(pull[moved == 0].max())


@pytest.mark.parametrize("weight", [[200.0, -300.0, 0.2, 0.3], [1e30, 1.0, 1.0, 1.0], [-1e30] * 4, [500.0, 0, 0, 0]])
def test_stored_codes_stay_in_range_whatever_is_clipped(weight: list[float]) -> None:
    codes = numerics.quantize_weight(torch.tensor([weight]), torch.ones(1))
    assert set(codes[0].tolist()) <= set(range(-128, 128))


def test_a_channel_of_few_weights_keeps_its_mean_where_rounding_would_not() -> None:
    weight = torch.tensor([[0.4, 1.4, 2.4, 3.4, 4.4]])
    assert torch.round(weight).sum() == 10
    assert numerics.quantize_weight(weight, torch.ones(1)).sum() == 12


# Requantization


def test_requantization_rounds_half_to_even_and_clamps() -> None:
    total = torch.tensor([0.5, 1.5, 2.5, 2.51, -0.5, 6.4, 6.6, 9.0])
    assert numerics.requantize(total, 1.0, 7.0).tolist() == [1, 2, 2, 3, 1, 6, 7, 7]


def test_requantization_gives_a_code_for_every_float() -> None:
    """Not-a-number becomes the lower bound, as in the vector instruction max(total, low)."""
    inf, nan = math.inf, math.nan
    codes = numerics.requantize(torch.tensor([nan, inf, -inf, 1e30, -1e30, 3e38]), 2.0, 200.0)
    assert codes.dtype == torch.int64
    assert codes.tolist() == [2, 200, 2, 200, 2, 200]


# Grids of widths that were not trained


def trained_grids(draw: st.DrawFn) -> dict[int, tuple[float, int]]:
    """Grids of some widths; fewer bits have coarser steps, as calibration and training give them."""
    widths = sorted(draw(st.sets(st.sampled_from(ALL_BITS), min_size=1)))
    scale = draw(st.floats(2.0**-20, 2.0**20))
    grids = {}
    for bits in widths:
        grids[bits] = (float(torch.tensor(scale)), draw(st.integers(0, 2**bits - 1)))
        scale /= draw(st.floats(1.5, 4.0))
    return grids


@laws
@given(st.composite(trained_grids)())
def test_interpolation_keeps_what_was_trained(trained: dict[int, tuple[float, int]]) -> None:
    grids = numerics.interpolate_grids(trained)
    assert list(grids) == list(ALL_BITS)
    assert {bits: grids[bits] for bits in trained} == trained


@laws
@given(st.composite(trained_grids)())
def test_interpolated_steps_shrink_with_the_bits_and_zero_points_are_codes(
    trained: dict[int, tuple[float, int]],
) -> None:
    grids = numerics.interpolate_grids(trained)
    found = [scale for scale, _ in grids.values()]
    assert found == sorted(found, reverse=True)
    assert all(0 <= zero <= 2**bits - 1 for bits, (_, zero) in grids.items())


@laws
@given(st.composite(trained_grids)())
def test_outside_the_trained_widths_the_clipping_range_stays(trained: dict[int, tuple[float, int]]) -> None:
    grids = numerics.interpolate_grids(trained)
    for bits in ALL_BITS:
        if min(trained) <= bits <= max(trained):
            continue
        nearest = min(trained) if bits < min(trained) else max(trained)
        # one float32 rounding of the scale
        assert grids[bits][0] * (2**bits - 1) == pytest.approx(trained[nearest][0] * (2**nearest - 1), rel=1e-7)


def test_interpolation_is_linear_in_the_logarithm_of_the_scale_and_in_the_share_of_the_range() -> None:
    grids = numerics.interpolate_grids({8: (0.25, 51), 4: (4.0, 9)})
    assert [grids[bits][0] for bits in (7, 6, 5)] == [0.5, 1.0, 2.0]
    # shares of the range: 51 / 255 = 0.2 and 9 / 15 = 0.6
    assert [grids[bits][1] for bits in (7, 6, 5)] == [round(0.3 * 127), round(0.4 * 63), round(0.5 * 31)]


def test_one_bit_from_two_keeps_the_range() -> None:
    assert numerics.interpolate_grids({2: (1.0, 1)})[1] == (3.0, 0)
    assert numerics.interpolate_grids({2: (1.0, 2)})[1] == (3.0, 1)
