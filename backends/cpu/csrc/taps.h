// Which taps of a kernel lie inside the input.
#pragma once

#include "epilogue.h"

namespace mbqc::MBQC_ISA {

// Of a window that begins at `start`, along one dimension.
inline Range taps_inside(int64_t start, int64_t size, int64_t kernel, int64_t dilation) {
    if (start >= 0 && start + (kernel - 1) * dilation < size) return {0, kernel};  // spares divisions
    const int64_t first = start < 0 ? least(kernel, (-start + dilation - 1) / dilation) : 0;
    const int64_t last = start < size ? (size - 1 - start) / dilation + 1 : 0;
    return {first, most(first, least(kernel, last))};
}

}  // namespace mbqc::MBQC_ISA
