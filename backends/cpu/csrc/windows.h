// Window sums: the sum of a convolution's inputs at each of its outputs, over channels, then rows, then columns.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

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

inline void put(int32_t* to, Int sum, int64_t) { store(to, sum); }
inline void put(float* to, Int sum, int64_t count) { store(to, to_float(sum), least(LANES, count)); }

// Sums of windows that begin at each of `size` sums of pixels and groups. All taps at once: sums over rows would be
// read again, shifted, before they have left the store queue.
template <class To>
void add_taps(const Conv& c, const Shape& s, const int32_t* from, int64_t size, To* to) {
    const int64_t row_step = c.dilation[0] * s.width * c.groups, step = c.dilation[1] * c.groups;
    for (int64_t i = 0; i < size; i += LANES) {
        Int sum = zero();
        for (int64_t y = 0; y < c.kernel[0]; ++y) {
            const int32_t* const row = from + y * row_step + i;
            for (int64_t x = 0; x < c.kernel[1]; ++x) sum = add(sum, load(row + x * step));
        }
        put(to + i, sum, size - i);
    }
}

// A row of windows.
inline void add_row(const Conv& c, const Shape& s, const int32_t* from, int32_t* columns, float* row) {
    const int64_t stride = c.stride[1] * c.groups;
    if (c.stride[1] == 1) return add_taps(c, s, from, s.out_width * c.groups, row);
    add_taps(c, s, from, (s.out_width - 1) * stride + c.groups, columns);
    for (int64_t x = 0; x < s.out_width; ++x, columns += stride) {
        for (int64_t g = 0; g < c.groups; ++g) *row++ = static_cast<float>(columns[g]);
    }
}

// float32 [output pixel][group]. `sum_pixels` sums the inputs of pixels and groups: (first, how many, where to).
template <class SumPixels>
const float* window_sums(const Conv& c, const Shape& s, const Call& call, SumPixels sum_pixels) {
    int32_t* const pixels = call.at<int32_t>(c.pixel_sums);
    int32_t* const columns = call.own<int32_t>(c.columns);
    float* const windows = call.at<float>(c.windows);
    const int64_t row_size = s.width * c.groups;
    const bool pointwise = c.kernel[0] * c.kernel[1] * c.stride[0] * c.stride[1] == 1;
    constexpr int64_t CHUNK = 64;  // whole vectors: no thread writes into another's part
    const int64_t count = s.images * s.height * row_size;
    const Range chunks = call.share((count + CHUNK - 1) / CHUNK);
    const int64_t first = chunks.first * CHUNK, size = least(count, chunks.last * CHUNK) - first;
    if (size > 0) {
        sum_pixels(first, size, pixels + first);
        if (pointwise) add_taps(c, s, pixels + first, size, windows + first);
    }
    call.sync();
    if (pointwise) return windows;
    const Range rows = call.share(s.images * c.out_height);
    for (int64_t i = rows.first; i < rows.last; ++i) {
        const int32_t* from = pixels + s.pixel(c, i / c.out_height, i % c.out_height, 0) * c.groups;
        add_row(c, s, from, columns, windows + i * s.out_width * c.groups);
    }
    call.sync();
    return windows;
}

}  // namespace mbqc::MBQC_ISA
