// Depthwise convolution: a lane is a channel, a dot product takes four rows of one column of the kernel.
#pragma once

#include "weights.h"

namespace mbqc::MBQC_ISA {

// One row of output pixels. Columns of four input rows are interleaved once and serve every output that they touch;
// what lies outside the input is the border's code.
struct DepthwiseRow {
    const Depthwise& c;
    int64_t width;          // of the padded input
    const uint8_t* border;  // BLOCK codes
    const uint8_t* image;
    int64_t y;
    int64_t bands;     // groups of four kernel rows
    uint8_t* columns;  // [bands][padded width][BLOCK][QUAD]

    void interleave_columns(int64_t channel) const {
        const int64_t left = c.padding[2];
        for (int64_t band = 0; band < bands; ++band) {
            const uint8_t* rows[QUAD];
            int64_t steps[QUAD];
            for (int64_t i = 0; i < QUAD; ++i) {
                const int64_t tap = least(band * QUAD + i, c.kernel[0] - 1);  // what fills up has zero weights
                const int64_t row = y * c.stride[0] + tap * c.dilation[0] - c.padding[0];
                const bool outside = row < 0 || row >= c.height;
                rows[i] = outside ? border : image + row * c.width * c.channels + channel;
                steps[i] = outside ? 0 : c.channels;
            }
            uint8_t* to = columns + band * width * PANEL_GROUP;
            for (int64_t x = 0; x < width; ++x, to += PANEL_GROUP) {
                if (x < left || x >= left + c.width) {
                    std::memset(to, static_cast<int>(c.border_code), PANEL_GROUP);
                    continue;
                }
                store_interleaved(rows[0], rows[1], rows[2], rows[3], to);
                for (int64_t i = 0; i < QUAD; ++i) rows[i] += steps[i];
            }
        }
    }

    // Sums, and with `WINDOWS` sums of codes, of output pixels from `x` on; weights [bands][kernel width][BLOCK][QUAD].
    template <bool WINDOWS, int PIXELS>
    void multiply(const int8_t* panel, int64_t x, int32_t* sums, int32_t* windows) const {
        constexpr auto each = std::make_integer_sequence<int, PIXELS * BLOCK_VECTORS>{};
        const int64_t step = c.stride[1] * PANEL_GROUP;
        Int acc[PIXELS * BLOCK_VECTORS], window[PIXELS * BLOCK_VECTORS];
        unrolled(each, [&](auto i) INLINE { acc[i] = window[i] = zero(); });
        for (int64_t band = 0; band < bands; ++band) {
            for (int64_t tap = 0; tap < c.kernel[1]; ++tap, panel += PANEL_GROUP) {
                const uint8_t* from = columns + (band * width + x * c.stride[1] + tap * c.dilation[1]) * PANEL_GROUP;
                const int8_t* ones = c.ones + band * PANEL_GROUP;
                unrolled(each, [&](auto i) INLINE {
                    const int64_t lane = i % BLOCK_VECTORS * LANES * QUAD;
                    const Bytes codes = load_bytes(from + i / BLOCK_VECTORS * step + lane);
                    acc[i] = dot(acc[i], codes, weights(load_codes(panel + lane)));
                    if constexpr (WINDOWS) window[i] = dot(window[i], codes, weights(load_codes(ones + lane)));
                });
            }
        }
        unrolled(each, [&](auto i) INLINE {
            store(sums + i * LANES, shift_right(acc[i], c.weights.shift));
            if constexpr (WINDOWS) store(windows + i * LANES, window[i]);
        });
    }

    // `count` output pixels from `first` on.
    template <bool WINDOWS>
    void multiply_all(const int8_t* panel, int64_t first, int64_t count, int32_t* sums, int32_t* windows) const {
        constexpr int TILE = 4;
        int64_t i = 0;
        for (; i + TILE <= count; i += TILE) {
            multiply<WINDOWS, TILE>(panel, first + i, sums + i * BLOCK, windows + i * BLOCK);
        }
        for (; i < count; ++i) multiply<WINDOWS, 1>(panel, first + i, sums + i * BLOCK, windows + i * BLOCK);
    }
};

// Output rows outside, channels inside: the input rows of one output row stay in the first cache.
inline void depthwise(const Depthwise& c, const Call& call) {
    if (depthwise_3x3(c, call)) return;
    constexpr int64_t PIXELS = 64;
    alignas(64) int32_t sums[PIXELS * BLOCK], windows[PIXELS * BLOCK];
    uint8_t border[BLOCK];
    std::memset(border, static_cast<int>(c.border_code), sizeof(border));
    const int64_t bands = (c.kernel[0] + QUAD - 1) / QUAD, panel_bytes = bands * c.kernel[1] * PANEL_GROUP;
    const int64_t blocks = (c.channels + BLOCK - 1) / BLOCK;
    const int8_t* panels = derived(c.weights, blocks, panel_bytes, call);
    const bool windowed = c.epilogue.window_multiplier != nullptr;
    const Target target = target_of(c.epilogue, c.output, call, windowed ? Windows::by_lane : Windows::none);
    const int64_t image_bytes = c.height * c.width * c.channels;
    const int64_t padded_width = c.width + c.padding[2] + c.padding[3];
    const Range rows = call.share(call.at(c.images) * c.out_height);
    for (int64_t i = rows.first; i < rows.last; ++i) {
        const uint8_t* image = call.at(c.input) + i / c.out_height * image_bytes;
        const DepthwiseRow row{c, padded_width, border, image, i % c.out_height, bands, call.own(c.columns)};
        for (int64_t channel = 0; channel < c.channels; channel += BLOCK) {
            const int8_t* panel = panels + channel / BLOCK * panel_bytes;
            row.interleave_columns(channel);
            for (int64_t first = 0; first < c.out_width; first += PIXELS) {
                const int64_t pixels = least(PIXELS, c.out_width - first);
                if (windowed) {
                    row.multiply_all<true>(panel, first, pixels, sums, windows);
                } else {
                    row.multiply_all<false>(panel, first, pixels, sums, windows);
                }
                const int64_t lanes = least(BLOCK, c.channels - channel);
                const int64_t element = (i * c.out_width + first) * c.channels + channel;
                target({sums, pixels, lanes, BLOCK, channel, element, c.channels, windows, BLOCK});
            }
        }
    }
}

}  // namespace mbqc::MBQC_ISA
