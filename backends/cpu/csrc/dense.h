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

    // From an output's pixel and channel on; `window_sums` are of the channel's group, or null.
    Finish(const Conv& c, const Call& call, const float* window_sums, int64_t pixel, int64_t channel, int64_t channels)
        : epilogue(c.epilogue),
          multiplier(epilogue.multiplier + channel),
          addend(epilogue.addend + channel),
          window_multiplier(window_sums ? epilogue.window_multiplier + channel : nullptr),
          lanes(channels),
          pixel_step(c.out_channels),
          window_step(c.groups),
          shift(c.weights.shift),
          windows(window_sums ? window_sums + pixel * c.groups : nullptr),
          residual(epilogue.has_residual ? call.at(epilogue.residual) + pixel * c.out_channels + channel : nullptr),
          output(call.at(c.output) + (pixel * c.out_channels + channel) * (epilogue.to_float ? 4 : 1)) {}

    // To the tile that begins so many pixels further on.
    void advance(int64_t pixels) {
        if (windows) windows += pixels * window_step;
        if (residual) residual += pixels * pixel_step;
        output += pixels * pixel_step * (epilogue.to_float ? 4 : 1);
    }
};

// Floats, and totals that may leave int32's range: a vector at a time.
template <int VECTORS>
__attribute__((noinline)) void finish_rarely(const int32_t* sums, int64_t pixels, const Finish& f) {
    const Epilogue& e = f.epilogue;
    const Float low = splat(e.low), high = splat(e.high);
    for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t lane = 0; lane < f.lanes; lane += LANES) {
            const int64_t lanes = least(LANES, f.lanes - lane), element = p * f.pixel_step + lane;
            Float t = to_float(load(sums + p * VECTORS * LANES + lane)) * load(f.multiplier + lane);
            if (f.windows) t = t + splat(f.windows[p * f.window_step]) * load(f.window_multiplier + lane);
            t = t + load(f.addend + lane);
            if (f.residual) t = t + to_float(load_codes(f.residual + element, lanes)) * splat(e.residual_multiplier);
            if (e.to_float) {  // not-a-number and negative zero pass
                store(reinterpret_cast<float*>(f.output) + element, smaller(high, larger(low, t)), lanes);
            } else {
                store_codes(f.output + element, smaller(larger(t, low), high), lanes);
            }
        }
    }
}

// Codes of a tile of totals in int32's range; what is not a number becomes the lowest code. Groups of vectors follow
// each other through its stages, which use different units of the processor; a tile through one stage after the other
// takes 15 % longer. PLAIN: without window sums and residual, so without a branch.
template <bool PLAIN, int PIXELS, int VECTORS>
INLINE inline void finish_codes(const Int (&sums)[PIXELS][VECTORS], const Finish& f) {
    constexpr int COUNT = PIXELS * VECTORS, GROUPS = (COUNT + PACK - 1) / PACK, EACH = PACK / VECTORS;  // pixels
    const Finish at = f;  // a copy: codes are bytes, so for all the compiler knows each store may change anything
    const auto low = static_cast<uint8_t>(f.epilogue.low), high = static_cast<uint8_t>(f.epilogue.high);
    const float residual_multiplier = f.epilogue.residual_multiplier;
    const bool full = f.lanes == VECTORS * LANES;
    Float totals[COUNT], multipliers[VECTORS], addends[VECTORS];
    unrolled(std::make_integer_sequence<int, VECTORS>{}, [&](auto v) INLINE {
        multipliers[v] = load(at.multiplier + v * LANES);
        addends[v] = load(at.addend + v * LANES);
    });
    const auto each = [&](auto group, auto body) INLINE {
        unrolled(std::make_integer_sequence<int, PACK>{}, [&](auto i) INLINE {
            constexpr int I = group * PACK + i;
            if constexpr (0 <= I && I < COUNT) {
                body(totals[I], number<I / VECTORS>, number<I % VECTORS>);
                renew(totals[I]);  // g++ keeps this order
            }
        });
    };
    const auto total = [&](auto i) INLINE { return totals[i < COUNT ? i : 0]; };
    unrolled(std::make_integer_sequence<int, GROUPS + 3>{}, [&](auto stage) INLINE {
        each(number<stage>, [&](Float& t, auto p, auto v) INLINE { t = to_float(sums[p][v]); });
        each(number<stage - 1>, [&](Float& t, auto, auto v) INLINE { t = t * multipliers[v]; });
        if (!PLAIN && at.windows) {
            each(number<stage - 1>, [&](Float& t, auto p, auto v) INLINE {
                t = t + splat(at.windows[p * at.window_step]) * load(at.window_multiplier + v * LANES);
            });
        }
        each(number<stage - 2>, [&](Float& t, auto, auto v) INLINE { t = t + addends[v]; });
        const auto add_residual = [&](auto lanes) INLINE {
            each(number<stage - 2>, [&](Float& t, auto p, auto v) INLINE {
                const Int codes = load_codes(at.residual + p * at.pixel_step + v * LANES, lanes(v));
                t = t + to_float(codes) * splat(residual_multiplier);
            });
        };
        if (!PLAIN && at.residual && full) {
            add_residual([](int) INLINE { return LANES; });
        } else if (!PLAIN && at.residual) {
            add_residual([&](int v) INLINE { return most(0, least(LANES, at.lanes - v * LANES)); });
        }
        if constexpr (stage >= 3) {
            constexpr int FIRST = (stage - 3) * PACK;
            const Packed codes = pack<false>(total(number<FIRST>), total(number<FIRST + 1>), total(number<FIRST + 2>),
                                             total(number<FIRST + 3>), low, high);
            unrolled(std::make_integer_sequence<int, EACH>{}, [&](auto i) INLINE {
                constexpr int P = FIRST / VECTORS + i;
                if constexpr (P < PIXELS) {
                    store_packed<i * VECTORS, VECTORS>(at.output + P * at.pixel_step, codes, at.lanes);
                }
            });
        }
    });
}

