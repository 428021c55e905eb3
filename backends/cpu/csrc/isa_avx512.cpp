// Vectors of 16 lanes: AVX-512 with VNNI.
#include "abi.h"

#if MBQC_X86

#include <cstring>
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vpopcntdq")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 means its own intrinsics (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"        // likewise
#pragma GCC optimize("no-tree-pre")  // it lengthens the lives of sums in registers, which then spill in the inner loop
#define MBQC_ISA avx512

#include "unrolled.h"

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
inline Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int shift_left(Int v, int bits) { return _mm512_slli_epi32(v, static_cast<unsigned>(bits)); }
inline Int shift_right(Int v, int64_t bits) { return _mm512_sra_epi32(v, _mm_cvtsi64_si128(bits)); }
inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(0xffffu >> (16 - count)); }
inline Int load_codes(const uint8_t* p, int64_t count) {  // no branch: masked loads are fast
    const bool all = __builtin_constant_p(count) && count == LANES;
    return _mm512_cvtepu8_epi32(all ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
                                    : _mm_maskz_loadu_epi8(first(count), p));
}

inline Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
inline Float splat(float v) { return _mm512_set1_ps(v); }
inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline Float load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline Float load(const float* p, int64_t count, Float rest) { return _mm512_mask_loadu_ps(rest, first(count), p); }
inline Int as_int(Float v) { return _mm512_castps_si512(v); }
inline Float as_float(Int v) { return _mm512_castsi512_ps(v); }
inline void store(float* p, Float v, int64_t count) {
    if (count == LANES) {
        _mm512_storeu_ps(p, v);  // masked stores are slow
    } else {
        _mm512_mask_storeu_ps(p, first(count), v);
    }
}
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


// Codes of four vectors side by side. None is above int32's range; what is not a number becomes the lowest code.
constexpr int PACK = 4;
using Packed = __m512i;
// `pack_scattered`: lane i has quads i of each, and no bounds but a code's.
inline Packed pack_scattered(Float a, Float b, Float c, Float d) {
    const __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    const __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    return _mm512_packus_epi16(ab, cd);
}
template <bool ALL_CODES>
inline Packed pack(Float a, Float b, Float c, Float d, uint8_t low, uint8_t high) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i lowest = _mm512_set1_epi8(static_cast<char>(low));
    const __m512i highest = _mm512_set1_epi8(static_cast<char>(high));
    __m512i codes = pack_scattered(a, b, c, d);
    if constexpr (!ALL_CODES) codes = _mm512_min_epu8(_mm512_max_epu8(codes, lowest), highest);
    return _mm512_permutexvar_epi32(in_order, codes);
}
// `count` codes, at most VECTORS vectors, from vector FIRST on.
template <int FIRST, int VECTORS>
inline void store_packed(uint8_t* p, Packed codes, int64_t count) {
    if constexpr (VECTORS == PACK) {
        _mm512_storeu_si512(p, codes);  // all of them
    } else if constexpr (VECTORS == 1) {
        const __m128i part = _mm512_extracti32x4_epi32(codes, FIRST);
        if (__builtin_expect(count == LANES, 1)) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), part);
        } else {
            _mm_mask_storeu_epi8(p, first(count), part);
        }
    } else {
        const __m256i part = _mm512_extracti64x4_epi64(codes, FIRST / 2);
        if (__builtin_expect(count == 2 * LANES, 1)) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), part);
        } else {
            _mm256_mask_storeu_epi8(p, 0xffffffffu >> (32 - count), part);
        }
    }
}

using Codes = __m512i;
inline Codes load_codes(const int8_t* p) { return _mm512_loadu_si512(p); }
inline void store_codes(int8_t* p, Codes codes) { _mm512_storeu_si512(p, codes); }
inline Codes add_saturated(Codes a, Codes b) { return _mm512_adds_epi8(a, b); }
inline Codes and_bytes(Codes a, Codes b) { return _mm512_and_si512(a, b); }
// `codes + whole`, one more where `position` is before `rest`, saturating; zero where it is not before `filling`.
inline Codes shifted(Codes codes, Codes whole, Codes rest, Codes position, Codes filling) {
    const __mmask64 more = _mm512_cmpgt_epi8_mask(rest, position), used = _mm512_cmpgt_epi8_mask(filling, position);
    return _mm512_maskz_adds_epi8(used, codes, _mm512_mask_add_epi8(whole, more, whole, _mm512_set1_epi8(1)));
}
inline Codes splat_codes(int8_t code) { return _mm512_set1_epi8(code); }
inline Codes splat_codes(const int8_t* quad) {
    int32_t codes;
    std::memcpy(&codes, quad, sizeof(codes));
    return _mm512_set1_epi32(codes);
}
inline Codes repeat_codes(const int8_t* codes) {  // each QUAD times
    const __m512i quads = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm512_shuffle_epi8(quads, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}
inline void hold(Codes& codes) { asm("" : "+v"(codes)); }  // in a register: g++ would load once for each use
inline Weights weights(Codes codes) { return codes; }
inline Int dot(Int sum, Bytes x, Weights w) { return _mm512_dpbusd_epi32(sum, x, w); }
inline Bytes broadcast(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return _mm512_set1_epi32(quad);
}

// Two neighbouring quads by one load.
inline void broadcast_pair(const uint8_t* p, Bytes (&quads)[2]) {
    int64_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    quads[0] = _mm512_shuffle_epi32(_mm512_set1_epi64(pair), _MM_PERM_CCAA);
    quads[1] = _mm512_shuffle_epi32(_mm512_set1_epi64(pair), _MM_PERM_DDBB);
}

inline Int subtract_words(Int a, Int b) { return _mm512_sub_epi32(a, b); }
inline Int load_words(const int8_t* p) { return _mm512_loadu_si512(p); }
inline Int broadcast_word(const uint8_t* p) { return broadcast(p); }
// How many ones `a` and `b` have in common in each lane.
inline Int count_common(Int a, Int b) { return _mm512_popcnt_epi32(_mm512_and_si512(a, b)); }

// 8 * `bytes` codes to bit-planes `plane_bytes` apart.
inline void pack_bits(const uint8_t* x, int64_t bytes, int64_t planes, int64_t plane_bytes, uint8_t* y) {
    const auto bit = [](__m512i codes, int64_t plane) INLINE {
        return _mm512_test_epi8_mask(codes, _mm512_set1_epi8(static_cast<char>(1 << plane)));
    };
    int64_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        const __m512i codes = _mm512_loadu_si512(x + 8 * i);
        for (int64_t plane = 0; plane < planes; ++plane) {
            const uint64_t bits = bit(codes, plane);
            std::memcpy(y + plane * plane_bytes + i, &bits, sizeof(bits));
        }
    }
    if (i == bytes) return;
    const __m512i codes = _mm512_maskz_loadu_epi8(~0ull >> (64 - 8 * (bytes - i)), x + 8 * i);
    for (int64_t plane = 0; plane < planes; ++plane) {
        const uint64_t bits = bit(codes, plane);
        std::memcpy(y + plane * plane_bytes + i, &bits, static_cast<size_t>(bytes - i));
    }
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
// The first three bytes of each of 16 quads.
inline void store_triples(uint8_t* p, const uint8_t* quads) {
    const __m128i lane = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m512i within = _mm512_broadcast_i32x4(lane);
    const __m512i across = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    const __m512i all = _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(_mm512_loadu_si512(quads), within));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(all));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 32), _mm512_extracti32x4_epi32(all, 2));
}
inline Bytes load_bytes(const uint8_t* quads) { return _mm512_loadu_si512(quads); }

