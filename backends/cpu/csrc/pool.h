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
                    const int64_t outside = visit_window(p, image, y, x, [&](const uint8_t* codes) {
                        for (int64_t i = 0; i < lanes; ++i) sums[i] += codes[c + i];
                    });
                    for (int64_t i = 0; i < lanes; ++i) sums[i] += static_cast<int32_t>(outside * p.zero_point);
                    target({sums, 1, lanes, 0, c, element + c, 0, nullptr, 0});
                }
            }
        }
    }
}

// Padding never wins: zero is the smallest code.
inline void max_pool(const Pool& p, const Call& call) {
    using Codes = uint8_t __attribute__((vector_size(LANES * QUAD)));
    const uint8_t* image = call.at(p.input);
    uint8_t* output = call.at(p.output);
    for (int64_t n = call.at(p.images); n > 0; --n, image += p.height * p.width * p.channels) {
        for (int64_t y = 0; y < p.out_height; ++y) {
            for (int64_t x = 0; x < p.out_width; ++x, output += p.channels) {
                for (int64_t c = 0; c < p.channels; c += LANES * QUAD) {
                    Codes best{};
                    visit_window(p, image, y, x, [&](const uint8_t* pixel) {
                        Codes codes;
                        std::memcpy(&codes, pixel + c, sizeof(codes));
                        best = best < codes ? codes : best;
                    });
                    std::memcpy(output + c, &best, static_cast<size_t>(least(LANES * QUAD, p.channels - c)));
                }
            }
        }
    }
}

}  // namespace mbqc::MBQC_ISA
