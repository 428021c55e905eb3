// Packs stored codes for few_rows.h.
#pragma once

#include "abi.h"

namespace mbqc {

// Codes [blocks][quads][BLOCK][QUAD] of `w` at its width and field, for `depth` inputs.
void pack(const StoredWeights& w, int64_t blocks, int64_t depth, int8_t* packed);

}  // namespace mbqc
