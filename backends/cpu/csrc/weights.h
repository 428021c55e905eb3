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

// Narrow codes of a block and, where there is one, their shift (`Shift.apply` of mbqc/numerics.py).
inline void narrow_block(const StoredWeights& w, const Narrowing& narrowing, int64_t block, int64_t bytes, int8_t* to) {
    constexpr int64_t BYTES = LANES * QUAD;
    const int8_t* const from = w.codes + block * bytes;
    // in registers: codes are bytes, so for all the compiler knows each store may change anything in memory
    const Codes half = load_codes(narrowing.half), kept = load_codes(narrowing.kept), filling = splat_codes(127);
    if (!w.whole) {
        for (int64_t i = 0; i < bytes; i += BYTES) store_codes(to + i, narrow(load_codes(from + i), half, kept));
        return;
    }
    const int8_t* const positions = w.positions;
    for (int64_t lanes = 0; lanes < PANEL_GROUP; lanes += BYTES) {
        const Codes whole = load_codes(w.whole + block * PANEL_GROUP + lanes);
        const Codes rest = load_codes(w.rest + block * PANEL_GROUP + lanes);
        for (int64_t i = lanes; i < bytes; i += PANEL_GROUP) {
            const Codes position = splat_codes(positions + i / PANEL_GROUP * QUAD);
            store_codes(to + i, shifted(narrow(load_codes(from + i), half, kept), whole, rest, position, filling));
        }
    }
}

// `count` blocks of `bytes` codes each, from the `first` one on, at the width of this call.
inline const int8_t* narrowed(const StoredWeights& w, int64_t first, int64_t count, int64_t bytes, const Call& call) {
    if (w.bits == 8) return w.codes + first * bytes;
    const Narrowing narrowing(w);
    int8_t* panel = call.own<int8_t>(w.panel);
    for (int64_t i = 0; i < count; ++i) narrow_block(w, narrowing, first + i, bytes, panel + i * bytes);
    return panel;
}

}  // namespace mbqc::MBQC_ISA
