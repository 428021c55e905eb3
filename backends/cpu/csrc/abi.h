// The C interface: a Program at one choice of widths is a flat array of `Step`. Mirrored by backends/cpu/abi.py.
//
// No step depends on the batch size: an `Extent` of -k stands for k times the batch, and a `Place` grows with it.
#pragma once

#include <atomic>
#include <cstdint>

#include "abi_floats.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MBQC_X86 1  // kernels for newer instruction sets rest on g++'s target pragma
#else
#define MBQC_X86 0
#endif

#define INLINE __attribute__((always_inline))

namespace mbqc {

constexpr int64_t VERSION = 5;
constexpr int64_t BLOCK = 16;        // outputs of one weight panel
constexpr int64_t QUAD = 4;          // inputs that one dot product instruction takes
constexpr int64_t WORD = 32;         // inputs of one bit that a lane takes
constexpr int64_t PANEL_BLOCKS = 2;  // blocks of outputs that a dense kernel takes at once, at most
constexpr int64_t MAX_RANK = 8;
constexpr int64_t MAX_PACKED_ROWS = 8;  // rows that packed weights are for, at most

// See mbqc/program/operations.py. Tables have an entry per channel, or BLOCK equal ones (table_step 0); BLOCK - 1 more
// may be read.
struct Epilogue {
    const float* multiplier;
    const float* addend;
    const float* window_multiplier;  // null: no window sums
    Place residual;
    int64_t has_residual;
    int64_t to_float;
    int64_t in_range;  // 1: no total is beyond int32
    int64_t table_step;
    float residual_multiplier;
    float low;
    float high;
};

// float32 [outer, channels, inner] to codes [outer, inner, channels].
struct Quantize {
    Place input;
    Place output;
    Extent outer;
    Extent channels;
    Extent inner;
    float scale;
    float zero_point;
    float high;
};

// Codes [rows, length] through an epilogue to rows of the output that lie `stride` elements apart.
struct Map {
    Place input;
    Place output;
    Epilogue epilogue;
    Extent rows;
    Extent length;
    Extent start;
    Extent stride;
};

// The 8-bit weights of a layer, and the width to run them at.
struct StoredWeights {
    const int8_t* codes;
    int64_t bits;
    int64_t rounds;  // the ladder: 1 rounds, 0 drops bits
    int64_t shift;   // kernels leave codes scaled by 2^(8 - bits); 0: so that the multiplier makes up for it
    Place panel;     // own scratch for weights of a lower width
    const int8_t* added;      // null: no shift of codes. [groups][blocks][2][BLOCK]: what is added to a channel's codes,
                              // and before which position one more
    const int8_t* positions;  // with a shift: [vectors of a block][QUAD] in the kernel from -128 on, 127 for what fills up
    const int8_t* packed;  // a copy at this width, for linear layers of few rows (see few_rows.h); or null
    int64_t field;         // bits of a code in it: 4, 2 or 1
};

// Dense and grouped convolution. A linear layer is one row of pixels with a 1 x 1 kernel.
struct Conv {
    Place input;
    Place output;
    Place bordered;    // the input with its border, if there is one, or with its pixels apart
    Place pixel_sums;  // with a window multiplier: int32 [images, padded height, padded width, groups]
    Place windows;     // with a window multiplier: float32 [images, output height, output width, groups]
    Place columns;     // own scratch, with a window multiplier: int32 [padded width, groups]
    Place planes;      // to count bits: bits [input_bits, images, padded height, padded width, channels]
    Epilogue epilogue;
    StoredWeights weights;  // [groups][blocks][runs][quads][BLOCK][QUAD]; panel: PANEL_BLOCKS blocks
                            // to count bits: of this width, bits [panels][bits][runs][words][PANEL_BLOCKS][BLOCK][WORD]
    int64_t run_taps;       // kernel positions of a row whose inputs are contiguous and read as one run: one or all
    Extent images;
    int64_t height;
    Extent width;
    int64_t channels;
    int64_t pixel_bytes;  // from pixel to pixel where many are read at once: `channels` or more
    int64_t groups;
    int64_t out_height;
    Extent out_width;
    int64_t out_channels;
    int64_t kernel[2];
    int64_t stride[2];
    int64_t dilation[2];
    int64_t padding[4];  // top, bottom, left, right
    int64_t border_code;
    int64_t input_bits;  // width of the input's codes
};

// Convolution of each channel with a kernel of its own.
struct Depthwise {
    Place input;
    Place output;
    Place columns;  // own scratch: [bands of QUAD kernel rows][padded width][BLOCK][QUAD], or an input row and a vector
    Epilogue epilogue;
    StoredWeights weights;  // [blocks][bands][kernel width][BLOCK][QUAD]; panel: all of it
    const int8_t* ones;     // [bands][BLOCK][QUAD]: 1 for rows of the kernel, 0 for what fills up the last band
    Extent images;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t out_height;
    int64_t out_width;
    int64_t kernel[2];
    int64_t stride[2];
    int64_t dilation[2];
    int64_t padding[4];  // top, bottom, left, right
    int64_t border_code;
};

// Average and maximum over windows; the epilogue is for the average only.
struct Pool {
    Place input;
    Place output;
    Epilogue epilogue;
    Extent images;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t out_height;
    int64_t out_width;
    int64_t kernel[2];
    int64_t stride[2];
    int64_t dilation[2];
    int64_t padding[2];  // top, left
    int64_t zero_point;
};

struct Lookup {
    Place input;
    Place output;
    const void* table;  // 256 entries of uint8 or float32
    Extent count;
    int64_t to_float;
};

struct Copy {
    Place input;
    Place output;
    Extent bytes;
};

// Output dimension i is input dimension order[i]; the last input dimension is in bytes and may not move.
struct Permute {
    Place input;
    Place output;
    int64_t rank;
    Extent dims[MAX_RANK];
    int64_t order[MAX_RANK];
};

enum class Kind : int64_t {
    quantize,
    map,
    conv,
    popcount,
    depthwise,
    average_pool,
    max_pool,
    lookup,
    copy,
    permute,
    layer_norm,
    softmax,
    activation,
    embedding,
    arithmetic,
    matmul,
    mean,
    select,
};

struct Step {
    Kind kind;
    union {
        Quantize quantize;
        Map map;
        Conv conv;
        Depthwise depthwise;
        Pool pool;
        Lookup lookup;
        Copy copy;
        Permute permute;
        FloatRows float_rows;
        Activation activation;
        Embedding embedding;
        Arithmetic arithmetic;
        MatMul matmul;
        Mean mean;
        Select select;
    };
};

// A part of `count` pieces of work.
struct Range {
    int64_t first;
    int64_t last;
};

class Barrier;

// What one call runs with, as one of its threads sees it.
struct Call {
    int64_t batch;
    uint8_t* const* bases;
    int64_t own_bytes;  // of each thread's own scratch
    std::atomic<int64_t>* failed;  // gets the number, from 1 on, of a step that met an index outside its table
    int64_t thread = 0;
    int64_t threads = 1;
    Barrier* barrier = nullptr;

