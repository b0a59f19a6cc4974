// SPDX-License-Identifier: Apache-2.0
// BEV pooling on the CPU: the sum over each cell's points, and its gradients.
//
// A C interface without torch: the caller checks shapes and types and owns all memory. Results do not depend
// on the number of threads: every output element is summed by one thread, in a fixed order. All functions
// return 0, or 1 when memory ran out.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../parallel.h"
#include "../vectors.h"

namespace {

// How many vectors of channels fit into the registers: once for the forward sum, twice for the backward pass.
#if defined(__AVX512F__)
constexpr int kForwardVectors = 10, kBackwardVectors = 10;
#else
constexpr int kForwardVectors = 5, kBackwardVectors = 2;
#endif

template <typename T>
inline T sum_lanes(Vec<T> value) {
    T sum[kLanes<T>];
    std::memcpy(sum, &value, kBytes);
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

template <typename T>
int64_t padded(int64_t channels) {
    return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// n as a compile-time constant: call(std::integral_constant<int, n>()), 1 <= n <= Max.
template <int Max, typename Call>
inline void with_constant(int n, Call call) {
    if constexpr (Max > 1) {
        if (n < Max) return with_constant<Max - 1>(n, call);
    }
    call(std::integral_constant<int, Max>());
}

// Splits `vectors` into passes of at most Max, as even as possible: call(constant, first vector).
template <int Max, typename Call>
inline void in_passes(int64_t vectors, Call call) {
    for (int64_t first = 0; first < vectors;) {
        const int64_t rest = vectors - first, passes = (rest + Max - 1) / Max;
        const int64_t n = (rest + passes - 1) / passes;
        with_constant<Max>(static_cast<int>(n), [&](auto constant) { call(constant, first); });
        first += n;
    }
}

// -------------------------------------------------------------------------------------------- layout

constexpr int64_t kStrip = 16;  // pixels or cells side by side that are transposed together: a cache line

#if defined(__AVX512F__) && !defined(__clang__)
constexpr bool kShuffles = true;
template <typename T>
struct IndexOf {
    typedef int32_t type __attribute__((vector_size(kBytes)));
};
template <>
struct IndexOf<double> {
    typedef int64_t type __attribute__((vector_size(kBytes)));
};

// a0 b0 a1 b1 ... from the first or the second half of both.
template <typename T>
inline Vec<T> zip(Vec<T> a, Vec<T> b, bool second) {
    typename IndexOf<T>::type index;
    for (int i = 0; i < kLanes<T>; ++i) index[i] = i / 2 + (i % 2 ? kLanes<T> : 0) + (second ? kLanes<T> / 2 : 0);
    return __builtin_shuffle(a, b, index);
}

// A square block: each round zips row i with row i + half, which shifts the bits of (row, column) by one.
template <typename T>
inline void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
    constexpr int n = kLanes<T>;
    Vec<T> rows[2][n];
    for (int i = 0; i < n; ++i) rows[0][i] = load(from + i * from_stride);
    int now = 0;
#pragma GCC unroll 4
    for (int round = 1; round < n; round *= 2, now ^= 1)
#pragma GCC unroll 16
        for (int i = 0; i < n / 2; ++i) {
            rows[now ^ 1][2 * i] = zip<T>(rows[now][i], rows[now][i + n / 2], false);
            rows[now ^ 1][2 * i + 1] = zip<T>(rows[now][i], rows[now][i + n / 2], true);
        }
    for (int i = 0; i < n; ++i) store<T>(to + i * to_stride, rows[now][i]);
}
#else
constexpr bool kShuffles = false;
template <typename T>
inline void transpose_block(const T*, int64_t, T*, int64_t) {}
#endif

// to[c][r] = from[r][c]
template <typename T>
void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
    constexpr int64_t block = kLanes<T>;
    for (int64_t r0 = 0; r0 < rows; r0 += block)
        for (int64_t c0 = 0; c0 < columns; c0 += block) {
            const int64_t height = std::min(rows - r0, block), width = std::min(columns - c0, block);
            const T* source = from + r0 * from_stride + c0;
            T* target = to + c0 * to_stride + r0;
            if (kShuffles && height == block && width == block) {
                transpose_block(source, from_stride, target, to_stride);
            } else {
                for (int64_t c = 0; c < width; ++c)
                    for (int64_t r = 0; r < height; ++r) target[c * to_stride + r] = source[r * from_stride + c];
            }
        }
}

// Rows of padded<T>(channels) values, zeros after the last channel, from [images, channels, plane] or, with
// `channels_last`, [images, plane, channels]. The result is `values` itself where that has this form already.
template <typename T>
const T* as_table(const T* values, bool channels_last, int64_t images, int64_t channels, int64_t plane,
                  int threads, Scratch<T>& own) {
    const int64_t width = padded<T>(channels), block = 4 * kStrip, blocks = (plane + block - 1) / block;
    if (channels_last && width == channels) return values;
    own = scratch<T>(images * plane * width);
    T* const table = own.get();
    share(images * blocks, threads, [=](int64_t task, int) {
        const int64_t image = task / blocks, begin = task % blocks * block;
        const int64_t count = std::min(block, plane - begin);
        T* to = table + (image * plane + begin) * width;
        if (channels_last) {
            const T* from = values + (image * plane + begin) * channels;
            for (int64_t p = 0; p < count; ++p) std::copy_n(from + p * channels, channels, to + p * width);
        } else {
            transpose(values + image * channels * plane + begin, plane, to, width, channels, count);
        }
        for (int64_t p = 0; p < count; ++p) std::fill(to + p * width + channels, to + (p + 1) * width, T(0));
    });
    return table;
}

// One strip of `count` rows to [images, channels, plane] or [images, plane, channels], from position `begin`.
template <typename T>
void write_strip(const T* strip, int64_t width, T* out, bool channels_last, int64_t image, int64_t channels,
                 int64_t plane, int64_t begin, int64_t count) {
    if (channels_last) {
        T* to = out + (image * plane + begin) * channels;
        for (int64_t p = 0; p < count; ++p) std::copy_n(strip + p * width, channels, to + p * channels);
    } else {
        transpose(strip, width, out + image * channels * plane + begin, plane, count, channels);
    }
}

// -------------------------------------------------------------------------------------------- forward

// One image column, N vectors of channels: `table` has the contexts of its pixels, row by row; cells and depths
// of a bin lie `columns` apart, those of the next bin a `plane` further. Points of one cell that follow each other
// (up a column they mostly do) are summed in registers, then added to the cell's `sums`.
template <typename T, int N>
void down_column(const T* table, const int32_t* cells, const T* depth, int64_t bins, int64_t height,
                 int64_t columns, int64_t plane, int64_t first, int64_t end, T* sums, int64_t stride) {
    constexpr int64_t width = N * kLanes<T>;
    Vec<T> sum[N] = {};
    int64_t present = -1;
    const auto finish = [&] {
        if (present < first || present >= end) return;
        T* to = sums + (present - first) * stride;
        for (int v = 0; v < N; ++v) store<T>(to + v * kLanes<T>, load(to + v * kLanes<T>) + sum[v]);
    };
    for (int64_t bin = 0; bin < bins; ++bin, cells += plane, depth += plane)
        for (int64_t y = 0; y < height; ++y) {
            const int64_t cell = cells[y * columns];
            if (cell != present) {
                finish();
                for (int v = 0; v < N; ++v) sum[v] = Vec<T>{};
                present = cell;
            }
            if (cell < 0) continue;
            const T weight = depth[y * columns];
            const T* row = table + y * width;
            for (int v = 0; v < N; ++v) sum[v] += weight * load(row + v * kLanes<T>);
        }
    finish();
}

// Cameras begin .. end-1 reach the maps first .. last only, and no other camera does.
struct Group {
    int64_t begin, end, first, last;
};

// Cameras in rising order, together where they share maps.
std::vector<Group> groups_of(const int32_t* cells, int64_t cameras, int64_t points, int64_t map_plane, int64_t maps,
                             int threads) {
    std::vector<Group> of(static_cast<size_t>(cameras));
    share(cameras, threads, [&](int64_t camera, int) {
        const int32_t total = static_cast<int32_t>(maps * map_plane);
        int32_t low = total, high = -1;
        for (int64_t i = camera * points; i < (camera + 1) * points; ++i) {
            const int32_t cell = cells[i] < total ? cells[i] : -1;
            low = std::min(low, cell < 0 ? total : cell);
            high = std::max(high, cell);
        }
        of[camera] = {camera, camera + 1, low / map_plane, high < 0 ? -1 : high / map_plane};
    });
    std::vector<Group> groups;
    for (Group next : of) {
        if (next.last < 0) continue;  // sees no cell
        while (!groups.empty() && next.first <= groups.back().last) {
            next = {groups.back().begin, next.end, std::min(next.first, groups.back().first),
                    std::max(next.last, groups.back().last)};
            groups.pop_back();
        }
        groups.push_back(next);
    }
    return groups;
}

template <typename T>
void forward(const T* depth, const T* context, bool channels_last, const int32_t* cells, int64_t cameras,
             int64_t bins, int64_t channels, int64_t height, int64_t columns, int64_t maps, int64_t map_plane, T* out,
             bool out_channels_last, int threads) {
    const int64_t plane = height * columns, vectors = padded<T>(channels) / kLanes<T>;
    const std::vector<Group> groups = groups_of(cells, cameras, bins * plane, map_plane, maps, threads);
    prefer_large_pages(out, sizeof(T) * maps * channels * map_plane);
    // Tasks share no output: each has some maps and some channels, as many as it takes to keep all threads busy.
    const int64_t wanted = groups.empty() ? 1 : (threads + groups.size() - 1) / groups.size();
    const int64_t most = std::min<int64_t>(kForwardVectors, (vectors + wanted - 1) / wanted);
    const int64_t parts = (vectors + most - 1) / most;
    std::vector<char> covered(static_cast<size_t>(maps), 0);
    for (const Group& group : groups) std::fill(&covered[group.first], &covered[group.last] + 1, 1);
    share(static_cast<int64_t>(groups.size()) * parts, threads, [&](int64_t task, int) {
        const Group& group = groups[task / parts];
        const int64_t v0 = vectors * (task % parts) / parts, v1 = vectors * (task % parts + 1) / parts;
        const int64_t c0 = v0 * kLanes<T>, count = std::min(v1 * kLanes<T>, channels) - c0, width = (v1 - v0) * kLanes<T>;
        const int64_t first = group.first * map_plane, end = (group.last + 1) * map_plane;
        // Channels-last output is summed in place, where it is whole vectors wide.
        const bool in_place = out_channels_last && count == width;
        const int64_t stride = in_place ? channels : width;
        auto own = scratch<T>(in_place ? 0 : (end - first) * width);
        T* const sums = in_place ? out + first * channels + c0 : own.get();
        for (int64_t cell = 0; cell < end - first; ++cell) std::fill_n(sums + cell * stride, width, T(0));
        auto table = scratch<T>(kStrip * height * width);
        std::fill_n(table.get(), kStrip * height * width, T(0));
        for (int64_t camera = group.begin; camera < group.end; ++camera)
            for (int64_t x0 = 0; x0 < columns; x0 += kStrip) {
                const int64_t strip = std::min(kStrip, columns - x0);
                for (int64_t y = 0; y < height; ++y) {
                    const int64_t pixel = y * columns + x0;
                    T* to = table.get() + y * width;  // by column, then row
                    if (channels_last) {
                        const T* from = context + (camera * plane + pixel) * channels + c0;
                        for (int64_t x = 0; x < strip; ++x) std::copy_n(from + x * channels, count, to + x * height * width);
                    } else {
                        transpose(context + (camera * channels + c0) * plane + pixel, plane, to, height * width, count, strip);
                    }
                }
                with_constant<kForwardVectors>(static_cast<int>(v1 - v0), [&](auto n) {
                    for (int64_t x = 0; x < strip; ++x) {
                        const int64_t point = camera * bins * plane + x0 + x;
                        down_column<T, decltype(n)::value>(table.get() + x * height * width, cells + point, depth + point,
                                                           bins, height, columns, plane, first, end, sums, stride);
                    }
                });
            }
        for (int64_t map = group.first; map <= group.last && !in_place; ++map) {
            const T* from = sums + (map * map_plane - first) * width;
            if (out_channels_last) {
                T* to = out + map * map_plane * channels + c0;
                for (int64_t cell = 0; cell < map_plane; ++cell) std::copy_n(from + cell * width, count, to + cell * channels);
            } else {
                transpose(from, width, out + (map * channels + c0) * map_plane, map_plane, map_plane, count);
            }
        }
    });
    for (int64_t map = 0; map < maps; ++map)
        if (!covered[map]) std::fill_n(out + map * channels * map_plane, channels * map_plane, T(0));
}

// -------------------------------------------------------------------------------------------- backward

// One pixel's ray, N vectors of channels: adds context . grad[cell] to the gradient of each depth bin and sets
// the context's gradient to the sum of depth * grad[cell]. Successive bins in one cell are taken together.
template <typename T, int N>
inline void along_ray(const T* grad, int64_t width, const T* context, const int32_t* cells, const T* depth,
                      int64_t bins, int64_t total, T* depth_grad, T* context_grad) {
    Vec<T> own[N], sum[N] = {};
    for (int v = 0; v < N; ++v) own[v] = load(context + v * kLanes<T>);
    for (int64_t bin = 0; bin < bins;) {
        const int32_t cell = cells[bin * kStrip];
        int64_t end = bin + 1;
        T weight = depth[bin * kStrip];
        for (; end < bins && cells[end * kStrip] == cell; ++end) weight += depth[end * kStrip];
        if (cell >= 0 && cell < total) {
            const T* row = grad + cell * width;
            Vec<T> dot = {};
            for (int v = 0; v < N; ++v) {
                const Vec<T> value = load(row + v * kLanes<T>);
                dot += own[v] * value;
                sum[v] += weight * value;
            }
            const T product = sum_lanes<T>(dot);
            for (int64_t i = bin; i < end; ++i) depth_grad[i * kStrip] += product;
        }
        bin = end;
    }
    for (int v = 0; v < N; ++v) store(context_grad + v * kLanes<T>, sum[v]);
}

template <typename T>
void backward(const T* grad_out, bool grad_channels_last, const T* depth, const T* context, bool channels_last,
              const int32_t* cells, int64_t cameras, int64_t bins, int64_t channels, int64_t height,
              int64_t columns, int64_t maps, int64_t map_plane, T* depth_grad, T* context_grad, int threads) {
    const int64_t width = padded<T>(channels), plane = height * columns, total = maps * map_plane;
    Scratch<T> own_grad, own_context;
    const T* grad = as_table(grad_out, grad_channels_last, maps, channels, map_plane, threads, own_grad);
    const T* table = as_table(context, channels_last, cameras, channels, plane, threads, own_context);
    const int64_t strips = (columns + kStrip - 1) / kStrip;
    auto rows = scratch<T>(threads * kStrip * width);
    auto values = scratch<T>(threads * 2 * bins * kStrip);
    auto indices = scratch<int32_t>(threads * bins * kStrip);
    prefer_large_pages(depth_grad, sizeof(T) * cameras * bins * plane);
    prefer_large_pages(context_grad, sizeof(T) * cameras * channels * plane);
    // A task is all rows of 16 image columns: a wedge of the map, whose gradients stay in the cache.
    share(cameras * strips, threads, [&](int64_t task, int worker) {
        T* const strip = rows.get() + worker * kStrip * width;
        T* const ray_depth = values.get() + worker * 2 * bins * kStrip;
        T* const ray_grad = ray_depth + bins * kStrip;
        int32_t* const ray_cells = indices.get() + worker * bins * kStrip;
        const int64_t camera = task / strips, x0 = task % strips * kStrip;
        const int64_t count = std::min(kStrip, columns - x0);
        for (int64_t y = 0; y < height; ++y) {
            const int64_t pixel = y * columns + x0, point = camera * bins * plane + pixel;
            for (int64_t bin = 0; bin < bins; ++bin) {
                std::copy_n(cells + point + bin * plane, count, ray_cells + bin * kStrip);
                std::copy_n(depth + point + bin * plane, count, ray_depth + bin * kStrip);
            }
            std::fill_n(ray_grad, bins * kStrip, T(0));
            for (int64_t x = 0; x < count; ++x)
                in_passes<kBackwardVectors>(width / kLanes<T>, [&](auto n, int64_t vector) {
                    const int64_t at = vector * kLanes<T>;
                    along_ray<T, decltype(n)::value>(grad + at, width, table + (camera * plane + pixel + x) * width + at,
                                                     ray_cells + x, ray_depth + x, bins, total, ray_grad + x,
                                                     strip + x * width + at);
                });
            for (int64_t bin = 0; bin < bins; ++bin)
                std::copy_n(ray_grad + bin * kStrip, count, depth_grad + point + bin * plane);
            write_strip(strip, width, context_grad, channels_last, camera, channels, plane, pixel, count);
        }
    });
}

}  // namespace

