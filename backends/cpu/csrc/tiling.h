// How the outputs of an image are cut into tiles.
#pragma once

#include "dense.h"
#include "taps.h"
#include "windows.h"

namespace mbqc::MBQC_ISA {

// Whether products with the border are zero: then its rows are left out.
inline bool border_is_zero(const Conv& c) { return c.border_code == 0 && (c.padding[0] > 0 || c.padding[1] > 0); }

// Tiles of a row as equal as they can be: no small remainder. The first `larger` ones have a pixel more.
struct Tiling {
    int64_t count;
    int64_t pixels;
    int64_t larger;
    bool paired;     // tiles of two short rows instead: weights are read half as often
    bool lone_ends;  // but for the first and the last row, which have fewer products
    int64_t tiles;   // of an image

    Tiling(const Conv& c, const Shape& s, bool may_pair)
        : count((s.out_width + MAX_PIXELS - 1) / MAX_PIXELS),
          pixels(s.out_width / most(1, count)),
          larger(s.out_width - pixels * count),
          paired(may_pair && 2 * s.out_width == MAX_PIXELS),
          lone_ends(border_is_zero(c) && c.out_height > 2),
          tiles(!paired ? c.out_height * count : lone_ends ? (c.out_height - 1) / 2 + 2 : (c.out_height + 1) / 2) {}

    // The first pixel of a tile.
    int64_t start(int64_t tile) const { return tile * pixels + least(tile, larger); }

    // Rows of a paired tile.
    Range rows(int64_t tile, int64_t height) const {
        if (!lone_ends) return {2 * tile, least(height, 2 * tile + 2)};
        if (tile == tiles - 1) return {height - 1, height};
        return {most(0, 2 * tile - 1), least(height - 1, 2 * tile + 1)};
    }
};

}  // namespace mbqc::MBQC_ISA
