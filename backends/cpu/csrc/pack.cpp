// Packs stored codes for few_rows.h. Plain C++ that any compiler makes vector code of; memory is the limit.
#include <cstring>

#include "pack.h"

namespace mbqc {

namespace {

constexpr int64_t GROUP = BLOCK * QUAD;
constexpr int64_t WORD = sizeof(uint64_t);

// The top `field` bits of a quad's codes at the width of `w`, times the power of two where `place` is in a byte, added
// to what `to` has. `inputs` of the four are real; what fills up a quad stays zero.
void add_field(const StoredWeights& w, const int8_t* codes, int64_t place, int64_t inputs, int8_t* to) {
    const int drop = static_cast<int>(8 - w.bits);
    const int half = w.rounds && w.bits > 1 && drop > 0 ? 1 << (drop - 1) : 0;
    const auto highest = static_cast<uint8_t>(255 - half), added = static_cast<uint8_t>(half);
    const bool top = place + w.field == 8;
    uint8_t fields[GROUP];
    for (int64_t i = 0; i < GROUP; ++i) {
        const auto code = static_cast<uint8_t>(static_cast<uint8_t>(codes[i]) ^ 0x80);  // with an offset of 128
        fields[i] = static_cast<uint8_t>((code < highest ? code : highest) + added);
    }
    uint64_t kept, signs = top ? 0x8080808080808080 : 0, real = 0;
    std::memset(&kept, 0xff << drop, sizeof(kept));
    for (int64_t i = 0; i < WORD; ++i) real |= i % QUAD < inputs ? uint64_t{0xff} << (8 * i) : 0;
    for (int64_t i = 0; i < GROUP; i += WORD) {
        uint64_t word, sum;
        std::memcpy(&word, fields + i, WORD);
        std::memcpy(&sum, to + i, WORD);
        sum |= (((word & kept) ^ signs) & real) >> (8 - w.field - place);
        std::memcpy(to + i, &sum, WORD);
    }
}

}  // namespace

void pack(const StoredWeights& w, int64_t blocks, int64_t depth, int8_t* packed) {
    const int64_t fields = 8 / w.field, quads = (depth + QUAD - 1) / QUAD;
    const int8_t* codes = w.codes;
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t quad = 0; quad < quads; ++quad, codes += GROUP) {
            const int64_t place = quad % fields * w.field;
            if (place == 0) std::memset(packed, 0, GROUP);
            add_field(w, codes, place, depth - quad * QUAD, packed);
            if (place + w.field == 8 || quad + 1 == quads) packed += GROUP;
        }
    }
}

}  // namespace mbqc