// For the compiler, a change of a value, and a use.
inline void renew(Bytes& x) { asm volatile("" : "+v"(x)); }
inline void renew(Float& x) { asm volatile("" : "+v"(x)); }
inline void keep(const Int& v) { asm volatile("" : : "v"(v)); }

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

// Sums of neighbouring eights of each pair of rows, even quadwords of `a`'s and odd ones of `b`'s row.
inline __m512i add_pairs(__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
inline __m512i add_lanes(__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}
// Sums of eight rows of `depth` bytes that follow each other; `eights` sums the bytes at a place eight at a time.
template <class Eights>
INLINE inline __m256i sum_8_rows(const uint8_t* x, int64_t depth, Eights eights) {
    constexpr __mmask64 ALL = ~0ull;
    if (depth == 16) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m512i sums = add_pairs(eights(x, ALL), eights(x + 64, ALL));
        return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
    }
    if (depth == 32) {
        const __m512i order = _mm512_setr_epi32(0, 4, 2, 6, 8, 12, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m512i front = add_pairs(eights(x, ALL), eights(x + 64, ALL));
        const __m512i back = add_pairs(eights(x + 128, ALL), eights(x + 192, ALL));
        return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, add_lanes(front, back)));
    }
    constexpr auto rows = std::make_integer_sequence<int, 8>{};
    __m512i sums[8];
    const __mmask64 rest = ALL >> (-depth & 63);
    const int64_t whole = (depth - 1) / 64 * 64;
    unrolled(rows, [&](auto row) INLINE {  // in the order of memory: that is what processors fetch ahead
        const uint8_t* const from = x + row * depth;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < whole; i += 64) sum = _mm512_add_epi64(sum, eights(from + i, ALL));
        sums[row] = _mm512_add_epi64(sum, eights(from + whole, rest));
    });
    const __m512i front = add_lanes(add_pairs(sums[0], sums[1]), add_pairs(sums[2], sums[3]));
    const __m512i back = add_lanes(add_pairs(sums[4], sums[5]), add_pairs(sums[6], sums[7]));
    return _mm512_cvtepi64_epi32(add_lanes(front, back));
}

// Sums of `count` rows of codes that follow each other.
inline void sum_rows(const uint8_t* x, int64_t count, int64_t depth, int32_t* sums) {
    const auto eights = [&](const uint8_t* p, __mmask64 mask) INLINE {
        return _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, p), _mm512_setzero_si512());
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i), sum_8_rows(x + i * depth, depth, eights));
    }
    for (; i < count; ++i) sums[i] = sum_codes(x + i * depth, depth);
}

// Sums of codes in bit-planes `plane_bytes` apart, `bytes` of each plane a row; returns for how many of `count` rows.
inline int64_t sum_bit_rows(const uint8_t* x, int64_t count, int64_t bytes, int64_t planes, int64_t plane_bytes,
                            int32_t* sums) {
    const auto eights = [&](const uint8_t* p, __mmask64 mask) INLINE {
        __m512i sum = _mm512_popcnt_epi64(_mm512_maskz_loadu_epi8(mask, p));
        for (int64_t plane = 1; plane < planes; ++plane) {
            const __m512i ones = _mm512_popcnt_epi64(_mm512_maskz_loadu_epi8(mask, p + plane * plane_bytes));
            sum = _mm512_add_epi64(sum, _mm512_sll_epi64(ones, _mm_cvtsi64_si128(plane)));
        }
        return sum;
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint8_t* const rows = x + i * bytes;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i), bytes == 8 ? _mm512_cvtepi64_epi32(eights(rows, ~0ull))
                                                                            : sum_8_rows(rows, bytes, eights));
    }
    return i;
}

}  // namespace mbqc::MBQC_ISA

#include "depthwise_avx512.h"
#include "lookup_avx512.h"
#include "run.h"

#endif
