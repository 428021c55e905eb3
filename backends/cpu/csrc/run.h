// One call: the steps one after another, each shared by all threads. Included once per instruction set, after its
// vector functions.
#pragma once

#include "ceiling.h"
#include "conv.h"
#include "depthwise.h"
#include "elementwise.h"
#include "floats.h"
#include "matmul.h"
#include "pool.h"
#include "popcount.h"

namespace mbqc::MBQC_ISA {

void run(const Step* steps, int64_t count, const Call& call, int64_t* ticks) {
    if (ticks) *ticks++ = nanoseconds();
    for (const Step* step = steps; step < steps + count; ++step) {
        switch (step->kind) {
            case Kind::quantize: quantize(step->quantize, call); break;
            case Kind::map: map(step->map, call); break;
            case Kind::conv: conv(step->conv, call); break;
            case Kind::popcount: popcount(step->conv, call); break;
            case Kind::depthwise: depthwise(step->depthwise, call); break;
            case Kind::average_pool: average_pool(step->pool, call); break;
            case Kind::max_pool: max_pool(step->pool, call); break;
            case Kind::lookup: lookup(step->lookup, call); break;
            case Kind::copy: copy(step->copy, call); break;
            case Kind::permute: permute(step->permute, call); break;
            case Kind::layer_norm: layer_norm(step->float_rows, call); break;
            case Kind::softmax: softmax(step->float_rows, call); break;
            case Kind::activation: activation(step->activation, call); break;
            case Kind::embedding:
                if (!embedding(step->embedding, call)) call.failed->store(step - steps + 1, std::memory_order_relaxed);
                break;
            case Kind::arithmetic: arithmetic(step->arithmetic, call); break;
            case Kind::matmul: matmul(step->matmul, call); break;
            case Kind::mean: mean(step->mean, call); break;
            case Kind::select: select(step->select, call); break;
        }
        call.sync();
        if (ticks) *ticks++ = nanoseconds();
    }
}

}  // namespace mbqc::MBQC_ISA
