// Threads that run calls together: every thread runs every step on its share, with a barrier after each.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "abi.h"

namespace mbqc {

// Where the threads of a call wait for each other.
class Barrier {
public:
    void wait(int64_t threads);

private:
    std::atomic<int64_t> arrived{0};
    std::atomic<int64_t> generation{0};
};

// The steps of a call, and what is to run them.
struct Job {
    Runner run;
    const Step* steps;
    int64_t count;
    Call call;
    int64_t* ticks;
    uint32_t float_mode = 0;  // the caller's, which flushes subnormal numbers or not
};

// A fixed number of threads, of which the caller's is the first. One call at a time.
class Team {
public:
    explicit Team(int64_t threads);
    ~Team();
    void run(Job job);

private:
    void end();
    void serve(int64_t thread);
    bool await(int64_t seen);

    Barrier barrier;
    Job job{};
    std::atomic<int64_t> calls{0};  // number of calls begun; -1: the end
    std::mutex mutex;
    std::condition_variable begun;
    std::vector<std::thread> helpers;
};

}  // namespace mbqc
