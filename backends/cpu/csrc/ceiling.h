// The most that this machine can do, measured by loops of one kind of instruction. Included once per instruction set,
// after its vector functions.
#pragma once

#include "unrolled.h"

namespace mbqc::MBQC_ISA {

// Dot products of registers, in as many chains as the dense kernel has pixels: no chain waits for another.
inline int64_t multiply_registers(int64_t rounds) {
    constexpr auto chains = std::make_integer_sequence<int, MAX_PIXELS>{};
    alignas(64) uint8_t bytes[LANES * QUAD] = {1, 2, 3};
    Int sums[MAX_PIXELS];
    unrolled(chains, [&](auto i) INLINE { sums[i] = zero(); });
    Bytes x = broadcast(bytes);
    const Weights w = weights(load_codes(reinterpret_cast<const int8_t*>(bytes)));
    for (int64_t round = 0; round < rounds; ++round) {
        unrolled(chains, [&](auto i) INLINE {
            renew(x);  // else g++ takes equal products out of the loop
            sums[i] = dot(sums[i], x, w);
        });
    }
    unrolled(chains, [&](auto i) INLINE { keep(sums[i]); });
    return rounds * MAX_PIXELS * LANES * QUAD * 2;
}

// Reads all whole groups of vectors in a buffer.
inline int64_t read_buffer(const uint8_t* buffer, int64_t bytes, int64_t rounds) {
    constexpr int64_t VECTOR = sizeof(Int), GROUP = 8 * VECTOR;
    constexpr auto parts = std::make_integer_sequence<int, 8>{};
    const int64_t groups = bytes / GROUP;
    for (int64_t round = 0; round < rounds; ++round) {
        const uint8_t* from = buffer;
        for (int64_t group = 0; group < groups; ++group, from += GROUP) {
            unrolled(parts, [&](auto i) INLINE {
                const Int v = load(reinterpret_cast<const int32_t*>(from + i * VECTOR));
                keep(v);
            });
        }
    }
    return rounds * groups * GROUP;
}

int64_t probe(Limit limit, int64_t rounds, const uint8_t* buffer, int64_t bytes) {
    return limit == Limit::multiply ? multiply_registers(rounds) : read_buffer(buffer, bytes, rounds);
}

}  // namespace mbqc::MBQC_ISA
