// Operations on floats: what mbqc/float_functions.py defines, operation by operation.
#pragma once

#include "vectors.h"

namespace mbqc::MBQC_ISA {

constexpr int PARTS = BLOCK / LANES;  // vectors that hold the partial sums of a row

template <class Numbers>
INLINE inline Numbers exponential(const Numbers& x) {
    const Numbers to_whole = splat(12582912.0f);
    const Numbers limited = smaller(splat(88.0f), larger(splat(-88.0f), x));  // not-a-number passes
    const Numbers shifted = limited * splat(1.442695f) + to_whole;
    const Numbers whole = shifted - to_whole;
    const Numbers rest = (limited - whole * splat(0.693359375f)) - whole * splat(-0.00021219444f);
    Numbers total = splat(0.001381454f);
    for (const float term : {0.008368745f, 0.04166839f, 0.16666521f, 0.49999994f}) total = total * rest + splat(term);
    total = (total * (rest * rest) + rest) + splat(1.0f);
    return total * Numbers::of([&](auto i) INLINE {
        return as_float(shift_left(add(as_int(shifted.each[i]), splat(127)), 23));
    });
}

// Calls `visit(part, element, count)` for vectors of a row in order; `part` says to which partial result one belongs.
template <class Visitor>
INLINE inline void visit_row(int64_t length, Visitor visit) {
    int64_t i = 0;
    for (; i + BLOCK <= length; i += BLOCK) {
        unrolled(std::make_integer_sequence<int, PARTS>{}, [&](auto part) INLINE { visit(part, i + part * LANES, LANES); });
    }
    for (int part = 0; i < length; ++part, i += LANES) visit(part, i, least(LANES, length - i));
}

// The sum of `term(element, count)` over a row, where lanes past the end must be zero.
template <class Term>
INLINE inline float sum_row(int64_t length, Term term) {
    Float sums[PARTS];
    for (Float& sum : sums) sum = splat(0.0f);
    visit_row(length, [&](int part, int64_t i, int64_t count) INLINE { sums[part] = sums[part] + term(i, count); });
    alignas(64) float lanes[BLOCK];
    std::memcpy(lanes, sums, sizeof(lanes));
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

inline float largest_of_row(const float* x, int64_t length) {
    const Float lowest = splat(-INFINITY);
    Float found[PARTS];
    for (Float& part : found) part = lowest;
    visit_row(length, [&](int part, int64_t i, int64_t count) INLINE {
        found[part] = larger(found[part], load_part(x + i, count, lowest));
    });
    alignas(64) float lanes[BLOCK];
    std::memcpy(lanes, found, sizeof(lanes));
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
    return lanes[0];
}

inline void fill_row(float* y, int64_t length) {
    for (int64_t i = 0; i < length; ++i) y[i] = NAN;
}

inline void norm_row(const FloatRows& n, const float* x, float* y) {
    const auto count = static_cast<float>(n.length);
    const float mean = sum_row(n.length, [&](int64_t i, int64_t c) INLINE { return load_part(x + i, c, splat(0.0f)); }) / count;
    const Float center = splat(mean);
    const float variance = sum_row(n.length, [&](int64_t i, int64_t c) INLINE {
        const Float deviation = load_part(x + i, c, center) - center;
        return deviation * deviation;
    }) / count;
    if (!(variance < INFINITY)) return fill_row(y, n.length);
    const Float factor = splat(1.0f / __builtin_sqrtf(variance + n.epsilon)), none = splat(0.0f);
    visit_row(n.length, [&](int, int64_t i, int64_t c) INLINE {
        Float result = (load_part(x + i, c, none) - center) * factor;
        if (n.weight) result = result * load_part(n.weight + i, c, none);
        if (n.bias) result = result + load_part(n.bias + i, c, none);
        store(y + i, result, c);
    });
}

inline void layer_norm(const FloatRows& n, const Call& call) {
    const Range rows = call.share(call.at(n.rows));
    for (int64_t row = rows.first; row < rows.last; ++row) {
        norm_row(n, call.at<const float>(n.input) + row * n.length, call.at<float>(n.output) + row * n.length);
    }
}

inline void softmax_row(const float* x, float* y, int64_t length) {
    const Float largest = splat(largest_of_row(x, length)), none = splat(0.0f);
    replace_elements(x, y, length, [&](const auto& part) INLINE { return exponential(part - largest); });
    const float total = sum_row(length, [&](int64_t i, int64_t count) INLINE { return load_part(y + i, count, none); });
    if (!(total < INFINITY)) return fill_row(y, length);
    const Float factor = splat(1.0f / total);
    replace_elements(y, y, length, [&](const auto& part) INLINE { return part * factor; });
}

inline void softmax(const FloatRows& s, const Call& call) {
    const Range rows = call.share(call.at(s.rows));
    for (int64_t row = rows.first; row < rows.last; ++row) {
        softmax_row(call.at<const float>(s.input) + row * s.length, call.at<float>(s.output) + row * s.length, s.length);
    }
}

template <int TERMS>
void activate(const Activation& a, const float* x, float* y, int64_t length) {
    const Float low = splat(-a.limit), high = splat(a.limit);
    Float terms[TERMS];
    for (int term = 0; term < TERMS; ++term) terms[term] = splat(a.terms[term]);
    replace_elements(x, y, length, [&](const auto& part) INLINE {
        using Numbers = std::decay_t<decltype(part)>;
        const Numbers above = larger(low, part), clamped = smaller(high, above), square = clamped * clamped;
        Numbers total = terms[TERMS - 1];
        for (int term = TERMS - 2; term >= 0; --term) total = total * square + terms[term];
        return above / (exponential(splat(0.0f) - clamped * total) + splat(1.0f));
    });
}

inline void activation(const Activation& a, const Call& call) {
    const Range part = call.share(call.at(a.count));
    const float* const x = call.at<const float>(a.input) + part.first;
    float* const y = call.at<float>(a.output) + part.first;
    const int64_t count = part.last - part.first;
    if (a.term_count == 1) {
        activate<1>(a, x, y, count);
    } else if (a.term_count == 2) {
        activate<2>(a, x, y, count);
    } else {
        activate<MAX_TERMS>(a, x, y, count);
    }
}

// `x SIGN y` for `count` numbers; y is a single one where `repeats`.
template <Sign SIGN>
void calculate(const float* x, const float* y, bool repeats, float* result, int64_t count) {
    const Float single = splat(*y), zero = splat(0.0f);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t lanes = least(LANES, count - i);
        const Float v = load_part(x + i, lanes, zero), w = repeats ? single : load_part(y + i, lanes, zero);
        Float found;
        if constexpr (SIGN == Sign::add) found = v + w;
        if constexpr (SIGN == Sign::sub) found = v - w;
        if constexpr (SIGN == Sign::mul) found = v * w;
        if constexpr (SIGN == Sign::div) found = v / w;
        store(result + i, one_nan(found), lanes);
    }
}

inline void arithmetic(const Arithmetic& a, const Call& call) {
    const int64_t period = call.at(a.period);
    const Range part = call.share(call.at(a.count));
    const float* const other = a.constant ? a.constant : call.at<const float>(a.other);
    for (int64_t i = part.first, count; i < part.last; i += count) {
        const int64_t start = i % period;
        count = period == 1 ? part.last - i : least(period - start, part.last - i);
        const float* const x = call.at<const float>(a.input) + i;
        float* const result = call.at<float>(a.output) + i;
        switch (a.sign) {
            case Sign::add: calculate<Sign::add>(x, other + start, period == 1, result, count); break;
            case Sign::sub: calculate<Sign::sub>(x, other + start, period == 1, result, count); break;
            case Sign::mul: calculate<Sign::mul>(x, other + start, period == 1, result, count); break;
            case Sign::div: calculate<Sign::div>(x, other + start, period == 1, result, count); break;
        }
    }
}

// Each vector of an output row sums up a column of vectors.
inline void mean(const Mean& m, const Call& call) {
    const int64_t inner = call.at(m.inner), vectors = (inner + LANES - 1) / LANES;
    const Float zero = splat(0.0f), size = splat(static_cast<float>(m.size));
    const Range work = call.share(call.at(m.outer) * vectors);
    for (int64_t i = work.first; i < work.last; ++i) {
        const int64_t outer = i / vectors, lane = i % vectors * LANES, count = least(LANES, inner - lane);
        const float* x = call.at<const float>(m.input) + outer * m.size * inner + lane;
        Float total = zero;
        for (int64_t k = 0; k < m.size; ++k, x += inner) total = total + load_part(x, count, zero);
        store(call.at<float>(m.output) + outer * inner + lane, one_nan(total / size), count);
    }
}

inline void select(const Select& s, const Call& call) {
    const int64_t bytes = call.at(s.bytes);
    const Range outer = call.share(call.at(s.outer));
    for (int64_t i = outer.first; i < outer.last; ++i) {
        const uint8_t* const x = call.at(s.input) + (i * s.size + s.index) * bytes;
        std::memcpy(call.at(s.output) + i * bytes, x, static_cast<size_t>(bytes));
    }
}

// Returns whether all indices of this thread's share are rows of the table.
inline bool embedding(const Embedding& e, const Call& call) {
    const Range part = call.share(call.at(e.count));
    const int64_t* const indices = call.at<const int64_t>(e.input);
    float* y = call.at<float>(e.output) + part.first * e.length;
    for (int64_t i = part.first; i < part.last; ++i, y += e.length) {
        const int64_t index = indices[i];  // once: the caller's memory may change meanwhile
        if (index < 0 || index >= e.rows) return false;
        std::memcpy(y, e.table + index * e.length, static_cast<size_t>(e.length) * sizeof(float));
    }
    return true;
}

}  // namespace mbqc::MBQC_ISA
