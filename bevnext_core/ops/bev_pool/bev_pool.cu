// SPDX-License-Identifier: Apache-2.0
// BEV pooling on a GPU: forward and backward, and the published algorithm as the benchmark's baseline.
//
// A C interface without torch: the caller checks shapes and types, owns all memory and gives the stream.
// Nothing is allocated and nothing waits, so that launches can be captured into graphs; there are no atomics,
// and results are the same in every run. Functions return a cudaError_t.
//
// Rows ("tables") are channels-last and padded with zeros to whole vectors of 16 bytes.

#ifdef BEVNEXT_EMULATE_CUDA
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(T, name)                                \
    extern __shared__ __align__(16) unsigned char raw_##name[]; \
    T* name = reinterpret_cast<T*>(raw_##name)
#endif

#include <cstdint>

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = 16, kThreads = 32 * kWarps;

// A block of the forward kernel: 8 x 4 cells. Neighbouring cells are hit by the same pixels, whose contexts
// are then read from the L1 cache. Cells with more points than kHeavy are summed by all warps together.
constexpr int kTileColumns = 8, kTileRows = 4, kTileCells = kTileColumns * kTileRows, kHeavy = 512;

// A block of the backward kernel: 8 x 2 pixels, one warp each.
constexpr int kPixelColumns = 8, kPixelRows = kWarps / kPixelColumns;

template <typename T>
struct Wide {
    typedef float type;
};
template <>
struct Wide<double> {
    typedef double type;
};

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void narrow(float value, float* to) { *to = value; }
__device__ inline void narrow(double value, double* to) { *to = value; }
__device__ inline void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16(value); }
#ifndef BEVNEXT_EMULATE_CUDA
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline void narrow(float value, __half* to) { *to = __float2half(value); }
#endif

// Types by number, as the caller names them.
enum { kFloat = 0, kHalf = 1, kBfloat16 = 2, kDouble = 3 };

template <typename A>
__device__ inline A read_depth(const void* depth, int type, int64_t index) {
    if (type == kFloat) return widen(static_cast<const float*>(depth)[index]);
#ifndef BEVNEXT_EMULATE_CUDA
    if (type == kHalf) return widen(static_cast<const __half*>(depth)[index]);
#endif
    if (type == kBfloat16) return widen(static_cast<const __nv_bfloat16*>(depth)[index]);
    return static_cast<A>(static_cast<const double*>(depth)[index]);
}

template <typename A>
__device__ inline void write_depth(void* depth, int type, int64_t index, A value) {
    if (type == kFloat) static_cast<float*>(depth)[index] = static_cast<float>(value);
#ifndef BEVNEXT_EMULATE_CUDA
    else if (type == kHalf) narrow(static_cast<float>(value), static_cast<__half*>(depth) + index);
#endif
    else if (type == kBfloat16) narrow(static_cast<float>(value), static_cast<__nv_bfloat16*>(depth) + index);
    else static_cast<double*>(depth)[index] = value;
}

// One vector of 16 bytes, widened.
template <typename T, typename A>
__device__ inline void read_vector(const T* from, A* to) {
    constexpr int count = 16 / sizeof(T);
    alignas(16) T values[count];
    *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = widen(values[i]);
}

// How a warp is divided: `groups` groups of `lanes` lanes take different points; the lanes of one share the
// channels, lane l has the vectors l, l + lanes, ... (K of them).
struct Lane {
    int group, groups, index, lanes;
    bool active;
    __device__ Lane(int lane, int lanes_) : lanes(lanes_) {
        groups = 32 / lanes;
        group = lane / lanes;
        index = lane % lanes;
        active = group < groups;
    }
};

// The groups' sums added in rising order; right in group 0.
template <typename A, int N>
__device__ inline void add_groups(A (&sum)[N], const Lane& me, int lane) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        A total = sum[i];
        for (int g = 1; g < me.groups; ++g) total += __shfl_sync(kAll, sum[i], (lane + g * me.lanes) & 31);
        sum[i] = total;
    }
}

