// Depthwise 3 x 3 for AVX-512: a column of three rows becomes quads once and serves three outputs, whose sums roll on.
//
// A vector holds 64 channels of one output row, or what is left of the channels for 2 or 4 output rows. Interleaving
// rows scatters channels over four vectors (quad j of each 16-byte lane), which the packs of the epilogue undo; weights
// and tables are scattered in the same way beforehand.
#pragma once

#include "weights.h"

namespace mbqc::MBQC_ISA {

constexpr auto four = std::make_integer_sequence<int, 4>{};

// Vector j gets 16-byte lane j of each of four blocks.
inline void scatter(const void* const (&blocks)[4], __m512i (&to)[4]) {
    const auto block = [&](int i) INLINE { return _mm512_loadu_si512(blocks[i]); };
    const __m512i a = _mm512_shuffle_i32x4(block(0), block(1), 0x44);
    const __m512i b = _mm512_shuffle_i32x4(block(0), block(1), 0xee);
    const __m512i c = _mm512_shuffle_i32x4(block(2), block(3), 0x44);
    const __m512i d = _mm512_shuffle_i32x4(block(2), block(3), 0xee);
    to[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    to[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    to[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    to[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// Weights and tables of up to 64 / ROWS channels, scattered; lane i of ROWS rows is of output row i / (4 / ROWS).
template <int ROWS, bool WINDOWS>
struct ScatteredLayer {
    Weights weights[3][4];
    Weights ones;
    Float multiplier[4];
    Float addend[4];
    Float window_multiplier[4];
    Packed low, high;

    ScatteredLayer(const Depthwise& c, const int8_t* panels, int64_t channel) {
        const auto load_scattered = [&](const auto* base, int64_t block_step, auto& to) {
            const int64_t last = (c.channels - 1) / BLOCK;
            const void* blocks[4];
            for (int i = 0; i < 4; ++i) blocks[i] = base + least(channel / BLOCK + i % (4 / ROWS), last) * block_step;
            __m512i vectors[4];
            scatter(blocks, vectors);
            std::memcpy(&to, vectors, sizeof(to));
        };
        for (int column = 0; column < 3; ++column) {
            load_scattered(panels + column * PANEL_GROUP, 3 * PANEL_GROUP, weights[column]);
        }
        ones = load_codes(c.ones);
        load_scattered(c.epilogue.multiplier, BLOCK, multiplier);
        load_scattered(c.epilogue.addend, BLOCK, addend);
        if constexpr (WINDOWS) load_scattered(c.epilogue.window_multiplier, BLOCK, window_multiplier);
        low = _mm512_set1_epi8(static_cast<char>(static_cast<int>(c.epilogue.low)));
        high = _mm512_set1_epi8(static_cast<char>(static_cast<int>(c.epilogue.high)));
    }
};

// ROWS rows of inputs and outputs, at the first channel.
template <int ROWS>
struct Rows {
    const uint8_t* inputs[3][ROWS];  // for each row of the kernel
    uint8_t* outputs[ROWS];
    int64_t width, left, out_width, pixel;  // pixels, and their bytes
    int64_t lanes;
    Bytes border;

    INLINE Rows(const Depthwise& c, const Call& call, int64_t n, int64_t y, int64_t channel)
        : width(c.width), left(c.padding[2]), out_width(c.out_width), pixel(c.channels),
          lanes(least(64 / ROWS, c.channels - channel)), border(_mm512_set1_epi8(static_cast<char>(c.border_code))) {
        for (int row = 0; row < ROWS; ++row) {
            for (int tap = 0; tap < 3; ++tap) {
                const int64_t from = (y + row) * c.stride[0] + tap - c.padding[0];
                const bool outside = from < 0 || from >= c.height;
                const uint8_t* image = call.at(c.input) + n * c.height * width * pixel;
                inputs[tap][row] = (outside ? call.own(c.columns) : image + from * width * pixel) + channel;
            }
            outputs[row] = call.at(c.output) + (n * c.out_height + y + row) * out_width * pixel + channel;
        }
    }

    INLINE __m512i load(int tap, int64_t offset) const {
        const auto part = [&](int row) INLINE { return inputs[tap][row] + offset; };
        if constexpr (ROWS == 1) return _mm512_loadu_si512(part(0));
        const auto half = [&](int row) INLINE {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part(row)));
        };
        if constexpr (ROWS == 2) return _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
        __m512i all = _mm512_castsi128_si512(row(part(0)));
        all = _mm512_inserti32x4(all, row(part(1 % ROWS)), 1);
        all = _mm512_inserti32x4(all, row(part(2 % ROWS)), 2);
        return _mm512_inserti32x4(all, row(part(3 % ROWS)), 3);
    }

    // Masked stores are slow.
    INLINE void store(__m512i codes, int64_t x) const {
        const int64_t offset = x * pixel;
        const bool full = lanes == 64 / ROWS;
        if constexpr (ROWS == 1) {
            if (full) {
                _mm512_storeu_si512(outputs[0] + offset, codes);
            } else {
                _mm512_mask_storeu_epi8(outputs[0] + offset, ~0ull >> (64 - lanes), codes);
            }
        } else {
            unrolled(std::make_integer_sequence<int, ROWS>{}, [&](auto row) INLINE {
                store_packed<row * (4 / ROWS), 4 / ROWS>(outputs[row] + offset, codes, lanes);
            });
        }
    }

    // The quads of column `x`, which may lie in the border.
    INLINE void load_column(int64_t x, Bytes (&quads)[4]) const {
        if (x < 0 || x >= width) {
            unrolled(four, [&](auto j) INLINE { quads[j] = border; });
            return;
        }
        const __m512i top = load(0, x * pixel), middle = load(1, x * pixel);
        const __m512i bottom = load(2, x * pixel);  // twice: the fourth weight is zero
        const __m512i low = _mm512_unpacklo_epi8(top, middle), low_rest = _mm512_unpacklo_epi8(bottom, bottom);
        const __m512i high = _mm512_unpackhi_epi8(top, middle), high_rest = _mm512_unpackhi_epi8(bottom, bottom);
        quads[0] = _mm512_unpacklo_epi16(low, low_rest);
        quads[1] = _mm512_unpackhi_epi16(low, low_rest);
        quads[2] = _mm512_unpacklo_epi16(high, high_rest);
        quads[3] = _mm512_unpackhi_epi16(high, high_rest);
    }
};

// Sums of one output in the making.
struct Partial {
    Int sums[4];
    Int windows[4];
};

// Output rows from `y` on.
template <int ROWS, bool WINDOWS, int STRIDE>
void run_columns(const ScatteredLayer<ROWS, WINDOWS>& layer, const Depthwise& c, const Call& call, int64_t n, int64_t y,
                 int64_t channel) {
    const Rows<ROWS> rows(c, call, n, y, channel);
    Partial two{}, one{}, done{};  // outputs that need two columns more, one, none
    Bytes quads[4];
    Int column[4];
    const auto next = [&](int64_t x) INLINE {
        rows.load_column(x - rows.left, quads);
        if constexpr (WINDOWS) unrolled(four, [&](auto j) INLINE { column[j] = dot(zero(), quads[j], layer.ones); });
    };
    // `to` becomes `from`, or zero, and the column times the weights of kernel column `tap`
    const auto roll = [&](auto tap, Partial& to, const Partial& from) INLINE {
        unrolled(four, [&](auto j) INLINE {
            to.sums[j] = dot(tap == 0 ? zero() : from.sums[j], quads[j], layer.weights[tap][j]);
            if constexpr (WINDOWS) to.windows[j] = tap == 0 ? column[j] : add(from.windows[j], column[j]);
        });
    };
    const auto total = [&](auto j) INLINE {
        Float t = to_float(done.sums[j]) * layer.multiplier[j];
        if constexpr (WINDOWS) t = t + to_float(done.windows[j]) * layer.window_multiplier[j];
        return t + layer.addend[j];
    };
    next(0);
    roll(number<0>, two, two);
    if constexpr (STRIDE == 1) {
        next(1);
        roll(number<1>, one, two);
        roll(number<0>, two, two);
    }
    for (int64_t x = 0; x < rows.out_width; ++x) {
        if constexpr (STRIDE == 2) {
            next(2 * x + 1);
            roll(number<1>, one, two);
        }
        next(STRIDE * x + 2);
        roll(number<2>, done, one);
        if constexpr (STRIDE == 1) roll(number<1>, one, two);
        roll(number<0>, two, two);
        const Packed codes = pack_scattered(total(number<0>), total(number<1>), total(number<2>), total(number<3>));
        rows.store(_mm512_min_epu8(_mm512_max_epu8(codes, layer.low), layer.high), x);
    }
}

// Some of the groups of ROWS rows, of up to 64 / ROWS channels. Rows that are left over come with the last group of an
// image and some of its rows again: no two threads write the same.
template <int ROWS, bool WINDOWS>
void depthwise_columns(const Depthwise& c, const Call& call, const int8_t* panels, int64_t channel, Range groups) {
    const ScatteredLayer<ROWS, WINDOWS> layer(c, panels, channel);
    const auto run = c.stride[1] == 1 ? run_columns<ROWS, WINDOWS, 1> : run_columns<ROWS, WINDOWS, 2>;
    const int64_t image_groups = c.out_height / ROWS;
    for (int64_t i = groups.first; i < groups.last; ++i) {
        const int64_t n = i / image_groups, group = i % image_groups;
        run(layer, c, call, n, group * ROWS, channel);
        if (group == image_groups - 1 && c.out_height % ROWS) run(layer, c, call, n, c.out_height - ROWS, channel);
    }
}

// Runs a 3 x 3 kernel of codes to codes; returns whether this is one.
inline bool depthwise_3x3(const Depthwise& c, const Call& call) {
    const Epilogue& e = c.epilogue;
    const bool kernel = c.kernel[0] == 3 && c.kernel[1] == 3 && c.dilation[0] == 1 && c.dilation[1] == 1;
    if (!kernel || c.stride[1] > 2 || e.has_residual || e.to_float || !e.in_range || c.weights.shift) return false;
    const int64_t blocks = (c.channels + BLOCK - 1) / BLOCK;
    const int8_t* panels = derived(c.weights, blocks, 3 * PANEL_GROUP, call);
    const auto border_bytes = static_cast<size_t>(c.width * c.channels);
    if (c.padding[0] || c.padding[1]) std::memset(call.own(c.columns), static_cast<int>(c.border_code), border_bytes);
    // threads take rows of outputs: each needs its neighbours' inputs only at the edge
    const auto run = [&](auto rows, int64_t channel) {
        const Range groups = call.share(call.at(c.images) * (c.out_height / rows));
        if (e.window_multiplier) {
            depthwise_columns<rows, true>(c, call, panels, channel, groups);
        } else {
            depthwise_columns<rows, false>(c, call, panels, channel, groups);
        }
    };
    for (int64_t channel = 0; channel < c.channels; channel += 64) {
        const int64_t left = c.channels - channel;
        if (left <= 16 && c.out_height >= 4) {
            run(number<4>, channel);
        } else if (left <= 32 && c.out_height >= 2) {
            run(number<2>, channel);
        } else {
            run(number<1>, channel);
        }
    }
    return true;
}

}  // namespace mbqc::MBQC_ISA
