#include "team.h"

#if MBQC_X86
#include <immintrin.h>
#endif

namespace mbqc {

namespace {

// A helper spins between the steps of a call and for about 0.1 ms after it, then sleeps: waking takes longer than a
// small network. A waiting thread leaves its core to others after a while: there may be fewer cores than threads.
constexpr int SPINS = 2000;

void pause(int64_t spins) {
    if (spins > SPINS) {
        std::this_thread::yield();
    } else {
#if MBQC_X86
        _mm_pause();
#endif
    }
}

uint32_t float_mode() {
#if MBQC_X86
    return _mm_getcsr();
#else
    return 0;
#endif
}

void use_float_mode([[maybe_unused]] uint32_t mode) {
#if MBQC_X86
    _mm_setcsr(mode);
#endif
}

}  // namespace

void Barrier::wait(int64_t threads) {
    const int64_t before = generation.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        arrived.store(0, std::memory_order_relaxed);
        generation.store(before + 1, std::memory_order_release);
        return;
    }
    for (int64_t spins = 0; generation.load(std::memory_order_acquire) == before; ++spins) pause(spins);
}

void Call::sync() const {
    if (threads > 1) barrier->wait(threads);
}

Team::Team(int64_t threads) {
    try {
        for (int64_t thread = 1; thread < threads; ++thread) helpers.emplace_back(&Team::serve, this, thread);
    } catch (const std::exception&) {  // the system has no more
        end();
        throw;
    }
}

Team::~Team() { end(); }

void Team::end() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        calls.store(-1, std::memory_order_release);
    }
    begun.notify_all();
    for (std::thread& helper : helpers) helper.join();
}

void Team::run(Job next) {
    next.call.threads = static_cast<int64_t>(helpers.size()) + 1;
    next.call.barrier = &barrier;
    next.float_mode = float_mode();
    {
        const std::lock_guard<std::mutex> lock(mutex);
        job = next;
        calls.fetch_add(1, std::memory_order_release);
    }
    begun.notify_all();
    next.run(next.steps, next.count, next.call, next.ticks);
    barrier.wait(next.call.threads);  // no helper reads `job` or memory of the call after this
}

// Whether there is another call after `seen` ones.
bool Team::await(int64_t seen) {
    for (int spins = 0; spins < SPINS && calls.load(std::memory_order_acquire) == seen; ++spins) pause(spins);
    std::unique_lock<std::mutex> lock(mutex);
    begun.wait(lock, [&] { return calls.load(std::memory_order_acquire) != seen; });
    return calls.load(std::memory_order_acquire) >= 0;
}

void Team::serve(int64_t thread) {
    for (int64_t seen = 0; await(seen); ++seen) {
        Job mine = job;
        mine.call.thread = thread;
        use_float_mode(mine.float_mode);
        mine.run(mine.steps, mine.count, mine.call, nullptr);
        barrier.wait(mine.call.threads);
    }
}

}  // namespace mbqc
