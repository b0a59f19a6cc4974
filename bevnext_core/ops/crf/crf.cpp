// SPDX-License-Identifier: Apache-2.0
// Mean field of the depth CRF on the CPU: forward, and gradients.
//
// A block is 16 neighbouring patches (8 in double precision) side by side in one vector, so the running sums over
// the depth bins are plain vector additions. Blocks that exchange no message (the kernel between their patches
// is 0) do not depend on each other: a group of blocks that do is one task, and all its iterations run while its
// distributions are in the cache. Most groups are single blocks.
//
// The price of a disagreement, sum over b of |a - b| m_b, is built from slope to slope: from a to a + 1 it grows
// by 2 P_a - S (P_a the running sum of m, S its total). Both running sums are held in double precision.
//
// A C interface without torch: the caller checks shapes and types and owns all memory. Results do not depend on
// the number of threads. All functions return 0, or 1 when memory ran out.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../parallel.h"
#include "../vectors.h"

namespace {

constexpr int kTaps = 9, kCenter = 4;

template <typename T>
inline Wide<T> widen(Vec<T> value) {
    return __builtin_convertvector(value, Wide<T>);
}

template <typename T>
inline Vec<T> narrow(Wide<T> value) {
    return __builtin_convertvector(value, Vec<T>);
}

template <typename T>
inline bool any(Vec<T> value) {
    bool found = false;
    for (int lane = 0; lane < kLanes<T>; ++lane) found |= value[lane] != 0;
    return found;
}

// exp of values <= 0; 0 where the result would be below the smallest normal float. Relative error below 2e-7:
// 2^n times a polynomial (Taylor's, to degree 7) in the rest, which is at most ln(2) / 2.
inline Vec<float> exponential(Vec<float> x) {
    typedef int32_t Integers __attribute__((vector_size(kBytes)));
    const auto tiny = x < Vec<float>{} - 87.3f;
    // Adding 1.5 * 2^23 rounds to an integer, and leaves it in the lowest bits.
    const Vec<float> shifted = x * 1.44269504f + 12582912.0f;
    const Vec<float> n = shifted - 12582912.0f;
    const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<float> p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    Integers bits;
    std::memcpy(&bits, &shifted, kBytes);
    bits = (bits << 23) + (127 << 23);
    Vec<float> power;
    std::memcpy(&power, &bits, kBytes);
    return tiny ? Vec<float>{} : p * power;
}

inline Vec<double> exponential(Vec<double> x) {
    for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
    return x;
}

template <typename T>
Scratch<T> zeros(int64_t count) {
    auto memory = scratch<T>(count);
    std::fill_n(memory.get(), count, T(0));
    return memory;
}

// A tensor [M, D, h, w] of any strides.
template <typename T>
struct Map {
    T* data;
    int64_t camera, bin, row, column;
};

// ------------------------------------------------------------------------------------------- the problem
template <typename T>
struct Tap {
    int64_t shift;    // from a patch to the neighbour that it reads
    const T* kernel;  // of the block's first patch
};

// The neighbours that a block's patches get messages from; the patches themselves come first.
template <typename T>
struct Taps {
    Tap<T> taps[kTaps];
    int count;
    bool alone() const { return count == 1; }
};

struct Group {
    int64_t camera;
    std::vector<int64_t> blocks;
    bool linked;
};

// Patches are numbered row by row within a camera; a block is kLanes of them, across the ends of rows.
template <typename T>
class Problem {
  public:
    const int64_t cameras, bins, height, width, plane, blocks, margin, span;
    std::vector<Group> groups;

