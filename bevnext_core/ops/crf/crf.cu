// SPDX-License-Identifier: Apache-2.0
// Mean field of the depth CRF on a GPU: forward, and gradients.
//
// One warp per patch; a lane holds kBins successive depth bins in registers. The price of a disagreement, the
// sum over b of |a - b| m_b, is two prefix sums over the warp: from a to a + 1 it grows by 2 P_a - S. A patch
// that exchanges no message (the kernel between it and all its neighbours is 0; most of them) goes through all
// iterations in one launch. The others exchange theirs through memory, one launch per iteration.
//
// A C interface without torch: the caller checks shapes and types, owns all memory and gives the stream.
// Nothing is allocated and nothing waits, so that launches can be captured into graphs; there are no atomics,
// and results are the same in every run. Functions return a cudaError_t.

#ifdef BEVNEXT_EMULATE_CUDA
#include "cuda_emulation.h"
#else
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif

#include <cmath>
#include <cstdint>

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = 8, kTaps = 9, kCenter = 4;

// A tensor [M, D, h, w] of any strides.
template <typename T>
struct Map {
    T* data;
    int64_t camera, bin, row, column;

    __device__ T& at(int64_t m, int64_t a, int64_t y, int64_t x) const {
        return data[m * camera + a * bin + y * row + x * column];
    }
};

template <typename T>
struct Problem {
    Map<const T> logits;
    const T* kernel;  // [M, 9, h, w]
    const T* weight;
    int cameras, bins, height, width, iterations;

    __device__ int64_t plane() const { return static_cast<int64_t>(height) * width; }
    __device__ int64_t patches() const { return cameras * plane(); }
};

// ---------------------------------------------------------------------------------------------- warps
__device__ inline int lane() { return threadIdx.x % 32; }

// The same value, bit for bit, on all lanes.
template <typename T>
__device__ T warp_sum(T value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_sync(kAll, value, lane() ^ step);
    return value;
}

template <typename T>
__device__ T warp_max(T value) {
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_sync(kAll, value, lane() ^ step);
        value = other > value ? other : value;
    }
    return value;
}

// Sum over the lanes before this one; `total` is that of all.
template <typename T>
__device__ T warp_before(T value, T& total) {
    for (int step = 1; step < 32; step *= 2) {
        const T other = __shfl_sync(kAll, value, (lane() + 32 - step) % 32);
        if (lane() >= step) value += other;
    }
    total = __shfl_sync(kAll, value, 31);
    const T before = __shfl_sync(kAll, value, (lane() + 31) % 32);
    return lane() ? before : T(0);
}

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// ---------------------------------------------------------------------------------------- rows of bins
// One patch's values; this lane's bins are lane * kBins and on. Bins from D on are 0.
template <typename T, int kBins>
struct Row {
    T v[kBins];

    __device__ static int first() { return lane() * kBins; }
    __device__ void load(const T* row) {
        for (int k = 0; k < kBins; ++k) v[k] = row[first() + k];
    }
    __device__ void store(T* row) const {
        for (int k = 0; k < kBins; ++k) row[first() + k] = v[k];
    }
    __device__ T dot(const Row& other) const {
        T sum = 0;
        for (int k = 0; k < kBins; ++k) sum += v[k] * other.v[k];
        return warp_sum(sum);
    }
};

// A patch, and where its rows are.
template <typename T, int kBins>
struct Patch {
    int64_t index, m, y, x;
    int bins;

    __device__ Patch(const Problem<T>& problem, int64_t patch) : index(patch), bins(problem.bins) {
        m = patch / problem.plane();
        y = patch % problem.plane() / problem.width;
        x = patch % problem.width;
    }
    __device__ void read(const Map<const T>& map, Row<T, kBins>& row) const {
        for (int k = 0; k < kBins; ++k) {
            const int a = Row<T, kBins>::first() + k;
            row.v[k] = a < bins ? map.at(m, a, y, x) : T(0);
        }
    }
    // Into a contiguous [M, D, h, w].
    __device__ void write(const Problem<T>& problem, const Row<T, kBins>& row, T* out) const {
        for (int k = 0; k < kBins; ++k) {
            const int a = Row<T, kBins>::first() + k;
            if (a < bins) out[((m * bins + a) * problem.height + y) * problem.width + x] = row.v[k];
        }
    }
    static constexpr int64_t kRow = 32 * kBins;
    __device__ T* row(T* rows) const { return rows + index * kRow; }
};

