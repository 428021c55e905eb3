// Several vectors as one value. Their operations stand side by side, so that one's need not wait for its own last one.
// Included once per instruction set, after its vector functions.
#pragma once

#include <cmath>

#include "epilogue.h"
#include "unrolled.h"

namespace mbqc::MBQC_ISA {

// At most a vector; lanes past the end hold `rest`.
INLINE inline Float load_part(const float* p, int64_t count, Float rest) {
    return count == LANES ? load(p) : load(p, count, rest);
}

// What is no number as always the same one.
INLINE inline Float one_nan(Float v) { return v == v ? v : splat(NAN); }

template <int COUNT>
struct Vectors {
    Float each[COUNT];

    INLINE Vectors(Float all) {
        for_each([&](auto i) INLINE { each[i] = all; });
    }
    template <class Make>
    static INLINE Vectors of(Make make) {
        Vectors result(splat(0.0f));
        for_each([&](auto i) INLINE { result.each[i] = make(i); });
        return result;
    }
    template <class Body>
    static INLINE void for_each(Body body) {
        unrolled(std::make_integer_sequence<int, COUNT>{}, body);
    }

    friend INLINE Vectors operator+(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return a.each[i] + b.each[i]; });
    }
    friend INLINE Vectors operator-(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return a.each[i] - b.each[i]; });
    }
    friend INLINE Vectors operator*(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return a.each[i] * b.each[i]; });
    }
    friend INLINE Vectors operator/(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return a.each[i] / b.each[i]; });
    }
    friend INLINE Vectors larger(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return larger(a.each[i], b.each[i]); });
    }
    friend INLINE Vectors smaller(const Vectors& a, const Vectors& b) {
        return of([&](auto i) INLINE { return smaller(a.each[i], b.each[i]); });
    }
};

// Calls `make(vectors)` for `length` elements in order, to replace them: several vectors at once, then one by one.
// What it is given are the elements of `x`, what it returns goes to `y`; lanes past the end hold zeros.
template <class Make>
INLINE inline void replace_elements(const float* x, float* y, int64_t length, Make make) {
    constexpr int COUNT = 4;
    int64_t i = 0;
    for (; i + COUNT * LANES <= length; i += COUNT * LANES) {
        const auto result = make(Vectors<COUNT>::of([&](auto k) INLINE { return load(x + i + k * LANES); }));
        Vectors<COUNT>::for_each([&](auto k) INLINE { store(y + i + k * LANES, result.each[k], LANES); });
    }
    for (; i < length; i += LANES) {
        const int64_t count = least(LANES, length - i);
        store(y + i, make(Vectors<1>(load_part(x + i, count, splat(0.0f)))).each[0], count);
    }
}

}  // namespace mbqc::MBQC_ISA
