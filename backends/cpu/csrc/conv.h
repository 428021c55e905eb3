// Dense and grouped convolution: borders, window sums, panels of weights times tiles of pixels.
#pragma once

#include "dense.h"

namespace mbqc::MBQC_ISA {

static_assert(MAX_BLOCKS <= PANEL_BLOCKS);

// Extents of a convolution in this call.
struct Shape {
    int64_t images, height, width;  // of the padded input
    int64_t out_width;

    Shape(const Conv& c, const Call& call)
        : images(call.at(c.images)),
          height(c.height + c.padding[0] + c.padding[1]),
          width(call.at(c.width) + c.padding[2] + c.padding[3]),
          out_width(call.at(c.out_width)) {}

    // First input pixel of an output pixel.
    int64_t pixel(const Conv& c, int64_t n, int64_t y, int64_t x) const {
        return (n * height + y * c.stride[0]) * width + x * c.stride[1];
    }
};

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

// Adds `count` groups of `size` numbers, `step` apart, to contiguous ones.
inline void add_strided(int32_t* sums, const int32_t* from, int64_t count, int64_t size, int64_t step) {
    if (size == step) {
        for (int64_t i = 0; i < count * size; ++i) sums[i] += from[i];
    } else {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t j = 0; j < size; ++j) sums[i * size + j] += from[i * step + j];
        }
    }
}

// int32 [pixel][group]: the sum of the codes of each window, over channels, then rows, then columns.
inline const int32_t* window_sums(const Conv& c, const Shape& s, const uint8_t* x, const Call& call) {
    int32_t* const pixels = call.at<int32_t>(c.pixel_sums);
    const int64_t depth = c.channels / c.groups, row_size = s.width * c.groups, out_size = s.out_width * c.groups;
    for (int64_t i = 0; i < s.images * s.height * row_size; ++i) pixels[i] = sum_codes(x + i * depth, depth);
    if (c.kernel[0] * c.kernel[1] * c.stride[0] * c.stride[1] == 1) return pixels;
    int32_t* const windows = call.at<int32_t>(c.windows);
    int32_t* const columns = call.at<int32_t>(c.columns);
    for (int64_t i = 0; i < s.images * c.out_height; ++i) {
        const int32_t* first = pixels + s.pixel(c, i / c.out_height, i % c.out_height, 0) * c.groups;
        int32_t* row = windows + i * out_size;
        std::memset(columns, 0, static_cast<size_t>(row_size) * sizeof(int32_t));
        std::memset(row, 0, static_cast<size_t>(out_size) * sizeof(int32_t));
        for (int64_t k = 0; k < c.kernel[0]; ++k) {
            add_strided(columns, first + k * c.dilation[0] * row_size, row_size, 1, 1);
        }
        for (int64_t k = 0; k < c.kernel[1]; ++k) {
            const int32_t* shifted = columns + k * c.dilation[1] * c.groups;
            add_strided(row, shifted, s.out_width, c.groups, c.stride[1] * c.groups);
        }
    }
    return windows;
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
    const uint8_t* x;        // of this group
    const int32_t* windows;  // of this group, or null

    // All pixels through one panel, whose outputs begin with `channel`. Weights are of the call's width, or narrow in
    // registers.
    template <int BLOCKS, bool NARROW>
    void run(const int8_t* panel, int64_t channel, int64_t lanes) const {
        const Rounding rounding(c.weights);
        const Narrowing narrowing(rounding);
        const Epilogue& e = c.epilogue;
        Finish f{e, e.multiplier + channel, e.addend + channel, e.window_multiplier + channel, lanes, c.out_channels,
                 c.groups, rounding.drop, nullptr, nullptr, nullptr};
        for (int64_t row = 0; row < s.images * c.out_height; ++row) {
            const uint8_t* inputs = x + s.pixel(c, row / c.out_height, row % c.out_height, 0) * c.channels;
            int64_t output = row * s.out_width;
            for (int64_t tile = 0; tile < tiling.count; ++tile) {
                const int64_t pixels = tiling.pixels + (tile < tiling.larger), element = output * c.out_channels + channel;
                f.windows = windows ? windows + output * c.groups : nullptr;
                f.residual = e.has_residual ? call.at(e.residual) + element : nullptr;
                f.output = call.at(c.output) + element * static_cast<int64_t>(e.to_float ? sizeof(float) : 1);
                const Multiply multiply = multiplier<BLOCKS, NARROW>(pixels, std::make_index_sequence<MAX_PIXELS>{});
                multiply(walk, inputs, panel, narrowing, f);
                inputs += pixels * walk.pixel_stride;
                output += pixels;
            }
        }
    }
};

inline void conv(const Conv& c, const Call& call) {
    const Shape s(c, call);
    const uint8_t* x = bordered_input(c, s, call);
    const int32_t* windows = c.epilogue.window_multiplier ? window_sums(c, s, x, call) : nullptr;
    const int64_t depth = c.channels / c.groups, outputs = c.out_channels / c.groups;
    const Walk walk = walk_of(c, s);
    const Tiling tiling(s.out_width);
    const bool narrow = c.weights.bits < 8 && s.images * c.out_height * s.out_width < FEW_PIXELS;
    const int8_t* stored = c.weights.codes;
    for (int64_t g = 0; g < c.groups; ++g) {
        const Dense dense{c, s, call, walk, tiling, x + g * depth, windows ? windows + g : nullptr};
        for (int64_t o = 0; o < outputs; o += PANEL) {
            const int64_t lanes = least(PANEL, outputs - o), channel = g * outputs + o;
            const int64_t bytes = (lanes > BLOCK ? MAX_BLOCKS : 1) * walk.panel_bytes;
            const int8_t* panel = narrow ? stored : narrowed(c.weights, stored, bytes, call);
            if (lanes > BLOCK) {
                narrow ? dense.run<MAX_BLOCKS, true>(panel, channel, lanes) : dense.run<MAX_BLOCKS, false>(panel, channel, lanes);
            } else {
                narrow ? dense.run<1, true>(panel, channel, lanes) : dense.run<1, false>(panel, channel, lanes);
            }
            stored += bytes;
        }
    }
}

}  // namespace mbqc::MBQC_ISA
