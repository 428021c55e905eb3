// Convolutions: borders, window sums, weights of the current width, dense and depthwise kernels.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

constexpr int BLOCK_VECTORS = BLOCK / LANES;
constexpr int64_t PANEL_GROUP = BLOCK * QUAD;  // bytes of one quad of inputs for a block of outputs

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
    if (!c.has_border) return x;
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

// int32 [pixel][group]: the sum of the codes of each window. Every input pixel is summed once.
inline const int32_t* window_sums(const Conv& c, const Shape& s, const uint8_t* x, const Call& call) {
    int32_t* const pixels = call.at<int32_t>(c.pixel_sums);
    const int64_t depth = c.channels / c.groups;
    for (int64_t i = 0; i < s.images * s.height * s.width * c.groups; ++i, x += depth) {
        int32_t sum = 0;
        for (int64_t j = 0; j < depth; ++j) sum += x[j];
        pixels[i] = sum;
    }
    if (c.tap_count == 1 && c.stride[0] == 1 && c.stride[1] == 1) return pixels;
    int32_t* const windows = call.at<int32_t>(c.windows);
    int32_t* window = windows;
    for (int64_t n = 0; n < s.images; ++n) {
        for (int64_t y = 0; y < c.out_height; ++y) {
            for (int64_t column = 0; column < s.out_width; ++column) {
                const int32_t* from = pixels + s.pixel(c, n, y, column) * c.groups;
                for (int64_t g = 0; g < c.groups; ++g) {
                    int32_t sum = 0;
                    for (int64_t t = 0; t < c.tap_count; ++t) sum += from[c.taps[t] * c.groups + g];
                    *window++ = sum;
                }
            }
        }
    }
    return windows;
}

// Weights of `c.bits` from 8-bit ones: the second rounding of mbqc/numerics.py (`narrow`).
inline const int8_t* narrowed(const Conv& c, const int8_t* stored, int64_t bytes, int8_t* panel) {
    if (c.bits == 8) return stored;
    const int drop = static_cast<int>(8 - c.bits);
    const int half = c.rounds && c.bits > 1 ? 1 << (drop - 1) : 0;
    const int top = 127 >> drop;
    for (int64_t i = 0; i < bytes; ++i) {
        const int code = (stored[i] + half) >> drop;
        panel[i] = static_cast<int8_t>(code < top ? code : top);
    }
    return panel;
}

// What the dense kernel walks over: `runs` of contiguous inputs, each `quads` long.
struct Walk {
    const int64_t* offsets;  // of the runs, in pixels
    int64_t offset_step;
    int64_t runs;
    int64_t quads;
    int64_t channels;      // bytes of a pixel
    int64_t pixel_stride;  // bytes between the inputs of neighbouring outputs
    int64_t panel_bytes;
};

// Accumulators [PIXELS][BLOCKS * 16] of neighbouring output pixels.
template <int PIXELS, int BLOCKS>
void multiply(const Walk& walk, const uint8_t* x, const int8_t* panel, int32_t* sums) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    Int acc[PIXELS][VECTORS];
    for (int p = 0; p < PIXELS; ++p) {
        for (int v = 0; v < VECTORS; ++v) acc[p][v] = zero();
    }
    const int64_t stride = walk.pixel_stride;
    for (int64_t run = 0; run < walk.runs; ++run) {
        const uint8_t* from = x + walk.offsets[run * walk.offset_step] * walk.channels;
        for (int64_t quad = 0; quad < walk.quads; ++quad, from += QUAD, panel += PANEL_GROUP) {
            Weights w[VECTORS];
            for (int v = 0; v < VECTORS; ++v) {
                w[v] = weights(panel + v / BLOCK_VECTORS * walk.panel_bytes + v % BLOCK_VECTORS * LANES * QUAD);
            }
            for (int p = 0; p < PIXELS; ++p) {
                const Bytes inputs = broadcast(from + p * stride);
                for (int v = 0; v < VECTORS; ++v) acc[p][v] = dot(acc[p][v], inputs, w[v]);
            }
        }
    }
    for (int p = 0; p < PIXELS; ++p) {
        for (int v = 0; v < VECTORS; ++v) store(sums + (p * VECTORS + v) * LANES, acc[p][v]);
    }
}

