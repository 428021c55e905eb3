// Loops over constants. Included once per instruction set, after its target pragma.
#pragma once

#include <utility>

#include "abi.h"

namespace mbqc::MBQC_ISA {

template <int VALUE>
constexpr std::integral_constant<int, VALUE> number{};

// Calls `body` with each number of the sequence as a constant.
template <class Body, int... INDICES>
INLINE inline void unrolled(std::integer_sequence<int, INDICES...>, Body body) {
    (body(std::integral_constant<int, INDICES>{}), ...);
}

}  // namespace mbqc::MBQC_ISA
