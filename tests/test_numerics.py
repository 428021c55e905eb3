"""The laws of the integer arithmetic, exhaustive over all 256 stored codes and all widths where that is possible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mbqc import numerics
from mbqc.numerics import ALL_BITS, Ladder

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


# Corrected moments


@dataclass(frozen=True)
class Channels:
    """Weights [C, n], one kind a channel, scales [C], codes of a lower width in stored steps, and their correction."""

    weight: Tensor
    scale: Tensor
    codes: Tensor
    found: numerics.Correction
    granularity: int

    @property
    def size(self) -> int:
        return self.weight.shape[1]

    @property
    def mean(self) -> Tensor:
        return numerics.moments(self.weight)[0]

    @property
    def std(self) -> Tensor:
        return numerics.moments(self.weight)[1]

    @property
    def spread(self) -> Tensor:
        """Of the codes; a constant has none at all."""
        spread = numerics.moments(self.codes)[1]
        return torch.where((self.codes == self.codes[:, :1]).all(1), 0.0, spread)

    @property
    def shifted(self) -> Tensor:
        assert self.found.shift is not None
        return self.found.shift.apply(self.codes)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest sum of codes that a shift can give."""
        return ((self.codes - 127).clamp(-128, 127).sum(1), (self.codes + 127).clamp(-128, 127).sum(1))

    def within_reach(self, slope: Tensor) -> Tensor:
        """Whether codes times `slope` can have the float mean, to half a step of the sum."""
        low, high = self.ends
        wanted = torch.round(self.size * self.mean / slope)
        return (low <= wanted) & (wanted <= high)


KINDS = 7
SIZES = (1, 2, 9, 64, 254, 255, 1001)


def channels(draw: st.DrawFn, granularities: tuple[int, ...], moments: str = "both") -> Channels:
    """Channels of every kind at one width of one ladder."""
    count, bits, ladder = (draw(st.sampled_from(options)) for options in (SIZES, ALL_BITS[:-1], LADDERS))
    granularity = draw(st.sampled_from(granularities))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    weight = torch.randn(KINDS, count, generator=random, dtype=torch.float64)
    weight[1] += 3
    weight[2] -= 1.5
    weight[3] = weight[3, 0]  # a constant
    weight[4] = 0
    weight[5] = weight[5] / 100 + draw(st.sampled_from([-1.0, 1.0]))  # next to a constant
    weight *= 10 ** draw(st.floats(-6, 3))
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-30)
    scale[6] /= 3  # clips
    codes = numerics.narrow(numerics.quantize_weight(weight, scale), bits, ladder) * 2 ** (8 - bits)
    mean, std = numerics.moments(weight)
    found = numerics.correct_moments(codes, scale, mean, std if moments == "both" else None, granularity)
    return Channels(weight, scale, codes, found, granularity)


with_a_shift = given(st.composite(channels)(granularities=(1, 2, 4)))
with_a_shift_mean_alone = given(st.composite(channels)(granularities=(1, 2, 4), moments="mean"))
with_an_offset = given(st.composite(channels)(granularities=(0,)))
with_an_offset_mean_alone = given(st.composite(channels)(granularities=(0,), moments="mean"))

ROUNDING = 1e-9
"""Of a few float64 operations, relative to the numbers that go in."""


@pytest.mark.parametrize(
    ("inputs", "kernel", "by_bits"),  # at 1, 2, 3 and 7 bits
    [
        (1, (3, 3), (1, 1, 1, 1)),
        (254, (), (1, 1, 1, 1)),
        (255, (), (0, 0, 0, 0)),
        (254, (1, 1), (1, 1, 1, 1)),
        (255, (1,), (0, 2, 2, 2)),
        (32, (3, 3), (0, 2, 2, 2)),
        (508, (1, 1), (0, 2, 2, 2)),
        (509, (1, 1), (0, 0, 4, 4)),
        (64, (3, 3), (0, 0, 4, 4)),
        (640, (1, 1), (0, 0, 4, 4)),
        (641, (1, 1), (0, 0, 0, 0)),
        (0, (3, 3), (1, 1, 1, 1)),
    ],
)
def test_what_takes_a_mean_into_its_codes(inputs: int, kernel: tuple[int, ...], by_bits: tuple[int, ...]) -> None:
    assert tuple(numerics.shift_granularity((16, inputs, *kernel), bits) for bits in (1, 2, 3, 7)) == by_bits


