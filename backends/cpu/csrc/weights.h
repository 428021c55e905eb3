// What both convolutions share. Above all: weights of the current width, derived from stored codes during the call.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

constexpr int BLOCK_VECTORS = BLOCK / LANES;
constexpr int64_t PANEL_GROUP = BLOCK * QUAD;  // bytes of one quad of inputs for a block of outputs

template <int VALUE>
constexpr std::integral_constant<int, VALUE> number{};

// Calls `body` with each number of the sequence as a constant.
template <class Body, int... INDICES>
INLINE inline void unrolled(std::integer_sequence<int, INDICES...>, Body body) {
    (body(std::integral_constant<int, INDICES>{}), ...);
}

// How far the second rounding of mbqc/numerics.py (`narrow`) drops bits, and what it adds before.
struct Rounding {
    int drop;
    int8_t half;

    explicit Rounding(const StoredWeights& w)
        : drop(static_cast<int>(8 - w.bits)),
          half(static_cast<int8_t>(w.rounds && w.bits > 1 && drop > 0 ? 1 << (drop - 1) : 0)) {}
};

// The second rounding in registers: a saturating addition and a mask leave codes of the width, times 2^drop.
struct Narrowing {
    alignas(64) int8_t half[LANES * QUAD];
    alignas(64) int8_t kept[LANES * QUAD];

    explicit Narrowing(const Rounding& r) {
        std::memset(half, r.half, sizeof(half));
        std::memset(kept, -1 << r.drop, sizeof(kept));
    }
};

inline Weights weights(const int8_t* codes, const Narrowing& n) {
    return weights(and_bytes(add_saturated(load_codes(codes), load_codes(n.half)), load_codes(n.kept)));
}

// `bytes` codes, whole vectors, from `stored` on, at the width of this call.
inline const int8_t* narrowed(const StoredWeights& weights, const int8_t* stored, int64_t bytes, const Call& call) {
    using Codes = int8_t __attribute__((vector_size(LANES * QUAD)));
    using Words = uint16_t __attribute__((vector_size(LANES * QUAD)));
    if (weights.bits == 8) return stored;
    const Rounding r(weights);
    const Codes limit = Codes{} + static_cast<int8_t>(127 - r.half);  // what lies above would round out of range
    const Codes sign = Codes{} + static_cast<int8_t>(-128), sign_after = Codes{} + static_cast<int8_t>(128 >> r.drop);
    const Codes kept = Codes{} + static_cast<int8_t>(255 >> r.drop);
    int8_t* panel = call.at<int8_t>(weights.panel);
    for (int64_t i = 0; i < bytes; i += LANES * QUAD) {
        Codes q;
        std::memcpy(&q, stored + i, sizeof(q));
        q = ((q < limit ? q : limit) + r.half) ^ sign;  // unsigned from here: a shift of words, cut to bytes by the mask
        q = (reinterpret_cast<Codes>(reinterpret_cast<Words>(q) >> r.drop) & kept) - sign_after;
        std::memcpy(panel + i, &q, sizeof(q));
    }
    return panel;
}

}  // namespace mbqc::MBQC_ISA
