// What the shared library exports. No state besides teams: everything a call needs comes with the call.
#include <chrono>

#include "pack.h"
#include "team.h"

#define MBQC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

mbqc::Runner runner(int64_t isa) {
    if (isa == 0) return mbqc::portable::run;
#if MBQC_X86
    if (isa == 1 && __builtin_cpu_supports("avx2")) return mbqc::avx2::run;
    if (isa == 2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        return mbqc::avx512::run;
    }
#endif
    return nullptr;
}

}  // namespace

int64_t mbqc::nanoseconds() {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// Version and structure sizes, for the caller to compare with its own.
MBQC_EXPORT void mbqc_layout(int64_t* layout) {
    using namespace mbqc;
    const int64_t sizes[] = {
        VERSION,      sizeof(Place),   sizeof(Epilogue),  sizeof(StoredWeights), sizeof(Quantize),
        sizeof(Map),  sizeof(Conv),    sizeof(Depthwise), sizeof(Pool),          sizeof(Lookup),
        sizeof(Copy), sizeof(Permute), sizeof(FloatRows), sizeof(Activation),    sizeof(Embedding),
        sizeof(Arithmetic), sizeof(MatMul), sizeof(Mean), sizeof(Select),    sizeof(Step),
    };
    for (const int64_t size : sizes) *layout++ = size;
}

// Whether this machine can run instruction set 0 (portable), 1 (avx2) or 2 (avx512).
MBQC_EXPORT int64_t mbqc_supports(int64_t isa) { return runner(isa) != nullptr; }

// Whether popcount kernels of an instruction set run on this machine: AVX-512 had no instruction for it at first.
MBQC_EXPORT int64_t mbqc_counts_fast(int64_t isa) {
#if MBQC_X86
    if (isa == 2) return __builtin_cpu_supports("avx512vpopcntdq") != 0;
#endif
    return 1;
}

// A copy of a linear layer's weights at the width and field of `weights` (see few_rows.h).
MBQC_EXPORT void mbqc_pack(const mbqc::StoredWeights* weights, int64_t blocks, int64_t depth, int8_t* packed) {
    mbqc::pack(*weights, blocks, depth, packed);
}

// A team of threads, or null if the system has no more.
MBQC_EXPORT mbqc::Team* mbqc_new_team(int64_t threads) {
    try {
        return new mbqc::Team(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

MBQC_EXPORT void mbqc_free_team(mbqc::Team* team) { delete team; }

// How many operations or bytes `rounds` of doing nothing but `limit` were; the caller takes the time.
MBQC_EXPORT int64_t mbqc_probe(int64_t isa, int64_t limit, int64_t rounds, const uint8_t* buffer, int64_t bytes) {
    const auto which = static_cast<mbqc::Limit>(limit);
#if MBQC_X86
    if (which == mbqc::Limit::count_bits) {
        return isa == 2 && __builtin_cpu_supports("avx512vpopcntdq") ? mbqc::popcount::count_bits(rounds) : 0;
    }
    if (isa == 1) return mbqc::avx2::probe(which, rounds, buffer, bytes);
    if (isa == 2) return mbqc::avx512::probe(which, rounds, buffer, bytes);
#endif
    return which == mbqc::Limit::count_bits ? 0 : mbqc::portable::probe(which, rounds, buffer, bytes);
}

// Runs steps, with a team or by the caller's thread alone. `ticks`: null, or room for count + 1 times. Returns 0, or the
// number of a step that met an index outside its table.
MBQC_EXPORT int64_t mbqc_run(int64_t isa, const mbqc::Step* steps, int64_t count, int64_t batch, uint8_t* const* bases,
                             int64_t own_bytes, mbqc::Team* team, int64_t* ticks) {
    std::atomic<int64_t> failed{0};
    const mbqc::Call call{batch, bases, own_bytes, &failed};
    if (team) {
        team->run({runner(isa), steps, count, call, ticks});
    } else {
        runner(isa)(steps, count, call, ticks);
    }
    return failed.load(std::memory_order_relaxed);
}
