// Codes through a table of 256 bytes that stays in registers; whole vectors only. Return how many codes that were.
#pragma once

#include "unrolled.h"

namespace mbqc::MBQC_ISA {

// Not every machine with VNNI has these instructions.
__attribute__((target("avx512vbmi"))) inline int64_t look_up_bytes(const uint8_t* x, const uint8_t* table, uint8_t* y,
                                                                    int64_t count) {
    const __m512i first = _mm512_loadu_si512(table), second = _mm512_loadu_si512(table + 64);
    const __m512i third = _mm512_loadu_si512(table + 128), fourth = _mm512_loadu_si512(table + 192);
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m512i codes = _mm512_loadu_si512(x + i);
        const __m512i low = _mm512_permutex2var_epi8(first, codes, second);
        const __m512i high = _mm512_permutex2var_epi8(third, codes, fourth);
        _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high));
    }
    return i;
}

inline int64_t look_up_vectors(const uint8_t* x, const uint8_t* table, uint8_t* y, int64_t count) {
    return __builtin_cpu_supports("avx512vbmi") ? look_up_bytes(x, table, y, count) : 0;  // 0: one by one
}

}  // namespace mbqc::MBQC_ISA
