// Runs a CUDA kernel on the CPU, to test its indexing and its barriers where there is no GPU.
//
// Each thread of a block is a fiber; __syncthreads and the shuffles wait until all threads of the block or warp
// have come. A kernel in which some never come (a divergent barrier, which hangs or is undefined on a GPU) ends
// with an error. Shared memory starts as NaN. Blocks run one after the other; half precision is left out.

#pragma once

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
    ucontext_t context;
    bool done = false;
};

static std::vector<double> shared;
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static std::vector<Barrier> warps;
static std::vector<uint64_t> slots;
static Barrier whole;
static ucontext_t scheduler;
static unsigned current;
static bool moved, failed;
static std::function<void()> body;

inline void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        moved = true;
        return;
    }
    while (barrier.generation == generation) swapcontext(&fibers[current].context, &scheduler);
}

inline void start() {
    body();
    fibers[current].done = moved = true;
}

inline void run_block(unsigned threads) {
    fibers.assign(threads, Fiber());
    warps.assign(threads / 32, Barrier());
    for (Barrier& warp : warps) warp.size = 32;
    whole = Barrier();
    whole.size = threads;
    std::fill(shared.begin(), shared.end(), __builtin_nan(""));
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = stacks.data() + i * kStack;
        fibers[i].context.uc_stack.ss_size = kStack;
        fibers[i].context.uc_link = &scheduler;
        makecontext(&fibers[i].context, start, 0);
    }
    do {
        moved = false;
        for (current = 0; current < threads; ++current) {
            if (fibers[current].done) continue;
            threadIdx.x = current;
            swapcontext(&scheduler, &fibers[current].context);
        }
    } while (moved);
    for (const Fiber& fiber : fibers) failed |= !fiber.done;
}

inline void launch(dim3 grid, dim3 block, size_t bytes, std::function<void()> kernel) {
    body = std::move(kernel);
    blockDim = block;
    failed = false;
    shared.resize(bytes / sizeof(double) + 2);
    stacks.resize(block.x * kStack);
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
