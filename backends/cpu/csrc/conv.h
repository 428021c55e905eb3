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

// Adds `width` pixels of `groups` numbers, `step` apart, to contiguous ones.
inline void add_row(int32_t* row, const int32_t* from, int64_t width, int64_t groups, int64_t step) {
    if (step == groups) {
        for (int64_t i = 0; i < width * groups; ++i) row[i] += from[i];
    } else {
        for (int64_t i = 0; i < width; ++i) {
            for (int64_t g = 0; g < groups; ++g) row[i * groups + g] += from[i * step + g];
        }
    }
}

// int32 [pixel][group]: the sum of the codes of each window. Every input pixel is summed once.
inline const int32_t* window_sums(const Conv& c, const Shape& s, const uint8_t* x, const Call& call) {
    int32_t* const pixels = call.at<int32_t>(c.pixel_sums);
    const int64_t depth = c.channels / c.groups;
    for (int64_t i = 0; i < s.images * s.height * s.width * c.groups; ++i) pixels[i] = sum_codes(x + i * depth, depth);
    if (c.tap_count == 1 && c.stride[0] == 1 && c.stride[1] == 1) return pixels;
    int32_t* const windows = call.at<int32_t>(c.windows);
    int32_t* row = windows;
    const int64_t step = c.stride[1] * c.groups;
    for (int64_t i = 0; i < s.images * c.out_height; ++i, row += s.out_width * c.groups) {
        std::memset(row, 0, static_cast<size_t>(s.out_width * c.groups) * sizeof(int32_t));
        const int32_t* first = pixels + s.pixel(c, i / c.out_height, i % c.out_height, 0) * c.groups;
        for (int64_t t = 0; t < c.tap_count; ++t) add_row(row, first + c.taps[t] * c.groups, s.out_width, c.groups, step);
    }
    return windows;
}

using Codes = int8_t __attribute__((vector_size(LANES * QUAD)));

// Weights of `c.bits` from 8-bit ones: the second rounding of mbqc/numerics.py (`narrow`). Whole vectors.
inline const int8_t* narrowed(const Conv& c, const int8_t* stored, int64_t bytes, int8_t* panel) {
    using Words = uint16_t __attribute__((vector_size(LANES * QUAD)));
    if (c.bits == 8) return stored;
    const int drop = static_cast<int>(8 - c.bits);
    const auto half = static_cast<int8_t>(c.rounds && c.bits > 1 ? 1 << (drop - 1) : 0);
    const Codes limit = Codes{} + static_cast<int8_t>(127 - half);  // what lies above would round out of range
    const Codes sign = Codes{} + static_cast<int8_t>(-128), sign_after = Codes{} + static_cast<int8_t>(128 >> drop);
    const Codes kept = Codes{} + static_cast<int8_t>(255 >> drop);
    for (int64_t i = 0; i < bytes; i += LANES * QUAD) {
        Codes q;
        std::memcpy(&q, stored + i, sizeof(q));
        q = ((q < limit ? q : limit) + half) ^ sign;  // unsigned from here: a shift of words, and of bytes by the mask
        q = (reinterpret_cast<Codes>(reinterpret_cast<Words>(q) >> drop) & kept) - sign_after;
        std::memcpy(panel + i, &q, sizeof(q));
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
template <int BLOCKS, size_t... INDICES>
Multiply multiplier(int64_t pixels, std::index_sequence<INDICES...>) {
    static constexpr Multiply functions[] = {multiply<INDICES + 1, BLOCKS>...};
    return functions[pixels - 1];
}

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
        multiplier<BLOCKS>(pixels, std::make_index_sequence<MAX_PIXELS>{})(walk, x + s.pixel(c, n, y, column) * c.channels, panel, sums);
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