template <typename T, int kBins>
__device__ void softmax(const Row<T, kBins>& z, int bins, Row<T, kBins>& q) {
    T high = -INFINITY, total = 0;
    for (int k = 0; k < kBins; ++k)
        if (Row<T, kBins>::first() + k < bins && z.v[k] > high) high = z.v[k];
    high = warp_max(high);
    for (int k = 0; k < kBins; ++k) {
        q.v[k] = Row<T, kBins>::first() + k < bins ? exponential(z.v[k] - high) : T(0);
        total += q.v[k];
    }
    const T factor = T(1) / warp_sum(total);
    for (int k = 0; k < kBins; ++k) q.v[k] *= factor;
}

// Replaces m by the sum over b of |a - b| m_b, less what it is at bin 0.
template <typename T, int kBins>
__device__ void prices(Row<T, kBins>& m) {
    T sum = 0, total;
    for (int k = 0; k < kBins; ++k) sum += m.v[k];
    T below = warp_before(sum, total);
    sum = 0;
    for (int k = 0; k < kBins; ++k) {
        below += m.v[k];
        m.v[k] = 2 * below - total;  // the slope behind this bin
        sum += m.v[k];
    }
    T price = warp_before(sum, total);
    for (int k = 0; k < kBins; ++k) {
        const T slope = m.v[k];
        m.v[k] = price;
        price += slope;
    }
}

// ------------------------------------------------------------------------------------------- messages
// What this patch gets from its neighbour at a tap or, transposed, what it gives it; 0 outside the image.
template <typename T>
__device__ T tap_kernel(const Problem<T>& problem, int64_t m, int64_t y, int64_t x, int tap, bool transposed) {
    const int dy = tap / 3 - 1, dx = tap % 3 - 1;
    const int64_t v = y + dy, u = x + dx;
    if (v < 0 || v >= problem.height || u < 0 || u >= problem.width) return T(0);
    const T* kernel = problem.kernel + m * kTaps * problem.plane();
    // The neighbour sees this patch at the opposite tap.
    return transposed ? kernel[(8 - tap) * problem.plane() + v * problem.width + u]
                      : kernel[tap * problem.plane() + y * problem.width + x];
}

// Whether the patch exchanges messages with others; the same on all lanes.
template <typename T, int kBins>
__device__ bool is_linked(const Problem<T>& problem, const Patch<T, kBins>& patch) {
    int linked = 0;
    const int tap = lane() % 16;
    if (tap < kTaps && tap != kCenter)
        linked = tap_kernel(problem, patch.m, patch.y, patch.x, tap, lane() >= 16) != T(0);
    return warp_sum(linked) != 0;
}

// Sum over the window of kernel x row, `own` being this patch's row.
template <typename T, int kBins>
__device__ void gather(const Problem<T>& problem, const Patch<T, kBins>& patch, T* rows, bool transposed,
                       Row<T, kBins>& own) {
    const T center = tap_kernel(problem, patch.m, patch.y, patch.x, kCenter, transposed);
    for (int k = 0; k < kBins; ++k) own.v[k] *= center;
    if (!rows) return;
    for (int tap = 0; tap < kTaps; ++tap) {
        const T factor = tap_kernel(problem, patch.m, patch.y, patch.x, tap, transposed);
        if (tap == kCenter || factor == T(0)) continue;
        const T* row = rows + (patch.index + (tap / 3 - 1) * problem.width + tap % 3 - 1) * patch.kRow;
        for (int k = 0; k < kBins; ++k) own.v[k] += factor * row[Row<T, kBins>::first() + k];
    }
}

// ------------------------------------------------------------------------------------------- forward
// One iteration: q becomes the next one. rows: the distributions of all linked patches; null for a patch alone.
template <typename T, int kBins>
__device__ void iterate(const Problem<T>& problem, const Patch<T, kBins>& patch, const Row<T, kBins>& logits, T* rows,
                        Row<T, kBins>& q) {
    gather(problem, patch, rows, false, q);
    prices(q);
    const T weight = *problem.weight;
    for (int k = 0; k < kBins; ++k) q.v[k] = logits.v[k] - weight * q.v[k];
    softmax(q, patch.bins, q);
}

