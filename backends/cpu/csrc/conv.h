// Dense and grouped convolution: borders, window sums, panels of weights times tiles of pixels.
#pragma once

#include "weights.h"

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

// What the dense kernel walks over: rows of the kernel, in each row `runs` of contiguous inputs. Distances in bytes.
struct Walk {
    int64_t rows;
    int64_t row_step;
    int64_t runs;
    int64_t run_step;
    int64_t quads;         // of a run
    int64_t pixel_stride;  // between the inputs of neighbouring outputs
    int64_t panel_bytes;

    Walk(const Conv& c, const Shape& s)
        : rows(c.kernel[0]),
          row_step(c.dilation[0] * s.width * c.channels),
          runs(c.kernel[1] / c.run_taps),
          run_step(c.dilation[1] * c.channels),
          quads((c.run_taps * (c.channels / c.groups) + QUAD - 1) / QUAD),
          pixel_stride(c.stride[1] * c.channels),
          panel_bytes(rows * runs * quads * PANEL_GROUP) {}
};

// Accumulators [PIXELS][BLOCKS * BLOCK] of neighbouring output pixels. All indices of `acc` are constants: in loops,
// g++ keeps it in memory.
template <int PIXELS, int BLOCKS>
void multiply(const Walk& walk, const uint8_t* x, const int8_t* panel, int32_t* sums) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    constexpr auto each_pixel = std::make_integer_sequence<int, PIXELS>{};
    constexpr auto each_vector = std::make_integer_sequence<int, VECTORS>{};
    Int acc[PIXELS][VECTORS];
    unrolled(each_pixel, [&](auto p) INLINE { unrolled(each_vector, [&](auto v) INLINE { acc[p][v] = zero(); }); });
    const int64_t stride = walk.pixel_stride, second = walk.panel_bytes;
    for (int64_t i = 0; i < walk.rows * walk.runs; ++i) {
        const uint8_t* from = x + i / walk.runs * walk.row_step + i % walk.runs * walk.run_step;
        for (int64_t quad = 0; quad < walk.quads; ++quad, from += QUAD, panel += PANEL_GROUP) {
            Weights w[VECTORS];
            unrolled(each_vector, [&](auto v) INLINE {
                w[v] = weights(panel + v / BLOCK_VECTORS * second + v % BLOCK_VECTORS * LANES * QUAD);
            });
            unrolled(each_pixel, [&](auto p) INLINE {
                const Bytes inputs = broadcast(from + p * stride);
                unrolled(each_vector, [&](auto v) INLINE { acc[p][v] = dot(acc[p][v], inputs, w[v]); });
            });
        }
    }
    unrolled(each_pixel, [&](auto p) INLINE {
        unrolled(each_vector, [&](auto v) INLINE { store(sums + (p * VECTORS + v) * LANES, acc[p][v]); });
    });
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
        const Multiply multiply = multiplier<BLOCKS>(pixels, std::make_index_sequence<MAX_PIXELS>{});
        multiply(walk, x + s.pixel(c, n, y, column) * c.channels, panel, sums);
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
    const Walk walk(c, s);
    const int8_t* stored = c.weights.codes;
    for (int64_t g = 0; g < c.groups; ++g) {
        for (int64_t o = 0; o < outputs; o += MAX_BLOCKS * BLOCK) {
            const int64_t lanes = least(MAX_BLOCKS * BLOCK, outputs - o);
            const int64_t bytes = (lanes > BLOCK ? MAX_BLOCKS : 1) * walk.panel_bytes;
            const int8_t* panel = narrowed(c.weights, stored, bytes, call);
            const int32_t* group_windows = windows ? windows + g : nullptr;
            const Dense dense{c, s, walk, target, x + g * depth, group_windows, g * outputs + o, lanes};
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
