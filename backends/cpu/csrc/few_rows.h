// Linear layers of few rows: bound by the weights' way from memory, so each is read once, in the order of memory, and
// enough independent sums hide the latency of a dot product.
//
// Weights are the stored codes, or packed: one byte holds the top `field` bits of 8 / field codes, of the same output
// and input of as many quads that follow each other, the first in the lowest bits. A field in place is a code times
// 2^(8 - bits), times another power of two; the topmost is signed, the others have an offset that makes them unsigned.
#pragma once

#include "dense.h"
#include "windows.h"

namespace mbqc::MBQC_ISA {

constexpr int FEW_SUMS = 8;         // enough for two dot products a cycle of latency 4
constexpr int OFFSET = 128;         // of the unsigned fields, as a code of 8 bits
constexpr int64_t STORED_ROWS = 3;  // with more, the dense kernel has enough sums, and reads inputs half as often

// How far ahead weights are fetched. Left to the hardware, 4 bits from memory (16384 x 16384) come at 38 instead of 46
// GB/s for one row, at 16 instead of 37 for four. Closer loses from memory; twice as far, 10 % from the last cache.
constexpr int64_t AHEAD = 8192;

template <int FIELDS>
struct FieldMasks {
    alignas(64) int8_t bytes[FIELDS][LANES * QUAD];

    FieldMasks() {
        constexpr int bits = 8 / FIELDS;
        for (int f = 0; f < FIELDS; ++f) std::memset(bytes[f], ((1 << bits) - 1) << (f * bits), sizeof(bytes[f]));
    }
};

// What the unsigned fields' offsets add to the sums of a row, to be subtracted.
template <int FIELDS>
int32_t offset_of_row(const uint8_t* x, int64_t depth) {
    constexpr int64_t CHUNK = BLOCK * QUAD;
    alignas(64) int8_t offsets[CHUNK];
    for (int i = 0; i < CHUNK; ++i) offsets[i] = i / QUAD % FIELDS == FIELDS - 1 ? 0 : static_cast<int8_t>(-OFFSET);
    Int sum = zero();
    const auto add_chunk = [&](const uint8_t* from) INLINE {
        for (int i = 0; i < CHUNK; i += LANES * QUAD) {
            sum = dot(sum, load_bytes(from + i), weights(load_codes(offsets + i)));
        }
    };
    int64_t i = 0;
    for (; i + CHUNK <= depth; i += CHUNK) add_chunk(x + i);
    uint8_t rest[CHUNK] = {};
    std::memcpy(rest, x + i, static_cast<size_t>(depth - i));
    add_chunk(rest);
    int32_t lanes[LANES], total = 0;
    store(lanes, sum);
    for (const int32_t lane : lanes) total += lane;
    return total;
}

// Rows of inputs times a block of outputs. `groups` are of FIELDS quads.
template <int ROWS, int FIELDS, bool NARROW>
void multiply_rows(const uint8_t* x, int64_t depth, const int8_t* block, int64_t groups, const Narrowing& narrowing,
                   const int32_t* offsets, const Finish& f) {
    constexpr int SUMS = ROWS * FIELDS * BLOCK_VECTORS, AT_ONCE = SUMS < FEW_SUMS ? FEW_SUMS / SUMS : 1;
    constexpr auto rows = std::make_integer_sequence<int, ROWS>{};
    constexpr auto fields = std::make_integer_sequence<int, FIELDS>{};
    constexpr auto vectors = std::make_integer_sequence<int, BLOCK_VECTORS>{};
    const FieldMasks<FIELDS> masks;
    Int sums[AT_ONCE][ROWS][FIELDS][BLOCK_VECTORS];
    const auto each_row = [&](auto body) INLINE {
        unrolled(vectors, [&](auto v) INLINE {
            unrolled(fields, [&](auto i) INLINE { unrolled(rows, [&](auto r) INLINE { body(r, i, v); }); });
        });
    };
    const auto add_group = [&](auto a) INLINE {
        unrolled(vectors, [&](auto v) INLINE {
            const int8_t* from = block + a * PANEL_GROUP + v * LANES * QUAD;
            if (v == 0) __builtin_prefetch(from + AHEAD);
            Codes codes = NARROW ? narrow(from, narrowing) : load_codes(from);
            if (FIELDS * ROWS > 1) hold(codes);
            unrolled(fields, [&](auto i) INLINE {
                const Weights w = weights(FIELDS == 1 ? codes : and_bytes(codes, load_codes(masks.bytes[i])));
                unrolled(rows, [&](auto r) INLINE {
                    const Bytes inputs = broadcast(x + r * depth + (a * FIELDS + i) * QUAD);
                    sums[a][r][i][v] = dot(sums[a][r][i][v], inputs, w);
                });
            });
        });
    };
    constexpr auto at_once = std::make_integer_sequence<int, AT_ONCE>{};
    unrolled(at_once, [&](auto a) INLINE {
        each_row([&](auto r, auto i, auto v) INLINE { sums[a][r][i][v] = zero(); });
    });
    for (; groups >= AT_ONCE; groups -= AT_ONCE, block += AT_ONCE * PANEL_GROUP, x += AT_ONCE * FIELDS * QUAD) {
        unrolled(at_once, add_group);
    }
    for (; groups > 0; --groups, block += PANEL_GROUP, x += FIELDS * QUAD) add_group(number<0>);

    Int totals[ROWS][BLOCK_VECTORS];
    unrolled(rows, [&](auto r) INLINE {
        unrolled(vectors, [&](auto v) INLINE { totals[r][v] = FIELDS == 1 ? zero() : splat(offsets[r]); });
    });
    each_row([&](auto r, auto i, auto v) INLINE {
        Int sum = sums[0][r][i][v];
        unrolled(at_once, [&](auto a) INLINE {
            if constexpr (a > 0) sum = add(sum, sums[a][r][i][v]);
        });
        totals[r][v] = add(totals[r][v], shift_left(sum, 8 - 8 / FIELDS * (i + 1)));
    });
    if (f.shift) {
        unrolled(rows, [&](auto r) INLINE {
            unrolled(vectors, [&](auto v) INLINE { totals[r][v] = shift_right(totals[r][v], f.shift); });
        });
    }
    finish_tile<ROWS, BLOCK_VECTORS>(totals, f);
}

using MultiplyRows = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, const Narrowing&, const int32_t*,
                              const Finish&);