// -------------------------------------------------------------------------------------------- forward

template <typename T, int K>
__global__ void __launch_bounds__(kThreads)
    forward(const void* depth, int depth_type, const T* table, const int32_t* points, const int32_t* pixels,
            const int32_t* starts, int vectors, int channels, int rows, int columns, int lanes,
            typename Wide<T>::type* out, int out_channels_last) {
    typedef typename Wide<T>::type A;
    constexpr int V = 16 / sizeof(T);
    DYNAMIC_SHARED(A, tile);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Lane me(lane, lanes);
    const int tiles_x = (columns + kTileColumns - 1) / kTileColumns, tiles_y = (rows + kTileRows - 1) / kTileRows;
    const int x0 = blockIdx.x % tiles_x * kTileColumns, y0 = blockIdx.x / tiles_x % tiles_y * kTileRows;
    const int map = blockIdx.x / (tiles_x * tiles_y);
    // This block's channels, and the stride that keeps columns of the tile in different banks.
    const int first = blockIdx.y * lanes * K, width = lanes * K * V, stride = width + 1;

    for (int pass = 0; pass < 2; ++pass) {
        const bool together = pass == 1;
        for (int cell = together ? 0 : warp; cell < kTileCells; cell += together ? 1 : kWarps) {
            const int y = y0 + cell / kTileColumns, x = x0 + cell % kTileColumns;
            if (y >= rows || x >= columns) continue;
            const int64_t index = (static_cast<int64_t>(map) * rows + y) * columns + x;
            const int begin = starts[index], end = starts[index + 1];
            if ((end - begin > kHeavy) != together) continue;
            A sum[K * V] = {};
            for (int base = begin + (together ? 32 * warp : 0); base < end; base += together ? kThreads : 32) {
                // Indices and weights are read once for all channels, 32 at a time.
                const int count = min(32, end - base);
                int pixel = 0;
                A weight = 0;
                if (lane < count) {
                    pixel = pixels[base + lane];
                    weight = read_depth<A>(depth, depth_type, points[base + lane]);
                }
#pragma unroll 4
                for (int j = 0; j < count; j += me.groups) {
                    const int from = j + me.group;
                    const int p = __shfl_sync(kAll, pixel, from & 31);
                    const A w = __shfl_sync(kAll, weight, from & 31);
                    if (!me.active || from >= count) continue;
                    const T* row = table + static_cast<int64_t>(p) * vectors * V;
#pragma unroll
                    for (int k = 0; k < K; ++k) {
                        const int v = first + me.index + k * lanes;
                        if (v < vectors) {
                            A values[V];
                            read_vector(row + v * V, values);
#pragma unroll
                            for (int i = 0; i < V; ++i) sum[k * V + i] += w * values[i];
                        }
                    }
                }
            }
            add_groups(sum, me, lane);
            for (int turn = 0; turn < (together ? kWarps : 1); ++turn) {
                if ((!together || turn == warp) && me.group == 0) {
#pragma unroll
                    for (int k = 0; k < K; ++k)
#pragma unroll
                        for (int i = 0; i < V; ++i) {
                            A* to = tile + cell * stride + (me.index + k * lanes) * V + i;
                            *to = turn ? *to + sum[k * V + i] : sum[k * V + i];
                        }
                }
                if (together) __syncthreads();
            }
        }
    }
    __syncthreads();

    const int c0 = first * V, count = min(width, channels - c0);
    for (int i = threadIdx.x; i < count * kTileCells; i += kThreads) {
        const int cell = out_channels_last ? i / count : i % kTileCells;
        const int c = out_channels_last ? i % count : i / kTileCells;
        const int64_t y = y0 + cell / kTileColumns, x = x0 + cell % kTileColumns;
        if (y >= rows || x >= columns) continue;
        const int64_t to = out_channels_last
                               ? ((static_cast<int64_t>(map) * rows + y) * columns + x) * channels + c0 + c
                               : ((static_cast<int64_t>(map) * channels + c0 + c) * rows + y) * columns + x;
        out[to] = tile[cell * stride + c];
    }
}

