// Products of matrices of floats. Each product and each sum rounds on its own, in order of the depth.
#pragma once

#include "vectors.h"

namespace mbqc::MBQC_ISA {

constexpr int PRODUCT_ROWS = 4;
constexpr int PRODUCT_COLUMNS = LANES == 16 ? 4 : 2;  // vectors: with them all sums of a tile are in registers

// A tile of ROWS rows and COLUMNS vectors, the last one of `count` lanes.
template <int ROWS, int COLUMNS>
INLINE inline void multiply_tile(const MatMul& m, const float* a, const float* b, float* y, int64_t count) {
    using Row = Vectors<COLUMNS>;
    const auto lanes = [&](int column) INLINE { return column == COLUMNS - 1 ? count : LANES; };
    Float sums[ROWS][COLUMNS];
    for (auto& row : sums) {
        for (Float& sum : row) sum = splat(0.0f);
    }
    for (int64_t k = 0; k < m.depth; ++k, b += m.columns) {
        const Row other = Row::of([&](auto c) INLINE { return load_part(b + c * LANES, lanes(c), splat(0.0f)); });
        unrolled(std::make_integer_sequence<int, ROWS>{}, [&](auto r) INLINE {
            const Float factor = splat(a[r * m.depth + k]);
            Row::for_each([&](auto c) INLINE { sums[r][c] = sums[r][c] + factor * other.each[c]; });
        });
    }
    unrolled(std::make_integer_sequence<int, ROWS>{}, [&](auto r) INLINE {
        Row::for_each([&](auto c) INLINE { store(y + r * m.columns + c * LANES, one_nan(sums[r][c]), lanes(c)); });
    });
}

template <int ROWS>
void multiply_rows(const MatMul& m, const float* a, const float* b, float* y) {
    constexpr int64_t WIDE = PRODUCT_COLUMNS * LANES;
    int64_t column = 0;
    for (; column + WIDE <= m.columns; column += WIDE) {
        multiply_tile<ROWS, PRODUCT_COLUMNS>(m, a, b + column, y + column, LANES);
    }
    for (; column < m.columns; column += LANES) {
        multiply_tile<ROWS, 1>(m, a, b + column, y + column, least(LANES, m.columns - column));
    }
}

inline void matmul(const MatMul& m, const Call& call) {
    const int64_t tiles = (m.rows + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
    const Range work = call.share(call.at(m.matrices) * tiles);
    for (int64_t i = work.first; i < work.last; ++i) {
        const int64_t matrix = i / tiles, first = i % tiles * PRODUCT_ROWS, last = least(m.rows, first + PRODUCT_ROWS);
        const float* const b = call.at<const float>(m.other) + matrix * m.depth * m.columns;
        const float* const a = call.at<const float>(m.input) + matrix * m.rows * m.depth;
        float* const y = call.at<float>(m.output) + matrix * m.rows * m.columns;
        if (last - first == PRODUCT_ROWS) {
            multiply_rows<PRODUCT_ROWS>(m, a + first * m.depth, b, y + first * m.columns);
        } else {
            for (int64_t row = first; row < last; ++row) multiply_rows<1>(m, a + row * m.depth, b, y + row * m.columns);
        }
    }
}

}  // namespace mbqc::MBQC_ISA
