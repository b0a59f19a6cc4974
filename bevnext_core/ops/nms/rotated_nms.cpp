// SPDX-License-Identifier: Apache-2.0
// Greedy suppression of rotated rectangles, in double precision and with the operations of plain.py in their
// order. To be compiled without fused multiply-adds, so that no decision differs.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../parallel.h"

namespace {

struct Point {
    double x, y;
};

// Corners, counter-clockwise, of a rectangle (x, y, length, width, cosine, sine) moved by (-x0, -y0).
inline void corners_of(const double* rectangle, double x0, double y0, Point* corners) {
    constexpr double kSigns[4][2] = {{0.5, 0.5}, {-0.5, 0.5}, {-0.5, -0.5}, {0.5, -0.5}};
    const double x = rectangle[0] - x0, y = rectangle[1] - y0, cos = rectangle[4], sin = rectangle[5];
    for (int i = 0; i < 4; ++i) {
        const double dx = kSigns[i][0] * rectangle[2], dy = kSigns[i][1] * rectangle[3];
        corners[i] = {x + dx * cos - dy * sin, y + dx * sin + dy * cos};
    }
}

// Area of the intersection of two convex quadrilaterals: the first is cut along the edges of the second.
double intersection(const Point* first, const Point* second) {
    Point polygon[16], next[16];
    int count = 4;
    std::copy_n(first, 4, polygon);
    for (int edge = 0; edge < 4 && count; ++edge) {
        const Point start = second[edge], end = second[(edge + 1) % 4];
        const double dx = end.x - start.x, dy = end.y - start.y;
        double side[16];
        for (int i = 0; i < count; ++i) side[i] = dx * (polygon[i].y - start.y) - dy * (polygon[i].x - start.x);
        int kept = 0;
        for (int i = 0; i < count; ++i) {
            const int after = i + 1 < count ? i + 1 : 0;
            const bool inside = side[i] >= 0;
            if (inside) next[kept++] = polygon[i];
            if (inside != (side[after] >= 0)) {
                const double fraction = side[i] / (side[i] - side[after]);
                next[kept++] = {polygon[i].x + fraction * (polygon[after].x - polygon[i].x),
                                polygon[i].y + fraction * (polygon[after].y - polygon[i].y)};
            }
        }
        count = kept;
        std::copy_n(next, count, polygon);
    }
    double twice = 0;
    for (int i = 0; i < count; ++i) {
        const Point a = polygon[i], b = polygon[i + 1 < count ? i + 1 : 0], origin = polygon[0];
        twice += (a.x - origin.x) * (b.y - origin.y) - (b.x - origin.x) * (a.y - origin.y);
    }
    return std::fabs(twice) / 2;
}

}  // namespace

// rectangles: [count, 6], best first; kept: room for min(count, limit) indices, found: how many. 1: no memory. One
// thread does it, whatever their number.
EXPORT int rotated_nms(const double* rectangles, int64_t count, double threshold, int64_t limit, int64_t* kept,
                       int64_t* found, int) {
    return guarded([&] {
        *found = 0;
        std::vector<char> gone(static_cast<size_t>(count), 0);
        std::vector<double> reach(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) reach[i] = std::hypot(rectangles[6 * i + 2], rectangles[6 * i + 3]) / 2;
        for (int64_t i = 0; i < count && *found < limit; ++i) {
            if (gone[i]) continue;
            kept[(*found)++] = i;
            const double* one = rectangles + 6 * i;
            Point own[4], other[4];
            corners_of(one, one[0], one[1], own);
            for (int64_t j = i + 1; j < count; ++j) {
                const double* box = rectangles + 6 * j;
                if (gone[j] || !(std::hypot(box[0] - one[0], box[1] - one[1]) < reach[i] + reach[j])) continue;
                corners_of(box, one[0], one[1], other);
                const double overlap = intersection(other, own);
                const double both = one[2] * one[3] + box[2] * box[3] - overlap;
                gone[j] = overlap / std::max(both, 1e-12) > threshold;
            }
        }
    });
}