// -------------------------------------------------------------------------------------------- backward

template <typename T, int K>
__global__ void __launch_bounds__(kThreads)
    backward(const typename Wide<T>::type* grad, const void* depth, int depth_type, const T* table,
             const int32_t* cells, int vectors, int bins, int height, int columns, int total, int lanes,
             void* depth_grad, T* table_grad) {
    typedef typename Wide<T>::type A;
    constexpr int V = 16 / sizeof(T), kPart = 16 / sizeof(A);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Lane me(lane, lanes);
    const int blocks_x = (columns + kPixelColumns - 1) / kPixelColumns, blocks_y = (height + kPixelRows - 1) / kPixelRows;
    const int x = blockIdx.x % blocks_x * kPixelColumns + warp % kPixelColumns;
    const int y = blockIdx.x / blocks_x % blocks_y * kPixelRows + warp / kPixelColumns;
    if (y >= height || x >= columns) return;  // whole warps
    const int64_t camera = blockIdx.x / (blocks_x * blocks_y), plane = static_cast<int64_t>(height) * columns;
    const int64_t pixel = camera * plane + y * columns + x, point = camera * bins * plane + y * columns + x;

    A own[K * V] = {}, sum[K * V] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int v = me.index + k * lanes;
        if (v < vectors) read_vector(table + (pixel * vectors + v) * V, own + k * V);
    }
    for (int base = 0; base < bins; base += 32) {
        const int count = min(32, bins - base);
        int cell = -1;
        A weight = 0;
        if (lane < count) {
            const int64_t at = point + (base + lane) * plane;
            cell = cells[at];
            if (cell < 0 || cell >= total) {
                cell = -1;
                write_depth<A>(depth_grad, depth_type, at, 0);
            } else {
                weight = read_depth<A>(depth, depth_type, at);
            }
        }
#pragma unroll 4
        for (int j = 0; j < count; j += me.groups) {
            const int from = j + me.group;
            const int c = __shfl_sync(kAll, cell, from & 31);
            const A w = __shfl_sync(kAll, weight, from & 31);
            const bool mine = me.active && from < count && c >= 0;
            A dot = 0;
            if (mine) {
                const A* row = grad + static_cast<int64_t>(c) * vectors * V;
#pragma unroll
                for (int k = 0; k < K; ++k) {
                    const int v = me.index + k * lanes;
                    if (v < vectors) {
                        A values[V];
#pragma unroll
                        for (int i = 0; i < V; i += kPart) read_vector(row + v * V + i, values + i);
#pragma unroll
                        for (int i = 0; i < V; ++i) {
                            dot += own[k * V + i] * values[i];
                            sum[k * V + i] += w * values[i];
                        }
                    }
                }
            }
            // To the first lane of each group, which need not have a power of two of them.
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
                const A other = __shfl_down_sync(kAll, dot, step);
                if (me.index + step < lanes) dot += other;
            }
            if (mine && me.index == 0) write_depth<A>(depth_grad, depth_type, point + (base + from) * plane, dot);
        }
    }
    add_groups(sum, me, lane);
    if (me.group != 0) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int v = me.index + k * lanes;
        if (v >= vectors) continue;
        alignas(16) T values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) narrow(sum[k * V + i], values + i);
        *reinterpret_cast<uint4*>(table_grad + (pixel * vectors + v) * V) = *reinterpret_cast<const uint4*>(values);
    }
}

// -------------------------------------------------------------------------------------------- baseline

