// Fake-quantization of activations: one read and one write forward, two reads and one write backward.
#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "common.h"

namespace mbqc {
namespace {

constexpr int64_t BLOCK = 1 << 14;  // elements; sums are formed block by block, so threads do not change them

struct Grid {
    float scale, zero, low, high;
};

constexpr float ANY = -std::numeric_limits<float>::infinity();  // the lowest input without a ReLU

MBQC_INLINE float rectified(float v, float lowest) { return v < lowest ? lowest : v; }

MBQC_CLONES void quantize_block(const float* x, float* y, int64_t n, Grid grid, float lowest) {
    const float reciprocal = 1 / grid.scale;
    for (int64_t i = 0; i < n; ++i) {
        // rounding after the clamp is the same: the bounds are whole numbers
        const float real = rectified(x[i], lowest) * reciprocal + grid.zero;
        const float code = round_small(clamp(real, grid.low, grid.high));
        y[i] = (code - grid.zero) * grid.scale;
    }
}

MBQC_CLONES double gradients_block(const float* x, const float* g, float* dx, int64_t n, Grid grid, float lowest) {
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

// Calls `work(block, first, count)` for all blocks of n elements on up to `threads` threads.
template <class Work>
void in_blocks(int64_t n, int64_t threads, Work work) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    std::atomic<int64_t> next{0};
    const auto run = [&] {
        for (int64_t b; (b = next.fetch_add(1)) < blocks;) work(b, b * BLOCK, std::min(BLOCK, n - b * BLOCK));
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < std::min(threads, blocks); ++t) others.emplace_back(run);
    run();
    for (std::thread& other : others) other.join();
}

}  // namespace
}  // namespace mbqc

// y = (clip(round(x / scale + zero)) - zero) * scale, n elements; of max(x, 0) where `rectify`.
MBQC_EXPORT void mbqc_quantize_activations(const float* x, float* y, int64_t n, float scale, float zero, float low,
                                           float high, int64_t rectify, int64_t threads) {
    using namespace mbqc;
    in_blocks(n, threads, [&](int64_t, int64_t first, int64_t count) {
        quantize_block(x + first, y + first, count, {scale, zero, low, high}, rectify ? 0 : ANY);
    });
}

// dx from x and g, the gradient at y; returns the gradient at the scale.
MBQC_EXPORT double mbqc_activation_gradients(const float* x, const float* g, float* dx, int64_t n, float scale,
                                             float zero, float low, float high, int64_t rectify, int64_t threads) {
    using namespace mbqc;
    std::vector<double> sums(static_cast<size_t>((n + BLOCK - 1) / BLOCK));
    in_blocks(n, threads, [&](int64_t block, int64_t first, int64_t count) {
        sums[static_cast<size_t>(block)] =
            gradients_block(x + first, g + first, dx + first, count, {scale, zero, low, high}, rectify ? 0 : ANY);
    });
    double sum = 0;
    for (double part : sums) sum += part;
    return sum;
}