    // always inline: a shared copy would be of one translation unit's instruction set
    INLINE int64_t at(Extent extent) const { return extent >= 0 ? extent : -extent * batch; }

    template <class T = uint8_t>
    INLINE T* at(const Place& place) const {
        return reinterpret_cast<T*>(bases[place.base] + (batch > 0 ? batch : 1) * place.sample + place.fixed);
    }

    // Scratch of this thread alone.
    template <class T = uint8_t>
    INLINE T* own(const Place& place) const {
        return reinterpret_cast<T*>(at(place) + thread * own_bytes);
    }

    // This thread's share of `count` pieces of work.
    INLINE Range share(int64_t count) const { return {count * thread / threads, count * (thread + 1) / threads}; }

    // Waits until all threads are here. Each step of a call ends with this.
    void sync() const;
};

// Runs steps as one thread of a call; `ticks`, if any, gets the time in nanoseconds at the start and after each step.
using Runner = void (*)(const Step* steps, int64_t count, const Call& call, int64_t* ticks);

// What `probe` can do as fast as possible, for measuring limits: dot products (the result is how many operations), reads
// of a buffer (bytes), counting the bits that two vectors have in common (operations; 0 without an instruction for it).
enum class Limit : int64_t { multiply, read, count_bits };

namespace portable {
void run(const Step* steps, int64_t count, const Call& call, int64_t* ticks);
int64_t probe(Limit limit, int64_t rounds, const uint8_t* buffer, int64_t bytes);
}
#if MBQC_X86
namespace avx2 {
void run(const Step* steps, int64_t count, const Call& call, int64_t* ticks);
int64_t probe(Limit limit, int64_t rounds, const uint8_t* buffer, int64_t bytes);
}
namespace avx512 {
void run(const Step* steps, int64_t count, const Call& call, int64_t* ticks);
int64_t probe(Limit limit, int64_t rounds, const uint8_t* buffer, int64_t bytes);
}
#endif

#if MBQC_X86
namespace popcount {
int64_t count_bits(int64_t rounds);
}
#endif

int64_t nanoseconds();  // of a steady clock

}  // namespace mbqc