@pytest.mark.parametrize("granularity", [0, 1, 2, 4])
def test_a_mean_goes_into_the_codes_or_into_an_offset(granularity: int) -> None:
    codes, one = torch.arange(1000)[None] % 3, torch.ones(1)
    found = numerics.correct_moments(codes, one, 0.3 * one, one, granularity)
    assert (found.shift is not None) == (granularity > 0)
    assert bool(found.offset == 0) == (granularity > 0)


@with_a_shift
def test_shifted_codes_have_the_float_mean_to_half_a_group_of_their_sum(case: Channels) -> None:
    """Or lie at the end of what a shift can reach, on the side of the mean."""
    slope, (low, high) = case.found.slope, case.ends
    off = case.shifted.sum(1) - case.size * case.mean / slope
    nearest = case.granularity // 2 + 0.5 + ROUNDING * case.size
    assert bool((off.abs() <= nearest)[case.within_reach(slope)].all())
    beyond = ~case.within_reach(slope)
    assert torch.equal(case.shifted.sum(1)[beyond], torch.where(off > 0, low, high)[beyond])


@with_a_shift
def test_shifted_codes_have_the_float_spread_to_half_a_step_and_what_is_clipped(case: Channels) -> None:
    """Triangle inequality: each code gets one of two neighbouring numbers, whose spread is at most 1/2.

    So does what a clip takes from the codes: their spread falls by no more than its own. A clip never adds to it, since
    it brings no two numbers farther apart.
    """
    shift = case.found.shift
    assert shift is not None
    added = shift.whole[:, None] + (torch.arange(case.size) // case.granularity < shift.rest[:, None])
    clipped = numerics.moments(case.codes + added - case.shifted)[1]
    before = case.spread * case.found.slope
    found = numerics.moments(case.shifted)[1] * case.found.slope
    half = case.found.slope * (0.5 + ROUNDING)
    assert bool((found <= before + half).all())
    assert bool((found >= before - half - case.found.slope * clipped).all())


@with_a_shift
def test_the_slope_gives_shifted_codes_the_float_spread_unless_their_mean_is_then_out_of_reach(case: Channels) -> None:
    """Such a channel, and one without spread, keeps the slope of its codes."""
    gained = case.std / case.spread
    has_gain = (case.spread > 0) & case.within_reach(torch.where(case.spread > 0, gained, 1.0))
    torch.testing.assert_close(
        case.found.slope, torch.where(has_gain, gained, case.scale), rtol=ROUNDING, atol=0, check_dtype=False
    )


@with_a_shift_mean_alone
def test_the_mean_alone_keeps_the_slope(case: Channels) -> None:
    assert torch.equal(case.found.slope, case.scale)
    off = case.shifted.sum(1) - case.size * case.mean / case.scale
    nearest = case.granularity // 2 + 0.5 + ROUNDING * case.size
    assert bool((off.abs() <= nearest)[case.within_reach(case.scale)].all())


@with_an_offset
def test_an_offset_gives_both_float_moments(case: Channels) -> None:
    """A constant cannot be spread: its gain is 1."""
    corrected = case.found.slope[:, None] * case.codes + case.found.offset[:, None]
    mean, std = numerics.moments(corrected)
    rounding = ROUNDING * (case.weight.abs().amax(1) + corrected.abs().amax(1) + 128 * case.found.slope)
    assert bool(((mean - case.mean).abs() <= rounding).all())
    assert bool(((std - torch.where(case.spread > 0, case.std, 0.0)).abs() <= rounding).all())
    assert torch.equal(case.found.slope[case.spread == 0], case.scale[case.spread == 0])


@with_an_offset_mean_alone
def test_an_offset_may_give_the_mean_alone(case: Channels) -> None:
    assert torch.equal(case.found.slope, case.scale)
    corrected = case.scale[:, None] * case.codes + case.found.offset[:, None]
    rounding = ROUNDING * (case.weight.abs().amax(1) + 256 * case.scale)
    assert bool(((corrected.mean(1) - case.mean).abs() <= rounding).all())


def test_a_shift_adds_a_number_to_all_codes_and_one_more_to_the_first() -> None:
    shift = numerics.Shift(torch.tensor([3, -5, 0]), torch.tensor([2, 0, 4]), 1)
    codes = torch.tensor([[0, 0, 0, 0], [10, -126, 9, 8], [127, 126, -128, 0]])
    expected = [[4, 4, 3, 3], [5, -128, 4, 3], [127, 127, -127, 1]]  # within the range of stored codes
    for dtype in (torch.int64, torch.float32, torch.float64):
        shifted = shift.apply(codes.to(dtype))
        assert shifted.dtype == dtype
        assert shifted.tolist() == expected


def test_a_shift_may_give_one_more_to_two_codes_at_a_time() -> None:
    shift = numerics.Shift(torch.tensor([1, 1, 1]), torch.tensor([0, 1, 3]), 2)
    assert shift.apply(torch.zeros(3, 5)).tolist() == [[1, 1, 1, 1, 1], [2, 2, 1, 1, 1], [2, 2, 2, 2, 2]]


@given(
    st.lists(st.sampled_from(range(-128, 128, 16)), min_size=1, max_size=6),
    st.floats(-140, 140),
    st.floats(0.25, 4),
    st.sampled_from((1, 2, 4)),
)
def test_no_shift_comes_closer_to_the_mean(codes: list[int], mean: float, scale: float, granularity: int) -> None:
    """Compared with all there are, also where codes are clipped at both ends."""
    mean *= scale
    row, size = torch.tensor([codes]), len(codes)
    found = numerics.correct_moments(row, torch.tensor([scale]), torch.tensor([mean]), None, granularity).shift
    assert found is not None
    assert -128 < int(found.whole) < 127  # so that one more is a signed byte
    groups = -(-size // granularity)
    assert 0 <= int(found.rest) <= groups
    shifts = torch.cartesian_prod(torch.arange(-127, 127), torch.arange(groups + 1))
    every = numerics.Shift(shifts[:, 0], shifts[:, 1], granularity).apply(row.expand(len(shifts), -1)).sum(1)
    wanted = round(float(size * torch.tensor(mean).double() / torch.tensor(scale).double()))
    assert abs(int(found.apply(row).sum()) - wanted) == int((every - wanted).abs().min())


def corrected(codes: list[float], mean: float, std: float | None) -> list[float]:
    """One channel, at a scale of 1."""
    given_std = None if std is None else torch.tensor([std])
    found = numerics.correct_moments(torch.tensor([codes]), torch.ones(1), torch.tensor([mean]), given_std, 1)
    assert found.shift is not None
    return [float(v) for v in found.slope * found.shift.apply(torch.tensor([codes]))[0]]


def test_corrections_worked_out_by_hand() -> None:
    codes = [-64.0, 64.0, -64.0, 64.0]
    assert corrected(codes, 0.0, None) == codes
    assert corrected(codes, 0.3, None) == [-63.0, 64.0, -64.0, 64.0]  # a sum of 1.2
    assert corrected(codes, -10.25, None) == [-74.0, 54.0, -74.0, 53.0]  # -41 is 4 times -11, and 3
    assert corrected(codes, -10.0, 32.0) == [-42.0, 22.0, -42.0, 22.0]  # half the spread, so in steps of 1/2
    assert corrected(codes, -90.0, None) == [-128.0, -52.0, -128.0, -52.0]  # two take up what two cannot


def test_a_constant_or_zero_channel_gets_its_mean_alone() -> None:
    assert corrected([0.0] * 4, 0.0, 0.0) == [0.0] * 4
    assert corrected([0.0] * 4, 10.5, 0.0) == [11.0, 11.0, 10.0, 10.0]
    assert corrected([0.0] * 4, 10.5, 3.0) == [11.0, 11.0, 10.0, 10.0]  # nothing there to spread
    assert corrected([0.0, 0.0, 64.0, 0.0], 20.0, 0.0) == [4.0, 4.0, 68.0, 4.0]  # no slope would leave a mean


def test_next_to_no_spread_around_a_large_mean_keeps_the_spread_of_the_codes() -> None:
    """The gain of 1/100 would ask for codes of 10 000."""
    assert corrected([64.0, 96.0, 64.0, 96.0], 100.0, 0.16) == [84.0, 116.0, 84.0, 116.0]


def test_a_mean_beyond_the_range_of_codes_leaves_them_at_its_end() -> None:
    """As where the scale clips all weights of a channel."""
    assert corrected([0.0] * 3, 200.0, 0.0) == [127.0] * 3
    assert corrected([-128.0] * 3, -1000.0, 0.0) == [-128.0] * 3


def test_moments_are_those_of_the_population() -> None:
    mean, std = numerics.moments(torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]]))
    assert mean.tolist() == [2.0, 5.0]
    assert std.tolist() == [1.0, 0.0]