    Problem(const T* kernel, int64_t cameras, int64_t bins, int64_t height, int64_t width)
        : cameras(cameras), bins(bins), height(height), width(width), plane(height * width),
          blocks((plane + kLanes<T> - 1) / kLanes<T>), margin(round_up(width + 1)),
          // An odd number of cache lines between bins: they do not compete for the same places of the cache.
          span(((2 * margin / kLanes<T> + blocks) | 1) * kLanes<T>), kernel_(zeros<T>(cameras * kTaps * span)) {
        for (int64_t camera = 0; camera < cameras; ++camera)
            for (int tap = 0; tap < kTaps; ++tap) {
                const int dy = tap / 3 - 1, dx = tap % 3 - 1;
                const T* from = kernel + (camera * kTaps + tap) * plane;
                T* to = row(camera, tap) + margin;
                // Nothing comes from outside the image.
                for (int64_t y = std::max(0, -dy); y < height - std::max(0, dy); ++y)
                    for (int64_t x = std::max(0, -dx); x < width - std::max(0, dx); ++x)
                        to[y * width + x] = from[y * width + x];
            }
        for (int64_t camera = 0; camera < cameras; ++camera) find_groups(camera);
        // The long tasks first.
        std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
            return a.linked != b.linked ? a.linked : a.blocks.size() > b.blocks.size();
        });
    }

    // transposed: whom a block's patches send to.
    Taps<T> taps(int64_t camera, int64_t block, bool transposed) const {
        Taps<T> result;
        result.taps[0] = {0, row(camera, kCenter) + margin + block * kLanes<T>};
        result.count = 1;
        for (int tap = 0; tap < kTaps; ++tap) {
            const int64_t shift = transposed ? -offset(tap) : offset(tap);
            const T* kernel = row(camera, tap) + margin + block * kLanes<T> + (transposed ? shift : 0);
            if (tap != kCenter && any<T>(load(kernel))) result.taps[result.count++] = {shift, kernel};
        }
        return result;
    }

  private:
    Scratch<T> kernel_;

    static int64_t round_up(int64_t count) { return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
    int64_t offset(int tap) const { return (tap / 3 - 1) * width + tap % 3 - 1; }
    T* row(int64_t camera, int tap) const { return kernel_.get() + (camera * kTaps + tap) * span; }

    void find_groups(int64_t camera) {
        std::vector<int64_t> parent(blocks);
        std::vector<char> linked(blocks, 0);
        for (int64_t block = 0; block < blocks; ++block) parent[block] = block;
        auto root = [&](int64_t block) {
            while (parent[block] != block) block = parent[block] = parent[parent[block]];
            return block;
        };
        for (int tap = 0; tap < kTaps; ++tap) {
            if (tap == kCenter) continue;
            const T* kernel = row(camera, tap) + margin;
            for (int64_t patch = 0; patch < plane; ++patch) {
                if (kernel[patch] == 0) continue;
                const int64_t a = patch / kLanes<T>, b = (patch + offset(tap)) / kLanes<T>;
                linked[a] = linked[b] = 1;
                const int64_t low = std::min(root(a), root(b)), high = std::max(root(a), root(b));
                parent[high] = low;
            }
        }
        std::vector<int64_t> group_of(blocks);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = root(block);
            if (first == block) {
                group_of[block] = groups.size();
                groups.push_back({camera, {}, linked[block] != 0});
            }
            groups[group_of[first]].blocks.push_back(block);
        }
    }
};

// Copies `bins` rows of one block's patches from `map` into `to` (or back), missing patches are zero.
template <typename T, typename Copy>
void each_lane(const Problem<T>& problem, const Map<T>& map, int64_t camera, int64_t block, Copy copy) {
    const int64_t first = block * kLanes<T>, count = std::min<int64_t>(kLanes<T>, problem.plane - first);
    for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t y = (first + lane) / problem.width, x = (first + lane) % problem.width;
        copy(lane, map.data + camera * map.camera + y * map.row + x * map.column);
    }
}

template <typename T>
void read_block(const Problem<T>& problem, const Map<T>& map, int64_t camera, int64_t block, T* to, int64_t stride) {
    const bool packed = map.column == 1 && map.row == problem.width && (block + 1) * kLanes<T> <= problem.plane;
    if (packed) {
        const T* from = map.data + camera * map.camera + block * kLanes<T>;
        for (int64_t a = 0; a < problem.bins; ++a) store(to + a * stride, load(from + a * map.bin));
        return;
    }
    for (int64_t a = 0; a < problem.bins; ++a) store(to + a * stride, Vec<T>{});
    each_lane(problem, map, camera, block, [&](int64_t lane, const T* from) {
        for (int64_t a = 0; a < problem.bins; ++a) to[a * stride + lane] = from[a * map.bin];
    });
}

// The block's rows, times `factor` per patch, into a contiguous [M, D, h, w].
template <typename T>
void write_block(const Problem<T>& problem, const T* from, int64_t stride, Vec<T> factor, T* out, int64_t camera,
                 int64_t block) {
    const int64_t first = block * kLanes<T>, count = std::min<int64_t>(kLanes<T>, problem.plane - first);
    for (int64_t a = 0; a < problem.bins; ++a) {
        const Vec<T> value = load(from + a * stride) * factor;
        std::memcpy(out + (camera * problem.bins + a) * problem.plane + first, &value, count * sizeof(T));
    }
}

