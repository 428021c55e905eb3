// Vectors of 8 lanes: AVX2. Products are of 16-bit numbers: vpmaddubsw would saturate.
#include "abi.h"

#if MBQC_X86

#include <cstring>
#include <immintrin.h>

#pragma GCC target("avx2")
#pragma GCC optimize("no-tree-pre")  // it lengthens the lives of sums in registers, which then spill in the inner loop
#define MBQC_ISA avx2

#include "unrolled.h"

namespace mbqc::MBQC_ISA {

constexpr int LANES = 8;
constexpr int MAX_PIXELS = 6;  // 12 accumulators, two halves of a weight, two of an input: all 16 registers
constexpr int MAX_BLOCKS = 1;

using Int = __m256i;
using Float = __m256;

// Four bytes a lane as two pairs of 16-bit numbers: bytes 0 and 2, bytes 1 and 3.
struct Pairs {
    __m256i even;
    __m256i odd;
};
using Bytes = Pairs;
using Weights = Pairs;

inline __m256i load_vector(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Int zero() { return _mm256_setzero_si256(); }
inline Int load(const int32_t* p) { return load_vector(p); }
inline void store(int32_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Int splat(int32_t v) { return _mm256_set1_epi32(v); }
inline Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline Int shift_left(Int v, int bits) { return _mm256_slli_epi32(v, bits); }
inline Int shift_right(Int v, int64_t bits) { return _mm256_sra_epi32(v, _mm_cvtsi64_si128(bits)); }
inline Int load_codes(const uint8_t* p, int64_t count) {
    int64_t codes = 0;
    if (count == LANES) {
        std::memcpy(&codes, p, LANES);
    } else {
        std::memcpy(&codes, p, static_cast<size_t>(count));
    }
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes));
}

inline __m256i first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
inline Float splat(float v) { return _mm256_set1_ps(v); }
inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline Float load(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
inline Float as_float(Int v) { return _mm256_castsi256_ps(v); }
inline Int as_int(Float v) { return _mm256_castps_si256(v); }
inline Float load(const float* p, int64_t count, Float rest) {
    return _mm256_blendv_ps(rest, load(p, count), as_float(first(count)));
}
inline void store(float* p, Float v, int64_t count) { _mm256_maskstore_ps(p, first(count), v); }
inline Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }   // b if either is not a number, or both are zero
inline Float smaller(Float a, Float b) { return _mm256_min_ps(a, b); }  // likewise
inline void store_codes(uint8_t* p, Float v, int64_t count) {
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const int64_t codes = _mm_cvtsi128_si64(_mm_packus_epi16(half, half));
    if (count == LANES) {
        std::memcpy(p, &codes, LANES);
    } else {
        std::memcpy(p, &codes, static_cast<size_t>(count));
    }
}

// Codes of four vectors side by side. None is above int32's range; what is not a number becomes the lowest code.
constexpr int PACK = 4;
using Packed = __m256i;
template <bool ALL_CODES>
inline Packed pack(Float a, Float b, Float c, Float d, uint8_t low, uint8_t high) {
    const __m256i lowest = _mm256_set1_epi8(static_cast<char>(low));
    const __m256i highest = _mm256_set1_epi8(static_cast<char>(high));
    const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    __m256i codes = _mm256_packus_epi16(ab, cd);
    if constexpr (!ALL_CODES) codes = _mm256_min_epu8(_mm256_max_epu8(codes, lowest), highest);
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// `count` codes, at most VECTORS vectors, from vector FIRST on.
template <int FIRST, int VECTORS>
inline void store_packed(uint8_t* p, Packed codes, int64_t count) {
    if constexpr (VECTORS == PACK) {
        std::memcpy(p, &codes, sizeof(codes));  // all of them
    } else {
        static_assert(VECTORS == 2);
        const __m128i part = _mm256_extracti128_si256(codes, FIRST / 2);
        std::memcpy(p, &part, static_cast<size_t>(count));
    }
}

using Codes = __m256i;
inline Codes load_codes(const int8_t* p) { return load_vector(p); }
inline void store_codes(int8_t* p, Codes codes) { std::memcpy(p, &codes, sizeof(codes)); }
inline Codes add_saturated(Codes a, Codes b) { return _mm256_adds_epi8(a, b); }
inline Codes and_bytes(Codes a, Codes b) { return _mm256_and_si256(a, b); }
// `codes + whole`, one more where `position` is before `rest`, saturating; zero where it is not before `filling`.
inline Codes shifted(Codes codes, Codes whole, Codes rest, Codes position, Codes filling) {
    const Codes shift = _mm256_sub_epi8(whole, _mm256_cmpgt_epi8(rest, position));  // what is greater gives -1
    return _mm256_and_si256(_mm256_adds_epi8(codes, shift), _mm256_cmpgt_epi8(filling, position));
}
inline Codes splat_codes(int8_t code) { return _mm256_set1_epi8(code); }
inline Codes splat_codes(const int8_t* quad) {
    int32_t codes;
    std::memcpy(&codes, quad, sizeof(codes));
    return _mm256_set1_epi32(codes);
}
inline Codes repeat_codes(const int8_t* codes) {  // each QUAD times
    const __m256i quads = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m128i order = _mm_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    return _mm256_shuffle_epi8(quads, _mm256_broadcastsi128_si256(order));
}
inline void hold(Codes& codes) { asm("" : "+x"(codes)); }  // in a register: g++ would load once for each use
inline Weights weights(Codes w) { return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)}; }
inline Bytes pairs(__m256i x) { return {_mm256_and_si256(x, _mm256_set1_epi16(255)), _mm256_srli_epi16(x, 8)}; }
inline Int dot(Int sum, Bytes x, Weights w) {
    const Int products = _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd));
    return _mm256_add_epi32(sum, products);
}
inline Bytes broadcast(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return pairs(_mm256_set1_epi32(quad));
}