// The epilogue of a tile.
template <int PIXELS, int VECTORS>
INLINE inline void finish_tile(const Int (&sums)[PIXELS][VECTORS], const Finish& f) {
    if (f.epilogue.to_float || !f.epilogue.in_range) {
        int32_t memory[PIXELS * VECTORS * LANES];
        unrolled(std::make_integer_sequence<int, PIXELS * VECTORS>{}, [&](auto i) INLINE {
            store(memory + i * LANES, sums[i / VECTORS][i % VECTORS]);
        });
        finish_rarely<VECTORS>(memory, PIXELS, f);
    } else if (f.windows || f.residual) {
        finish_codes<false>(sums, f);
    } else {
        finish_codes<true>(sums, f);
    }
}

struct Ready {};  // instead of a Derivation: weights are of the call's width

// Accumulators [PIXELS][BLOCKS * BLOCK] of neighbouring pixels. All indices of `sums` are constants: in loops, g++
// keeps it in memory. DERIVE is no local constant: lambdas would capture it, and g++'s loops be 2 % slower.
template <int PIXELS, int BLOCKS, class Source, bool DERIVE = !std::is_same_v<Source, Ready>>
INLINE inline void multiply_tile(const Walk& walk, const uint8_t* x, const int8_t* panel, Source source,
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
                if constexpr (DERIVE) {
                    w[q][v] = weights(source.derive(codes, codes - panel, v));
                } else {
                    w[q][v] = weights(load_codes(codes));
                }
            });
            if constexpr (DERIVE) source.advance();
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

// The weights of a panel, and where those of a lower width are kept.
struct Panel {
    const StoredWeights& weights;
    int64_t block;  // the first one
    int8_t* kept;  // null: nowhere
};

// Of a tile that derives shifted codes, at most (`Dense::derive`): with more, registers do not suffice, and the halves of
// a tile take less time.
constexpr int MOST_SHIFTED_PIXELS = 5 * MAX_PIXELS / 7;

// One tile, from inputs at `x` to where `f` says. `codes` are of the call's width or, to DERIVE those, stored ones.
template <int PIXELS, int BLOCKS, bool DERIVE>
void multiply(const Walk& walk, const uint8_t* x, const int8_t* codes, const Panel& panel, const Finish& f) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    Int sums[PIXELS][VECTORS];
    const StoredWeights& w = panel.weights;
    if constexpr (!DERIVE) {
        multiply_tile<PIXELS, BLOCKS>(walk, x, codes, Ready{}, sums);
    } else if (!panel.kept) {
        multiply_tile<PIXELS, BLOCKS>(walk, x, codes, Derivation<BLOCKS, false, false>(w, panel.block, nullptr), sums);
    } else if (PIXELS > MOST_SHIFTED_PIXELS || !w.added) {
        multiply_tile<PIXELS, BLOCKS>(walk, x, codes, Derivation<BLOCKS, false>(w, panel.block, panel.kept), sums);
    } else if constexpr (PIXELS <= MOST_SHIFTED_PIXELS) {
        multiply_tile<PIXELS, BLOCKS>(walk, x, codes, Derivation<BLOCKS, true>(w, panel.block, panel.kept), sums);
    }
    if (f.shift) {
        unrolled(std::make_integer_sequence<int, PIXELS * VECTORS>{}, [&](auto i) INLINE {
            sums[i / VECTORS][i % VECTORS] = shift_right(sums[i / VECTORS][i % VECTORS], f.shift);
        });
    }
    finish_tile<PIXELS, VECTORS>(sums, f);
}

using Multiply = void (*)(const Walk&, const uint8_t*, const int8_t*, const Panel&, const Finish&);

// `multiply` for 1 to MAX_PIXELS pixels.
template <int BLOCKS, bool DERIVE, size_t... INDICES>
Multiply multiplier(int64_t pixels, std::index_sequence<INDICES...>) {
    static constexpr Multiply functions[] = {multiply<INDICES + 1, BLOCKS, DERIVE>...};
    return functions[pixels - 1];
}

}  // namespace mbqc::MBQC_ISA