// --------------------------------------------------------------------------------------------- one block
// exp(z - high) in place; the factor that makes each patch's sum 1 goes to `scale`.
template <typename T>
inline void normalize(T* z, int64_t stride, int64_t bins, Vec<T> high, T* scale) {
    Vec<T> total = {};
    for (int64_t begin = 0; begin < bins; begin += 8) {
        Vec<T> part = {};
        for (int64_t a = begin; a < std::min<int64_t>(bins, begin + 8); ++a) {
            const Vec<T> value = exponential(load(z + a * stride) - high);
            part += value;
            store(z + a * stride, value);
        }
        total += part;
    }
    store(scale, T(1) / total);
}

template <typename T>
inline void softmax(const T* logits, T* to, int64_t stride, int64_t bins, T* scale) {
    Vec<T> high = load(logits);
    for (int64_t a = 0; a < bins; ++a) {
        const Vec<T> z = load(logits + a * stride);
        high = z > high ? z : high;
        store(to + a * stride, z);
    }
    normalize(to, stride, bins, high, scale);
}

// Sum over the taps of the messages' values at one bin.
template <typename T, bool kAlone>
struct Messages {
    Vec<T> factor[kTaps];
    const T* source[kTaps];
    int count;

    // values: of the block's own patches; scale: a factor per patch, or null.
    Messages(const Taps<T>& taps, const T* values, const T* scale, T weight) : count(taps.count) {
        for (int tap = 0; tap < count; ++tap) {
            factor[tap] = weight * load(taps.taps[tap].kernel);
            if (scale) factor[tap] *= load(scale + taps.taps[tap].shift);
            source[tap] = values + taps.taps[tap].shift;
        }
    }

    Vec<T> at(int64_t offset) const {
        Vec<T> sum = factor[0] * load(source[0] + offset);
        if constexpr (!kAlone)
            for (int tap = 1; tap < count; ++tap) sum += factor[tap] * load(source[tap] + offset);
        return sum;
    }
};

// One iteration: from the distributions from * scale to those of the next one. `to` may be `from` when no
// other patch reads them.
template <typename T, bool kAlone>
void iterate(const Taps<T>& taps, const T* from, const T* scale, const T* logits, int64_t stride, int64_t bins,
             double weight, T* to, T* to_scale) {
    const Messages<T, kAlone> messages(taps, from, scale, T(2 * weight));
    Wide<T> slope = {}, price = {};
    for (int tap = 0; tap < taps.count; ++tap) slope -= weight * widen<T>(load(taps.taps[tap].kernel));
    Vec<T> high = load(logits);
    for (int64_t a = 0; a < bins; ++a) {
        // A constant added to all prices changes nothing: that of bin 0 is taken as 0.
        const Vec<T> z = load(logits + a * stride) - narrow<T>(price);
        slope += widen<T>(messages.at(a * stride));
        price += slope;
        high = z > high ? z : high;
        store(to + a * stride, z);
    }
    normalize(to, stride, bins, high, to_scale);
}

// Gradient of softmax, gz = q (g - <g, q>): adds it to `total` and replaces g by |a - b| gz.
template <typename T>
void price_gradient(T* g, const T* q, const T* scale, T* total, int64_t stride, int64_t bins, bool last) {
    const Vec<T> factor = load(scale);
    Wide<T> dot = {}, sum = {}, moment = {};
    for (int64_t a = 0; a < bins; ++a) dot += widen<T>(load(g + a * stride) * load(q + a * stride));
    const Vec<T> mean = narrow<T>(dot * widen<T>(factor));
    const double middle = 0.5 * (bins - 1);
    for (int64_t a = 0; a < bins; ++a) {
        const Vec<T> value = factor * load(q + a * stride) * (load(g + a * stride) - mean);
        store(g + a * stride, value);
        store(total + a * stride, load(total + a * stride) + value);
        sum += widen<T>(value);
        moment += (a - middle) * widen<T>(value);
    }
    if (last) return;
    Wide<T> price = moment + middle * sum, slope = -sum;
    for (int64_t a = 0; a < bins; ++a) {
        const Wide<T> value = widen<T>(load(g + a * stride));
        store(g + a * stride, narrow<T>(price));
        slope += 2 * value;
        price += slope;
    }
}