// `multiply_rows` for 1 row and more.
template <int FIELDS, bool NARROW, size_t... INDICES>
MultiplyRows row_multiplier(int64_t rows, std::index_sequence<INDICES...>) {
    static constexpr MultiplyRows functions[] = {multiply_rows<INDICES + 1, FIELDS, NARROW>...};
    return functions[rows - 1];
}

// A layer's rows, a few at a time through each block of weights.
template <int FIELDS, bool NARROW, int AT_ONCE>
void multiply_blocks(const Conv& c, const uint8_t* x, const float* windows, int64_t rows, const int8_t* weights,
                     const Call& call) {
    const Narrowing narrowing(c.weights);
    const int64_t depth = c.channels, quads = (depth + QUAD - 1) / QUAD, groups = (quads + FIELDS - 1) / FIELDS;
    int32_t offsets[MAX_PACKED_ROWS];
    if (FIELDS > 1) {
        for (int64_t r = 0; r < rows; ++r) offsets[r] = offset_of_row<FIELDS>(x + r * depth, depth);
    }
    const Range blocks = call.share((c.out_channels + BLOCK - 1) / BLOCK);
    for (int64_t b = blocks.first; b < blocks.last; ++b) {
        const int64_t channel = b * BLOCK;
        Finish f(c, call, windows, 0, channel, least(BLOCK, c.out_channels - channel));
        for (int64_t r = 0; r < rows; r += AT_ONCE) {
            const int64_t count = least(AT_ONCE, rows - r);
            const auto multiply = row_multiplier<FIELDS, NARROW>(count, std::make_index_sequence<AT_ONCE>{});
            multiply(x + r * depth, depth, weights + b * groups * PANEL_GROUP, groups, narrowing, offsets + r, f);
            f.advance(count);
        }
    }
}

// Runs a layer if it is one of few rows.
inline bool few_rows(const Conv& c, const Shape& s, const uint8_t* x, const float* windows, const Call& call) {
    const bool linear = s.images * c.out_height * c.groups * c.kernel[0] * c.kernel[1] * c.stride[0] * c.stride[1] == 1;
    const StoredWeights& w = c.weights;
    const int64_t rows = s.out_width;
    const bool packed = w.packed && rows <= MAX_PACKED_ROWS;
    if (!linear || w.added || (rows > STORED_ROWS && !packed)) return false;
    if (!packed) {
        constexpr int AT_ONCE = STORED_ROWS;
        const auto multiply = w.bits == 8 ? multiply_blocks<1, false, AT_ONCE> : multiply_blocks<1, true, AT_ONCE>;
        multiply(c, x, windows, rows, w.codes, call);
    } else if (w.field == 4) {
        multiply_blocks<2, false, 4>(c, x, windows, rows, w.packed, call);
    } else if (w.field == 2) {
        multiply_blocks<4, false, 4>(c, x, windows, rows, w.packed, call);
    } else {
        multiply_blocks<8, false, 2>(c, x, windows, rows, w.packed, call);
    }
    return true;
}

}  // namespace mbqc::MBQC_ISA
