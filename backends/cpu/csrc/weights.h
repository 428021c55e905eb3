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

inline Codes narrow(const int8_t* codes, const Narrowing& n) {
    return and_bytes(add_saturated(load_codes(codes), load_codes(n.half)), load_codes(n.kept));
}

// `bytes` codes, whole vectors, from `stored` on, at the width of this call.
inline const int8_t* narrowed(const StoredWeights& w, const int8_t* stored, int64_t bytes, const Call& call) {
    if (w.bits == 8) return stored;
    const Narrowing narrowing(w);
    int8_t* panel = call.own<int8_t>(w.panel);
    for (int64_t i = 0; i < bytes; i += LANES * QUAD) store_codes(panel + i, narrow(stored + i, narrowing));
    return panel;
}

}  // namespace mbqc::MBQC_ISA