@given(st.integers(0, 1 << 30), st.sampled_from([9, 576, 5000]))
def test_moments_of_float32_are_those_of_float64_whatever_the_order(seed: int, size: int) -> None:
    """Rounded once, so that lowering stores what native code found in training."""
    values = 3 + torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    exact = numerics.moments(values.double())
    for order in (torch.arange(size), torch.arange(size).flip(0)):
        for found, expected in zip(numerics.moments(values[:, order]), exact, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, expected.float())


# Quantization

scales = st.floats(2.0**-100, 2.0**100, width=32)
reals = st.floats(allow_nan=False, width=32)


@given(scales, st.integers(0, 255), st.sampled_from(ALL_BITS))
def test_quantizing_codes_again_gives_the_same_codes(scale: float, zero: int, bits: int) -> None:
    low, high = numerics.activation_range(bits)
    codes, step = torch.arange(low, high + 1), torch.tensor(scale)
    assert torch.equal(numerics.quantize((codes - zero) * step, step, zero, low, high), codes.float())


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


@given(st.composite(scaled_weights)())
def test_stored_codes_keep_the_sum_of_each_channel(case: tuple[Tensor, Tensor]) -> None:
    weight, scale = case
    scaled, codes = weight / scale[:, None], numerics.quantize_weight(weight, scale)
    assert set(codes.flatten().tolist()) <= set(range(-128, 128))
    # half a code; 1 / s is rounded before it multiplies
    assert float((codes.sum(1) - scaled.sum(1)).abs().max()) <= 0.5 + 1e-9


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


@given(st.composite(trained_grids)())
def test_interpolation_keeps_what_was_trained(trained: dict[int, tuple[float, int]]) -> None:
    grids = numerics.interpolate_grids(trained)
    assert list(grids) == list(ALL_BITS)
    assert {bits: grids[bits] for bits in trained} == trained


@given(st.composite(trained_grids)())
def test_interpolated_steps_shrink_with_the_bits_and_zero_points_are_codes(
    trained: dict[int, tuple[float, int]],
) -> None:
    grids = numerics.interpolate_grids(trained)
    found = [scale for scale, _ in grids.values()]
    assert found == sorted(found, reverse=True)
    assert all(0 <= zero <= 2**bits - 1 for bits, (_, zero) in grids.items())


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
