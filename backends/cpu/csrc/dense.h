// The dense kernel: a tile of neighbouring pixels times a panel of weights, from inputs to finished codes in registers.
#pragma once

#include "weights.h"

namespace mbqc::MBQC_ISA {

// What the dense kernel walks over: rows of the kernel, in each row `runs` of contiguous inputs. Distances in bytes.
struct Walk {
    int64_t rows;
    int64_t row_step;
    int64_t runs;
    int64_t run_step;
    int64_t quads;         // of a run
    int64_t pixel_bytes;
    int64_t pixel_stride;  // between the inputs of neighbouring outputs
    int64_t half_tile;     // between the inputs of the halves of a full tile: they may be two rows
    int64_t row_bytes;     // of a kernel row's weights for a block of outputs
    int64_t panel_bytes;   // of all of them
    const int8_t* next;  // the stored codes that are needed next: they come to the second cache meanwhile
};

// What becomes of a tile's accumulators: `Epilogue` from the panel's first channel and the tile's first pixel on.
struct Finish {
    const Epilogue& epilogue;
    const float* multiplier;
    const float* addend;
    const float* window_multiplier;
    int64_t lanes;            // outputs of the panel
    int64_t pixel_step;       // from pixel to pixel, in elements
    int64_t window_step;      // likewise, in window sums
    int64_t shift;            // of accumulators
    const float* windows;     // null: no window sums
    const uint8_t* residual;  // null: none
    uint8_t* output;          // bytes of codes or floats