using Multiply = void (*)(const Walk&, const uint8_t*, const int8_t*, int32_t*);

// `multiply` for 1 to MAX_PIXELS pixels.
template <int BLOCKS, int PIXELS = MAX_PIXELS>
struct Multipliers {
    static Multiply of(int64_t pixels) {
        if constexpr (PIXELS > 1) {
            if (pixels < PIXELS) return Multipliers<BLOCKS, PIXELS - 1>::of(pixels);
        }
        return multiply<PIXELS, BLOCKS>;
    }
};

// One group's panels, one or two at a time, over all pixels.
struct Dense {
    const Conv& c;
    const Shape& s;
    const Walk& walk;
    const Target& target;
    const uint8_t* x;        // of this group
    const int32_t* windows;  // of this group, or null
    int64_t channel;         // first output of the panels
    int64_t lanes;           // outputs of the panels

    // Tiles of a row are as equal as they can be: no small remainder.
    template <int BLOCKS>
    void run(const int8_t* panel) const {
        const int64_t tiles = (s.out_width + MAX_PIXELS - 1) / MAX_PIXELS;
        for (int64_t n = 0; n < s.images; ++n) {
            for (int64_t y = 0; y < c.out_height; ++y) {
                for (int64_t tile = 0; tile < tiles; ++tile) {
                    const int64_t from = tile * s.out_width / tiles;
                    run_tile<BLOCKS>(panel, n, y, from, (tile + 1) * s.out_width / tiles - from);
                }
            }
        }
    }

    template <int BLOCKS>
    void run_tile(const int8_t* panel, int64_t n, int64_t y, int64_t column, int64_t pixels) const {
        alignas(64) int32_t sums[MAX_PIXELS * BLOCKS * BLOCK];
        Multipliers<BLOCKS>::of(pixels)(walk, x + s.pixel(c, n, y, column) * c.channels, panel, sums);
        const int64_t output = (n * c.out_height + y) * s.out_width + column;
        target({sums, pixels, lanes, BLOCKS * BLOCK, channel, output * c.out_channels + channel, c.out_channels,
                windows ? windows + output * c.groups : nullptr, c.groups});
    }
};

inline void conv(const Conv& c, const Call& call) {
    const Shape s(c, call);
    const uint8_t* x = bordered_input(c, s, call);
    const int32_t* windows = c.epilogue.window_multiplier ? window_sums(c, s, x, call) : nullptr;
    const Target target = target_of(c.epilogue, c.output, call, windows ? Windows::by_pixel : Windows::none);
    const int64_t depth = c.channels / c.groups, outputs = c.out_channels / c.groups;
    const int64_t runs = c.tap_count / c.run_taps, quads = (c.run_taps * depth + QUAD - 1) / QUAD;
    const Walk walk{c.taps, c.run_taps, runs, quads, c.channels, c.stride[1] * c.channels, runs * quads * PANEL_GROUP};
    const int8_t* stored = c.weights;
    for (int64_t g = 0; g < c.groups; ++g) {
        for (int64_t o = 0; o < outputs; o += MAX_BLOCKS * BLOCK) {
            const int64_t lanes = least(MAX_BLOCKS * BLOCK, outputs - o);
            const int64_t bytes = (lanes > BLOCK ? MAX_BLOCKS : 1) * walk.panel_bytes;
            const int8_t* panel = narrowed(c, stored, bytes, call.at<int8_t>(c.panel));
            const Dense dense{c, s, walk, target, x + g * depth, windows ? windows + g : nullptr, g * outputs + o, lanes};
            if (lanes > BLOCK) {
                dense.run<MAX_BLOCKS>(panel);
            } else {
                dense.run<1>(panel);
            }
            stored += bytes;
        }
    }
}

}  // namespace mbqc::MBQC_ISA
