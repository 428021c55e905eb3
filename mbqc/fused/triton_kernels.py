"""The fused operations in Triton's language; `gpu` launches them. Formulas and their order are those of `numerics`.

One program does a block of activations, or one channel of a weight: channels are outermost in memory, and what the
first pass over one reads, later passes find in the cache. Launched without fused multiply-adds; `div_rn`, since `/` is
not rounded correctly for float32. Sums are float64, always in the same order.
"""

import triton
import triton.language as tl

STORED_LOW = tl.constexpr(-128.0)
STORED_HIGH = tl.constexpr(127.0)
BEYOND_HALF = tl.constexpr(0x3F000001)
"""More than the bits of 0.5, the largest remainder."""


@triton.jit
def clamp(v, low, high):
    """What is not a number stays so."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


@triton.jit
def round_small(v):
    """Half to even, for float32 numbers below 2^22: the sum has no bits for a fraction."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def round_double(v):
    """Half to even, for float64 numbers below 2^51."""
    return (v + 6755399441055744.0) - 6755399441055744.0


# Activations


@triton.jit
def quantize_activations(x_at, y_at, scale_at, zero_at, high, n, rectify: tl.constexpr, block: tl.constexpr):
    """A block of y, codes from 0 to `high`, of x or its positive part."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    scale, zero = tl.load(scale_at), tl.load(zero_at)
    x = tl.load(x_at + at, at < n, other=0).to(tl.float32)
    if rectify:
        x = tl.where(x < 0, 0.0, x)
    # rounding after the clamp is the same: the bounds are whole numbers
    code = round_small(clamp(x * tl.div_rn(1.0, scale) + zero, 0.0, high))
    tl.store(y_at + at, (code - zero) * scale, at < n)


@triton.jit
def activation_gradients(
    x_at, g_at, dx_at, sums_at, scale_at, zero_at, high, n, rectify: tl.constexpr, block: tl.constexpr
):
    """A block of dx from x and g, the gradient at y; its part of the gradient at the scale to `sums_at`, in float64."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    scale, zero = tl.load(scale_at), tl.load(zero_at)
    value = tl.load(x_at + at, at < n, other=0).to(tl.float32)
    gradient = tl.load(g_at + at, at < n, other=0).to(tl.float32)
    x = value
    if rectify:
        x = tl.where(x < 0, 0.0, x)
    scaled = x * tl.div_rn(1.0, scale)
    real = scaled + zero
    inside = (real >= 0) & (real <= high)
    code = round_small(clamp(real, 0.0, high))
    terms = gradient * (code - zero - tl.where(inside, scaled, 0.0))
    tl.store(sums_at + tl.program_id(0), tl.sum(terms.to(tl.float64)))
    if rectify:
        inside = inside & (value > 0)
    tl.store(dx_at + at, tl.where(inside, gradient, 0.0), at < n)


# Weights


@triton.jit
def stored_weights(weight_at, reciprocal, at, n):
    """Stored codes before and after rounding to nearest; zeros beyond the channel."""
    real = clamp(tl.load(weight_at + at, at < n, other=0) * reciprocal, STORED_LOW, STORED_HIGH)
    return real, round_small(real)


@triton.jit
def keys_of(remainder, at, inputs, positions, inputs_last: tl.constexpr):
    """Whole numbers, no two alike, in the order of the remainders; of equal ones the first input has the largest.

    The bits of positive floats are ordered as they are; of all others the key is below `inputs * positions`.
    """
    rank = at
    if inputs_last:
        rank = at % inputs * positions + at // inputs
    n = inputs * positions
    return remainder.to(tl.int32, bitcast=True).to(tl.int64) * n + (n - 1 - rank)


