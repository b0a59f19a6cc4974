// SPDX-License-Identifier: Apache-2.0
// Work shared among threads, and memory, for the C++ parts.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Scratch = std::unique_ptr<T[], Free>;

constexpr uintptr_t kPage = uintptr_t(1) << 21, kLine = 64;

// Asks for large pages where a block has not been touched yet: touching 10 MB of small ones for the first time
// costs as much as several passes over them.
inline void prefer_large_pages(const void* memory, size_t bytes) {
#if defined(__linux__)
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kPage - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory that is not cleared.
template <typename T>
Scratch<T> scratch(int64_t count) {
    const size_t bytes = std::max<size_t>(static_cast<size_t>(count) * sizeof(T), kLine);
    const size_t unit = bytes >= kPage ? kPage : kLine;
    void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
    if (!memory) throw std::bad_alloc();
    prefer_large_pages(memory, (bytes + unit - 1) / unit * unit);
    return Scratch<T>(static_cast<T*>(memory));
}

// Calls work(task, worker) for task in 0 .. tasks-1, on this thread and up to threads-1 more. When a call throws,
// no further task begins, and once all threads have ended this throws std::bad_alloc: an exception that left a
// thread, or this one while others still run, would end the process.
template <typename Work>
void share(int64_t tasks, int threads, Work work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    auto run = [&](int worker) {
        try {
            for (int64_t task = next++; task < tasks && !failed; task = next++) work(task, worker);
        } catch (...) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    for (int worker = 1; worker < std::min<int64_t>(threads, tasks); ++worker) {
        try {
            others.emplace_back(run, worker);
        } catch (...) {
            break;  // no further thread to be had: the others do its part
        }
    }
    run(0);
    for (auto& thread : others) thread.join();
    if (failed) throw std::bad_alloc();
}

// Runs what a C interface exports: 0, or 1 when memory ran out.
template <typename Call>
int guarded(Call call) {
    try {
        call();
        return 0;
    } catch (...) {
        return 1;
    }
}

}  // namespace
