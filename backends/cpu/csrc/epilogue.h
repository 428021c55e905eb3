// From int32 accumulators to codes or floats. Included once per instruction set, after its vector functions.
#pragma once

#include "abi.h"

namespace mbqc::MBQC_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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

// Every float operation rounds on its own: products and sums must not be fused (-ffp-contract=off).
template <Windows WINDOWS, bool RESIDUAL, bool TO_FLOAT>
void finish(const Target& target, const Tile& tile) {
    const Epilogue& e = *target.epilogue;
    const Float low = splat(e.low), high = splat(e.high), residual_multiplier = splat(e.residual_multiplier);
    for (int64_t pixel = 0; pixel < tile.pixels; ++pixel) {
        const int32_t* sums = tile.sums + pixel * tile.stride;
        const int32_t* windows = tile.windows + pixel * tile.window_stride;
        for (int64_t lane = 0; lane < tile.lanes; lane += LANES) {
            const int64_t count = least(LANES, tile.lanes - lane);
            const int64_t entry = (tile.channel + lane) * e.table_step;
            const int64_t element = tile.element + pixel * tile.element_stride + lane;
            Float total = to_float(load(sums + lane)) * load(e.multiplier + entry);
            if constexpr (WINDOWS != Windows::none) {
                const Int window = WINDOWS == Windows::by_lane ? load(windows + lane) : splat(*windows);
                total = total + to_float(window) * load(e.window_multiplier + entry);
            }
            total = total + load(e.addend + entry);
            if constexpr (RESIDUAL) {
                total = total + to_float(load_codes(target.residual + element, count)) * residual_multiplier;
            }
            if constexpr (TO_FLOAT) {  // not-a-number and negative zero pass
                store(static_cast<float*>(target.output) + element, smaller(high, larger(low, total)), count);
            } else {  // bounds are whole, so clamping first is the same and keeps the conversion in range
                store_codes(static_cast<uint8_t*>(target.output) + element, smaller(larger(total, low), high), count);
            }
        }
    }
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
