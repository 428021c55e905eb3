// Codes of few bits as bit-planes: bit b of every code, in the order of the codes, makes plane b.
#pragma once

#include "windows.h"

namespace mbqc::MBQC_ISA {

// The planes of a convolution's input with its border, all of a pixel's bits in whole bytes.
struct BitPlanes {
    const Conv& c;
    const Shape& s;
    int64_t pixel_bytes;
    int64_t bytes;  // of a plane
    uint8_t* start;

    BitPlanes(const Conv& c, const Shape& s, const Call& call)
        : c(c),
          s(s),
          pixel_bytes(c.channels / 8),
          bytes(s.images * s.height * s.width * pixel_bytes),
          start(call.at(c.planes)) {}

    void fill(const Call& call) const {
        const int64_t left = c.padding[2] * pixel_bytes, row_bytes = s.width * pixel_bytes;
        const int64_t inside = row_bytes - left - c.padding[3] * pixel_bytes;
        const uint8_t* const x = call.at(c.input);
        const Range rows = call.share(s.images * s.height);
        for (int64_t i = rows.first; i < rows.last; ++i) {
            const int64_t row = i % s.height - c.padding[0];
            const bool outside = row < 0 || row >= c.height;
            uint8_t* const y = start + i * row_bytes;
            for (int64_t plane = 0; plane < c.input_bits; ++plane) {
                const int border = -static_cast<int>(c.border_code >> plane & 1);
                std::memset(y + plane * bytes, border, static_cast<size_t>(row_bytes));
            }
            if (outside) continue;
            const uint8_t* const codes = x + (i / s.height * c.height + row) * inside * 8;
            pack_bits(codes, inside, c.input_bits, bytes, y + left);
        }
        call.sync();
    }

    // Sums of the codes of `count` pixels.
    void sum(int64_t first, int64_t count, int32_t* sums) const {
        const int64_t whole = pixel_bytes / 8 * 8;
        const uint64_t rest = ~(~uint64_t{0} << (pixel_bytes - whole) * 8);
        const auto ones = [](const uint8_t* p, uint64_t mask) {
            uint64_t bits;
            std::memcpy(&bits, p, sizeof(bits));
            return __builtin_popcountll(bits & mask);
        };
        const uint8_t* const pixels = start + first * pixel_bytes;
        for (int64_t i = sum_bit_rows(pixels, count, pixel_bytes, c.input_bits, bytes, sums); i < count; ++i) {
            int32_t total = 0;
            for (int64_t plane = 0; plane < c.input_bits; ++plane) {
                const uint8_t* const p = pixels + i * pixel_bytes + plane * bytes;
                int32_t sum = 0;
                for (int64_t k = 0; k < whole; k += 8) sum += ones(p + k, ~uint64_t{0});
                if (rest) sum += ones(p + whole, rest);
                total += sum << plane;
            }
            sums[i] = total;
        }
    }
};

}  // namespace mbqc::MBQC_ISA
