// Quantization of weights and the correction of their moments, channel by channel.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "common.h"

// A weight [channels, inputs, positions], channel by channel in memory; its inputs or its positions are innermost.
struct MbqcShape {
    int64_t channels, inputs, positions, inputs_last;
};

// The values of a width, `step * code + offset`, in units of the stored scale.
struct MbqcLadder {
    float step, offset, low, high;
    int64_t half_up;
};

namespace mbqc {
namespace {

int64_t place(const MbqcShape& shape, int64_t input, int64_t position) {
    return shape.inputs_last ? position * shape.inputs + input : input * shape.positions + position;
}

// Clamped codes and what rounding took from the numbers.
MBQC_CLONES void round_weights(const float* w, float scale, float* codes, float* remainders, int64_t n) {
    const float reciprocal = 1 / scale;
    for (int64_t i = 0; i < n; ++i) {
        const float real = clamp(w[i] * reciprocal, STORED_LOW, STORED_HIGH);
        codes[i] = round_small(real);
        remainders[i] = real - codes[i];
    }
}

MBQC_CLONES double sum(const float* values, int64_t n) { return sum_of(values, n); }

MBQC_CLONES double sum_of_squares(const float* values, double mean, int64_t n) {
    return sum_of(values, n, [=](double v) { return (v - mean) * (v - mean); });
}

// How many remainders in the direction of `sign` are at least `bound`.
MBQC_CLONES int64_t count_from(const float* remainders, float sign, float bound, int64_t n) {
    int32_t found = 0;
    for (int64_t i = 0; i < n; ++i) found += remainders[i] * sign >= bound;
    return found;
}

// Rounds the `count` largest remainders in the direction of `sign` the other way; of equal ones the first inputs.
void move_codes(const MbqcShape& shape, float* codes, const float* remainders, float sign, int64_t count,
                std::vector<float>& keys) {
    const int64_t n = shape.inputs * shape.positions;
    float bound = 0.5f;  // of those that are looked at: few are needed, and they are the ones closest to a tie
    for (float span = 1.0f / 64; bound > -0.5f && count_from(remainders, sign, bound, n) < count; span *= 2) {
        bound = std::max(-0.5f, 0.5f - span);
    }
    keys.clear();
    for (int64_t i = 0; i < n; ++i) {
        if (remainders[i] * sign >= bound) keys.push_back(remainders[i] * sign);
    }
    std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end(), std::greater<float>());
    const float last = keys[static_cast<size_t>(count - 1)];
    for (int64_t i = 0; i < n; ++i) {
        if (remainders[i] * sign > last) {
            codes[i] += sign;
            --count;
        }
    }
    for (int64_t input = 0; count > 0 && input < shape.inputs; ++input) {
        for (int64_t position = 0; count > 0 && position < shape.positions; ++position) {
            const int64_t i = place(shape, input, position);
            if (remainders[i] * sign == last) {
                codes[i] += sign;
                --count;
            }
        }
    }
}

MBQC_CLONES void narrow(const float* codes, float scale, float* y, int64_t n, MbqcLadder ladder) {
    const float per_step = 1 / ladder.step;  // a power of two, as is the step
    if (ladder.half_up) {
        for (int64_t i = 0; i < n; ++i) {  // floor plus the next bit
            const float whole = std::floor(codes[i] * per_step), halves = std::floor(codes[i] * per_step * 2);
            const float code = clamp(halves - whole, ladder.low, ladder.high);
            y[i] = (code * ladder.step + ladder.offset) * scale;
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            y[i] = (std::floor(codes[i] * per_step) * ladder.step + ladder.offset) * scale;
        }
    }
}

MBQC_CLONES float weight_gradients(const float* w, const float* y, const float* g, float* dw, float scale, int64_t n) {
    const float reciprocal = 1 / scale;
    float terms[STRIP];
    double total = 0;
    for (int64_t first = 0; first < n; first += STRIP) {
        const int64_t count = std::min(STRIP, n - first);
        for (int64_t i = 0; i < count; ++i) {
            const float real = w[first + i] * reciprocal, gradient = g[first + i];
            const bool inside = (real >= STORED_LOW) & (real <= STORED_HIGH);
            dw[first + i] = inside ? gradient : 0.0f;
            terms[i] = gradient * (y[first + i] * reciprocal - (inside ? real : 0.0f));
        }
        total += sum_of(terms, count);
    }
    return static_cast<float>(total);
}

// Each channel of g times its gain.
MBQC_CLONES void scale_channel(const float* g, float gain, float* dx, int64_t n) {
    for (int64_t i = 0; i < n; ++i) dx[i] = g[i] * gain;
}

MBQC_CLONES void recover_codes(const float* y, float scale, float offset, float* codes, int64_t n) {
    for (int64_t i = 0; i < n; ++i) codes[i] = round_small(y[i] / scale - offset);
}

MBQC_CLONES void line(const float* codes, double slope, double offset, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(slope * codes[i] + offset);
}

MBQC_CLONES float clipped_sum(const float* codes, float whole, int64_t n) {
    float sums[LANES] = {};  // exact: far below 2^24
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) sums[lane] += clamp(codes[i + lane] + whole, STORED_LOW, STORED_HIGH);
    }
    for (; i < n; ++i) sums[0] += clamp(codes[i] + whole, STORED_LOW, STORED_HIGH);
    return std::accumulate(sums, sums + LANES, 0.0f);
}

struct Shift {
    float whole;
    int64_t rest;
    bool reached;
};

