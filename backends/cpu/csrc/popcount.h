// Convolution of codes of few bits with weights of few bits: sums of products are counts of common ones, plane by plane.
//
// A weight of b bits has the value -2^(b-1) w[b-1] + 2^(b-2) w[b-2] + ... + w[0], a code the value 2 x[1] + x[0] and so
// on; the pair of planes w[i], x[j] adds 2^(i+j) times the bits that they have in common.
#pragma once

#include "bitplanes.h"
#include "conv.h"

namespace mbqc::MBQC_ISA {

constexpr int64_t WORD_GROUP = PANEL_BLOCKS * BLOCK * WORD / 8;  // bytes of one word of inputs for a panel

// How many planes there are, and the distances in bytes between them.
struct Planes {
    int64_t inputs;
    int64_t input_bytes;
    int64_t weights;
    int64_t weight_bytes;
};

// Adds the common ones of one pair of planes to `sums`, or takes them from it. All indices of `sums` are constants: in
// loops, g++ keeps it in memory.
template <bool NEGATIVE, int PIXELS, int VECTORS>
INLINE inline void count_tile(const Walk& walk, const uint8_t* x, const int8_t* panel, Int (&sums)[PIXELS][VECTORS]) {
    constexpr auto each_pixel = std::make_integer_sequence<int, PIXELS>{};
    constexpr auto each_vector = std::make_integer_sequence<int, VECTORS>{};
    const int64_t stride = walk.pixel_stride;
    for (int64_t row = 0; row < walk.rows; ++row, x += walk.row_step) {
        const uint8_t* start = x;
        for (int64_t run = 0; run < walk.runs; ++run, start += walk.run_step) {
            const uint8_t* from = start;
            for (int64_t word = 0; word < walk.quads; ++word, from += WORD / 8, panel += WORD_GROUP) {
                Int w[VECTORS];
                unrolled(each_vector, [&](auto v) INLINE { w[v] = load_words(panel + v * LANES * WORD / 8); });
                unrolled(each_pixel, [&](auto p) INLINE {
                    const Int inputs = broadcast_word(from + p * stride);
                    unrolled(each_vector, [&](auto v) INLINE {
                        const Int count = count_common(inputs, w[v]);
                        sums[p][v] = NEGATIVE ? subtract_words(sums[p][v], count) : add(sums[p][v], count);
                    });
                });
            }
        }
    }
}

// One tile, from the lowest plane's inputs at `x` to where `f` says: pairs of planes from the heaviest to the lightest.
template <int PIXELS, int BLOCKS>
void count(const Walk& walk, const Planes& planes, const uint8_t* x, const int8_t* panel, const Finish& f) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    constexpr auto each = std::make_integer_sequence<int, PIXELS * VECTORS>{};
    Int sums[PIXELS][VECTORS];
    unrolled(each, [&](auto i) INLINE { sums[i / VECTORS][i % VECTORS] = zero(); });
    for (int64_t weight = planes.weights + planes.inputs - 2;; --weight) {  // of the pair: the power of two
        const int64_t top = least(weight, planes.weights - 1);
        for (int64_t i = top; i >= 0 && weight - i < planes.inputs; --i) {
            const uint8_t* inputs = x + (weight - i) * planes.input_bytes;
            const int8_t* weights = panel + i * planes.weight_bytes;
            if (i == planes.weights - 1) {
                count_tile<true>(walk, inputs, weights, sums);
            } else {
                count_tile<false>(walk, inputs, weights, sums);
            }
        }
        if (weight == 0) break;
        unrolled(each, [&](auto i) INLINE {
            Int& sum = sums[i / VECTORS][i % VECTORS];
            sum = add(sum, sum);
        });
    }
    finish_tile<PIXELS, VECTORS>(sums, f);
}

using Count = void (*)(const Walk&, const Planes&, const uint8_t*, const int8_t*, const Finish&);

// `count` for 1 to MAX_PIXELS pixels.
template <int BLOCKS, size_t... INDICES>
Count counter(int64_t pixels, std::index_sequence<INDICES...>) {
    static constexpr Count functions[] = {count<INDICES + 1, BLOCKS>...};
    return functions[pixels - 1];
}

inline Walk bit_walk(const Conv& c, const Shape& s) {
    Walk w{};
    w.pixel_bytes = c.channels / 8;
    w.rows = c.kernel[0];
    w.row_step = c.dilation[0] * s.width * w.pixel_bytes;
    w.runs = c.kernel[1] / c.run_taps;
    w.run_step = c.dilation[1] * w.pixel_bytes;
    w.quads = (c.run_taps * c.channels + WORD - 1) / WORD;
    w.pixel_stride = c.stride[1] * w.pixel_bytes;
    w.row_bytes = w.runs * w.quads * WORD_GROUP;
    w.panel_bytes = c.weights.bits * w.rows * w.row_bytes;
    return w;
}

// A convolution of one group, of channels that fill whole bytes.
inline void popcount(const Conv& c, const Call& call) {
    constexpr auto sizes = std::make_index_sequence<MAX_PIXELS>{};
    const Shape s(c, call);
    const BitPlanes bits(c, s, call);
    bits.fill(call);
    const auto sum_pixels = [&](int64_t first, int64_t count, int32_t* sums) { bits.sum(first, count, sums); };
    const float* windows = c.epilogue.window_multiplier ? window_sums(c, s, call, sum_pixels) : nullptr;
    const Walk walk = bit_walk(c, s);
    const Planes planes{c.input_bits, bits.bytes, c.weights.bits, walk.panel_bytes / c.weights.bits};
    const Tiling tiling(c, s, false);
    const Dense dense{c, s, call, walk, tiling, bits.start, windows};
    const int64_t tiles = s.images * tiling.tiles;
    Range work = call.share((c.out_channels + PANEL - 1) / PANEL * tiles);
    while (work.first < work.last) {
        const int64_t channel = work.first / tiles * PANEL, first = work.first % tiles;
        const int64_t lanes = least(PANEL, c.out_channels - channel);
        const int64_t half = channel / BLOCK % PANEL_BLOCKS * BLOCK * WORD / 8;  // where kernels take but one block
        const int8_t* panel = c.weights.codes + channel / (PANEL_BLOCKS * BLOCK) * walk.panel_bytes + half;
        const Range part{first, least(tiles, first + work.last - work.first)};
        dense.each(channel, lanes, part, [&](const Inside& inside, int64_t pixels, const uint8_t* x, const Finish& f) {
            const Count count = lanes > BLOCK ? counter<MAX_BLOCKS>(pixels, sizes) : counter<1>(pixels, sizes);
            count(inside.walk, planes, x, panel + inside.first * walk.row_bytes, f);
        });
        work.first += part.last - part.first;
    }
}

}  // namespace mbqc::MBQC_ISA
