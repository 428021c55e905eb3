// Quantize, affine maps, table lookups, copies and permutations.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

// `count` floats to codes.
inline void quantize_run(const Quantize& q, const float* x, int64_t count, uint8_t* codes) {
    const Float scale = splat(q.scale), zero_point = splat(q.zero_point), low = splat(0.0f), high = splat(q.high);
    int64_t i = 0;
    for (; i + PACK * LANES <= count; i += PACK * LANES) {
        const auto total = [&](int v) INLINE { return smaller(high, load(x + i + v * LANES) * scale + zero_point); };
        store_packed<0, PACK>(codes + i, pack<true>(total(0), total(1), total(2), total(3), 0, 255), PACK * LANES);
    }
    for (; i < count; i += LANES) {
        const int64_t lanes = least(LANES, count - i);
        store_codes(codes + i, smaller(larger(load(x + i, lanes) * scale + zero_point, low), high), lanes);
    }
}

// `count` positions, at most POSITIONS, of up to QUAD channels, `inner` floats apart, to pixels of `pitch` bytes.
constexpr int64_t POSITIONS = 64;
inline void quantize_pixels(const Quantize& q, const float* x, int64_t inner, int64_t count, int64_t channels,
                            int64_t pitch, uint8_t* pixels) {
    alignas(64) uint8_t codes[QUAD][POSITIONS] = {}, quads[POSITIONS * QUAD];
    for (int64_t c = 0; c < channels; ++c) quantize_run(q, x + c * inner, count, codes[c]);
    for (int64_t i = 0; i < POSITIONS; i += BLOCK) {
        store_interleaved(codes[0] + i, codes[1] + i, codes[2] + i, codes[3] + i, quads + i * QUAD);
    }
    if (channels == 3 && pitch == 3 && count == POSITIONS) {
        for (int64_t i = 0; i < count; i += BLOCK) store_triples(pixels + i * pitch, quads + i * QUAD);
    } else if (channels == QUAD) {
        for (int64_t i = 0; i < count; ++i) std::memcpy(pixels + i * pitch, quads + i * QUAD, QUAD);
    } else {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t c = 0; c < channels; ++c) pixels[i * pitch + c] = quads[i * QUAD + c];
        }
    }
}

inline void quantize(const Quantize& q, const Call& call) {
    const int64_t channels = call.at(q.channels), inner = call.at(q.inner), pixels = call.at(q.outer) * inner;
    const Range chunks = call.share((pixels + POSITIONS - 1) / POSITIONS);
    const int64_t last = least(pixels, chunks.last * POSITIONS);
    int64_t pixel = chunks.first * POSITIONS;
    if (channels == 1) {
        if (pixel < last) quantize_run(q, call.at<const float>(q.input) + pixel, last - pixel, call.at(q.output) + pixel);
        return;
    }
    while (pixel < last) {
        const int64_t i = pixel % inner, count = least(POSITIONS, least(inner - i, last - pixel));
        const float* x = call.at<const float>(q.input) + pixel / inner * channels * inner + i;
        uint8_t* y = call.at(q.output) + pixel * channels;
        for (int64_t c = 0; c < channels; c += QUAD) {
            quantize_pixels(q, x + c * inner, inner, count, least(QUAD, channels - c), channels, y + c);
        }
        pixel += count;
    }
}

