// Average and maximum pooling.
#pragma once

#include "taps.h"

namespace mbqc::MBQC_ISA {

// Calls `visit(codes)` for every pixel of an output's window inside the input; returns how many lie outside.
template <class Visitor>
INLINE inline int64_t visit_window(const Pool& p, const Call& call, int64_t output, Visitor visit) {
    const int64_t row = output / p.out_width, column = output - row * p.out_width;
    const int64_t n = row / p.out_height;
    const int64_t top = (row - n * p.out_height) * p.stride[0] - p.padding[0];
    const int64_t left = column * p.stride[1] - p.padding[1];
    const Range rows = taps_inside(top, p.height, p.kernel[0], p.dilation[0]);
    const Range columns = taps_inside(left, p.width, p.kernel[1], p.dilation[1]);
    const uint8_t* image = call.at(p.input) + n * p.height * p.width * p.channels;
    for (int64_t ky = rows.first; ky < rows.last; ++ky) {
        const int64_t pixel = (top + ky * p.dilation[0]) * p.width + left + columns.first * p.dilation[1];
        const uint8_t* codes = image + pixel * p.channels;
        for (int64_t kx = columns.first; kx < columns.last; ++kx, codes += p.dilation[1] * p.channels) visit(codes);
    }
    return p.kernel[0] * p.kernel[1] - (rows.last - rows.first) * (columns.last - columns.first);
}

// Padding has the zero-point's code: it counts as zeros.
inline void average_pool(const Pool& p, const Call& call) {
    constexpr int64_t CHUNK = 512;
    alignas(64) int32_t sums[CHUNK];
    const Target target = target_of(p.epilogue, p.output, call);
    const int64_t chunks = (p.channels + CHUNK - 1) / CHUNK;  // also of a global average there are several to share
    const Range work = call.share(call.at(p.images) * p.out_height * p.out_width * chunks);
    for (int64_t i = work.first; i < work.last; ++i) {
        const int64_t c = i % chunks * CHUNK, lanes = least(CHUNK, p.channels - c);
        std::memset(sums, 0, sizeof(sums));
        const int64_t outside = visit_window(p, call, i / chunks, [&](const uint8_t* codes) {
            for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += codes[c + lane];
        });
        for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<int32_t>(outside * p.zero_point);
        target({sums, 1, lanes, 0, c, i / chunks * p.channels + c, 0, nullptr, 0});
    }
}

// Padding never wins: zero is the smallest code.
inline void max_pool(const Pool& p, const Call& call) {
    using Codes = uint8_t __attribute__((vector_size(LANES * QUAD)));
    const Range outputs = call.share(call.at(p.images) * p.out_height * p.out_width);
    for (int64_t i = outputs.first; i < outputs.last; ++i) {
        uint8_t* const output = call.at(p.output) + i * p.channels;
        for (int64_t c = 0; c < p.channels; c += LANES * QUAD) {
            Codes best{};
            visit_window(p, call, i, [&](const uint8_t* pixel) {
                Codes codes;
                std::memcpy(&codes, pixel + c, sizeof(codes));
                best = best < codes ? codes : best;
            });
            std::memcpy(output + c, &best, static_cast<size_t>(least(LANES * QUAD, p.channels - c)));
        }
    }
}

}  // namespace mbqc::MBQC_ISA
