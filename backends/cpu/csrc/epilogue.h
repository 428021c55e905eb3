// From int32 accumulators to codes or floats. Included once per instruction set, after its vector functions.
#pragma once

#include "abi.h"

namespace mbqc::MBQC_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Accumulators of `pixels` x `lanes`, pixel p at `sums + p * stride`, whole vectors readable.
struct Tile {
    const int32_t* sums;
    int64_t pixels;
    int64_t lanes;
    int64_t stride;
    int64_t channel;         // of the first lane: entry of the tables
    int64_t element;         // of the output: where the first pixel goes
    int64_t element_stride;  // from pixel to pixel
    const int32_t* windows;  // sums of codes: of each pixel, or of each lane
    int64_t window_stride;
};

enum class Windows { none, by_pixel, by_lane };

// An epilogue with its memory in this call.
struct Target {
    const Epilogue* epilogue;
    void* output;
    const uint8_t* residual;
    void (*finish)(const Target&, const Tile&);

    void operator()(const Tile& tile) const { finish(*this, tile); }
};

// `count` lanes, at most a vector, of all pixels. Every float operation rounds on its own (-ffp-contract=off).
template <Windows WINDOWS, bool RESIDUAL, bool TO_FLOAT>
INLINE inline void finish_lanes(const Target target, const Tile tile, int64_t lane, int64_t count) {
    const Epilogue& e = *target.epilogue;
    const Float low = splat(e.low), high = splat(e.high), residual_multiplier = splat(e.residual_multiplier);
    const int64_t entry = (tile.channel + lane) * e.table_step;
    const Float multiplier = load(e.multiplier + entry), addend = load(e.addend + entry);
    const Float window_multiplier = WINDOWS == Windows::none ? addend : load(e.window_multiplier + entry);
    const int32_t* sums = tile.sums + lane;
    const int32_t* windows = tile.windows;
    int64_t element = tile.element + lane;
    for (int64_t pixel = 0; pixel < tile.pixels; ++pixel) {
        Float total = to_float(load(sums)) * multiplier;
        if constexpr (WINDOWS != Windows::none) {
            const Int window = WINDOWS == Windows::by_lane ? load(windows + lane) : splat(*windows);
            total = total + to_float(window) * window_multiplier;
            windows += tile.window_stride;
        }
        total = total + addend;
        if constexpr (RESIDUAL) {
            total = total + to_float(load_codes(target.residual + element, count)) * residual_multiplier;
        }
        if constexpr (TO_FLOAT) {  // not-a-number and negative zero pass
            store(static_cast<float*>(target.output) + element, smaller(high, larger(low, total)), count);
        } else {  // bounds are whole, so clamping first is the same and keeps the conversion in range
            store_codes(static_cast<uint8_t*>(target.output) + element, smaller(larger(total, low), high), count);
        }
        sums += tile.stride;
        element += tile.element_stride;
    }
}

template <Windows WINDOWS, bool RESIDUAL, bool TO_FLOAT>
void finish(const Target& target, const Tile& tile) {
    int64_t lane = 0;
    for (; lane + LANES <= tile.lanes; lane += LANES) {
        finish_lanes<WINDOWS, RESIDUAL, TO_FLOAT>(target, tile, lane, LANES);
    }
    if (lane < tile.lanes) finish_lanes<WINDOWS, RESIDUAL, TO_FLOAT>(target, tile, lane, tile.lanes - lane);
}

template <Windows WINDOWS>
Target target_with(const Epilogue& e, void* output, const uint8_t* residual) {
    const auto function = e.has_residual ? (e.to_float ? finish<WINDOWS, true, true> : finish<WINDOWS, true, false>)
                                         : (e.to_float ? finish<WINDOWS, false, true> : finish<WINDOWS, false, false>);
    return {&e, output, residual, function};
}

inline Target target_of(const Epilogue& e, const Place& output, const Call& call, Windows windows = Windows::none) {
    void* memory = call.at(output);
    const uint8_t* residual = e.has_residual ? call.at(e.residual) : nullptr;
    if (windows == Windows::by_pixel) return target_with<Windows::by_pixel>(e, memory, residual);
    if (windows == Windows::by_lane) return target_with<Windows::by_lane>(e, memory, residual);
    return target_with<Windows::none>(e, memory, residual);
}

}  // namespace mbqc::MBQC_ISA