#define INTERFACE(NAME, T)                                                                                     \
    EXPORT int bev_pool_forward_##NAME(const T* depth, const T* context, int channels_last,                    \
                                       const int32_t* cells, int64_t cameras, int64_t bins, int64_t channels,  \
                                       int64_t height, int64_t columns, int64_t maps, int64_t map_plane,       \
                                       T* out, int out_channels_last, int threads) {                           \
        return guarded([&] {                                                                                   \
            forward<T>(depth, context, channels_last, cells, cameras, bins, channels, height, columns, maps,   \
                       map_plane, out, out_channels_last, threads);                                            \
        });                                                                                                    \
    }                                                                                                          \
    EXPORT int bev_pool_backward_##NAME(const T* grad, int grad_channels_last, const T* depth,                 \
                                        const T* context, int channels_last, const int32_t* cells,             \
                                        int64_t cameras, int64_t bins, int64_t channels, int64_t height,       \
                                        int64_t columns, int64_t maps, int64_t map_plane, T* depth_grad,       \
                                        T* context_grad, int threads) {                                        \
        return guarded([&] {                                                                                   \
            backward<T>(grad, grad_channels_last, depth, context, channels_last, cells, cameras, bins,         \
                        channels, height, columns, maps, map_plane, depth_grad, context_grad, threads);        \
        });                                                                                                    \
    }

INTERFACE(float, float)
INTERFACE(double, double)