    // To the tile that begins so many pixels further on.
    void advance(int64_t pixels) {
        if (windows) windows += pixels * window_step;
        if (residual) residual += pixels * pixel_step;
        output += pixels * pixel_step * (epilogue.to_float ? 4 : 1);
    }
};

// Stores a tile of totals as codes. None is above int32's range; what is not a number becomes the lowest code.
template <int PIXELS, int VECTORS, bool ALL_CODES>
INLINE inline void store_tile(const Float (&totals)[PIXELS][VECTORS], const Finish& f) {
    constexpr int COUNT = PIXELS * VECTORS, EACH = PACK / VECTORS;  // pixels of a pack
    const auto low = static_cast<uint8_t>(f.epilogue.low), high = static_cast<uint8_t>(f.epilogue.high);
    const auto total = [&](auto i) INLINE {
        constexpr int I = i < COUNT ? i : 0;
        return totals[I / VECTORS][I % VECTORS];
    };
    unrolled(std::make_integer_sequence<int, (COUNT + PACK - 1) / PACK>{}, [&](auto g) INLINE {
        constexpr int FIRST = g * PACK;
        const Packed codes = pack<ALL_CODES>(total(number<FIRST>), total(number<FIRST + 1>), total(number<FIRST + 2>),
                                             total(number<FIRST + 3>), low, high);
        unrolled(std::make_integer_sequence<int, EACH>{}, [&](auto i) INLINE {
            if constexpr (FIRST / VECTORS + i < PIXELS) {
                store_packed<i * VECTORS, VECTORS>(f.output + (FIRST / VECTORS + i) * f.pixel_step, codes, f.lanes);
            }
        });
    });
}

// The epilogue of a tile, one operation for all its vectors after the other.
template <int PIXELS, int VECTORS>
INLINE inline void finish_tile(const Int (&sums)[PIXELS][VECTORS], const Finish& f) {
    Float totals[PIXELS][VECTORS];
    const auto each = [&](auto body) INLINE {
        unrolled(std::make_integer_sequence<int, PIXELS>{}, [&](auto p) INLINE {
            unrolled(std::make_integer_sequence<int, VECTORS>{}, [&](auto v) INLINE { body(totals[p][v], p, v); });
        });
    };
    const auto lanes = [&](int v) INLINE { return least(LANES, f.lanes - v * LANES); };
    each([&](Float& t, auto p, auto v) INLINE { t = to_float(sums[p][v]) * load(f.multiplier + v * LANES); });
    if (f.windows) {
        each([&](Float& t, auto p, auto v) INLINE {
            t = t + splat(f.windows[p * f.window_step]) * load(f.window_multiplier + v * LANES);
        });
    }
    each([&](Float& t, auto, auto v) INLINE { t = t + load(f.addend + v * LANES); });
    if (f.residual) {
        const Float multiplier = splat(f.epilogue.residual_multiplier);
        each([&](Float& t, auto p, auto v) INLINE {
            if (lanes(v) <= 0) return;
            t = t + to_float(load_codes(f.residual + p * f.pixel_step + v * LANES, lanes(v))) * multiplier;
        });
    }
    const Float high = splat(f.epilogue.high);
    if (f.epilogue.to_float) {  // not-a-number and negative zero pass
        const Float low = splat(f.epilogue.low);
        each([&](Float& t, auto p, auto v) INLINE {
            float* const to = reinterpret_cast<float*>(f.output) + p * f.pixel_step + v * LANES;
            if (lanes(v) > 0) store(to, smaller(high, larger(low, t)), lanes(v));
        });
    } else {
        if (!f.epilogue.in_range) each([&](Float& t, auto, auto) INLINE { t = smaller(high, t); });
        if (f.epilogue.low == 0 && f.epilogue.high == 255) {  // packing saturates: that is the clamp
            store_tile<PIXELS, VECTORS, true>(totals, f);
        } else {
            store_tile<PIXELS, VECTORS, false>(totals, f);
        }
    }
}

// Accumulators [PIXELS][BLOCKS * BLOCK] of neighbouring pixels. All indices of `sums` are constants: in loops, g++
// keeps it in memory.
template <int PIXELS, int BLOCKS, bool NARROW>
INLINE inline void multiply_tile(const Walk& walk, const uint8_t* x, const int8_t* panel, const Narrowing& narrowing,
                                 Int (&sums)[PIXELS][BLOCKS * BLOCK_VECTORS]) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    constexpr auto each_pixel = std::make_integer_sequence<int, PIXELS>{};
    constexpr auto each_vector = std::make_integer_sequence<int, VECTORS>{};
    unrolled(each_pixel, [&](auto p) INLINE { unrolled(each_vector, [&](auto v) INLINE { sums[p][v] = zero(); }); });
    const int64_t stride = walk.pixel_stride, half = walk.half_tile, second = walk.panel_bytes;
    const auto pixel = [&](const uint8_t* from, auto p) INLINE {
        constexpr int HALF = PIXELS == MAX_PIXELS ? PIXELS / 2 : PIXELS;
        return p < HALF ? from + p * stride : from + half + (p - HALF) * stride;
    };
    const int8_t* next = walk.next;
    const auto take = [&](const uint8_t* from, auto quads) INLINE {
        constexpr int QUADS = quads;
        constexpr auto each_quad = std::make_integer_sequence<int, QUADS>{};
        Weights w[QUADS][VECTORS];
        unrolled(each_quad, [&](auto q) INLINE {
            unrolled(std::make_integer_sequence<int, BLOCKS>{},
                     [&](auto b) INLINE { __builtin_prefetch(next + b * second, 0, 2); });
            unrolled(each_vector, [&](auto v) INLINE {
                const int8_t* codes = panel + v / BLOCK_VECTORS * second + v % BLOCK_VECTORS * LANES * QUAD;
                w[q][v] = weights(NARROW ? narrow(codes, narrowing) : load_codes(codes));
            });
            panel += PANEL_GROUP;
            next += PANEL_GROUP;
        });
        unrolled(each_pixel, [&](auto p) INLINE {
            Bytes inputs[QUADS];
            if constexpr (QUADS == 2 && p % 2 == 1) {
                broadcast_pair(pixel(from, p), inputs);
            } else {
                unrolled(each_quad, [&](auto q) INLINE { inputs[q] = broadcast(pixel(from, p) + q * QUAD); });
            }
            unrolled(each_quad, [&](auto q) INLINE {
                unrolled(each_vector, [&](auto v) INLINE { sums[p][v] = dot(sums[p][v], inputs[q], w[q][v]); });
            });
        });
    };
    for (int64_t row = 0; row < walk.rows; ++row, x += walk.row_step) {
        const uint8_t* start = x;
        for (int64_t run = 0; run < walk.runs; ++run, start += walk.run_step) {
            int64_t quad = 0;
            if constexpr (VECTORS == 1) {  // a load for every product would be the limit: shuffles do a part
                for (; quad + 2 <= walk.quads; quad += 2) take(start + quad * QUAD, number<2>);
            }
            for (; quad < walk.quads; ++quad) take(start + quad * QUAD, number<1>);
        }
    }
}

// One tile, from inputs at `x` to where `f` says.
template <int PIXELS, int BLOCKS, bool NARROW>
void multiply(const Walk& walk, const uint8_t* x, const int8_t* panel, const Narrowing& narrowing, const Finish& f) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    Int sums[PIXELS][VECTORS];
    multiply_tile<PIXELS, BLOCKS, NARROW>(walk, x, panel, narrowing, sums);
    if (f.shift) {
        unrolled(std::make_integer_sequence<int, PIXELS * VECTORS>{}, [&](auto i) INLINE {
            sums[i / VECTORS][i % VECTORS] = shift_right(sums[i / VECTORS][i % VECTORS], f.shift);
        });
    }
    finish_tile<PIXELS, VECTORS>(sums, f);
}

using Multiply = void (*)(const Walk&, const uint8_t*, const int8_t*, const Narrowing&, const Finish&);

// `multiply` for 1 to MAX_PIXELS pixels.
template <int BLOCKS, bool NARROW, size_t... INDICES>
Multiply multiplier(int64_t pixels, std::index_sequence<INDICES...>) {
    static constexpr Multiply functions[] = {multiply<INDICES + 1, BLOCKS, NARROW>...};
    return functions[pixels - 1];
}

}  // namespace mbqc::MBQC_ISA