// The published algorithm (BEVPoolv2), fp32: one thread per cell and channel, which reads every index itself.
__global__ void baseline_forward(const float* depth, const float* table, const int32_t* points,
                                 const int32_t* pixels, const int32_t* starts, int64_t total, int channels,
                                 float* out) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= total * channels) return;
    const int64_t cell = index / channels;
    const int channel = static_cast<int>(index % channels);
    float sum = 0;
    for (int i = starts[cell]; i < starts[cell + 1]; ++i)
        sum += depth[points[i]] * table[static_cast<int64_t>(pixels[i]) * channels + channel];
    out[index] = sum;
}

// Its gradients: one thread per pixel goes over the pixel's points and channels.
__global__ void baseline_backward(const float* grad, const float* depth, const float* table,
                                  const int32_t* cells, int64_t count, int bins, int plane, int total,
                                  int channels, float* depth_grad, float* table_grad) {
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pixel >= count) return;
    const int64_t point = pixel / plane * bins * plane + pixel % plane;
    for (int bin = 0; bin < bins; ++bin) {
        const int64_t at = point + static_cast<int64_t>(bin) * plane;
        const int cell = cells[at];
        float sum = 0;
        if (cell >= 0 && cell < total)
            for (int c = 0; c < channels; ++c)
                sum += grad[static_cast<int64_t>(cell) * channels + c] * table[pixel * channels + c];
        depth_grad[at] = sum;
    }
    for (int c = 0; c < channels; ++c) {
        float sum = 0;
        for (int bin = 0; bin < bins; ++bin) {
            const int64_t at = point + static_cast<int64_t>(bin) * plane;
            const int cell = cells[at];
            if (cell >= 0 && cell < total) sum += grad[static_cast<int64_t>(cell) * channels + c] * depth[at];
        }
        table_grad[pixel * channels + c] = sum;
    }
}

// -------------------------------------------------------------------------------------------- launches

// 16 channels a lane at most (8 in double precision), and so few lanes that several points share a warp.
template <typename T>
constexpr int kMostVectors = sizeof(T) == 2 ? 2 : 4;

template <typename T, int K>
int launch_forward(const void* depth, int depth_type, const void* table, const int32_t* points,
                   const int32_t* pixels, const int32_t* starts, int vectors, int channels, int maps, int rows,
                   int columns, void* out, int out_channels_last, cudaStream_t stream) {
    typedef typename Wide<T>::type A;
    if constexpr (K < kMostVectors<T>) {
        if (vectors > 16 * K)
            return launch_forward<T, 2 * K>(depth, depth_type, table, points, pixels, starts, vectors, channels,
                                            maps, rows, columns, out, out_channels_last, stream);
    }
    const int parts = (vectors + 16 * K - 1) / (16 * K), share = (vectors + parts - 1) / parts;
    const int lanes = (share + K - 1) / K;
    const unsigned tiles = static_cast<unsigned>(maps) * ((rows + kTileRows - 1) / kTileRows) *
                           ((columns + kTileColumns - 1) / kTileColumns);
    const size_t shared = sizeof(A) * kTileCells * (lanes * K * (16 / sizeof(T)) + 1);
    LAUNCH((forward<T, K>), dim3(tiles, (vectors + lanes * K - 1) / (lanes * K)), dim3(kThreads), shared, stream, depth,
           depth_type, static_cast<const T*>(table), points, pixels, starts, vectors, channels, rows, columns,
           lanes, static_cast<A*>(out), out_channels_last);
    return cudaGetLastError();
}