// numerics._shift_to of one channel; `ordered` are its codes by positions, then inputs.
Shift shift_to(const float* ordered, int64_t n, double total, int64_t granularity) {
    const double most = 2 * static_cast<double>(n);
    total = std::isnan(total) ? most * STORED_HIGH : std::nearbyint(total);
    const float target = static_cast<float>(std::min(std::max(total, most * STORED_LOW), most * STORED_HIGH));
    float whole = STORED_LOW + 1;
    for (float step = 128; step >= 1; step /= 2) {
        const float more = std::min(whole + step, STORED_HIGH - 1);
        if (target - clipped_sum(ordered, more, n) >= 0) whole = more;
    }
    const float left = target - clipped_sum(ordered, whole, n);
    float gained = 0;  // by one more for the first groups
    for (int64_t rest = 0; rest * granularity < n; ++rest) {
        const float before = gained;
        for (int64_t i = rest * granularity; i < std::min(n, (rest + 1) * granularity); ++i) {
            const float shifted = ordered[i] + whole;
            gained += shifted >= STORED_LOW && shifted < STORED_HIGH;
        }
        if (before + gained >= 2 * left) return {whole, rest, left >= 0};  // no nearer with this group
    }
    return {whole, (n + granularity - 1) / granularity, left <= gained};
}

// Puts the mean into the codes; returns the slope that they have then.
double shift_codes(const MbqcShape& shape, float* codes, double slope, double scale, double mean,
                   int64_t granularity, std::vector<float>& ordered) {
    const int64_t n = shape.inputs * shape.positions;
    const auto visit = [&](auto change) {  // codes by positions, then inputs
        for (int64_t position = 0, rank = 0; position < shape.positions; ++position) {
            for (int64_t input = 0; input < shape.inputs; ++input, ++rank) {
                change(codes[place(shape, input, position)], ordered[static_cast<size_t>(rank)], rank);
            }
        }
    };
    visit([](float& code, float& in_order, int64_t) { in_order = code; });
    const double total = static_cast<double>(n) * mean;
    Shift found = shift_to(ordered.data(), n, total / slope, granularity);
    if (!found.reached) {
        slope = scale;
        found = shift_to(ordered.data(), n, total / slope, granularity);
    }
    visit([&](float& code, float& in_order, int64_t rank) {
        code = clamp(in_order + (found.whole + (rank < found.rest * granularity)), STORED_LOW, STORED_HIGH);
    });
    return slope;
}

}  // namespace
}  // namespace mbqc

// numerics.quantize_weight, narrow and code_values, times the scale [channels].
MBQC_EXPORT void mbqc_quantize_weights(const float* w, const float* scale, float* y, MbqcShape shape,
                                       MbqcLadder ladder) {
    using namespace mbqc;
    const int64_t n = shape.inputs * shape.positions;
    std::vector<float> codes(static_cast<size_t>(n)), remainders(codes), keys;
    for (int64_t c = 0; c < shape.channels; ++c) {
        round_weights(w + c * n, scale[c], codes.data(), remainders.data(), n);
        const double missing = std::nearbyint(sum(remainders.data(), n));
        if (std::fabs(missing) >= 1) {
            const auto count = std::min(n, static_cast<int64_t>(std::fabs(missing)));
            move_codes(shape, codes.data(), remainders.data(), missing > 0 ? 1.0f : -1.0f, count, keys);
        }
        narrow(codes.data(), scale[c], y + c * n, n, ladder);
    }
}

// dw and the gradient at the scale from w, y as above, and g, the gradient at y.
MBQC_EXPORT void mbqc_weight_gradients(const float* w, const float* scale, const float* y, const float* g, float* dw,
                                       float* dscale, int64_t channels, int64_t n) {
    using namespace mbqc;
    for (int64_t c = 0; c < channels; ++c) {
        dscale[c] = weight_gradients(w + c * n, y + c * n, g + c * n, dw + c * n, scale[c], n);
    }
}

// numerics.moments of w and numerics.correct_moments of the codes in `quantized`, applied; `gain` [channels].
MBQC_EXPORT void mbqc_correct_moments(const float* quantized, const float* w, const float* scale, float* out,
                                      float* gain, MbqcShape shape, float offset, int64_t both, int64_t granularity) {
    using namespace mbqc;
    const int64_t n = shape.inputs * shape.positions;
    const double size = static_cast<double>(n);
    std::vector<float> codes(static_cast<size_t>(n)), ordered(codes);
    for (int64_t c = 0; c < shape.channels; ++c) {
        const double exact_mean = sum(w + c * n, n) / size;
        const double mean = static_cast<float>(exact_mean);
        recover_codes(quantized + c * n, scale[c], offset, codes.data(), n);
        const double total = sum(codes.data(), n);  // sums of codes are whole numbers, far below 2^53
        double slope = scale[c];
        if (both) {
            const double std = static_cast<float>(std::sqrt(sum_of_squares(w + c * n, exact_mean, n) / size));
            const double spread = std::sqrt(size * sum_of_squares(codes.data(), 0, n) - total * total) / size;
            if (spread > 0) slope = std / spread;
        }
        double shift = 0;
        if (granularity) {
            slope = shift_codes(shape, codes.data(), slope, scale[c], mean, granularity, ordered);
        } else {
            shift = mean - slope * total / size;
        }
        line(codes.data(), slope, shift, out + c * n, n);
        gain[c] = static_cast<float>(slope / scale[c]);
    }
}

// The gradient at what mbqc_correct_moments got.
MBQC_EXPORT void mbqc_correction_gradients(const float* g, const float* gain, float* dx, int64_t channels, int64_t n) {
    for (int64_t c = 0; c < channels; ++c) mbqc::scale_channel(g + c * n, gain[c], dx + c * n, n);
}

// Another one means another C interface.
MBQC_EXPORT int64_t mbqc_fused_version() { return 4; }