// Launch n of iterations + 1. Rows [.., M*h*w, 32 * kBins]: of linked patches, iteration n % 2, or (with_history)
// of all patches and iterations. `linked` is set by launch 0.
template <typename T, int kBins>
__global__ void forward(Problem<T> problem, int n, bool with_history, T* rows, uint8_t* linked, T* out) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (index >= problem.patches() || (n > 0 && !linked[index])) return;
    const Patch<T, kBins> patch(problem, index);
    const int64_t map = problem.patches() * patch.kRow;
    Row<T, kBins> logits, q;
    patch.read(problem.logits, logits);
    int last = n;
    if (n == 0) {
        const bool exchanges = is_linked(problem, patch);
        if (lane() == 0) linked[index] = exchanges;
        softmax(logits, patch.bins, q);
        if (!exchanges) {
            for (; last < problem.iterations; ++last) {
                if (with_history) q.store(patch.row(rows + last * map));
                iterate(problem, patch, logits, static_cast<T*>(nullptr), q);
            }
        }
    } else {
        T* from = rows + (with_history ? n - 1 : (n - 1) % 2) * map;
        q.load(patch.row(from));
        iterate(problem, patch, logits, from, q);
    }
    if (with_history || last < problem.iterations)
        q.store(patch.row(rows + (with_history ? last : last % 2) * map));
    if (out && last == problem.iterations) patch.write(problem, q, out);
}

// ------------------------------------------------------------------------------------------- backward
// Gradient of softmax, gz = q (g - <g, q>): adds it to `total`, and replaces g by the sum over b of |a - b| gz_b.
template <typename T, int kBins>
__device__ void price_gradient(const Row<T, kBins>& q, int bins, Row<T, kBins>& g, Row<T, kBins>& total) {
    const T mean = g.dot(q);
    const T middle = T(0.5) * (bins - 1);
    T sum = 0, moment = 0;
    for (int k = 0; k < kBins; ++k) {
        g.v[k] = q.v[k] * (g.v[k] - mean);
        total.v[k] += g.v[k];
        sum += g.v[k];
        moment += (Row<T, kBins>::first() + k - middle) * g.v[k];
    }
    const T at_zero = warp_sum(moment) + middle * warp_sum(sum);
    prices(g);
    for (int k = 0; k < kBins; ++k) g.v[k] += at_zero;
}

// Launch n = iterations .. 0, q_n being what the gradient arrives at. prices: two maps of rows of linked patches;
// totals: rows; weight_grad [M*h*w]: each patch's share.
template <typename T, int kBins>
__global__ void backward(Problem<T> problem, int n, Map<const T> grad, const T* history, const uint8_t* linked,
                         T* price_rows, T* totals, T* logits_grad, T* weight_grad) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (index >= problem.patches()) return;
    const bool exchanges = linked[index], begins = n == problem.iterations;
    if (!begins && !exchanges) return;
    const Patch<T, kBins> patch(problem, index);
    const int64_t map = problem.patches() * patch.kRow;
    const T weight = *problem.weight;
    Row<T, kBins> g, q, total;
    T share = 0;
    if (begins) {
        patch.read(grad, g);
        for (int k = 0; k < kBins; ++k) total.v[k] = 0;
    } else {
        g.load(patch.row(price_rows + (n + 1) % 2 * map));
        total.load(patch.row(totals));
        share = weight_grad[index];
    }
    for (int step = n; step >= 0; --step) {
        q.load(history + step * map + index * patch.kRow);
        if (step < problem.iterations) {  // from the prices of step + 1 to the gradient of q
            gather(problem, patch, exchanges ? price_rows + (step + 1) % 2 * map : static_cast<T*>(nullptr), true, g);
            share -= g.dot(q);
            for (int k = 0; k < kBins; ++k) g.v[k] *= -weight;
        }
        price_gradient(q, patch.bins, g, total);
        if (exchanges) break;
    }
    if (lane() == 0) weight_grad[index] = share;
    if (exchanges && n > 0) {
        g.store(patch.row(price_rows + n % 2 * map));
        total.store(patch.row(totals));
    } else {
        patch.write(problem, total, logits_grad);
    }
}

// ------------------------------------------------------------------------------------------- launches
template <typename T>
Map<const T> strided(const void* data, const int64_t* strides) {
    return {static_cast<const T*>(data), strides[0], strides[1], strides[2], strides[3]};
}

template <typename T>
unsigned blocks(const Problem<T>& problem) {
    const int64_t patches = static_cast<int64_t>(problem.cameras) * problem.height * problem.width;
    return static_cast<unsigned>((patches + kWarps - 1) / kWarps);
}

template <typename T, int kBins>
int run_forward(const Problem<T>& problem, bool with_history, T* rows, uint8_t* linked, T* out, cudaStream_t stream) {
    const auto kernel = forward<T, kBins>;
    for (int n = 0; n <= problem.iterations; ++n)
        LAUNCH(kernel, dim3(blocks(problem)), dim3(32 * kWarps), 0, stream, problem, n, with_history, rows, linked, out);
    return cudaGetLastError();
}

