// Dense and grouped convolution: borders, and panels of weights over tiles of pixels.
#pragma once

#include "few_rows.h"
#include "tiling.h"

namespace mbqc::MBQC_ISA {

static_assert(MAX_BLOCKS <= PANEL_BLOCKS);

// The input with a border of the zero-point's code, so that kernels need no guards.
inline const uint8_t* bordered_input(const Conv& c, const Shape& s, const Call& call) {
    const uint8_t* x = call.at(c.input);
    if (s.height == c.height && s.width == call.at(c.width)) return x;
    uint8_t* const bordered = call.at(c.bordered);
    const int64_t inside = (s.width - c.padding[2] - c.padding[3]) * c.channels, row_bytes = s.width * c.channels;
    const auto fill = [&](uint8_t* from, int64_t bytes) {
        std::memset(from, static_cast<int>(c.border_code), static_cast<size_t>(bytes));
    };
    const Range rows = call.share(s.images * s.height);
    for (int64_t i = rows.first; i < rows.last; ++i) {
        uint8_t* const y = bordered + i * row_bytes;
        const int64_t row = i % s.height - c.padding[0], left = c.padding[2] * c.channels;
        if (row < 0 || row >= c.height) {
            fill(y, row_bytes);
        } else {
            fill(y, left);
            std::memcpy(y + left, x + (i / s.height * c.height + row) * inside, static_cast<size_t>(inside));
            fill(y + left + inside, row_bytes - left - inside);
        }
    }
    call.sync();
    return bordered;
}

// The input with its pixels as far apart as the kernel wants them.
inline const uint8_t* spread_input(const Conv& c, const Shape& s, const Walk& walk, const uint8_t* x, const Call& call) {
    if (walk.pixel_bytes == c.channels) return x;
    uint8_t* const spread = call.at(c.bordered);
    const Range pixels = call.share(s.width);
    for (int64_t i = pixels.first; i < pixels.last; ++i) {
        std::memcpy(spread + i * walk.pixel_bytes, x + i * c.channels, static_cast<size_t>(c.channels));
    }
    call.sync();
    return spread;
}

inline Walk walk_of(const Conv& c, const Shape& s) {
    Walk w{};
    w.rows = c.kernel[0];
    w.row_step = c.dilation[0] * s.width * c.channels;
    w.runs = c.kernel[1] / c.run_taps;
    w.run_step = c.dilation[1] * c.channels;
    w.quads = (c.run_taps * (c.channels / c.groups) + QUAD - 1) / QUAD;
    w.pixel_bytes = s.out_width > MAX_PACKED_ROWS ? c.pixel_bytes : c.channels;  // a tile of few fits as it is
    w.pixel_stride = c.stride[1] * w.pixel_bytes;
    w.row_bytes = w.runs * w.quads * PANEL_GROUP;
    w.panel_bytes = w.rows * w.row_bytes;
    return w;
}

constexpr int64_t PANEL = MAX_BLOCKS * BLOCK;  // outputs of a panel, at most
constexpr int64_t FEW_PIXELS = 100;            // of 49, deriving in each tile costs 3.2 %, keeping 4.8 %
constexpr int64_t KEPT_BYTES = 48 << 10;       // derived weights of a panel, at most

// The rows of a kernel that count for some outputs.
struct Inside {
    Walk walk;
    int64_t first;
};

// One group's outputs: panels of weights over tiles of pixels.
struct Dense {
    const Conv& c;
    const Shape& s;
    const Call& call;
    const Walk& walk;
    const Tiling& tiling;
    const uint8_t* x;      // of this group
    const float* windows;  // of this group, or null
    static constexpr auto sizes = std::make_index_sequence<MAX_PIXELS>{};

    // Some tiles through the panel from `block` on, whose outputs begin with `channel`. One tile derives weights of a
    // lower width while it multiplies, most of which costs no time, and keeps them for the others. Where these are few,
    // or weights would leave the first cache, each tile derives them, unless they are shifted, which is dearer.
    template <int BLOCKS>
    void run(int64_t block, int64_t channel, int64_t lanes, Range tiles) const {
        const bool few = s.images * c.out_height * s.out_width < FEW_PIXELS;
        const bool keeps = c.weights.added || (!few && MAX_BLOCKS * walk.panel_bytes <= KEPT_BYTES);
        const Panel panel{c.weights, block, keeps ? call.own<int8_t>(c.weights.panel) : nullptr};
        const int8_t* const stored = c.weights.codes + block * walk.panel_bytes;
        const int8_t* codes = c.weights.bits == 8 ? stored : nullptr;
        const auto run_tile = [&](const Inside& in, int64_t pixels, const uint8_t* inputs, const Finish& f) {
            if (__builtin_expect(codes != nullptr, 1)) {
                const int8_t* from = codes + in.first * walk.row_bytes;
                multiplier<BLOCKS, false>(pixels, sizes)(in.walk, inputs, from, panel, f);
            } else if (!keeps) {
                const int8_t* from = stored + in.first * walk.row_bytes;
                multiplier<BLOCKS, true>(pixels, sizes)(in.walk, inputs, from, panel, f);
            } else {
                derive<BLOCKS>(panel, stored, pixels, inputs - in.first * walk.row_step, f);
                codes = panel.kept;
            }
        };
        const int64_t first = codes || !keeps ? tiles.first : deriving(tiles);
        each(channel, lanes, {first, tiles.last}, run_tile);
        if (first > tiles.first) each(channel, lanes, {tiles.first, first}, run_tile);
    }

