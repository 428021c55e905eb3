// Fake-quantization of activations: one read and one write forward, two reads and one write backward.
#include <algorithm>
#include <limits>

#include "common.h"

namespace mbqc {
namespace {

struct Grid {
    float scale, zero, low, high;
};

constexpr float ANY = -std::numeric_limits<float>::infinity();  // the lowest input without a ReLU

MBQC_INLINE float rectified(float v, float lowest) { return v < lowest ? lowest : v; }

MBQC_CLONES void quantize(const float* x, float* y, int64_t n, Grid grid, float lowest) {
    const float reciprocal = 1 / grid.scale;
    for (int64_t i = 0; i < n; ++i) {
        // rounding after the clamp is the same: the bounds are whole numbers
        const float real = rectified(x[i], lowest) * reciprocal + grid.zero;
        const float code = round_small(clamp(real, grid.low, grid.high));
        y[i] = (code - grid.zero) * grid.scale;
    }
}

MBQC_CLONES double gradients(const float* x, const float* g, float* dx, int64_t n, Grid grid, float lowest) {
    const float reciprocal = 1 / grid.scale;
    float terms[STRIP];
    double sum = 0;
    for (int64_t first = 0; first < n; first += STRIP) {
        const int64_t count = std::min(STRIP, n - first);
        for (int64_t i = 0; i < count; ++i) {
            const float value = x[first + i], gradient = g[first + i];
            const float scaled = rectified(value, lowest) * reciprocal, real = scaled + grid.zero;
            const bool inside = (real >= grid.low) & (real <= grid.high);
            const float code = round_small(clamp(real, grid.low, grid.high));
            dx[first + i] = inside & (value > lowest) ? gradient : 0.0f;
            terms[i] = gradient * (code - grid.zero - (inside ? scaled : 0.0f));
        }
        sum += sum_of(terms, count);
    }
    return sum;
}

}  // namespace
}  // namespace mbqc

// y = (clip(round(x / scale + zero)) - zero) * scale, n elements; of max(x, 0) where `rectify`. One scale, one zero.
MBQC_EXPORT void mbqc_quantize_activations(const float* x, float* y, int64_t n, const float* scale, const float* zero,
                                           float low, float high, int64_t rectify) {
    using namespace mbqc;
    quantize(x, y, n, {*scale, *zero, low, high}, rectify ? 0 : ANY);
}

// dx and the gradient at the scale from x and g, the gradient at y.
MBQC_EXPORT void mbqc_activation_gradients(const float* x, const float* g, float* dx, float* dscale, int64_t n,
                                           const float* scale, const float* zero, float low, float high,
                                           int64_t rectify) {
    using namespace mbqc;
    *dscale = static_cast<float>(gradients(x, g, dx, n, {*scale, *zero, low, high}, rectify ? 0 : ANY));
}