@triton.jit
def quantize_weights(
    weight_at,
    scale_at,
    y_at,
    inputs,
    positions,
    step,
    offset,
    low,
    high,
    inputs_last: tl.constexpr,
    half_up: tl.constexpr,
    block: tl.constexpr,
):
    """A channel of y; `step`, a power of two, and what follows are `kernels.Steps`."""
    n = inputs * positions
    channel = tl.program_id(0).to(tl.int64)
    weight_at += channel * n
    y_at += channel * n
    scale = tl.load(scale_at + channel)
    reciprocal = tl.div_rn(1.0, scale)
    lane = tl.arange(0, block)

    sums = tl.full([block], 0, tl.float64)
    for first in range(0, n, block):
        real, code = stored_weights(weight_at, reciprocal, first + lane, n)
        sums += (real - code).to(tl.float64)
    missing = round_double(tl.sum(sums))
    sign = tl.where(missing < 0, -1.0, 1.0).to(tl.float32)
    count = tl.where(tl.abs(missing) >= 1, tl.abs(missing), 0.0).to(tl.int32)

    # as many weights as are missing are rounded the other way, those with the largest keys; bisection finds the last of
    # these: at least `count` keys are at or above `least`, fewer at or above `beyond`
    beyond = tl.cast(n, tl.int64) * BEYOND_HALF
    least = tl.where(count > 0, 0, beyond)
    while beyond - least > 1:
        middle = (least + beyond) // 2
        found = tl.full([block], 0, tl.int32)
        for first in range(0, n, block):
            at = first + lane
            real, code = stored_weights(weight_at, reciprocal, at, n)
            key = keys_of((real - code) * sign, at, inputs, positions, inputs_last)
            found += (key >= middle).to(tl.int32)  # keys beyond the channel are too small to matter
        enough = tl.sum(found) >= count
        least = tl.where(enough, middle, least)
        beyond = tl.where(enough, beyond, middle)

    per_step = tl.div_rn(1.0, step)
    for first in range(0, n, block):
        at = first + lane
        real, code = stored_weights(weight_at, reciprocal, at, n)
        key = keys_of((real - code) * sign, at, inputs, positions, inputs_last)
        code += tl.where(key >= least, sign, 0.0)
        narrowed = tl.floor(code * per_step)
        if half_up:  # floor plus the next bit
            narrowed = clamp(tl.floor(code * per_step * 2) - narrowed, low, high)
        tl.store(y_at + at, (narrowed * step + offset) * scale, at < n)


@triton.jit
def weight_gradients(weight_at, scale_at, y_at, g_at, dw_at, dscale_at, n, block: tl.constexpr):
    """A channel of dw, and the gradient at its scale, from y as above and g, the gradient at y."""
    channel = tl.program_id(0).to(tl.int64)
    reciprocal = tl.div_rn(1.0, tl.load(scale_at + channel))
    sums = tl.full([block], 0, tl.float64)
    for first in range(0, n, block):
        place = first + tl.arange(0, block)
        at = channel * n + place
        real = tl.load(weight_at + at, place < n, other=0) * reciprocal
        gradient = tl.load(g_at + at, place < n, other=0)
        inside = (real >= STORED_LOW) & (real <= STORED_HIGH)
        tl.store(dw_at + at, tl.where(inside, gradient, 0.0), place < n)
        value = tl.load(y_at + at, place < n, other=0) * reciprocal
        sums += (gradient * (value - tl.where(inside, real, 0.0))).to(tl.float64)
    tl.store(dscale_at + channel, tl.sum(sums).to(tl.float32))


# Moments


@triton.jit
def codes_of(quantized_at, scale, offset, at, n):
    """The codes of quantized weights; zeros beyond the channel."""
    code = round_small(tl.div_rn(tl.load(quantized_at + at, at < n, other=0), scale) - offset)
    return tl.where(at < n, code, 0.0)


@triton.jit
def moments_of(weight_at, quantized_at, scale, offset, n, both: tl.constexpr, block: tl.constexpr):
    """Slope of the codes, mean of the weights, sum of the codes; float64."""
    lane = tl.arange(0, block)
    size = tl.cast(n, tl.float64)
    sums = tl.full([block], 0, tl.float64)
    totals = tl.full([block], 0, tl.int64)
    squares = tl.full([block], 0, tl.int64)
    for first in range(0, n, block):
        at = first + lane
        sums += tl.load(weight_at + at, at < n, other=0).to(tl.float64)
        code = codes_of(quantized_at, scale, offset, at, n).to(tl.int64)
        totals += code
        squares += code * code
    mean = tl.sum(sums) / size
    total = tl.sum(totals)
    slope = scale.to(tl.float64)
    if both:
        sums = tl.full([block], 0, tl.float64)
        for first in range(0, n, block):
            at = first + lane
            distance = tl.load(weight_at + at, at < n, other=0).to(tl.float64) - mean
            sums += tl.where(at < n, distance * distance, 0.0)
        std = tl.sqrt(tl.sum(sums) / size).to(tl.float32).to(tl.float64)
        # whole numbers up to the root, so a constant channel is exactly constant
        spread = tl.sqrt((n * tl.sum(squares) - total * total).to(tl.float64)) / size
        slope = tl.where(spread > 0, std / spread, slope)
    return slope, mean.to(tl.float32).to(tl.float64), total.to(tl.float64)