    // The tile that derives. It walks over the whole kernel, so best one that must, and one that need not be halved.
    int64_t deriving(Range tiles) const {
        if (border_is_zero(c)) return least(tiles.first + (tiling.paired ? 1 : tiling.count), tiles.last - 1);
        return tiling.paired && c.weights.added ? tiles.last - 1 : tiles.first;
    }

    // Runs that tile, or its halves, of which the first derives.
    template <int BLOCKS>
    __attribute__((noinline)) void derive(const Panel& panel, const int8_t* stored, int64_t pixels,
                                          const uint8_t* inputs, const Finish& f) const {
        const int64_t part = c.weights.added && pixels > MOST_SHIFTED_PIXELS ? MAX_PIXELS / 2 : pixels;
        multiplier<BLOCKS, true>(part, sizes)(walk, inputs, stored, panel, f);
        if (part == pixels) return;
        Finish rest = f;
        rest.advance(part);
        multiplier<BLOCKS, false>(pixels - part, sizes)(walk, inputs + walk.half_tile, panel.kept, panel, rest);
    }

    // Calls `multiply` for each of the tiles.
    template <class Multiply>
    void each(int64_t channel, int64_t lanes, Range tiles, Multiply multiply) const {
        if (tiling.paired) return each_pair(channel, lanes, tiles, multiply);
        int64_t row = tiles.first / tiling.count, tile = tiles.first % tiling.count;
        int64_t n = row / c.out_height, y = row % c.out_height;
        for (int64_t left = tiles.last - tiles.first; left > 0; ++row, tile = 0) {
            const int64_t end = least(tiling.count, tile + left), column = tiling.start(tile);
            const Inside in = inside({y, y + 1});
            const uint8_t* inputs = inputs_of(in, n, y, column);
            Finish f(c, call, windows, row * s.out_width + column, channel, lanes);
            const auto run_tiles = [&](int64_t pixels, int64_t count) {
                for (; count > 0; --count) {
                    multiply(in, pixels, inputs, f);
                    inputs += pixels * walk.pixel_stride;
                    f.advance(pixels);
                }
            };
            run_tiles(tiling.pixels + 1, least(end, tiling.larger) - tile);
            run_tiles(tiling.pixels, end - most(tile, tiling.larger));
            left -= end - tile;
            if (++y == c.out_height) ++n, y = 0;
        }
    }

    // Likewise, of pairs of rows.
    template <class Multiply>
    void each_pair(int64_t channel, int64_t lanes, Range pairs, Multiply multiply) const {
        for (int64_t i = pairs.first; i < pairs.last; ++i) {
            const int64_t n = i / tiling.tiles;
            const Range rows = tiling.rows(i % tiling.tiles, c.out_height);
            const Inside in = inside(rows);
            multiply(in, (rows.last - rows.first) * s.out_width, inputs_of(in, n, rows.first, 0),
                     Finish(c, call, windows, (n * c.out_height + rows.first) * s.out_width, channel, lanes));
        }
    }

    // The rows of the kernel that touch the input for some row of outputs, or all.
    Inside inside(Range rows) const {
        if (!border_is_zero(c)) return {walk, 0};
        const auto taps = [&](int64_t y) {
            return taps_inside(y * c.stride[0] - c.padding[0], c.height, c.kernel[0], c.dilation[0]);
        };
        Inside in{walk, taps(rows.last - 1).first};
        in.walk.rows = most(0, taps(rows.first).last - in.first);
        return in;
    }

    const uint8_t* inputs_of(const Inside& in, int64_t n, int64_t y, int64_t column) const {
        return x + s.pixel(c, n, y, column) * walk.pixel_bytes + in.first * walk.row_step;
    }
};

inline void conv(const Conv& c, const Call& call) {
    const Shape s(c, call);
    const uint8_t* x = bordered_input(c, s, call);
    const int64_t depth = c.channels / c.groups, outputs = c.out_channels / c.groups;
    const auto sum_pixels = [&](int64_t first, int64_t count, int32_t* sums) {
        sum_rows(x + first * depth, count, depth, sums);
    };
    const float* windows = c.epilogue.window_multiplier ? window_sums(c, s, call, sum_pixels) : nullptr;
    if (few_rows(c, s, x, windows, call)) return;
    Walk walk = walk_of(c, s);
    x = spread_input(c, s, walk, x, call);
    const Tiling tiling(c, s, true);
    walk.half_tile = tiling.paired ? c.stride[0] * s.width * c.channels : MAX_PIXELS / 2 * walk.pixel_stride;
    const int64_t panels = (outputs + PANEL - 1) / PANEL, blocks = (outputs + BLOCK - 1) / BLOCK;
    const int64_t tiles = s.images * tiling.tiles;
    Range work = call.share(c.groups * panels * tiles);
    while (work.first < work.last) {
        const int64_t panel = work.first / tiles, first = work.first % tiles;
        const int64_t g = panel / panels, o = panel % panels * PANEL;
        const int64_t lanes = least(PANEL, outputs - o), channel = g * outputs + o;
        const int64_t block = g * blocks + o / BLOCK;
        // cold weights cost a ResNet-18 5 % otherwise
        walk.next = c.weights.codes + (block + MAX_BLOCKS) * walk.panel_bytes;
        const Dense dense{c, s, call, walk, tiling, x + g * depth, windows ? windows + g : nullptr};
        const Range part{first, least(tiles, first + work.last - work.first)};
        if (lanes > BLOCK) {
            dense.run<MAX_BLOCKS>(block, channel, lanes, part);
        } else {
            dense.run<1>(block, channel, lanes, part);
        }
        work.first += part.last - part.first;
    }
}

}  // namespace mbqc::MBQC_ISA
