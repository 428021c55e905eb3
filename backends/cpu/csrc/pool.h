// Average and maximum pooling.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

// Calls `visit(codes)` for every pixel of the window of output (y, x) inside the input; returns how many lie outside.
template <class Visitor>
inline int64_t visit_window(const Pool& p, const uint8_t* image, int64_t y, int64_t x, Visitor visit) {
    int64_t outside = 0;
    for (int64_t ky = 0; ky < p.kernel[0]; ++ky) {
        for (int64_t kx = 0; kx < p.kernel[1]; ++kx) {
            const int64_t row = y * p.stride[0] + ky * p.dilation[0] - p.padding[0];
            const int64_t column = x * p.stride[1] + kx * p.dilation[1] - p.padding[1];
            if (row < 0 || row >= p.height || column < 0 || column >= p.width) {
                ++outside;
            } else {
                visit(image + (row * p.width + column) * p.channels);
            }
        }
    }
    return outside;
}

struct AddCodes {
    int32_t* sums;
    int64_t channel;
    int64_t lanes;

    void operator()(const uint8_t* codes) const {
        for (int64_t c = 0; c < lanes; ++c) sums[c] += codes[channel + c];
    }
};

struct TakeLargest {
    uint8_t* best;
    int64_t channels;

    void operator()(const uint8_t* codes) const {
        for (int64_t c = 0; c < channels; ++c) best[c] = best[c] < codes[c] ? codes[c] : best[c];
    }
};

// Padding has the zero-point's code: it counts as zeros.
inline void average_pool(const Pool& p, const Call& call) {
    constexpr int64_t CHUNK = 512;
    alignas(64) int32_t sums[CHUNK];
    const uint8_t* image = call.at(p.input);
    const Target target = target_of(p.epilogue, p.output, call);
    int64_t element = 0;
    for (int64_t n = call.at(p.images); n > 0; --n, image += p.height * p.width * p.channels) {
        for (int64_t y = 0; y < p.out_height; ++y) {
            for (int64_t x = 0; x < p.out_width; ++x, element += p.channels) {
                for (int64_t c = 0; c < p.channels; c += CHUNK) {
                    const int64_t lanes = least(CHUNK, p.channels - c);
                    std::memset(sums, 0, sizeof(sums));
                    const int64_t outside = visit_window(p, image, y, x, AddCodes{sums, c, lanes});
                    for (int64_t i = 0; i < lanes; ++i) sums[i] += static_cast<int32_t>(outside * p.zero_point);
                    target({sums, 1, lanes, 0, c, element + c, 0, nullptr, 0});
                }
            }
        }
    }
}

inline void max_pool(const Pool& p, const Call& call) {
    const uint8_t* image = call.at(p.input);
    uint8_t* best = call.at(p.output);
    for (int64_t n = call.at(p.images); n > 0; --n, image += p.height * p.width * p.channels) {
        for (int64_t y = 0; y < p.out_height; ++y) {
            for (int64_t x = 0; x < p.out_width; ++x, best += p.channels) {
                std::memset(best, 0, static_cast<size_t>(p.channels));
                visit_window(p, image, y, x, TakeLargest{best, p.channels});
            }
        }
    }
}

}  // namespace mbqc::MBQC_ISA
