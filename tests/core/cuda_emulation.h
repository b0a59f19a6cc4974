// SPDX-License-Identifier: Apache-2.0
// Runs a CUDA kernel on the CPU, to test its indexing and its barriers where there is no GPU.
//
// Each thread of a block is a fiber, kept for the blocks that follow; __syncthreads and the shuffles wait until all
// threads of the block or warp have come. A kernel in which some never come (a divergent barrier, which hangs or is undefined on a GPU) ends
// with an error. Shared memory starts as NaN. Blocks run one after the other; half precision is left out.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
    (void)(stream), emulation::launch(grid, block, shared, [=] { kernel(__VA_ARGS__); })
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulation::shared.data())

using std::min;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline __nv_bfloat16 __float2bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

static dim3 threadIdx, blockIdx, blockDim;

namespace emulation {

constexpr size_t kStack = 1 << 16;

struct Barrier {
    unsigned size = 0, arrived = 0, generation = 0;
};
struct Fiber {
    ucontext_t context;      // where it begins
    jmp_buf place;           // and where it goes on: swapcontext would make a system call each time
    const Barrier* barrier;  // which it waits for, if any, to leave `generation`
    unsigned generation;
    bool begun = false, done = false;
};

static std::vector<double> shared;
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static std::vector<Barrier> warps;
static std::vector<uint64_t> slots;
static Barrier whole;
static jmp_buf scheduler;
static unsigned current;
static bool moved, failed;
static std::function<void()> body;

// From a fiber to the scheduler, until it is resumed.
inline void leave() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

inline void wait(Barrier& barrier) {
    Fiber& fiber = fibers[current];
    moved = true;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    fiber.barrier = &barrier;
    fiber.generation = barrier.generation;
    leave();
    fiber.barrier = nullptr;
}

inline void start() {
    for (;;) {
        body();
        fibers[current].done = moved = true;
        leave();
    }
}

inline void make_fibers(unsigned threads) {
    stacks.resize(threads * kStack);
    fibers.assign(threads, Fiber());
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = stacks.data() + i * kStack;
        fibers[i].context.uc_stack.ss_size = kStack;
        makecontext(&fibers[i].context, start, 0);
    }
}

inline void run_block(unsigned threads) {
    if (fibers.size() != threads) make_fibers(threads);
    warps.assign(threads / 32, Barrier());
    for (Barrier& warp : warps) warp.size = 32;
    whole = Barrier();
    whole.size = threads;
    std::fill(shared.begin(), shared.end(), __builtin_nan(""));
    for (Fiber& fiber : fibers) {
        fiber.barrier = nullptr;
        fiber.done = false;
    }
    do {
        moved = false;
        for (current = 0; current < threads; ++current) {
            Fiber& fiber = fibers[current];
            if (fiber.done || (fiber.barrier && fiber.barrier->generation == fiber.generation)) continue;
            threadIdx.x = current;
            resume(fiber);
        }
    } while (moved);
    for (const Fiber& fiber : fibers) failed |= !fiber.done;
    if (failed) fibers.clear();  // some are still in the middle of a kernel
}

inline void launch(dim3 grid, dim3 block, size_t bytes, std::function<void()> kernel) {
    body = std::move(kernel);
    blockDim = block;
    failed = false;
    shared.resize(bytes / sizeof(double) + 2);
    slots.assign(block.x, 0);
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
            run_block(block.x);
            if (failed) return;
        }
}

// The value that the lane `from` of this warp brings; lanes outside the warp give one's own.
template <typename T>
T exchange(T value, int from) {
    const unsigned warp = current / 32;
    std::memcpy(&slots[current], &value, sizeof(T));
    wait(warps[warp]);
    if (from >= 0 && from < 32) std::memcpy(&value, &slots[warp * 32 + from], sizeof(T));
    wait(warps[warp]);
    return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::whole); }
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
    return emulation::exchange(value, from % 32);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned step) {
    return emulation::exchange(value, static_cast<int>(emulation::current % 32 + step));
}
inline int cudaGetLastError() { return emulation::failed ? cudaErrorLaunchFailure : cudaSuccess; }