template <typename T, int K>
int launch_backward(const void* grad, const void* depth, int depth_type, const void* table,
                    const int32_t* cells, int vectors, int cameras, int bins, int height, int columns, int total,
                    void* depth_grad, void* table_grad, cudaStream_t stream) {
    typedef typename Wide<T>::type A;
    if constexpr (K < kMostVectors<T>) {
        if (vectors > 16 * K)
            return launch_backward<T, 2 * K>(grad, depth, depth_type, table, cells, vectors, cameras, bins, height,
                                             columns, total, depth_grad, table_grad, stream);
    }
    const int lanes = (vectors + K - 1) / K;
    if (lanes > 32) return cudaErrorInvalidValue;
    const unsigned blocks = static_cast<unsigned>(cameras) * ((height + kPixelRows - 1) / kPixelRows) *
                            ((columns + kPixelColumns - 1) / kPixelColumns);
    LAUNCH((backward<T, K>), dim3(blocks), dim3(kThreads), 0, stream, static_cast<const A*>(grad), depth, depth_type,
           static_cast<const T*>(table), cells, vectors, bins, height, columns, total, lanes, depth_grad,
           static_cast<T*>(table_grad));
    return cudaGetLastError();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#ifdef BEVNEXT_EMULATE_CUDA
#define BY_TYPE(type, call)                            \
    switch (type) {                                    \
        case kFloat: return call(float);               \
        case kBfloat16: return call(__nv_bfloat16);    \
        case kDouble: return call(double);             \
        default: return cudaErrorInvalidValue;         \
    }
#else
#define BY_TYPE(type, call)                            \
    switch (type) {                                    \
        case kFloat: return call(float);               \
        case kHalf: return call(__half);               \
        case kBfloat16: return call(__nv_bfloat16);    \
        case kDouble: return call(double);             \
        default: return cudaErrorInvalidValue;         \
    }
#endif

#ifndef BEVNEXT_EMULATE_CUDA
// Whether the present GPU and its driver can run what was compiled.
EXPORT int bev_pool_cuda_check() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, forward<float, 1>);
}
#endif

// table [M*h*w, vectors * 16 bytes] of `type`; out [G, C, Y, X] or, channels-last, [G, Y, X, C], fp32 or double.
EXPORT int bev_pool_cuda_forward(const void* depth, int depth_type, const void* table, int type,
                                 const int32_t* points, const int32_t* pixels, const int32_t* starts, int vectors,
                                 int channels, int maps, int rows, int columns, void* out, int out_channels_last,
                                 void* stream) {
#define CALL(T)                                                                                              \
    (launch_forward<T, 1>(depth, depth_type, table, points, pixels, starts, vectors, channels, maps, rows,   \
                          columns, out, out_channels_last, static_cast<cudaStream_t>(stream)))
    BY_TYPE(type, CALL)
#undef CALL
}

// grad [G*Y*X, as many channels as table], fp32 or double; at most 32 * 16 channels (256 in double precision).
EXPORT int bev_pool_cuda_backward(const void* grad, const void* depth, int depth_type, const void* table, int type,
                                  const int32_t* cells, int vectors, int cameras, int bins, int height,
                                  int columns, int total, void* depth_grad, void* table_grad, void* stream) {
#define CALL(T)                                                                                            \
    (launch_backward<T, 1>(grad, depth, depth_type, table, cells, vectors, cameras, bins, height, columns, \
                           total, depth_grad, table_grad, static_cast<cudaStream_t>(stream)))
    BY_TYPE(type, CALL)
#undef CALL
}

EXPORT int bev_pool_baseline_forward(const float* depth, const float* table, const int32_t* points,
                                     const int32_t* pixels, const int32_t* starts, int64_t total, int channels,
                                     float* out, void* stream) {
    const unsigned blocks = static_cast<unsigned>((total * channels + 255) / 256);
    LAUNCH(baseline_forward, dim3(blocks), dim3(256), 0, static_cast<cudaStream_t>(stream), depth, table, points,
           pixels, starts, total, channels, out);
    return cudaGetLastError();
}

EXPORT int bev_pool_baseline_backward(const float* grad, const float* depth, const float* table,
                                      const int32_t* cells, int64_t pixels, int bins, int plane, int total,
                                      int channels, float* depth_grad, float* table_grad, void* stream) {
    const unsigned blocks = static_cast<unsigned>((pixels + 255) / 256);
    LAUNCH(baseline_backward, dim3(blocks), dim3(256), 0, static_cast<cudaStream_t>(stream), grad, depth, table,
           cells, pixels, bins, plane, total, channels, depth_grad, table_grad);
    return cudaGetLastError();
}
