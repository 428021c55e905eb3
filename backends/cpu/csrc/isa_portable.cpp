// Vectors of 4 lanes in plain C++ (g++ and clang vector types): any machine.
#include "abi.h"

#include <cstring>

#define MBQC_ISA portable

#include "unrolled.h"

namespace mbqc::MBQC_ISA {

constexpr int LANES = 4;
constexpr int MAX_PIXELS = 2;
constexpr int MAX_BLOCKS = 1;

using Int = int32_t __attribute__((vector_size(16)));
using Float = float __attribute__((vector_size(16)));
using Short = int16_t __attribute__((vector_size(16)));

// Four bytes a lane as two pairs of 16-bit numbers: every other byte, and the rest.
struct Pairs {
    Short even;
    Short odd;
};
using Bytes = Pairs;
using Weights = Pairs;

template <class Vector>
inline Vector load_first(const void* p, int64_t bytes) {
    Vector v{};
    std::memcpy(&v, p, static_cast<size_t>(bytes));
    return v;
}
inline Int zero() { return Int{}; }
inline Int load(const int32_t* p) { return load_first<Int>(p, sizeof(Int)); }
inline void store(int32_t* p, Int v) { std::memcpy(p, &v, sizeof(v)); }
inline Int splat(int32_t v) { return Int{v, v, v, v}; }
inline Int add(Int a, Int b) {  // what fills up a vector may overflow
    using Unsigned = uint32_t __attribute__((vector_size(16)));
    return reinterpret_cast<Int>(reinterpret_cast<Unsigned>(a) + reinterpret_cast<Unsigned>(b));
}
inline Int shift_left(Int v, int bits) {
    using Unsigned = uint32_t __attribute__((vector_size(16)));
    return reinterpret_cast<Int>(reinterpret_cast<Unsigned>(v) << bits);
}
inline Int shift_right(Int v, int64_t bits) { return v >> static_cast<int>(bits); }
inline Int load_codes(const uint8_t* p, int64_t count) {
    Int v{};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
}

inline Float to_float(Int v) { return __builtin_convertvector(v, Float); }
inline Float splat(float v) { return Float{v, v, v, v}; }
inline Float load(const float* p) { return load_first<Float>(p, sizeof(Float)); }
inline Float load(const float* p, int64_t count) { return load_first<Float>(p, count * 4); }
inline Float load(const float* p, int64_t count, Float rest) {
    std::memcpy(&rest, p, static_cast<size_t>(count) * 4);
    return rest;
}
inline Int as_int(Float v) { return reinterpret_cast<Int>(v); }
inline Float as_float(Int v) { return reinterpret_cast<Float>(v); }
inline void store(float* p, Float v, int64_t count) { std::memcpy(p, &v, static_cast<size_t>(count) * 4); }
inline Float larger(Float a, Float b) { return a > b ? a : b; }   // b if either is not a number, or both are zero
inline Float smaller(Float a, Float b) { return a < b ? a : b; }  // likewise
inline void store_codes(uint8_t* p, Float v, int64_t count) {
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: the addition rounds to a whole number, half to even
    const Int codes = __builtin_convertvector((v + MAGIC) - MAGIC, Int);
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(codes[i]);
}

// Codes of four vectors side by side. None is above int32's range; what is not a number becomes the lowest code.
constexpr int PACK = 4;
struct Packed {
    uint8_t codes[PACK * LANES];
};
template <bool ALL_CODES>
inline Packed pack(Float a, Float b, Float c, Float d, uint8_t low, uint8_t high) {
    Packed packed;
    const Float lowest = splat(static_cast<float>(low)), highest = splat(static_cast<float>(high));
    const Float all[PACK] = {a, b, c, d};
    for (int i = 0; i < PACK; ++i) {
        store_codes(packed.codes + i * LANES, smaller(larger(all[i], lowest), highest), LANES);
    }
    return packed;
}
// `count` codes, at most VECTORS vectors, from vector FIRST on.
template <int FIRST, int VECTORS>
inline void store_packed(uint8_t* p, const Packed& packed, int64_t count) {
    std::memcpy(p, packed.codes + FIRST * LANES, static_cast<size_t>(count));
}

using Codes = int8_t __attribute__((vector_size(16)));
inline Codes load_codes(const int8_t* p) { return load_first<Codes>(p, sizeof(Codes)); }
inline void store_codes(int8_t* p, Codes codes) { std::memcpy(p, &codes, sizeof(codes)); }
inline Codes add_saturated(Codes a, Codes b) {
    for (int i = 0; i < LANES * QUAD; ++i) {
        const int sum = a[i] + b[i];
        a[i] = static_cast<int8_t>(sum > 127 ? 127 : sum < -128 ? -128 : sum);
    }
    return a;
}
inline Codes and_bytes(Codes a, Codes b) { return a & b; }
// `codes + whole`, one more where `position` is before `rest`, saturating; zero where it is not before `filling`.
inline Codes shifted(Codes codes, Codes whole, Codes rest, Codes position, Codes filling) {
    return add_saturated(codes, whole - (rest > position)) & (filling > position);  // what is greater gives -1
}
inline Codes splat_codes(int8_t code) { return Codes{} + code; }
inline Codes splat_codes(const int8_t* quad) {
    Codes codes;
    for (int i = 0; i < LANES * QUAD; ++i) codes[i] = quad[i % QUAD];
    return codes;
}
inline Codes repeat_codes(const int8_t* each) {  // each QUAD times
    Codes codes;
    for (int i = 0; i < LANES * QUAD; ++i) codes[i] = each[i / QUAD];
    return codes;
}
inline void hold(Codes&) {}  // in a register: left to the compiler
inline Weights weights(Codes codes) {
    const Short w = reinterpret_cast<Short>(codes);
    return {(w << 8) >> 8, w >> 8};
}
inline Bytes load_bytes(const uint8_t* quads) {
    const Short x = load_first<Short>(quads, sizeof(Short));
    return {x & 255, (x >> 8) & 255};
}
inline Bytes broadcast(const uint8_t* p) {
    uint8_t quads[4 * LANES];
    for (int i = 0; i < LANES; ++i) std::memcpy(quads + 4 * i, p, 4);
    return load_bytes(quads);
}

// For the compiler, a change of a value, and a use.
#if defined(__x86_64__)
#define VECTOR_REGISTER "x"
#elif defined(__aarch64__)
#define VECTOR_REGISTER "w"
#else
#define VECTOR_REGISTER "m"
#endif
inline void renew(Bytes& x) { asm volatile("" : "+" VECTOR_REGISTER(x.even), "+" VECTOR_REGISTER(x.odd)); }
inline void renew(Float& x) { asm volatile("" : "+" VECTOR_REGISTER(x)); }
inline void keep(const Int& v) { asm volatile("" : : VECTOR_REGISTER(v)); }

// A product of an unsigned and a signed byte fits 16 bits; a sum of two does not.
inline Int dot(Int sum, Bytes x, Weights w) {
    const Int even = reinterpret_cast<Int>(x.even * w.even), odd = reinterpret_cast<Int>(x.odd * w.odd);
    return sum + ((even << 16) >> 16) + (even >> 16) + ((odd << 16) >> 16) + (odd >> 16);
}

inline Int subtract_words(Int a, Int b) { return a - b; }
inline Int load_words(const int8_t* p) { return load_first<Int>(p, sizeof(Int)); }
inline Int broadcast_word(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return splat(word);
}
// How many ones `a` and `b` have in common in each lane: sums of neighbouring bits, pairs, fours, bytes.
inline Int count_common(Int a, Int b) {
    using Unsigned = uint32_t __attribute__((vector_size(16)));
    Unsigned v = reinterpret_cast<Unsigned>(a & b);
    v -= v >> 1 & 0x55555555;
    v = (v & 0x33333333) + (v >> 2 & 0x33333333);
    v = (v + (v >> 4)) & 0x0f0f0f0f;
    v += v >> 8;
    return reinterpret_cast<Int>((v + (v >> 16)) & 63);
}

// 8 * `bytes` codes to bit-planes `plane_bytes` apart.
inline void pack_bits(const uint8_t* x, int64_t bytes, int64_t planes, int64_t plane_bytes, uint8_t* y) {
    for (int64_t plane = 0; plane < planes; ++plane, y += plane_bytes) {
        for (int64_t i = 0; i < bytes; ++i) {
            unsigned bits = 0;
            for (int k = 0; k < 8; ++k) bits |= (x[8 * i + k] >> plane & 1u) << k;
            y[i] = static_cast<uint8_t>(bits);
        }
    }
}

// 16 neighbouring bytes from each of four places: quad i gets byte i of each.
inline void store_interleaved(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* quads) {
    for (int i = 0; i < 16; ++i, quads += 4) {
        quads[0] = a[i];
        quads[1] = b[i];
        quads[2] = c[i];
        quads[3] = d[i];
    }
}

// The first three bytes of each of 16 quads.
inline void store_triples(uint8_t* p, const uint8_t* quads) {
    for (int i = 0; i < 16; ++i) std::memcpy(p + 3 * i, quads + 4 * i, 3);
}

inline int32_t sum_codes(const uint8_t* p, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += p[i];
    return sum;
}

inline void sum_rows(const uint8_t* x, int64_t count, int64_t depth, int32_t* sums) {
    for (int64_t i = 0; i < count; ++i) sums[i] = sum_codes(x + i * depth, depth);
}

inline int64_t sum_bit_rows(const uint8_t*, int64_t, int64_t, int64_t, int64_t, int32_t*) { return 0; }  // none

inline bool depthwise_3x3(const Depthwise&, const Call&) { return false; }  // no kernel of its own

}  // namespace mbqc::MBQC_ISA

#include "run.h"
