// What the kernels of mbqc.fused share. Formulas and their order of operations are those of mbqc/numerics.py.
#pragma once

#include <cstdint>
#include <cstring>

#define MBQC_EXPORT extern "C" __attribute__((visibility("default")))

// One copy of a function for each instruction set; the loader chooses. Elsewhere the compiler's own choice.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MBQC_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MBQC_CLONES
#endif
#define MBQC_INLINE inline __attribute__((always_inline))

namespace mbqc {

constexpr float STORED_LOW = -128, STORED_HIGH = 127;

constexpr int LANES = 16;
constexpr int64_t STRIP = 512;  // elements whose terms of a sum fit the nearest cache

// What is not a number stays so.
MBQC_INLINE float clamp(float v, float low, float high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

// Half to even, for numbers below 2^22: the sum has no bits for a fraction.
MBQC_INLINE float round_small(float v) {
    constexpr float SHIFTER = 12582912;
    return (v + SHIFTER) - SHIFTER;
}

// Sum of `term(value)` over n values in float64, always in the same order.
template <class Term>
MBQC_INLINE double sum_of(const float* values, int64_t n, Term term) {
    double sums[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) sums[lane] += term(values[i + lane]);
    }
    double sum = 0;
    for (double lane : sums) sum += lane;
    for (; i < n; ++i) sum += term(values[i]);
    return sum;
}
MBQC_INLINE double sum_of(const float* values, int64_t n) {
    return sum_of(values, n, [](double v) { return v; });
}

}  // namespace mbqc
