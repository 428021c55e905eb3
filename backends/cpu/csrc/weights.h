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

// How the weights of BLOCKS neighbouring blocks become those of the width, quad after quad: narrow and, with SHIFT,
// shifted (`Shift.apply` of mbqc/numerics.py); with KEEP they are kept. Constants are in registers: codes are bytes, so
// for all the compiler knows each store may change anything in memory.
template <int BLOCKS, bool SHIFT, bool KEEP = true>
struct Derivation {
    static constexpr int VECTORS = BLOCKS * BLOCK_VECTORS;
    static constexpr auto each_vector = std::make_integer_sequence<int, VECTORS>{};
    int8_t* kept;
    const int8_t* positions;
    Codes half, mask, filling, position, whole[VECTORS], rest[VECTORS];

    INLINE Derivation(const StoredWeights& w, int64_t block, int8_t* to) : kept(to), positions(w.positions) {
        const Narrowing narrowing(w);
        half = load_codes(narrowing.half);
        mask = load_codes(narrowing.kept);
        if constexpr (SHIFT) {
            filling = splat_codes(127);
            unrolled(each_vector, [&](auto v) INLINE {
                const int8_t* const added = w.added + (block + v / BLOCK_VECTORS) * 2 * BLOCK + v % BLOCK_VECTORS * LANES;
                whole[v] = repeat_codes(added);
                rest[v] = repeat_codes(added + BLOCK);
            });
        }
    }

    // The quad's vector `v`, stored at `from`; `at` is its distance from the first one.
    template <class Vector>
    INLINE Codes derive(const int8_t* from, int64_t at, Vector v) {
        Codes codes = narrow(load_codes(from), half, mask);
        if constexpr (SHIFT) {
            if constexpr (v == 0) position = splat_codes(positions);
            codes = shifted(codes, whole[v], rest[v], position, filling);
        }
        if constexpr (KEEP) store_codes(kept + at, codes);
        return codes;
    }

    // To the next quad.
    INLINE void advance() {
        if constexpr (KEEP) kept += PANEL_GROUP;
        if constexpr (SHIFT) positions += QUAD;
    }
};

// Neighbouring blocks of `bytes` codes each, from the first one on, without a kernel meanwhile.
template <int BLOCKS, bool SHIFT>
void derive_blocks(const StoredWeights& w, int64_t first, int64_t bytes, int8_t* to) {
    Derivation<BLOCKS, SHIFT> derivation(w, first, to);
    const int8_t* const stored = w.codes + first * bytes;
    for (int64_t i = 0; i < bytes; i += PANEL_GROUP, derivation.advance()) {
        unrolled(derivation.each_vector, [&](auto v) INLINE {
            const int64_t at = v / BLOCK_VECTORS * bytes + v % BLOCK_VECTORS * LANES * QUAD;
            derivation.derive(stored + i + at, at, v);
        });
    }
}

// `count` blocks of `bytes` codes each at the width of this call: all of them, before they are used.
inline const int8_t* derived(const StoredWeights& w, int64_t count, int64_t bytes, const Call& call) {
    if (w.bits == 8) return w.codes;
    int8_t* const panel = call.own<int8_t>(w.panel);
    const auto two = w.added ? derive_blocks<2, true> : derive_blocks<2, false>;  // enough to do between jumps
    const auto one = w.added ? derive_blocks<1, true> : derive_blocks<1, false>;
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) two(w, i, bytes, panel + i * bytes);
    if (i < count) one(w, i, bytes, panel + i * bytes);
    return panel;
}

}  // namespace mbqc::MBQC_ISA
