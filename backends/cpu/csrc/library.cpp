// What the shared library exports. No state: everything a call needs comes with the call.
#include "abi.h"

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

// Version and structure sizes, for the caller to compare with its own.
MBQC_EXPORT void mbqc_layout(int64_t* layout) {
    using namespace mbqc;
    const int64_t sizes[] = {
        VERSION,      sizeof(Place),   sizeof(Epilogue),  sizeof(StoredWeights), sizeof(Quantize),
        sizeof(Map),  sizeof(Conv),    sizeof(Depthwise), sizeof(Pool),          sizeof(Lookup),
        sizeof(Copy), sizeof(Permute), sizeof(Step),
    };
    for (const int64_t size : sizes) *layout++ = size;
}

// Whether this machine can run instruction set 0 (portable), 1 (avx2) or 2 (avx512).
MBQC_EXPORT int64_t mbqc_supports(int64_t isa) { return runner(isa) != nullptr; }

MBQC_EXPORT void mbqc_run(int64_t isa, const mbqc::Step* steps, int64_t count, int64_t batch, uint8_t* const* bases) {
    runner(isa)(steps, count, mbqc::Call{batch, bases});
}
