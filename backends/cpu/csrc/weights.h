// What both convolutions share. Above all: weights of the current width, derived from stored codes during the call.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

constexpr int BLOCK_VECTORS = BLOCK / LANES;
constexpr int64_t PANEL_GROUP = BLOCK * QUAD;  // bytes of one quad of inputs for a block of outputs

// Calls `body` with each number of the sequence as a constant.
template <class Body, int... INDICES>
INLINE inline void unrolled(std::integer_sequence<int, INDICES...>, Body body) {
    (body(std::integral_constant<int, INDICES>{}), ...);
}

// `bytes` codes, whole vectors, from `stored` on: the second rounding of mbqc/numerics.py (`narrow`).
inline const int8_t* narrowed(const StoredWeights& weights, const int8_t* stored, int64_t bytes, const Call& call) {
    using Codes = int8_t __attribute__((vector_size(LANES * QUAD)));
    using Words = uint16_t __attribute__((vector_size(LANES * QUAD)));
    if (weights.bits == 8) return stored;
    const int drop = static_cast<int>(8 - weights.bits);
    const auto half = static_cast<int8_t>(weights.rounds && weights.bits > 1 ? 1 << (drop - 1) : 0);
    const Codes limit = Codes{} + static_cast<int8_t>(127 - half);  // what lies above would round out of range
    const Codes sign = Codes{} + static_cast<int8_t>(-128), sign_after = Codes{} + static_cast<int8_t>(128 >> drop);
    const Codes kept = Codes{} + static_cast<int8_t>(255 >> drop);
    int8_t* panel = call.at<int8_t>(weights.panel);
    for (int64_t i = 0; i < bytes; i += LANES * QUAD) {
        Codes q;
        std::memcpy(&q, stored + i, sizeof(q));
        q = ((q < limit ? q : limit) + half) ^ sign;  // unsigned from here: a shift of words, cut to bytes by the mask
        q = (reinterpret_cast<Codes>(reinterpret_cast<Words>(q) >> drop) & kept) - sign_after;
        std::memcpy(panel + i, &q, sizeof(q));
    }
    return panel;
}

}  // namespace mbqc::MBQC_ISA
