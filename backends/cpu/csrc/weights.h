// What both convolutions share. Above all: weights of the current width, derived from stored codes during the call.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

constexpr int BLOCK_VECTORS = BLOCK / LANES;
constexpr int64_t PANEL_GROUP = BLOCK * QUAD;  // bytes of one quad of inputs for a block of outputs

// The second rounding of mbqc/numerics.py (`narrow`): a saturating addition and a mask leave codes of the width, times
// 2^(8 - bits). The multiplier makes up for that, or `StoredWeights::shift`.
struct Narrowing {
    alignas(64) int8_t half[LANES * QUAD];
    alignas(64) int8_t kept[LANES * QUAD];

    explicit Narrowing(const StoredWeights& w) {
        const int drop = static_cast<int>(8 - w.bits);
        std::memset(half, w.rounds && w.bits > 1 && drop > 0 ? 1 << (drop - 1) : 0, sizeof(half));
        std::memset(kept, 0xff << drop, sizeof(kept));
    }
};

inline Codes narrow(Codes codes, Codes half, Codes kept) { return and_bytes(add_saturated(codes, half), kept); }
inline Codes narrow(const int8_t* codes, const Narrowing& n) {
    return narrow(load_codes(codes), load_codes(n.half), load_codes(n.kept));
}

// Narrow codes of neighbouring blocks and, where there is one, their shift (`Shift.apply` of mbqc/numerics.py). Two
// blocks at once share positions, and have enough to do between jumps: shifted codes come in 0.8 of the time.
template <int BLOCKS>
void narrow_blocks(const StoredWeights& w, const Narrowing& narrowing, int64_t first, int64_t bytes, int8_t* to) {
    constexpr int VECTORS = BLOCKS * BLOCK_VECTORS, BYTES = LANES * QUAD;
    constexpr auto each_vector = std::make_integer_sequence<int, VECTORS>{};
    const int8_t* const from = w.codes + first * bytes;
    // in registers: codes are bytes, so for all the compiler knows each store may change anything in memory
    const Codes half = load_codes(narrowing.half), kept = load_codes(narrowing.kept), filling = splat_codes(127);
    const auto derive = [&](int64_t i, auto shift) INLINE {
        unrolled(each_vector, [&](auto v) INLINE {
            const int64_t at = i + v / BLOCK_VECTORS * bytes + v % BLOCK_VECTORS * BYTES;
            Codes codes = narrow(load_codes(from + at), half, kept);
            shift(codes, v);
            store_codes(to + at, codes);
        });
    };
    if (!w.whole) {
        for (int64_t i = 0; i < bytes; i += PANEL_GROUP) derive(i, [](Codes&, int) INLINE {});
        return;
    }
    Codes whole[VECTORS], rest[VECTORS];
    unrolled(each_vector, [&](auto v) INLINE {
        whole[v] = load_codes(w.whole + first * PANEL_GROUP + v * BYTES);
        rest[v] = load_codes(w.rest + first * PANEL_GROUP + v * BYTES);
    });
    for (int64_t i = 0; i < bytes; i += PANEL_GROUP) {
        const Codes position = splat_codes(w.positions + i / PANEL_GROUP * QUAD);
        derive(i, [&](Codes& codes, auto v) INLINE { codes = shifted(codes, whole[v], rest[v], position, filling); });
    }
}

// `count` blocks of `bytes` codes each, from the `first` one on, at the width of this call.
inline const int8_t* narrowed(const StoredWeights& w, int64_t first, int64_t count, int64_t bytes, const Call& call) {
    if (w.bits == 8) return w.codes + first * bytes;
    const Narrowing narrowing(w);
    int8_t* const panel = call.own<int8_t>(w.panel);
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) narrow_blocks<2>(w, narrowing, first + i, bytes, panel + i * bytes);
    if (i < count) narrow_blocks<1>(w, narrowing, first + i, bytes, panel + i * bytes);
    return panel;
}

}  // namespace mbqc::MBQC_ISA
