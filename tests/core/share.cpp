// SPDX-License-Identifier: Apache-2.0
// Work shared among threads, as tests/core/test_parallel.py needs it.

#include "../../bevnext_core/ops/parallel.h"

// The first task of thread `failing` runs out of memory; no other thread ends its first task before that.
EXPORT int fail_in(int failing, int threads) {
    std::atomic<bool> failed{false};
    return guarded([&] {
        share(64, threads, [&](int64_t, int worker) {
            if (worker == failing) {
                failed = true;
                throw std::bad_alloc();
            }
            while (!failed) std::this_thread::yield();
        });
    });
}

// Counts the tasks that each thread does.
EXPORT int count_tasks(int64_t tasks, int threads, int64_t* counts) {
    return guarded([&] { share(tasks, threads, [&](int64_t, int worker) { ++counts[worker]; }); });
}