inline void map(const Map& m, const Call& call) {
    constexpr int64_t CHUNK = 1024;
    alignas(64) int32_t sums[CHUNK];
    const int64_t rows = call.at(m.rows), length = call.at(m.length);
    const int64_t start = call.at(m.start), stride = call.at(m.stride);
    const uint8_t* x = call.at(m.input);
    const Target target = target_of(m.epilogue, m.output, call);
    const bool long_rows = rows < call.threads;  // threads share the rows, or else what is in them
    const Range parts = call.share(long_rows ? (length + CHUNK - 1) / CHUNK : rows);
    const int64_t end = long_rows ? least(length, parts.last * CHUNK) : length;
    for (int64_t i = long_rows ? parts.first * CHUNK : 0; i < end; i += CHUNK) {
        const int64_t lanes = least(CHUNK, length - i);
        const int64_t pitch = (lanes + LANES - 1) / LANES * LANES;
        const int64_t step = CHUNK / pitch;
        const int64_t last_row = long_rows ? rows : parts.last;
        for (int64_t row = long_rows ? 0 : parts.first; row < last_row; row += step) {
            const int64_t pixels = least(step, last_row - row);
            for (int64_t p = 0; p < pixels; ++p) {
                const uint8_t* codes = x + (row + p) * length + i;
                for (int64_t j = 0; j < lanes; j += LANES) {
                    store(sums + p * pitch + j, load_codes(codes + j, least(LANES, lanes - j)));
                }
            }
            target({sums, pixels, lanes, pitch, i, start + row * stride + i, stride, nullptr, 0});
        }
    }
}

template <class T>
int64_t look_up_vectors(const uint8_t*, const T*, T*, int64_t) {
    return 0;  // no kernel of its own
}

template <class T>
void look_up(const uint8_t* x, const T* table, T* y, int64_t count) {
    for (int64_t i = look_up_vectors(x, table, y, count); i < count; ++i) y[i] = table[x[i]];
}

inline void lookup(const Lookup& l, const Call& call) {
    const Range part = call.share(call.at(l.count));
    const int64_t first = part.first, count = part.last - first;
    const uint8_t* x = call.at(l.input) + first;
    if (l.to_float) {
        look_up(x, static_cast<const float*>(l.table), call.at<float>(l.output) + first, count);
    } else {
        look_up(x, static_cast<const uint8_t*>(l.table), call.at(l.output) + first, count);
    }
}

inline void copy(const Copy& c, const Call& call) {
    const Range part = call.share(call.at(c.bytes));
    const auto bytes = static_cast<size_t>(part.last - part.first);
    std::memcpy(call.at(c.output) + part.first, call.at(c.input) + part.first, bytes);
}

// Dimensions from `dim` on; the last one is a run of bytes.
inline uint8_t* permute_from(int64_t dim, int64_t rank, const int64_t* sizes, const int64_t* strides, const uint8_t* x,
                             uint8_t* y) {
    if (dim == rank - 1) {
        std::memcpy(y, x, static_cast<size_t>(sizes[dim]));
        return y + sizes[dim];
    }
    if (dim == rank - 2 && sizes[rank - 1] == 1) {  // single codes
        for (int64_t i = 0; i < sizes[dim]; ++i) y[i] = x[i * strides[dim]];
        return y + sizes[dim];
    }
    if (dim == rank - 2 && sizes[rank - 1] == sizeof(float)) {  // single floats
        for (int64_t i = 0; i < sizes[dim]; ++i) std::memcpy(y + i * 4, x + i * strides[dim], sizeof(float));
        return y + sizes[dim] * 4;
    }
    for (int64_t i = 0; i < sizes[dim]; ++i) y = permute_from(dim + 1, rank, sizes, strides, x + i * strides[dim], y);
    return y;
}

inline void permute(const Permute& p, const Call& call) {
    int64_t input_strides[MAX_RANK], sizes[MAX_RANK], strides[MAX_RANK];
    int64_t stride = 1;
    for (int64_t i = p.rank - 1; i >= 0; --i) {
        input_strides[i] = stride;
        stride *= call.at(p.dims[i]);
    }
    for (int64_t i = 0; i < p.rank; ++i) {
        sizes[i] = call.at(p.dims[p.order[i]]);
        strides[i] = input_strides[p.order[i]];
    }
    // threads share the first dimension
    const Range part = call.share(sizes[0]);
    int64_t slice = 1;
    for (int64_t i = 1; i < p.rank; ++i) slice *= sizes[i];
    sizes[0] = part.last - part.first;
    const uint8_t* const x = call.at(p.input) + part.first * strides[0];
    permute_from(0, p.rank, sizes, strides, x, call.at(p.output) + part.first * slice);
}

}  // namespace mbqc::MBQC_ISA