// Gradient of the distributions q from that of the prices; returns what belongs to the weight.
template <typename T, bool kAlone>
double message_gradient(const Taps<T>& taps, const T* prices, const T* q, const T* scale, int64_t stride, int64_t bins,
                        double weight, T* g) {
    const Messages<T, kAlone> messages(taps, prices, nullptr, T(1));
    Wide<T> dot = {};
    for (int64_t a = 0; a < bins; ++a) {
        const Vec<T> value = messages.at(a * stride);
        dot += widen<T>(value * load(q + a * stride));
        store(g + a * stride, T(-weight) * value);
    }
    dot *= widen<T>(load(scale));
    double total = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) total -= dot[lane];
    return total;
}

// ---------------------------------------------------------------------------------------- groups of blocks
// One worker's memory for the maps of a group: of a whole camera when its blocks are linked, of one block when not.
template <typename T>
struct Room {
    Scratch<T> memory;
    int64_t stride = 0, size = 0;
    std::vector<Taps<T>> taps;

    // A map, and one value per patch behind it.
    T* map(int64_t index) { return memory.get() + index * (size + stride); }
    T* scale(int64_t index) { return map(index) + size; }
};

template <typename T>
class Workers {
  public:
    Workers(const Problem<T>& problem, int threads, int64_t maps)
        : problem_(problem), maps_(maps), rooms_(2 * std::max(threads, 1)) {}

    // Its maps are all zero.
    Room<T>& room(const Group& group, int worker) {
        Room<T>& room = rooms_[2 * worker + group.linked];
        const int64_t stride = group.linked ? problem_.span : kLanes<T>;
        if (!room.memory) {
            room.stride = stride;
            room.size = problem_.bins * stride;
            room.memory = zeros<T>(maps_ * (room.size + stride));
        }
        return room;
    }

    int64_t at(const Group& group, int64_t block) const {
        return group.linked ? problem_.margin + block * kLanes<T> : 0;
    }

    // Others may read these places, with a weight of 0: nothing that is not finite may stay.
    void clear(Room<T>& room, const Group& group) const {
        if (!group.linked) return;
        for (int64_t map = 0; map < maps_; ++map)
            for (int64_t block : group.blocks)
                for (int64_t a = 0; a <= problem_.bins; ++a)
                    store(room.map(map) + a * room.stride + at(group, block), Vec<T>{});
    }

  private:
    const Problem<T>& problem_;
    const int64_t maps_;
    std::vector<Room<T>> rooms_;
};

template <typename T>
void find_taps(const Problem<T>& problem, const Group& group, bool transposed, std::vector<Taps<T>>& taps) {
    taps.clear();
    for (int64_t block : group.blocks) taps.push_back(problem.taps(group.camera, block, transposed));
}

template <typename T>
void advance(const Problem<T>& problem, const Workers<T>& workers, Room<T>& room, const Group& group, int64_t logits,
             int64_t from, int64_t to, double weight) {
    for (size_t i = 0; i < group.blocks.size(); ++i) {
        const int64_t at = workers.at(group, group.blocks[i]);
        auto call = room.taps[i].alone() ? iterate<T, true> : iterate<T, false>;
        call(room.taps[i], room.map(from) + at, room.scale(from) + at, room.map(logits) + at, room.stride, problem.bins,
             weight, room.map(to) + at, room.scale(to) + at);
    }
}

template <typename T>
void start(const Problem<T>& problem, const Workers<T>& workers, Room<T>& room, const Group& group,
           const Map<T>& values, int64_t logits, int64_t to) {
    find_taps(problem, group, false, room.taps);
    for (int64_t block : group.blocks) {
        const int64_t at = workers.at(group, block);
        read_block(problem, values, group.camera, block, room.map(logits) + at, room.stride);
        softmax(room.map(logits) + at, room.map(to) + at, room.stride, problem.bins, room.scale(to) + at);
    }
}

template <typename T>
void forward(const Map<T>& logits, const T* kernel, double weight, int64_t cameras, int64_t bins, int64_t height,
             int64_t width, int64_t iterations, T* out, int threads) {
    const Problem<T> problem(kernel, cameras, bins, height, width);
    Workers<T> workers(problem, threads, 3);  // logits and two distributions
    share(problem.groups.size(), threads, [&](int64_t task, int worker) {
        const Group& group = problem.groups[task];
        Room<T>& room = workers.room(group, worker);
        int64_t now = 1;
        start(problem, workers, room, group, logits, 0, now);
        for (int64_t n = 0; n < iterations; ++n) {
            const int64_t next = group.linked ? 3 - now : now;
            advance(problem, workers, room, group, 0, now, next, weight);
            now = next;
        }
        for (int64_t block : group.blocks) {
            const int64_t at = workers.at(group, block);
            write_block(problem, room.map(now) + at, room.stride, load(room.scale(now) + at), out, group.camera, block);
        }
        workers.clear(room, group);
    });
}

