// Vectors of 16 lanes: AVX-512 with VNNI.
#include "abi.h"

#if MBQC_X86

#include <cstring>
#include <immintrin.h>
#include <utility>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 means its own intrinsics (bug 105593)
#define MBQC_ISA avx512

namespace mbqc::MBQC_ISA {

constexpr int LANES = 16;
constexpr int MAX_PIXELS = 14;  // 28 accumulators, two weights, one input: 31 of 32 registers
constexpr int MAX_BLOCKS = 2;

using Int = __m512i;
using Float = __m512;
using Bytes = __m512i;    // four unsigned inputs a lane
using Weights = __m512i;  // four signed weights a lane

inline Int zero() { return _mm512_setzero_si512(); }
inline Int load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
inline Int splat(int32_t v) { return _mm512_set1_epi32(v); }
inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(0xffffu >> (16 - count)); }
inline Int load_codes(const uint8_t* p, int64_t count) {
    return _mm512_cvtepu8_epi32(count == LANES ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                                               : _mm_maskz_loadu_epi8(first(count), p));
}

inline Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
inline Float splat(float v) { return _mm512_set1_ps(v); }
inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline Float load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline void store(float* p, Float v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }
inline Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }   // b if either is not a number, or both are zero
inline Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }  // likewise
inline void store_codes(uint8_t* p, Float v, int64_t count) {
    const __m128i codes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v));
    if (count == LANES) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes);
    } else {
        _mm_mask_storeu_epi8(p, first(count), codes);
    }
}

inline Weights weights(const int8_t* p) { return _mm512_loadu_si512(p); }
inline Int dot(Int sum, Bytes x, Weights w) { return _mm512_dpbusd_epi32(sum, x, w); }
inline Bytes broadcast(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return _mm512_set1_epi32(quad);
}

inline __m128i row(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

// 16 neighbouring bytes from each of four places: quad i gets byte i of each.
inline void store_interleaved(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* quads) {
    const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i rows = _mm512_castsi128_si512(row(a));
    rows = _mm512_inserti32x4(rows, row(b), 1);
    rows = _mm512_inserti32x4(rows, row(c), 2);
    rows = _mm512_inserti32x4(rows, row(d), 3);
    _mm512_storeu_si512(quads, _mm512_shuffle_epi8(_mm512_permutexvar_epi32(across, rows), within));
}
inline Bytes load_bytes(const uint8_t* quads) { return _mm512_loadu_si512(quads); }

inline int32_t sum_codes(const uint8_t* p, int64_t count) {
    if (count <= 16) {
        const __m128i sums = _mm_sad_epu8(_mm_maskz_loadu_epi8(first(count), p), _mm_setzero_si128());
        return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums)));
    }
    __m512i sums = _mm512_setzero_si512();
    for (; count > 0; count -= 64, p += 64) {
        const __mmask64 mask = count >= 64 ? ~0ull : (1ull << count) - 1;
        sums = _mm512_add_epi64(sums, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, p), _mm512_setzero_si512()));
    }
    return static_cast<int32_t>(_mm512_reduce_add_epi64(sums));
}

}  // namespace mbqc::MBQC_ISA

#include "run.h"

#endif