@triton.jit
def correct_with_offset(
    quantized_at, weight_at, scale_at, out_at, gain_at, offset, n, both: tl.constexpr, block: tl.constexpr
):
    """The mean of a channel becomes an offset."""
    channel = tl.program_id(0).to(tl.int64)
    quantized_at += channel * n
    scale = tl.load(scale_at + channel)
    slope, mean, total = moments_of(weight_at + channel * n, quantized_at, scale, offset, n, both, block)
    added = mean - slope * total / tl.cast(n, tl.float64)
    for first in range(0, n, block):
        at = first + tl.arange(0, block)
        code = codes_of(quantized_at, scale, offset, at, n)
        tl.store(out_at + channel * n + at, (slope * code.to(tl.float64) + added).to(tl.float32), at < n)
    tl.store(gain_at + channel, (slope / scale.to(tl.float64)).to(tl.float32))


@triton.jit
def missing_sum(target, code, whole, here):
    """What the codes and `whole`, in the stored range, lack of `target`; exact, as sums are below 2^24."""
    return target - tl.sum(tl.where(here, clamp(code + whole, STORED_LOW, STORED_HIGH), 0.0))


@triton.jit
def shift_to(code, here, total, n, granularity: tl.constexpr, block: tl.constexpr):
    """`numerics._shift_to` of one channel; `here` tells its codes."""
    most = 2 * tl.cast(n, tl.float64)
    total = clamp(tl.where(total == total, total, most * STORED_HIGH), most * STORED_LOW, most * STORED_HIGH)
    target = round_double(total).to(tl.float32)
    whole = STORED_LOW + 1
    step = 128.0
    for _ in range(8):
        more = tl.minimum(whole + step, STORED_HIGH - 1)
        whole = tl.where(missing_sum(target, code, more, here) >= 0, more, whole)
        step = step * 0.5
    left, shifted = missing_sum(target, code, whole, here), code + whole
    gains = ((shifted >= STORED_LOW) & (shifted < STORED_HIGH) & here).to(tl.int32)
    by_group = tl.sum(tl.reshape(gains, (block // granularity, granularity)), 1)
    gained = tl.cumsum(by_group, 0)
    real = tl.arange(0, block // granularity) * granularity < n
    rest = tl.sum(((2 * gained - by_group < 2 * left) & real).to(tl.int32))
    return whole, rest, (left >= 0) & (left <= tl.sum(gains))


@triton.jit
def correct_with_shift(
    quantized_at,
    weight_at,
    scale_at,
    out_at,
    gain_at,
    offset,
    inputs,
    positions,
    inputs_last: tl.constexpr,
    both: tl.constexpr,
    granularity: tl.constexpr,
    block: tl.constexpr,
):
    """The mean of a channel, one block, goes into the codes."""
    n = inputs * positions
    channel = tl.program_id(0).to(tl.int64)
    quantized_at += channel * n
    scale = tl.load(scale_at + channel)
    slope, mean, _ = moments_of(weight_at + channel * n, quantized_at, scale, offset, n, both, block)
    rank = tl.arange(0, block)  # by positions, then inputs
    at = rank
    if not inputs_last:
        at = tl.where(rank < n, rank % inputs * positions + rank // inputs, rank)
    code = codes_of(quantized_at, scale, offset, at, n)
    sum_of_weights = tl.cast(n, tl.float64) * mean
    _, _, reached = shift_to(code, rank < n, sum_of_weights / slope, n, granularity, block)
    slope = tl.where(reached, slope, scale.to(tl.float64))
    whole, rest, _ = shift_to(code, rank < n, sum_of_weights / slope, n, granularity, block)
    shifted = clamp(code + (whole + (rank < granularity * rest).to(tl.float32)), STORED_LOW, STORED_HIGH)
    tl.store(out_at + channel * n + at, (slope * shifted.to(tl.float64)).to(tl.float32), at < n)
    tl.store(gain_at + channel, (slope / scale.to(tl.float64)).to(tl.float32))