template <typename T>
void backward(const Map<T>& grad, const Map<T>& logits, const T* kernel, double weight, int64_t cameras, int64_t bins,
              int64_t height, int64_t width, int64_t iterations, T* logits_grad, double* weight_grad, int threads) {
    const Problem<T> problem(kernel, cameras, bins, height, width);
    const int64_t unary = iterations + 1, total = unary, g = unary + 1, prices = unary + 2;
    // The distributions of all iterations, made again; logits, whose place the sum of their gradients takes.
    Workers<T> workers(problem, threads, iterations + 4);
    std::vector<double> shares(problem.groups.size(), 0.0);
    share(problem.groups.size(), threads, [&](int64_t task, int worker) {
        const Group& group = problem.groups[task];
        Room<T>& room = workers.room(group, worker);
        const int64_t stride = room.stride;
        start(problem, workers, room, group, logits, unary, 0);
        for (int64_t n = 0; n < iterations; ++n) advance(problem, workers, room, group, unary, n, n + 1, weight);
        find_taps(problem, group, true, room.taps);
        for (int64_t block : group.blocks) {
            const int64_t at = workers.at(group, block);
            read_block(problem, grad, group.camera, block, room.map(g) + at, stride);
            for (int64_t a = 0; a < bins; ++a) store(room.map(total) + a * stride + at, Vec<T>{});
        }
        for (int64_t n = iterations; n >= 0; --n) {
            // Linked blocks read each other's prices, which must not change under them.
            const int64_t to = group.linked ? prices : g;
            for (int64_t block : group.blocks) {
                const int64_t at = workers.at(group, block);
                if (to != g)
                    for (int64_t a = 0; a < bins; ++a)
                        store(room.map(to) + a * stride + at, load(room.map(g) + a * stride + at));
                price_gradient(room.map(to) + at, room.map(n) + at, room.scale(n) + at, room.map(total) + at, stride,
                               bins, n == 0);
            }
            for (size_t i = 0; n > 0 && i < group.blocks.size(); ++i) {
                const int64_t at = workers.at(group, group.blocks[i]);
                auto call = room.taps[i].alone() ? message_gradient<T, true> : message_gradient<T, false>;
                shares[task] += call(room.taps[i], room.map(to) + at, room.map(n - 1) + at, room.scale(n - 1) + at,
                                     stride, bins, weight, room.map(g) + at);
            }
        }
        for (int64_t block : group.blocks)
            write_block(problem, room.map(total) + workers.at(group, block), stride, Vec<T>{} + T(1), logits_grad,
                        group.camera, block);
        workers.clear(room, group);
    });
    *weight_grad = 0;
    for (double part : shares) *weight_grad += part;
}

template <typename T>
Map<T> strided(const T* data, const int64_t* strides) {
    return {const_cast<T*>(data), strides[0], strides[1], strides[2], strides[3]};
}

}  // namespace

// sizes: M, D, h, w. Strides, in elements, of each tensor of that shape that need not be contiguous.
#define INTERFACE(NAME, T)                                                                                        \
    EXPORT int crf_forward_##NAME(const T* logits, const int64_t* strides, const T* kernel, double weight,        \
                                  const int64_t* sizes, int64_t iterations, T* out, int threads) {                \
        return guarded([&] {                                                                                      \
            forward<T>(strided(logits, strides), kernel, weight, sizes[0], sizes[1], sizes[2], sizes[3],          \
                       iterations, out, threads);                                                                 \
        });                                                                                                       \
    }                                                                                                             \
    EXPORT int crf_backward_##NAME(const T* grad, const int64_t* grad_strides, const T* logits,                   \
                                   const int64_t* strides, const T* kernel, double weight, const int64_t* sizes,  \
                                   int64_t iterations, T* logits_grad, double* weight_grad, int threads) {        \
        return guarded([&] {                                                                                      \
            backward<T>(strided(grad, grad_strides), strided(logits, strides), kernel, weight, sizes[0],          \
                        sizes[1], sizes[2], sizes[3], iterations, logits_grad, weight_grad, threads);             \
        });                                                                                                       \
    }

INTERFACE(float, float)
INTERFACE(double, double)