template <typename T, int kBins>
int run_backward(const Problem<T>& problem, Map<const T> grad, T* history, uint8_t* linked, T* rows, T* logits_grad,
                 T* weight_grad, cudaStream_t stream) {
    const int code = run_forward<T, kBins>(problem, true, history, linked, static_cast<T*>(nullptr), stream);
    if (code) return code;
    const int64_t map = static_cast<int64_t>(problem.cameras) * problem.height * problem.width * 32 * kBins;
    T* totals = rows + 2 * map;
    const auto kernel = backward<T, kBins>;
    for (int n = problem.iterations; n >= 0; --n)
        LAUNCH(kernel, dim3(blocks(problem)), dim3(32 * kWarps), 0, stream, problem, n, grad, history, linked, rows,
               totals, logits_grad, weight_grad);
    return cudaGetLastError();
}

template <typename T>
Problem<T> make_problem(const void* logits, const int64_t* strides, const void* kernel, const void* weight,
                        const int64_t* sizes, int iterations) {
    return {strided<T>(logits, strides),  static_cast<const T*>(kernel),
            static_cast<const T*>(weight), static_cast<int>(sizes[0]), static_cast<int>(sizes[1]),
            static_cast<int>(sizes[2]),    static_cast<int>(sizes[3]), iterations};
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// A row's length is 32 * per_lane, the smallest that holds all bins.
#define BY_ROW(per_lane, call)                 \
    switch (per_lane) {                        \
        case 1: return call(1);                \
        case 2: return call(2);                \
        case 4: return call(4);                \
        case 8: return call(8);                \
        case 16: return call(16);              \
        default: return cudaErrorInvalidValue; \
    }

#ifndef BEVNEXT_EMULATE_CUDA
// Whether the present GPU and its driver can run what was compiled.
EXPORT int crf_cuda_check() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, forward<float, 4>);
}
#endif

// sizes: M, D, h, w, at least one patch. rows: [2, M*h*w, 32 * per_lane]; linked: [M*h*w]; out [M, D, h, w].
#define INTERFACE(NAME, T)                                                                                           \
    EXPORT int crf_cuda_forward_##NAME(const void* logits, const int64_t* strides, const void* kernel,               \
                                       const void* weight, const int64_t* sizes, int iterations, int per_lane,       \
                                       void* rows, void* linked, void* out, void* stream) {                          \
        const Problem<T> problem = make_problem<T>(logits, strides, kernel, weight, sizes, iterations);              \
        if (blocks(problem) == 0) return cudaSuccess;                                                                \
        BY_ROW(per_lane, FORWARD_##NAME)                                                                             \
    }                                                                                                                \
    EXPORT int crf_cuda_backward_##NAME(const void* grad, const int64_t* grad_strides, const void* logits,           \
                                        const int64_t* strides, const void* kernel, const void* weight,              \
                                        const int64_t* sizes, int iterations, int per_lane, void* history,           \
                                        void* rows, void* linked, void* logits_grad, void* weight_grad,              \
                                        void* stream) {                                                              \
        const Problem<T> problem = make_problem<T>(logits, strides, kernel, weight, sizes, iterations);              \
        if (blocks(problem) == 0) return cudaSuccess;                                                                \
        BY_ROW(per_lane, BACKWARD_##NAME)                                                                            \
    }
#define FORWARD(T, K)                                                                                               \
    (run_forward<T, K>(problem, false, static_cast<T*>(rows), static_cast<uint8_t*>(linked), static_cast<T*>(out), \
                       static_cast<cudaStream_t>(stream)))
// history: [iterations + 1, M*h*w, 32 * per_lane]; rows: three such maps; weight_grad: [M*h*w].
#define BACKWARD(T, K)                                                                                             \
    (run_backward<T, K>(problem, strided<T>(grad, grad_strides), static_cast<T*>(history),                         \
                        static_cast<uint8_t*>(linked), static_cast<T*>(rows), static_cast<T*>(logits_grad),        \
                        static_cast<T*>(weight_grad), static_cast<cudaStream_t>(stream)))
#define FORWARD_float(K) FORWARD(float, K)
#define FORWARD_double(K) FORWARD(double, K)
#define BACKWARD_float(K) BACKWARD(float, K)
#define BACKWARD_double(K) BACKWARD(double, K)

INTERFACE(float, float)
INTERFACE(double, double)
