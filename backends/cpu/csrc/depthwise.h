// Depthwise convolution: a lane is a channel, a dot product takes four kernel positions.
#pragma once

#include "conv.h"

namespace mbqc::MBQC_ISA {

// Lanes of one block of channels at neighbouring output pixels, and their windows if asked for.
struct DepthwiseRow {
    const Conv& c;
    const int8_t* panel;      // [quads of taps][BLOCK][QUAD]
    const int8_t* last_ones;  // ones for the taps of the last quad
    const int8_t* ones;       // for all other quads

    template <bool WINDOWS>
    void pixel(const uint8_t* x, int32_t* sums, int32_t* windows) const {
        Int acc[BLOCK_VECTORS], window[BLOCK_VECTORS];
        for (int v = 0; v < BLOCK_VECTORS; ++v) acc[v] = window[v] = zero();
        const int64_t last = c.tap_count - 1;
        for (int64_t t = 0; t <= last; t += QUAD) {
            const auto tap = [&](int64_t i) { return x + c.taps[least(t + i, last)] * c.channels; };
            Bytes lanes[BLOCK_VECTORS];
            interleave(tap(0), tap(1), tap(2), tap(3), lanes);
            const int8_t* counted = t + QUAD > last ? last_ones : ones;
            for (int v = 0; v < BLOCK_VECTORS; ++v) {
                const int64_t at = v * LANES * QUAD;
                acc[v] = dot(acc[v], lanes[v], weights(panel + t / QUAD * PANEL_GROUP + at));
                if constexpr (WINDOWS) window[v] = dot(window[v], lanes[v], weights(counted + at));
            }
        }
        for (int v = 0; v < BLOCK_VECTORS; ++v) {
            store(sums + v * LANES, acc[v]);
            if constexpr (WINDOWS) store(windows + v * LANES, window[v]);
        }
    }
};

// Output rows outside, channels inside: the input rows of one output row stay in the first cache.
inline void depthwise(const Conv& c, const Call& call) {
    constexpr int64_t PIXELS = 16;
    alignas(64) int32_t sums[PIXELS * BLOCK], windows[PIXELS * BLOCK];
    alignas(64) int8_t ones[PANEL_GROUP], last_ones[PANEL_GROUP];
    const int64_t quads = (c.tap_count + QUAD - 1) / QUAD;
    for (int64_t i = 0; i < PANEL_GROUP; ++i) {
        ones[i] = 1;
        last_ones[i] = (quads - 1) * QUAD + i % QUAD < c.tap_count;
    }
    const Shape s(c, call);
    const uint8_t* x = bordered_input(c, s, call);
    const bool windowed = c.epilogue.window_multiplier != nullptr;
    const Target target = target_of(c.epilogue, c.output, call, windowed ? Windows::by_lane : Windows::none);
    const int64_t blocks = (c.channels + BLOCK - 1) / BLOCK, panel_bytes = quads * PANEL_GROUP;
    const int8_t* panels = narrowed(c, c.weights, blocks * panel_bytes, call.at<int8_t>(c.panel));
    for (int64_t row = 0; row < s.images * c.out_height; ++row) {
        for (int64_t channel = 0; channel < c.channels; channel += BLOCK) {
            const DepthwiseRow kernel{c, panels + channel / BLOCK * panel_bytes, last_ones, ones};
            const int64_t lanes = least(BLOCK, c.channels - channel);
            for (int64_t column = 0; column < s.out_width; column += PIXELS) {
                const int64_t pixels = least(PIXELS, s.out_width - column);
                for (int64_t p = 0; p < pixels; ++p) {
                    const uint8_t* from = x + s.pixel(c, row / c.out_height, row % c.out_height, column + p) * c.channels + channel;
                    if (windowed) {
                        kernel.pixel<true>(from, sums + p * BLOCK, windows + p * BLOCK);
                    } else {
                        kernel.pixel<false>(from, sums + p * BLOCK, nullptr);
                    }
                }
                const int64_t element = (row * s.out_width + column) * c.channels + channel;
                target({sums, pixels, lanes, BLOCK, channel, element, c.channels, windows, BLOCK});
            }
        }
    }
}

}  // namespace mbqc::MBQC_ISA
