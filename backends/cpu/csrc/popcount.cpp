// The limit of one-bit products: vectors whose bits are compared and counted, by AVX-512 VPOPCNTDQ.
#include "abi.h"

#if MBQC_X86

#include <immintrin.h>

#pragma GCC target("avx512f,avx512vpopcntdq")
#define MBQC_ISA popcount

#include "unrolled.h"

namespace mbqc::MBQC_ISA {

// Comparisons of registers, an exclusive or and a count each, in chains that do not wait for each other.
int64_t count_bits(int64_t rounds) {
    constexpr int CHAINS = 14, BITS = 512;
    constexpr auto chains = std::make_integer_sequence<int, CHAINS>{};
    __m512i sums[CHAINS], x = _mm512_set1_epi32(1), w = _mm512_set1_epi32(3);
    unrolled(chains, [&](auto i) INLINE { sums[i] = _mm512_setzero_si512(); });
    for (int64_t round = 0; round < rounds; ++round) {
        unrolled(chains, [&](auto i) INLINE {
            asm volatile("" : "+v"(x));  // else g++ takes equal counts out of the loop
            sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(_mm512_xor_si512(x, w)));
        });
    }
    unrolled(chains, [&](auto i) INLINE { asm volatile("" : : "v"(sums[i])); });
    return rounds * CHAINS * BITS * 2;
}

}  // namespace mbqc::MBQC_ISA

#endif
