// The part of abi.h that is about operations on floats; mbqc/float_functions.py says what they compute. Mirrored by
// backends/cpu/abi_floats.py.
#pragma once

#include <cstdint>

namespace mbqc {

using Extent = int64_t;

// Memory of a value or of scratch: `bases[base] + max(batch, 1) * sample + fixed`. Base 0 is the arena.
struct Place {
    int64_t base;
    int64_t sample;
    int64_t fixed;
};

constexpr int64_t MAX_TERMS = 8;  // of an activation's polynomial

// LayerNorm or softmax of float32 [rows, length]; only a LayerNorm has weight, bias ([length] or null) and epsilon.
struct FloatRows {
    Place input;
    Place output;
    const float* weight;
    const float* bias;
    Extent rows;
    int64_t length;
    float epsilon;
};

struct Activation {
    Place input;
    Place output;
    Extent count;
    int64_t term_count;  // 1, 2 or MAX_TERMS
    float limit;
    float terms[MAX_TERMS];
};

// int64 indices [count] to rows of a table float32 [rows, length].
struct Embedding {
    Place input;
    Place output;
    const float* table;
    Extent count;
    int64_t rows;
    int64_t length;
};

enum class Sign : int64_t { add, sub, mul, div };

// `input sign other`, or a constant float32 [period] if there is one, for float32 [count]; `other` repeats.
struct Arithmetic {
    Place input;
    Place output;
    Place other;
    const float* constant;
    Extent count;
    Extent period;
    Sign sign;
};

// float32 [matrices, rows, depth] times [matrices, depth, columns].
struct MatMul {
    Place input;
    Place output;
    Place other;
    Extent matrices;
    int64_t rows;
    int64_t depth;
    int64_t columns;
};

// float32 [outer, size, inner] to [outer, inner].
struct Mean {
    Place input;
    Place output;
    Extent outer;
    int64_t size;
    Extent inner;
};

// One of `size` parts of `bytes` each.
struct Select {
    Place input;
    Place output;
    Extent outer;
    int64_t size;
    int64_t index;
    Extent bytes;
};

}  // namespace mbqc
