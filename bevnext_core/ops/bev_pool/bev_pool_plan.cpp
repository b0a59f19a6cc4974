// SPDX-License-Identifier: Apache-2.0
// The plan of BEV pooling on the CPU: the cell of every frustum point, and the points sorted by cell.
//
// Points on a border between cells fall to the side that the arithmetic's rounding says, so this is compiled
// without fused multiply-adds: then it rounds as PyTorch's products of small matrices do.

#include <algorithm>
#include <cstdint>

#include "../parallel.h"

namespace {

// Row `i` of a 3x3 matrix times (x, y, z).
inline float row_times(const float* matrix, int i, float x, float y, float z) {
    return matrix[3 * i] * x + matrix[3 * i + 1] * y + matrix[3 * i + 2] * z;
}

// One camera's projection, products of matrices taken from left to right: undo the image's transform about
// `shift`, scale by depth, `lift` and `move` into the ego frame, augment with `bda`.
struct Projection {
    float undo[9], shift[3], lift[9], move[3], bda[9];
};
struct Grid {
    float lower[3], interval[3];
};

// Cells of `count` points given as (u, v, depth); -1: outside. Coordinates in (-1, 0) truncate to 0.
void cells_of(const float* __restrict us, const float* __restrict vs, const float* __restrict ds, int64_t count,
              const Projection& projection, const Grid& grid, int32_t first, int32_t rows, int32_t columns,
              int32_t* __restrict to) {
    const Projection p = projection;
    const Grid g = grid;
    const float limit_y = static_cast<float>(rows), limit_x = static_cast<float>(columns);
    for (int64_t i = 0; i < count; ++i) {
        const float u = us[i] - p.shift[0], v = vs[i] - p.shift[1], d = ds[i] - p.shift[2];
        const float z = row_times(p.undo, 2, u, v, d);
        const float x = row_times(p.undo, 0, u, v, d) * z, y = row_times(p.undo, 1, u, v, d) * z;
        const float ego_x = row_times(p.lift, 0, x, y, z) + p.move[0];
        const float ego_y = row_times(p.lift, 1, x, y, z) + p.move[1];
        const float ego_z = row_times(p.lift, 2, x, y, z) + p.move[2];
        const float cx = (row_times(p.bda, 0, ego_x, ego_y, ego_z) - g.lower[0]) / g.interval[0];
        const float cy = (row_times(p.bda, 1, ego_x, ego_y, ego_z) - g.lower[1]) / g.interval[1];
        const float cz = (row_times(p.bda, 2, ego_x, ego_y, ego_z) - g.lower[2]) / g.interval[2];
        // Compared as floats: what lies outside need not fit into an integer. Not a number is outside, too.
        const int32_t in_x = (cx > -1) & (cx < limit_x), in_y = (cy > -1) & (cy < limit_y);
        const int32_t inside = in_x & in_y & (cz > -1) & (cz < 1);
        const float column = inside ? cx : 0.0f, row = inside ? cy : 0.0f;
        const int32_t cell = first + static_cast<int32_t>(row) * columns + static_cast<int32_t>(column);
        to[i] = inside ? cell : -1;
    }
}

void frustum_cells(const float* frustum, const Projection* projections, const int32_t* map_of_camera,
                   const Grid& grid, int64_t cameras, int64_t count, int32_t rows, int32_t columns, int32_t* cells,
                   int threads) {
    constexpr int64_t block = 8192;
    const int64_t blocks = (count + block - 1) / block;
    prefer_large_pages(cells, sizeof(int32_t) * cameras * count);
    share(cameras * blocks, threads, [=](int64_t task, int) {
        const int64_t camera = task / blocks, begin = task % blocks * block, n = std::min(count - begin, block);
        const int32_t map = map_of_camera[camera];
        int32_t* const to = cells + camera * count + begin;
        const float* const u = frustum + begin;
        if (map < 0)
            std::fill_n(to, n, -1);
        else
            cells_of(u, u + count, u + 2 * count, n, projections[camera], grid, map * rows * columns, rows, columns, to);
    });
}

void plan(const int32_t* cells, int64_t cameras, int64_t bins, int64_t plane, int64_t total, int32_t* points,
          int32_t* pixels, int32_t* starts, int threads) {
    const int64_t count = cameras * bins * plane, slots = total + 1;  // the last one: points in no cell
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / (4 * slots)));
    const int64_t planes = cameras * bins;
    auto first = [=](int64_t part) { return planes * part / parts; };
    auto slot_of = [=](int32_t cell) { return cell >= 0 && cell < total ? cell : static_cast<int32_t>(total); };
    auto counts = scratch<int32_t>(parts * slots);
    prefer_large_pages(points, sizeof(int32_t) * count);
    prefer_large_pages(pixels, sizeof(int32_t) * count);
    share(parts, threads, [&](int64_t part, int) {
        int32_t* mine = counts.get() + part * slots;
        std::fill_n(mine, slots, 0);
        for (int64_t i = first(part) * plane; i < first(part + 1) * plane; ++i) ++mine[slot_of(cells[i])];
    });
    int32_t position = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
        starts[slot] = position;
        for (int64_t part = 0; part < parts; ++part) {
            const int32_t here = counts[part * slots + slot];
            counts[part * slots + slot] = position;
            position += here;
        }
    }
    share(parts, threads, [&](int64_t part, int) {
        int32_t* next = counts.get() + part * slots;
        for (int64_t layer = first(part); layer < first(part + 1); ++layer) {
            const int32_t point = static_cast<int32_t>(layer * plane), pixel = static_cast<int32_t>(layer / bins * plane);
            for (int32_t i = 0; i < plane; ++i) {
                const int32_t to = next[slot_of(cells[point + i])]++;
                points[to] = point + i;
                pixels[to] = pixel + i;
            }
        }
    });
}

}  // namespace

EXPORT int bev_pool_plan(const int32_t* cells, int64_t cameras, int64_t bins, int64_t plane, int64_t total,
                         int32_t* points, int32_t* pixels, int32_t* starts, int threads) {
    return guarded([&] { plan(cells, cameras, bins, plane, total, points, pixels, starts, threads); });
}

// Per camera 33 values: the members of Projection; `map_of_camera` < 0: the camera has no image. `grid`: 6 values.
EXPORT int bev_pool_frustum_cells(const float* frustum, const float* projections, const int32_t* map_of_camera,
                                  const float* grid, int64_t cameras, int64_t count, int rows, int columns,
                                  int32_t* cells, int threads) {
    static_assert(sizeof(Projection) == 33 * sizeof(float) && sizeof(Grid) == 6 * sizeof(float), "packed");
    return guarded([&] {
        frustum_cells(frustum, reinterpret_cast<const Projection*>(projections), map_of_camera,
                      *reinterpret_cast<const Grid*>(grid), cameras, count, rows, columns, cells, threads);
    });
}