inline Int subtract_words(Int a, Int b) { return _mm256_sub_epi32(a, b); }
inline Int load_words(const int8_t* p) { return load_vector(p); }
inline Int broadcast_word(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
}
// How many ones `a` and `b` have in common in each lane: a table of the counts of half a byte.
inline Int count_common(Int a, Int b) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i common = _mm256_and_si256(a, b), half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(common, half));
    const __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(common, 4), half));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_add_epi8(low, high), _mm256_set1_epi8(1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// 8 * `bytes` codes to bit-planes `plane_bytes` apart.
inline void pack_bits(const uint8_t* x, int64_t bytes, int64_t planes, int64_t plane_bytes, uint8_t* y) {
    for (int64_t i = 0; i < bytes; i += 4) {  // codes past the end are there to be read
        const __m256i codes = load_vector(x + 8 * i);
        for (int64_t plane = 0; plane < planes; ++plane) {
            const int bits = _mm256_movemask_epi8(_mm256_sll_epi16(codes, _mm_cvtsi64_si128(7 - plane)));
            std::memcpy(y + plane * plane_bytes + i, &bits, static_cast<size_t>(bytes - i < 4 ? bytes - i : 4));
        }
    }
}

inline __m128i row(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store_row(uint8_t* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }

// 16 neighbouring bytes from each of four places: quad i gets byte i of each.
inline void store_interleaved(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* quads) {
    const __m128i ab_low = _mm_unpacklo_epi8(row(a), row(b)), cd_low = _mm_unpacklo_epi8(row(c), row(d));
    const __m128i ab_high = _mm_unpackhi_epi8(row(a), row(b)), cd_high = _mm_unpackhi_epi8(row(c), row(d));
    store_row(quads, _mm_unpacklo_epi16(ab_low, cd_low));
    store_row(quads + 16, _mm_unpackhi_epi16(ab_low, cd_low));
    store_row(quads + 32, _mm_unpacklo_epi16(ab_high, cd_high));
    store_row(quads + 48, _mm_unpackhi_epi16(ab_high, cd_high));
}
inline Bytes load_bytes(const uint8_t* quads) { return pairs(load_vector(quads)); }

// For the compiler, a change of a value, and a use.
inline void renew(Bytes& x) { asm volatile("" : "+x"(x.even), "+x"(x.odd)); }
inline void renew(Float& x) { asm volatile("" : "+x"(x)); }
inline void keep(const Int& v) { asm volatile("" : : "x"(v)); }

// The first three bytes of each of 16 quads.
inline void store_triples(uint8_t* p, const uint8_t* quads) {
    for (int i = 0; i < 16; ++i) std::memcpy(p + 3 * i, quads + 4 * i, 3);
}

inline int32_t sum_codes(const uint8_t* p, int64_t count) {
    __m256i sums = _mm256_setzero_si256();
    for (; count >= 32; count -= 32, p += 32) {
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(load_vector(p), _mm256_setzero_si256()));
    }
    const __m128i halves = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    int32_t sum = _mm_cvtsi128_si32(_mm_add_epi64(halves, _mm_unpackhi_epi64(halves, halves)));
    for (; count > 0; --count) sum += *p++;
    return sum;
}

inline void sum_rows(const uint8_t* x, int64_t count, int64_t depth, int32_t* sums) {
    for (int64_t i = 0; i < count; ++i) sums[i] = sum_codes(x + i * depth, depth);
}

inline int64_t sum_bit_rows(const uint8_t*, int64_t, int64_t, int64_t, int64_t, int32_t*) { return 0; }  // none

inline bool depthwise_3x3(const Depthwise&, const Call&) { return false; }  // no kernel of its own

}  // namespace mbqc::MBQC_ISA

#include "run.h"

#endif
