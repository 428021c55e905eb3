// Dense and grouped convolution: borders, and panels of weights over tiles of pixels.
#pragma once

#include "dense.h"
#include "windows.h"

namespace mbqc::MBQC_ISA {

static_assert(MAX_BLOCKS <= PANEL_BLOCKS);

// The input with a border of the zero-point's code, so that kernels need no guards.
inline const uint8_t* bordered_input(const Conv& c, const Shape& s, const Call& call) {
    const uint8_t* x = call.at(c.input);
    if (s.height == c.height && s.width == call.at(c.width)) return x;
    uint8_t* const bordered = call.at(c.bordered);
    const int64_t inside = (s.width - c.padding[2] - c.padding[3]) * c.channels;
    const auto code = static_cast<int>(c.border_code);
    uint8_t* y = bordered;
    const auto fill = [&](int64_t pixels) {
        std::memset(y, code, static_cast<size_t>(pixels * c.channels));
        y += pixels * c.channels;
    };
    for (int64_t n = 0; n < s.images; ++n) {
        fill(c.padding[0] * s.width);
        for (int64_t row = 0; row < c.height; ++row, x += inside) {
            fill(c.padding[2]);
            std::memcpy(y, x, static_cast<size_t>(inside));
            y += inside;
            fill(c.padding[3]);
        }
        fill(c.padding[1] * s.width);
    }
    return bordered;
}

inline Walk walk_of(const Conv& c, const Shape& s) {
    Walk w{};
    w.rows = c.kernel[0];
    w.row_step = c.dilation[0] * s.width * c.channels;
    w.runs = c.kernel[1] / c.run_taps;
    w.run_step = c.dilation[1] * c.channels;
    w.quads = (c.run_taps * (c.channels / c.groups) + QUAD - 1) / QUAD;
    w.pixel_stride = c.stride[1] * c.channels;
    w.panel_bytes = w.rows * w.runs * w.quads * PANEL_GROUP;
    return w;
}

// Tiles of a row as equal as they can be: no small remainder. The first `larger` ones have a pixel more.
struct Tiling {
    int64_t count;
    int64_t pixels;
    int64_t larger;

    explicit Tiling(int64_t width)
        : count((width + MAX_PIXELS - 1) / MAX_PIXELS),
          pixels(width / most(1, count)),
          larger(width - pixels * count) {}
};

constexpr int64_t PANEL = MAX_BLOCKS * BLOCK;  // outputs of a panel, at most
constexpr int64_t FEW_PIXELS = 56;             // with fewer, weights narrow in registers

// One group's outputs: panels of weights over tiles of pixels.
struct Dense {
    const Conv& c;
    const Shape& s;
    const Call& call;
    const Walk& walk;
    const Tiling& tiling;
    const uint8_t* x;      // of this group
    const float* windows;  // of this group, or null

    // All pixels through one panel, whose outputs begin with `channel`. Weights are of the call's width, or narrow in
    // registers.
    template <int BLOCKS, bool NARROW>
    void run(const int8_t* panel, int64_t channel, int64_t lanes) const {
        constexpr auto sizes = std::make_index_sequence<MAX_PIXELS>{};
        const Narrowing narrowing(c.weights);
        const Epilogue& e = c.epilogue;
        for (int64_t row = 0; row < s.images * c.out_height; ++row) {
            const uint8_t* inputs = x + s.pixel(c, row / c.out_height, row % c.out_height, 0) * c.channels;
            const int64_t output = row * s.out_width, element = output * c.out_channels + channel;
            Finish f{e, e.multiplier + channel, e.addend + channel, windows ? e.window_multiplier + channel : nullptr,
                     lanes, c.out_channels, c.groups, c.weights.shift, windows ? windows + output * c.groups : nullptr,
                     e.has_residual ? call.at(e.residual) + element : nullptr,
                     call.at(c.output) + element * (e.to_float ? 4 : 1)};
            const auto run_tiles = [&](int64_t pixels, int64_t tiles) {
                for (; tiles > 0; --tiles) {
                    multiplier<BLOCKS, NARROW>(pixels, sizes)(walk, inputs, panel, narrowing, f);
                    inputs += pixels * walk.pixel_stride;
                    f.advance(pixels);
                }
            };
            run_tiles(tiling.pixels + 1, tiling.larger);
            run_tiles(tiling.pixels, tiling.count - tiling.larger);
        }
    }
};

inline void conv(const Conv& c, const Call& call) {
    const Shape s(c, call);
    const uint8_t* x = bordered_input(c, s, call);
    const float* windows = c.epilogue.window_multiplier ? window_sums(c, s, x, call) : nullptr;
    const int64_t depth = c.channels / c.groups, outputs = c.out_channels / c.groups;
    const Walk walk = walk_of(c, s);
    const Tiling tiling(s.out_width);
    const bool few = c.weights.bits < 8 && s.images * c.out_height * s.out_width < FEW_PIXELS;
    const int8_t* stored = c.weights.codes;
    for (int64_t g = 0; g < c.groups; ++g) {
        const Dense dense{c, s, call, walk, tiling, x + g * depth, windows ? windows + g : nullptr};
        for (int64_t o = 0; o < outputs; o += PANEL) {
            const int64_t lanes = least(PANEL, outputs - o), channel = g * outputs + o;
            const int64_t bytes = (lanes > BLOCK ? MAX_BLOCKS : 1) * walk.panel_bytes;
            if (few && bytes == MAX_BLOCKS * walk.panel_bytes) {
                dense.run<MAX_BLOCKS, true>(stored, channel, lanes);
            } else if (lanes > BLOCK) {
                dense.run<MAX_BLOCKS, false>(narrowed(c.weights, stored, bytes, call), channel, lanes);
            } else {
                dense.run<1, false>(narrowed(c.weights, stored, bytes, call), channel, lanes);
            }
            stored += bytes;
        }
    }
}

}  // namespace mbqc::MBQC_ISA
