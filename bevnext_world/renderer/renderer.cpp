// SPDX-License-Identifier: Apache-2.0
// Renderer and ray caster of the synthetic world. The interface is described in renderer.py.
//
// No function of the maths library whose last bit may differ between processors is used (only sqrt, which is
// exact), so that the bytes of an image depend on the inputs alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr float kNear = 0.1f;  // metres
constexpr int32_t kSky = -1;
constexpr int32_t kGround = -2;          // inside the buffers; leaves as id 0
constexpr double kShadowRange = 220.0;   // metres: shadows farther away are lost in a few rows of pixels
constexpr float kSmallestRadius = 0.2f;  // samples: smaller objects are not drawn
constexpr uint8_t kSunBit = 1, kContactBit = 2;

enum Pattern : uint8_t {
    PLAIN,
    NOISE,
    BRICK,
    WINDOWS,
    FOLIAGE,
    BARK,
    RIBS,
    PANELS,
    HAZARD,
    BANDS,
    CLOTH,
    BLOTCH,
    LAMP,
    PLANKS
};

struct Vec {
    float x, y, z;
};
inline Vec operator+(Vec a, Vec b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z};
}
inline Vec operator-(Vec a, Vec b) {
    return {a.x - b.x, a.y - b.y, a.z - b.z};
}
inline Vec operator*(Vec a, float s) {
    return {a.x * s, a.y * s, a.z * s};
}
inline Vec operator*(Vec a, Vec b) {
    return {a.x * b.x, a.y * b.y, a.z * b.z};
}
inline float dot(Vec a, Vec b) {
    return a.x * b.x + a.y * b.y + a.z * b.z;
}
inline Vec cross(Vec a, Vec b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
inline Vec unit(Vec a) {
    float n = dot(a, a);
    return n > 0 ? a * (1.0f / std::sqrt(n)) : Vec{0, 0, 1};
}
inline Vec mix(Vec a, Vec b, float t) {
    return a + (b - a) * t;
}
inline float clamp01(float x) {
    return x < 0 ? 0 : (x > 1 ? 1 : x);
}
inline float smooth(float low, float high, float x) {
    float t = clamp01((x - low) / (high - low));
    return t * t * (3 - 2 * t);
}
inline int floor_int(float x) {
    int i = (int)x;
    return i - (x < (float)i);
}
inline float fraction(float x) {
    return x - (float)floor_int(x);
}

// Affine map, object to camera and the like.
struct Affine {
    double m[12];
    Vec point(Vec p) const {
        return {(float)(m[0] * p.x + m[1] * p.y + m[2] * p.z + m[3]),
                (float)(m[4] * p.x + m[5] * p.y + m[6] * p.z + m[7]),
                (float)(m[8] * p.x + m[9] * p.y + m[10] * p.z + m[11])};
    }
    Vec vector(Vec p) const {
        return {(float)(m[0] * p.x + m[1] * p.y + m[2] * p.z), (float)(m[4] * p.x + m[5] * p.y + m[6] * p.z),
                (float)(m[8] * p.x + m[9] * p.y + m[10] * p.z)};
    }
};
Affine operator*(const Affine& a, const Affine& b) {
    Affine r;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 4; ++j)
            r.m[4 * i + j] = a.m[4 * i] * b.m[j] + a.m[4 * i + 1] * b.m[4 + j] + a.m[4 * i + 2] * b.m[8 + j] +
                             (j == 3 ? a.m[4 * i + 3] : 0.0);
    return r;
}
Affine rigid_inverse(const Affine& a) {
    Affine r;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) r.m[4 * i + j] = a.m[4 * j + i];
        r.m[4 * i + 3] = -(a.m[i] * a.m[3] + a.m[4 + i] * a.m[7] + a.m[8 + i] * a.m[11]);
    }
    return r;
}

// ---------------------------------------------------------------------------------------------- random,
// noise

inline uint32_t hash32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}
inline float hash_unit(uint32_t a, uint32_t b, uint32_t c) {
    return (float)(hash32(a * 0x9E3779B1U ^ hash32(b * 0x85EBCA77U ^ hash32(c))) >> 8) * (1.0f / 16777216.0f);
}

// Four numbers at once (a pixel's colour and one unused), in the registers that every processor has.
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint8_t Byte4 __attribute__((vector_size(4)));

inline Float4 load4(const uint8_t* p) {
    Byte4 bytes;
    std::memcpy(&bytes, p, 4);
    return __builtin_convertvector(bytes, Float4);
}

// Smooth noise in 0..1, one cell per unit. An entry holds its own random byte and those of its neighbours
// along x, along y and along both.
struct NoiseTable {
    std::vector<uint32_t> values;
    NoiseTable() : values(65536) {
        auto byte = [](uint32_t x, uint32_t y) { return hash32(((y & 255) << 8 | (x & 255)) + 77) >> 24; };
        for (uint32_t y = 0; y < 256; ++y)
            for (uint32_t x = 0; x < 256; ++x)
                values[y << 8 | x] =
                    byte(x, y) | byte(x + 1, y) << 8 | byte(x, y + 1) << 16 | byte(x + 1, y + 1) << 24;
    }
    // At four places at once.
    Float4 at4(Float4 x, Float4 y) const {
        Int4 xi = __builtin_convertvector(x, Int4), yi = __builtin_convertvector(y, Int4);
        Float4 fx = x - __builtin_convertvector(xi, Float4), fy = y - __builtin_convertvector(yi, Float4);
        Int4 under_x = fx < 0.0f, under_y = fy < 0.0f;  // -1 where truncation went up
        xi += under_x;
        yi += under_y;
        fx -= __builtin_convertvector(under_x, Float4);
        fy -= __builtin_convertvector(under_y, Float4);
        Int4 place = ((yi & 255) << 8) | (xi & 255);
        Int4 v{(int32_t)values[(size_t)place[0]], (int32_t)values[(size_t)place[1]],
               (int32_t)values[(size_t)place[2]], (int32_t)values[(size_t)place[3]]};
        Float4 a = __builtin_convertvector(v & 255, Float4),
               b = __builtin_convertvector((v >> 8) & 255, Float4);
        Float4 c = __builtin_convertvector((v >> 16) & 255, Float4),
               d = __builtin_convertvector((v >> 24) & 255, Float4);
        fx = fx * fx * (3.0f - 2.0f * fx);
        fy = fy * fy * (3.0f - 2.0f * fy);
        Float4 top = a + (b - a) * fx, low = c + (d - c) * fx;
        return (top + (low - top) * fy) * (1.0f / 255.0f);
    }
    float at(float x, float y) const {
        int xi = floor_int(x), yi = floor_int(y);
        float fx = x - (float)xi, fy = y - (float)yi;
        uint32_t v = values[(size_t)((yi & 255) << 8 | (xi & 255))];
        fx = fx * fx * (3 - 2 * fx);
        fy = fy * fy * (3 - 2 * fy);
        float a = (float)(v & 255), b = (float)(v >> 8 & 255), c = (float)(v >> 16 & 255),
              d = (float)(v >> 24);
        float top = a + (b - a) * fx, low = c + (d - c) * fx;
        return (top + (low - top) * fy) * (1.0f / 255.0f);
    }
};

// e^x for x <= 0, relative error below 2e-4.
inline float decay(float x) {
    if (x < -80) return 0;
    float y = x * 1.44269504f;
    int whole = floor_int(y);
    float f = y - (float)whole;
    float power = 1.0f + f * (0.6951786f + f * (0.2276412f + f * 0.0771802f));
    uint32_t bits = (uint32_t)(whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return power * scale;
}

// -----------------------------------------------------------------------------------------------------
// inputs

struct Batch {
    int64_t instances;
    const int64_t *vertex_start, *face_start;
    const float* vertices;
    const int32_t* faces;
    const float *colors, *gloss;
    const uint8_t* pattern;
    const double* transforms;
    const int32_t* ids;
};

struct Bounds {
    Vec low, high, center;
    float radius;
};

Bounds bounds_of(const Batch& batch, int64_t k) {
    Bounds b{{1e30f, 1e30f, 1e30f}, {-1e30f, -1e30f, -1e30f}, {0, 0, 0}, 0};
    for (int64_t v = batch.vertex_start[k]; v < batch.vertex_start[k + 1]; ++v) {
        const float* p = batch.vertices + 3 * v;
        b.low = {std::min(b.low.x, p[0]), std::min(b.low.y, p[1]), std::min(b.low.z, p[2])};
        b.high = {std::max(b.high.x, p[0]), std::max(b.high.y, p[1]), std::max(b.high.z, p[2])};
    }
    b.center = (b.low + b.high) * 0.5f;
    Vec half = (b.high - b.low) * 0.5f;
    b.radius = std::sqrt(dot(half, half));
    return b;
}

// An own copy of a batch.
struct Store {
    std::vector<int64_t> vertex_start, face_start;
    std::vector<float> vertices, colors, gloss;
    std::vector<int32_t> faces, ids;
    std::vector<uint8_t> pattern;
    std::vector<double> transforms;
    Batch view{};

    explicit Store(const Batch& b) {
        int64_t n = b.instances, v = b.vertex_start[n], f = b.face_start[n];
        vertex_start.assign(b.vertex_start, b.vertex_start + n + 1);
        face_start.assign(b.face_start, b.face_start + n + 1);
        vertices.assign(b.vertices, b.vertices + 3 * v);
        colors.assign(b.colors, b.colors + 3 * f);
        gloss.assign(b.gloss, b.gloss + f);
        faces.assign(b.faces, b.faces + 3 * f);
        pattern.assign(b.pattern, b.pattern + f);
        transforms.assign(b.transforms, b.transforms + 12 * n);
        ids.assign(b.ids, b.ids + n);
        view = {n,
                vertex_start.data(),
                face_start.data(),
                vertices.data(),
                faces.data(),
                colors.data(),
                gloss.data(),
                pattern.data(),
                transforms.data(),
                ids.data()};
    }
};

Affine transform_of(const Batch& batch, int64_t k) {
    Affine a;
    std::copy(batch.transforms + 12 * k, batch.transforms + 12 * k + 12, a.m);
    return a;
}

// -------------------------------------------------------------------------------------- bounding-volume tree

struct Node {
    Vec low;
    int32_t first;  // child (the second one follows it) or triangle
    Vec high;
    int32_t count;  // 0: inner node
};
struct RayTriangle {
    Vec corner, edge1, edge2;
    int32_t face, instance;
};
struct Hit {
    float distance;
    const RayTriangle* triangle;
};

class Tree {
 public:
    void build(const Batch& batch) {
        triangles_.clear();
        nodes_.clear();
        triangles_.reserve((size_t)batch.face_start[batch.instances]);
        std::vector<Vec> moved;
        for (int64_t k = 0; k < batch.instances; ++k) {
            Affine pose = transform_of(batch, k);
            int64_t start = batch.vertex_start[k], count = batch.vertex_start[k + 1] - start;
            moved.resize((size_t)count);
            for (int64_t v = 0; v < count; ++v) {
                const float* p = batch.vertices + 3 * (start + v);
                moved[(size_t)v] = pose.point({p[0], p[1], p[2]});
            }
            for (int64_t f = batch.face_start[k]; f < batch.face_start[k + 1]; ++f) {
                const int32_t* face = batch.faces + 3 * f;
                Vec a = moved[(size_t)face[0]];
                triangles_.push_back(
                    {a, moved[(size_t)face[1]] - a, moved[(size_t)face[2]] - a, (int32_t)f, (int32_t)k});
            }
        }
        if (triangles_.empty()) return;
        nodes_.reserve(triangles_.size() * 2);
        nodes_.push_back({});
        split(0, 0, (int32_t)triangles_.size(), 0);
    }

    // The nearest hit closer than `limit`; with `any`, the first one found.
    Hit cast(Vec origin, Vec direction, float limit, bool any = false) const {
        Hit hit{limit, nullptr};
        if (nodes_.empty()) return hit;
        Vec inverse{1.0f / away(direction.x), 1.0f / away(direction.y), 1.0f / away(direction.z)};
        int32_t stack[128];
        int depth = 0;
        if (enter(nodes_[0], origin, inverse, hit.distance) < 0) return hit;
        int32_t current = 0;
        while (true) {
            const Node& node = nodes_[(size_t)current];
            if (node.count) {
                for (int32_t i = node.first; i < node.first + node.count; ++i) {
                    const RayTriangle& t = triangles_[(size_t)i];
                    float distance = intersect(t, origin, direction);
                    if (distance > 0 && distance < hit.distance) {
                        hit = {distance, &t};
                        if (any) return hit;
                    }
                }
            } else {
                int32_t near = node.first, far = node.first + 1;
                float a = enter(nodes_[(size_t)near], origin, inverse, hit.distance);
                float b = enter(nodes_[(size_t)far], origin, inverse, hit.distance);
                if (b >= 0 && (a < 0 || b < a)) {
                    std::swap(near, far);
                    std::swap(a, b);
                }
                if (a >= 0) {
                    if (b >= 0) stack[depth++] = far;
                    current = near;
                    continue;
                }
            }
            if (!depth) return hit;
            current = stack[--depth];
        }
    }

 private:
    std::vector<RayTriangle> triangles_;
    std::vector<Node> nodes_;

    static float away(float x) { return std::fabs(x) < 1e-20f ? 1e-20f : x; }

    static float enter(const Node& n, Vec o, Vec inverse, float limit) {
        float x0 = (n.low.x - o.x) * inverse.x, x1 = (n.high.x - o.x) * inverse.x;
        float y0 = (n.low.y - o.y) * inverse.y, y1 = (n.high.y - o.y) * inverse.y;
        float z0 = (n.low.z - o.z) * inverse.z, z1 = (n.high.z - o.z) * inverse.z;
        float in = std::max(std::max(std::min(x0, x1), std::min(y0, y1)), std::max(std::min(z0, z1), 0.0f));
        float out = std::min(std::min(std::max(x0, x1), std::max(y0, y1)), std::min(std::max(z0, z1), limit));
        return in <= out * 1.000001f ? in : -1.0f;
    }

    static float intersect(const RayTriangle& t, Vec origin, Vec direction) {
        Vec p = cross(direction, t.edge2);
        float det = dot(t.edge1, p);
        if (std::fabs(det) < 1e-14f) return -1;
        float inverse = 1.0f / det;
        Vec s = origin - t.corner;
        float u = dot(s, p) * inverse;
        if (u < 0 || u > 1) return -1;
        Vec q = cross(s, t.edge1);
        float v = dot(direction, q) * inverse;
        if (v < 0 || u + v > 1) return -1;
        return dot(t.edge2, q) * inverse;
    }

    static Vec middle(const RayTriangle& t) { return t.corner + (t.edge1 + t.edge2) * (1.0f / 3.0f); }

    void split(int32_t index, int32_t first, int32_t count, int depth) {
        constexpr int kBins = 12;
        Vec low{1e30f, 1e30f, 1e30f}, high{-1e30f, -1e30f, -1e30f}, mid_low = low, mid_high = high;
        auto grow = [](Vec& a, Vec& b, Vec p) {
            a = {std::min(a.x, p.x), std::min(a.y, p.y), std::min(a.z, p.z)};
            b = {std::max(b.x, p.x), std::max(b.y, p.y), std::max(b.z, p.z)};
        };
        auto grow_triangle = [&](Vec& a, Vec& b, const RayTriangle& t) {
            grow(a, b, t.corner);
            grow(a, b, t.corner + t.edge1);
            grow(a, b, t.corner + t.edge2);
        };
        for (int32_t i = first; i < first + count; ++i) {
            grow_triangle(low, high, triangles_[(size_t)i]);
            grow(mid_low, mid_high, middle(triangles_[(size_t)i]));
        }
        nodes_[(size_t)index] = {low, first, high, count};
        Vec extent = mid_high - mid_low;
        int axis = extent.x >= extent.y ? (extent.x >= extent.z ? 0 : 2) : (extent.y >= extent.z ? 1 : 2);
        auto component = [axis](Vec v) { return axis == 0 ? v.x : (axis == 1 ? v.y : v.z); };
        float start = component(mid_low), length = component(extent);
        if (count <= 3 || length <= 0 || depth > 60) return;
        auto bin_of = [&](const RayTriangle& t) {
            return std::min(kBins - 1, std::max(0, (int)((component(middle(t)) - start) / length * kBins)));
        };
        struct Bin {
            Vec low{1e30f, 1e30f, 1e30f}, high{-1e30f, -1e30f, -1e30f};
            int32_t count = 0;
        } bins[kBins];
        for (int32_t i = first; i < first + count; ++i) {
            Bin& bin = bins[bin_of(triangles_[(size_t)i])];
            grow_triangle(bin.low, bin.high, triangles_[(size_t)i]);
            ++bin.count;
        }
        auto area = [](Vec a, Vec b) {
            Vec d = b - a;
            return d.x * d.y + d.y * d.z + d.z * d.x;
        };
        float right_cost[kBins] = {};
        Bin sum;
        for (int i = kBins - 1; i > 0; --i) {
            if (bins[i].count) {
                grow(sum.low, sum.high, bins[i].low);
                grow(sum.low, sum.high, bins[i].high);
            }
            sum.count += bins[i].count;
            right_cost[i] = sum.count ? area(sum.low, sum.high) * (float)sum.count : 0;
        }
        sum = Bin();
        int best = 0;
        float best_cost = 1e38f;
        for (int i = 0; i + 1 < kBins; ++i) {
            if (bins[i].count) {
                grow(sum.low, sum.high, bins[i].low);
                grow(sum.low, sum.high, bins[i].high);
            }
            sum.count += bins[i].count;
            if (!sum.count || sum.count == count) continue;
            float cost = area(sum.low, sum.high) * (float)sum.count + right_cost[i + 1];
            if (cost < best_cost) best_cost = cost, best = i;
        }
        auto middle_it = std::partition(triangles_.begin() + first, triangles_.begin() + first + count,
                                        [&](const RayTriangle& t) { return bin_of(t) <= best; });
        int32_t left = (int32_t)(middle_it - (triangles_.begin() + first));
        if (left == 0 || left == count) return;
        int32_t child = (int32_t)nodes_.size();
        nodes_.push_back({});
        nodes_.push_back({});
        nodes_[(size_t)index].first = child;
        nodes_[(size_t)index].count = 0;
        split(child, first, left, depth + 1);
        split(child + 1, first + left, count - left, depth + 1);
    }
};

// ------------------------------------------------------------------------------------------------------
// scene

struct GroundLevel {
    int64_t rows, columns;
    std::vector<uint8_t> pixels;  // four bytes per pixel
};

constexpr int kSkySide = 1024;  // of the sky's map: the upper hemisphere, stereographic

struct Light {
    Vec to_sun, sun, ambient, zenith, horizon, haze;
    float clouds, haze_distance, exposure, noise, vignette;
};

struct FrameTriangle {
    Vec normal;           // world
    Vec color;            // linear
    Vec light;            // sun and sky on this face
    float ambient_share;  // of the light, brightness: fades towards the ground
    float gloss;
    int32_t instance;
    uint32_t seed;
    uint8_t pattern, axis;
};

struct FrameInstance {
    float object_from_world[12];  // of points relative to the camera's place
    float low_z;
    int32_t id;
    int32_t dynamic;  // index among the dynamic instances, -1 for static ones
};

struct Scene {
    Store store;
    std::vector<Bounds> bounds;
    std::vector<float> sunlit;
    Tree tree;
    std::vector<GroundLevel> levels;
    float origin_x, origin_y, per_metre;  // pixels of the finest level per metre
    Vec outside;
    Light light;
    uint32_t cloud_seed;
    NoiseTable noise;
    std::vector<Float4> sky;
    // Buffers of a frame, kept between calls.
    std::vector<float> inverse_depth;
    std::vector<int32_t> numbers;
    std::vector<uint8_t> stencil;
    std::vector<uint16_t> stamp;
    std::vector<FrameTriangle> triangles;
    std::vector<FrameInstance> frame_instances;
    std::vector<Vec> moved;

    explicit Scene(const Batch& batch) : store(batch) {}

    // The ground's colour (display values) at one place of one level, between its four nearest pixels.
    Vec ground_pixel(int level, float x, float y) const {
        const GroundLevel& g = levels[(size_t)level];
        float u = x - 0.5f, v = y - 0.5f;
        if (!(x >= 0 && y >= 0 && x < (float)g.columns && y < (float)g.rows)) return outside;
        int i = floor_int(u), j = floor_int(v);
        float fx = u - (float)i, fy = v - (float)j;
        int64_t i0 = std::max(i, 0), i1 = std::min<int64_t>(i + 1, g.columns - 1);
        int64_t j0 = std::max(j, 0), j1 = std::min<int64_t>(j + 1, g.rows - 1);
        const uint8_t* pixels = g.pixels.data();
        Float4 a = load4(pixels + 4 * (j0 * g.columns + i0)), b = load4(pixels + 4 * (j0 * g.columns + i1));
        Float4 c = load4(pixels + 4 * (j1 * g.columns + i0)), d = load4(pixels + 4 * (j1 * g.columns + i1));
        Float4 top = a + (b - a) * fx, low = c + (d - c) * fx;
        Float4 r = (top + (low - top) * fy) * (1.0f / 255.0f);
        return {r[0], r[1], r[2]};
    }

    // Share of the sun that reaches an instance past the static part: rays from five points of its box.
    float sun_share(const Affine& pose, const Bounds& b, float clearance) const {
        static const float points[5][2] = {
            {0, 0}, {0.4f, 0.3f}, {-0.4f, 0.3f}, {0.4f, -0.3f}, {-0.4f, -0.3f}};
        Vec size = b.high - b.low;
        float lit = 0;
        for (auto& p : points) {
            Vec start = pose.point(b.center + Vec{p[0] * size.x, p[1] * size.y, 0.2f * size.z});
            start = start + light.to_sun * clearance;
            if (!tree.cast(start, light.to_sun, 400.0f, true).triangle) lit += 0.2f;
        }
        return lit;
    }
};

void build_levels(Scene& scene, const uint8_t* albedo, int64_t rows, int64_t columns) {
    scene.levels.push_back({rows, columns, std::vector<uint8_t>((size_t)(4 * rows * columns))});
    for (int64_t i = 0; i < rows * columns; ++i)
        std::memcpy(&scene.levels[0].pixels[(size_t)(4 * i)], albedo + 3 * i, 3);
    while (rows > 1 && columns > 1 && scene.levels.size() < 12) {
        int64_t r = rows / 2, c = columns / 2;
        GroundLevel next{r, c, std::vector<uint8_t>((size_t)(4 * r * c))};
        const std::vector<uint8_t>& source = scene.levels.back().pixels;
        for (int64_t y = 0; y < r; ++y)
            for (int64_t x = 0; x < c; ++x)
                for (int64_t k = 0; k < 3; ++k) {
                    const uint8_t* p = &source[(size_t)(4 * (2 * y * columns + 2 * x) + k)];
                    int sum = p[0] + p[4] + p[4 * columns] + p[4 * columns + 4];
                    next.pixels[(size_t)(4 * (y * c + x) + k)] = (uint8_t)((sum + 2) / 4);
                }
        scene.levels.push_back(std::move(next));
        rows = r;
        columns = c;
    }
}

// --------------------------------------------------------------------------------------------------
// rasteriser

struct Screen {
    int width, height;  // samples
    double fx, fy, cx, cy;
};

struct Corner {
    double u, v;
};

// Calls row(y, x0, x1) for the samples inside the triangle (x1 excluded). Two triangles that share an edge
// compute it with the same operations, so that each sample on it belongs to exactly one of them.
template <class Row>
inline void scan(const Screen& screen, Corner a, Corner b, Corner c, Row&& row) {
    auto above = [](const Corner& p, const Corner& q) { return p.v < q.v || (p.v == q.v && p.u < q.u); };
    if (above(b, a)) std::swap(a, b);
    if (above(c, b)) std::swap(b, c);
    if (above(b, a)) std::swap(a, b);
    if (!(c.v > 0 || a.v >= 0) || a.v > screen.height - 1 || c.v < 0) return;
    auto whole = [](double x, double limit) {  // ceil, cut to 0..limit
        if (!(x > 0)) return 0;
        if (x >= limit) return (int)limit;
        int i = (int)x;
        return i + (x > (double)i);
    };
    int first = whole(a.v, screen.height), last = whole(c.v, screen.height), turn = whole(b.v, screen.height);
    double slope_long = c.v > a.v ? (c.u - a.u) / (c.v - a.v) : 0;
    double slope_top = b.v > a.v ? (b.u - a.u) / (b.v - a.v) : 0;
    double slope_low = c.v > b.v ? (c.u - b.u) / (c.v - b.v) : 0;
    for (int y = first; y < last; ++y) {
        double p = a.u + (y - a.v) * slope_long;
        double q = y < turn ? a.u + (y - a.v) * slope_top : b.u + (y - b.v) * slope_low;
        int x0 = whole(std::min(p, q), screen.width), x1 = whole(std::max(p, q), screen.width);
        if (x0 < x1) row(y, x0, x1);
    }
}

// Cuts the triangle at the near plane and hands its parts (on the screen) on.
template <class Emit>
inline void project(const Screen& screen, const Vec* corners, Emit&& emit) {
    auto corner = [&](Vec p) {
        double inverse = 1.0 / p.z;
        return Corner{screen.fx * p.x * inverse + screen.cx, screen.fy * p.y * inverse + screen.cy};
    };
    int inside = 0;
    for (int i = 0; i < 3; ++i) inside += corners[i].z >= kNear;
    if (inside == 3) {
        Corner a = corner(corners[0]), b = corner(corners[1]), c = corner(corners[2]);
        double left = std::min(a.u, std::min(b.u, c.u)), right = std::max(a.u, std::max(b.u, c.u));
        if (right < 0 || left > screen.width - 1) return;
        emit(a, b, c);
        return;
    }
    if (!inside) return;
    Vec cut[4];
    int n = 0;
    for (int i = 0; i < 3; ++i) {
        Vec p = corners[i], q = corners[(i + 1) % 3];
        bool in = p.z >= kNear, next = q.z >= kNear;
        if (in) cut[n++] = p;
        if (in != next) {
            Vec from = in ? p : q, to = in ? q : p;  // always from inside: both neighbours cut at one point
            Vec at = from + (to - from) * ((kNear - from.z) / (to.z - from.z));
            at.z = kNear;
            cut[n++] = at;
        }
    }
    Corner first = corner(cut[0]);
    for (int i = 1; i + 1 < n; ++i) emit(first, corner(cut[i]), corner(cut[i + 1]));
}

bool in_view(const Screen& s, Vec center, float radius) {
    if (center.z + radius < kNear) return false;
    // Distance to the side planes of the view, which pass through the camera.
    auto outside = [&](double f, double border, float along) {
        double n = std::sqrt(f * f + border * border);
        return (f * along - border * center.z) / n > radius;
    };
    return !(outside(s.fx, s.width - s.cx, center.x) || outside(s.fx, s.cx + 1, -center.x) ||
             outside(s.fy, s.height - s.cy, center.y) || outside(s.fy, s.cy + 1, -center.y));
}

struct Frame {
    Scene& scene;
    Screen screen;
    Affine camera_from_world, camera_from_eye;  // eye: the world's axes at the camera's place
    Vec right, down, forward;                   // the camera's axes in the world
    Vec position;
    int64_t* counts;

    // The direction through a sample, world frame, of depth 1.
    Vec ray(float u, float v) const {
        return right * ((u - (float)screen.cx) * inverse_fx) + down * ((v - (float)screen.cy) * inverse_fy) +
               forward;
    }
    float inverse_fx, inverse_fy;
    float pixel;  // its width at 1 m, metres
};

void move_vertices(const Batch& batch, int64_t k, const Affine& map, std::vector<Vec>& moved) {
    int64_t start = batch.vertex_start[k], count = batch.vertex_start[k + 1] - start;
    moved.resize((size_t)count);
    const float* p = batch.vertices + 3 * start;
    for (int64_t v = 0; v < count; ++v, p += 3) moved[(size_t)v] = map.point({p[0], p[1], p[2]});
}

void draw_instance(Frame& frame, const Batch& batch, int64_t k, const Bounds& bounds, float sunlit,
                   int dynamic) {
    Scene& scene = frame.scene;
    const Screen& screen = frame.screen;
    Affine pose = transform_of(batch, k);
    Affine map = frame.camera_from_world * pose;
    Vec center = map.point(bounds.center);
    if (!in_view(screen, center, bounds.radius)) return;
    if (center.z > bounds.radius && bounds.radius * screen.fx < kSmallestRadius * center.z) return;
    move_vertices(batch, k, map, scene.moved);
    const Light& light = scene.light;
    int32_t number = -1;
    bool counted = dynamic >= 0 && batch.ids[k] > 0;
    uint16_t mark = (uint16_t)(dynamic + 1);
    int64_t alone = 0;
    for (int64_t f = batch.face_start[k]; f < batch.face_start[k + 1]; ++f) {
        const int32_t* face = batch.faces + 3 * f;
        Vec corners[3] = {scene.moved[(size_t)face[0]], scene.moved[(size_t)face[1]],
                          scene.moved[(size_t)face[2]]};
        double ax = corners[0].x, ay = corners[0].y, az = corners[0].z;
        double bx = corners[1].x - ax, by = corners[1].y - ay, bz = corners[1].z - az;
        double cx = corners[2].x - ax, cy = corners[2].y - ay, cz = corners[2].z - az;
        double nx = by * cz - bz * cy, ny = bz * cx - bx * cz, nz = bx * cy - by * cx;
        double offset = nx * ax + ny * ay + nz * az;
        if (!(offset < 0)) continue;  // seen from behind, or without area
        // Inverse depth is linear on the screen; cut to the corners' range, where rounding would leave it.
        double per_u = nx / (offset * screen.fx), per_v = ny / (offset * screen.fy);
        double base = nz / offset - per_u * screen.cx - per_v * screen.cy;
        float z_near = std::max(kNear, std::min(corners[0].z, std::min(corners[1].z, corners[2].z)));
        float z_far = std::max(corners[0].z, std::max(corners[1].z, corners[2].z));
        if (z_far < kNear) continue;
        float most = 1.0f / z_near, least = 1.0f / z_far, step = (float)per_u;
        int32_t index = -1;
        project(screen, corners, [&](Corner a, Corner b, Corner c) {
            scan(screen, a, b, c, [&](int y, int x0, int x1) {
                if (index < 0) {
                    index = (int32_t)scene.triangles.size();
                    scene.triangles.push_back({});
                }
                size_t start = (size_t)y * (size_t)screen.width + (size_t)x0;
                float* depth = &scene.inverse_depth[start];
                int32_t* numbers = &scene.numbers[start];
                float value = (float)(base + per_v * y + per_u * x0);
                int n = x1 - x0;
                for (int i = 0; i < n; ++i) {
                    float z = std::min(std::max(value + step * (float)i, least), most);
                    bool front = z > depth[i];
                    numbers[i] = front ? index : numbers[i];
                    depth[i] = front ? z : depth[i];
                }
                if (counted) {
                    uint16_t* stamp = &scene.stamp[start];
                    for (int i = 0; i < n; ++i) {
                        alone += stamp[i] != mark;
                        stamp[i] = mark;
                    }
                }
            });
        });
        if (index < 0) continue;
        if (number < 0) {
            number = (int32_t)scene.frame_instances.size();
            FrameInstance instance;
            Affine back = rigid_inverse(map) * frame.camera_from_eye;
            for (int i = 0; i < 12; ++i) instance.object_from_world[i] = (float)back.m[i];
            instance.low_z = bounds.low.z;
            instance.id = batch.ids[k];
            instance.dynamic = dynamic;
            scene.frame_instances.push_back(instance);
        }
        const float* p = batch.vertices + 3 * batch.vertex_start[k];
        auto vertex = [&](int i) { return Vec{p[3 * face[i]], p[3 * face[i] + 1], p[3 * face[i] + 2]}; };
        Vec own = unit(cross(vertex(1) - vertex(0), vertex(2) - vertex(0)));
        FrameTriangle& t = scene.triangles[(size_t)index];
        t.normal = pose.vector(own);
        const float* color = batch.colors + 3 * f;
        t.color = Vec{color[0] * color[0], color[1] * color[1], color[2] * color[2]};
        t.gloss = batch.gloss[f];
        t.pattern = batch.pattern[f];
        t.instance = number;
        uint32_t bits[3];
        std::memcpy(bits, color, 12);
        t.seed = hash32(bits[0] ^ hash32(bits[1] ^ hash32(bits[2])));
        float x = std::fabs(own.x), y = std::fabs(own.y), z = std::fabs(own.z);
        t.axis = z > 0.75f ? 2 : (x > y ? 0 : 1);
        float direct = std::max(0.0f, dot(t.normal, light.to_sun)) * sunlit;
        float up = 0.5f + 0.5f * t.normal.z;
        Vec bounce = (light.ambient + light.sun * (0.5f * light.to_sun.z)) * 0.18f;
        t.light = light.sun * direct + mix(bounce, light.ambient, up);
        t.ambient_share = 0.35f * (1.0f - 0.5f * direct);
    }
    if (counted) frame.counts[2 * dynamic + 1] = alone;
}

// Marks the ground samples that lie in the instance's shadow: its faces pressed flat along `direction`.
void draw_shadow(Frame& frame, const Batch& batch, int64_t k, const Bounds& bounds, Vec direction,
                 uint8_t bit) {
    Scene& scene = frame.scene;
    const Screen& screen = frame.screen;
    Affine pose = transform_of(batch, k);
    double sx = direction.x / direction.z, sy = direction.y / direction.z;
    Affine flat{{1, 0, -sx, 0, 0, 1, -sy, 0, 0, 0, 0, 0}};
    Affine map = frame.camera_from_world * (flat * pose);
    Vec center = map.point(bounds.center);
    float radius = bounds.radius / direction.z;
    if (center.z - radius > kShadowRange || !in_view(screen, center, radius)) return;
    move_vertices(batch, k, map, scene.moved);
    Vec toward = rigid_inverse(pose).vector(direction);
    const float* p = batch.vertices + 3 * batch.vertex_start[k];
    for (int64_t f = batch.face_start[k]; f < batch.face_start[k + 1]; ++f) {
        const int32_t* face = batch.faces + 3 * f;
        auto vertex = [&](int i) { return Vec{p[3 * face[i]], p[3 * face[i] + 1], p[3 * face[i] + 2]}; };
        if (dot(cross(vertex(1) - vertex(0), vertex(2) - vertex(0)), toward) <= 0) continue;
        Vec corners[3] = {scene.moved[(size_t)face[0]], scene.moved[(size_t)face[1]],
                          scene.moved[(size_t)face[2]]};
        project(screen, corners, [&](Corner a, Corner b, Corner c) {
            scan(screen, a, b, c, [&](int y, int x0, int x1) {
                uint8_t* row = &scene.stencil[(size_t)y * (size_t)screen.width];
                for (int x = x0; x < x1; ++x) row[x] |= bit;
            });
        });
    }
}

// -----------------------------------------------------------------------------------------------------
// shading

// The sky in a direction of length 1.
Vec sky_color(const Scene& scene, Vec d) {
    const Light& light = scene.light;
    float up = clamp01(d.z);
    float low = (1 - up) * (1 - up);
    Vec color = mix(light.zenith, light.horizon, low * low);
    float toward = dot(d, light.to_sun);
    if (toward > 0) {
        float p = toward * toward;
        p *= p, p *= p, p *= p;  // 16
        float wide = p * p * p;  // 48
        color = color + light.sun * (0.18f * p + 0.5f * wide * wide);
    }
    if (light.clouds > 0 && d.z > 0.01f) {
        float scale = 1.2f / (d.z + 0.12f);
        float ox = (float)(scene.cloud_seed & 1023), oy = (float)((scene.cloud_seed >> 10) & 1023);
        float x = d.x * scale + ox, y = d.y * scale + oy;
        float n = 0.5f * scene.noise.at(x, y) + 0.27f * scene.noise.at(2.3f * x, 2.3f * y) +
                  0.15f * scene.noise.at(5.1f * x, 5.1f * y) + 0.08f * scene.noise.at(11.0f * x, 11.0f * y);
        float edge = 0.75f - 0.5f * light.clouds;
        float cover = smooth(edge - 0.1f, edge + 0.14f, n) * smooth(0.01f, 0.15f, d.z);
        Vec white = light.ambient * 1.1f + light.sun * (0.45f - 0.25f * n);
        color = mix(color, white, 0.85f * cover);
    }
    return color;
}

void paint_sky(Scene& scene) {
    scene.sky.resize((size_t)kSkySide * kSkySide);
    for (int y = 0; y < kSkySide; ++y)
        for (int x = 0; x < kSkySide; ++x) {
            float u = 2.04f * ((float)x + 0.5f) / kSkySide - 1.02f,
                  v = 2.04f * ((float)y + 0.5f) / kSkySide - 1.02f;
            float q = u * u + v * v, scale = 1.0f / (1 + q);
            Vec c = sky_color(scene, {2 * u * scale, 2 * v * scale, (1 - q) * scale});
            scene.sky[(size_t)y * kSkySide + (size_t)x] = Float4{c.x, c.y, c.z, 0};
        }
}

// The same from the map; below the horizon the sky at the horizon.
Vec look_up_sky(const Scene& scene, Vec d) {
    float side = 1.0f / (1 + std::max(d.z, -0.01f));
    float x = (d.x * side + 1.02f) * (kSkySide / 2.04f) - 0.5f,
          y = (d.y * side + 1.02f) * (kSkySide / 2.04f) - 0.5f;
    x = std::min(std::max(x, 0.0f), kSkySide - 1.01f);
    y = std::min(std::max(y, 0.0f), kSkySide - 1.01f);
    int i = (int)x, j = (int)y;
    float fx = x - (float)i, fy = y - (float)j;
    const Float4* p = &scene.sky[(size_t)j * kSkySide + (size_t)i];
    Float4 top = p[0] + (p[1] - p[0]) * fx, low = p[kSkySide] + (p[kSkySide + 1] - p[kSkySide]) * fx;
    Float4 r = top + (low - top) * fy;
    return {r[0], r[1], r[2]};
}

inline Vec haze(const Scene& scene, Vec color, float distance) {
    float rest = decay(-distance / scene.light.haze_distance);
    return scene.light.haze + (color - scene.light.haze) * rest;
}

inline float fade(float footprint, float period) {
    return clamp01(1.6f - 2.2f * footprint / period);
}

// Changes the face's colour (linear) by its pattern. `u`, `v`: metres along the face; `p`: in the object.
void paint(const Scene& scene, const FrameTriangle& t, Vec p, float height, float footprint, Vec& color,
           float& gloss) {
    const NoiseTable& noise = scene.noise;
    float u = t.axis == 0 ? p.y : p.x, v = t.axis == 2 ? p.y : p.z;
    float shift = (float)(t.seed & 255);
    switch (t.pattern) {
        case PLAIN: {
            float n = noise.at(u * 1.7f + shift, v * 1.7f + shift) - 0.5f;
            color = color * (1 + 0.10f * n * fade(footprint, 0.6f));
            break;
        }
        case NOISE: {
            Float4 x{u * 1.3f + shift, u * 9 + shift, u * 31, 0}, y{v * 1.3f, v * 9, v * 31 + shift, 0};
            Float4 grain = noise.at4(x, y) - 0.5f;
            float n = 0.22f * grain[0] + 0.3f * grain[1] * fade(footprint, 0.11f) +
                      0.25f * grain[2] * fade(footprint, 0.03f);
            color = color * (1 + n);
            break;
        }
        case BRICK: {
            float row = v * 5.0f, visible = fade(footprint, 0.2f);
            int j = floor_int(row);
            float column = u * 2.2f + (j & 1 ? 0.5f : 0.0f);
            int i = floor_int(column);
            float tone = hash_unit((uint32_t)i, (uint32_t)j, t.seed) - 0.5f;
            float fx = column - (float)i, fy = row - (float)j;
            bool mortar = fx < 0.05f || fy < 0.12f;
            float n = 0.2f * (noise.at(u * 0.7f + shift, v * 0.7f) - 0.5f);
            Vec brick = color * (1 + 0.45f * tone * visible + n);
            color = mortar ? mix(brick, Vec{0.35f, 0.34f, 0.32f}, 0.6f * visible) : brick;
            break;
        }
        case WINDOWS: {
            float width = 1.9f + (float)(t.seed >> 8 & 15) * 0.12f,
                  floor_height = 2.9f + (float)(t.seed >> 12 & 7) * 0.1f;
            float share_x = 0.45f + (float)(t.seed >> 16 & 7) * 0.05f,
                  share_y = 0.45f + (float)(t.seed >> 20 & 3) * 0.06f;
            float column = u / width, row = height / floor_height;
            int i = floor_int(column), j = floor_int(row);
            float fx = std::fabs(column - (float)i - 0.5f) * 2, fy = std::fabs(row - (float)j - 0.5f) * 2;
            float n = 0.2f * (noise.at(u * 0.6f + shift, v * 0.6f) - 0.5f) +
                      0.15f * (noise.at(u * 12, v * 12 + shift) - 0.5f) * fade(footprint, 0.1f);
            color = color * (1 + n);
            if (t.axis == 2) break;
            float visible = fade(footprint, 1.2f), tone = hash_unit((uint32_t)i, (uint32_t)j, t.seed);
            if (fx < share_x && fy < share_y) {
                Vec pane = tone < 0.72f ? Vec{0.03f, 0.04f, 0.05f}
                                        : (tone < 0.9f ? Vec{0.25f, 0.23f, 0.2f} : Vec{0.5f, 0.42f, 0.25f});
                bool bar = fx < 0.04f && fade(footprint, 0.15f) > 0.2f;
                color = mix(color, bar ? Vec{0.5f, 0.5f, 0.5f} : pane, visible);
                gloss = 0.75f * visible;
            } else if (fx < share_x + 0.07f && fy < share_y + 0.07f) {
                color = mix(color, Vec{0.6f, 0.6f, 0.58f}, 0.6f * visible);
            } else if (visible < 1) {
                color = color * (1 - 0.5f * share_x * share_y * (1 - visible));
            }
            break;
        }
        case FOLIAGE: {
            Float4 x{(u + 0.5f * v) * 2.2f + shift, u * 8 + shift, u * 25, 0},
                y{(v - 0.4f * u) * 2.2f, v * 8, v * 25 + shift, 0};
            Float4 grain = noise.at4(x, y) - 0.5f;
            float n = 1.1f * grain[0] * fade(footprint, 0.8f) + grain[1] * fade(footprint, 0.14f) +
                      0.9f * grain[2] * fade(footprint, 0.04f);
            color = color * std::max(0.15f, 1 + n);
            break;
        }
        case BARK: {
            float n = noise.at(u * 22 + shift, v * 2) - 0.5f;
            color = color * (1 + 0.9f * n * fade(footprint, 0.06f));
            break;
        }
        case RIBS: {
            float f = fraction(u * 3.6f), visible = fade(footprint, 0.28f);
            float wave = f < 0.5f ? 4 * f - 1 : 3 - 4 * f;
            color = color * (1 + visible * (0.22f * wave));
            break;
        }
        case PANELS: {
            float width = 1.1f + (float)(t.seed >> 4 & 7) * 0.12f;
            float a = fraction(u / width), b = fraction((v + 50.3f) / 1.3f), visible = fade(footprint, 0.06f);
            float n = 0.12f * (noise.at(u * 2 + shift, v * 2) - 0.5f);
            bool seam = a < 0.03f || b < 0.025f;
            color = color * (1 + n) * (seam ? 1 - 0.55f * std::max(visible, 0.25f) : 1.0f);
            break;
        }
        case HAZARD: {
            float f = fraction((u + v) * 2.4f);
            float wide = fade(footprint, 0.5f);
            Vec white{0.72f, 0.72f, 0.70f};
            color = mix(mix(color, white, 0.5f), f < 0.5f ? color : white, wide);
            break;
        }
        case BANDS: {
            float f = fraction(height * 4.0f + 0.35f);
            float wide = fade(footprint, 0.3f);
            Vec white{0.74f, 0.74f, 0.72f};
            bool bright = f > 0.6f && height > 0.12f;
            color = mix(mix(color, white, 0.3f), bright ? white : color, wide);
            break;
        }
        case CLOTH: {
            float n = noise.at(u * 7 + shift, v * 5 + shift) - 0.5f;
            color = color * (1 + 0.5f * n * fade(footprint, 0.15f));
            if ((t.seed & 3) == 0) {
                float f = fraction(v * 9.0f);
                if (f < 0.4f) color = color * (1 - 0.45f * fade(footprint, 0.11f));
            }
            break;
        }
        case BLOTCH: {
            float n =
                noise.at(u * 0.8f + shift, v * 0.8f) * 0.7f + 0.3f * noise.at(u * 2.3f, v * 2.3f + shift);
            uint32_t h = hash32(t.seed + 5);
            Vec other{0.02f + (float)(h & 255) * 0.003f, 0.02f + (float)(h >> 8 & 255) * 0.003f,
                      0.02f + (float)(h >> 16 & 255) * 0.003f};
            color = mix(color, other, smooth(0.52f, 0.56f, n) * fade(footprint, 1.0f));
            break;
        }
        case PLANKS: {
            float row = v * 5.5f;
            int j = floor_int(row);
            float f = row - (float)j, visible = fade(footprint, 0.18f);
            float tone = hash_unit((uint32_t)j, 3, t.seed) - 0.5f;
            float n = noise.at(u * 2 + shift + 17 * (float)j, v * 25) - 0.5f;
            color = color * (f < 0.12f ? 1 - 0.6f * visible : 1 + visible * (0.4f * tone + 0.25f * n));
            break;
        }
        default:
            break;
    }
}

Vec shade_triangle(const Frame& frame, const FrameTriangle& t, Vec ray, float inverse_depth) {
    const Scene& scene = frame.scene;
    const Light& light = scene.light;
    float depth = 1.0f / inverse_depth;
    const FrameInstance& instance = scene.frame_instances[(size_t)t.instance];
    const float* m = instance.object_from_world;
    Vec toward = ray * depth, c = toward;
    Vec p{m[0] * c.x + m[1] * c.y + m[2] * c.z + m[3], m[4] * c.x + m[5] * c.y + m[6] * c.z + m[7],
          m[8] * c.x + m[9] * c.y + m[10] * c.z + m[11]};
    float distance = std::sqrt(dot(toward, toward));
    Vec view = toward * (1.0f / distance);
    float facing = std::max(-dot(view, t.normal), 0.05f);
    float footprint = distance * frame.pixel / std::max(2 * facing, 0.5f);
    Vec color = t.color;
    float gloss = t.gloss;
    if (t.pattern != LAMP) paint(scene, t, p, p.z - instance.low_z, footprint, color, gloss);
    float world_z = frame.position.z + toward.z;
    float open = 1 - t.ambient_share * clamp01(1 - world_z * 1.4f);
    Vec result = color * t.light * open;
    if (t.pattern == LAMP) result = result + color * 0.45f;
    if (gloss > 0.02f) {
        float away = 1 - facing, fresnel = gloss * (0.08f + 0.72f * away * away * away);
        Vec mirror = view + t.normal * (2 * facing);
        Vec low =
            mix(light.horizon * 0.45f, (light.ambient + light.sun * 0.4f) * 0.14f, clamp01(-5 * mirror.z));
        // What stands around hides the lowest part of the sky.
        Vec seen = mirror.z > 0 ? mix(low, look_up_sky(scene, mirror), smooth(0.0f, 0.25f, mirror.z)) : low;
        result = result * (1 - fresnel) + seen * fresnel;
        float s = dot(mirror, light.to_sun);
        if (s > 0) {
            s *= s, s *= s, s *= s, s *= s, s *= s;
            result = result + light.sun * (gloss * 1.4f * s * s);
        }
    }
    return haze(scene, result, distance);
}

// The level of the ground's picture whose pixels are as large as `footprint`, and one over their size.
struct GroundView {
    int level;
    float per_metre;
};
inline GroundView ground_view(const Scene& scene, float footprint) {
    GroundView view{0, scene.per_metre};
    float cells = footprint * scene.per_metre;
    while (cells > 1.4f && view.level + 1 < (int)scene.levels.size())
        ++view.level, view.per_metre *= 0.5f, cells *= 0.5f;
    return view;
}

Vec shade_ground(const Frame& frame, Vec ray, float inverse_depth, float sun_share, float contact_share) {
    const Scene& scene = frame.scene;
    const Light& light = scene.light;
    Vec toward = ray * (1.0f / inverse_depth);
    float distance = std::sqrt(dot(toward, toward));
    float x = frame.position.x + toward.x, y = frame.position.y + toward.y;
    float across = distance * frame.pixel;
    float stretch = distance / std::max(-toward.z, 1e-3f);
    float along = across * std::min(stretch, 60.0f);
    // Long footprints are averaged over taps along the view, so that far lane marks stay narrow.
    int taps = stretch > 6 ? 4 : (stretch > 2 ? 2 : 1);
    float per_tap = std::max(across, along / (float)(2 * taps));
    float reach = std::sqrt(std::max(toward.x * toward.x + toward.y * toward.y, 1e-12f));
    float dx = toward.x / reach * along / (float)taps, dy = toward.y / reach * along / (float)taps;
    GroundView view = ground_view(scene, per_tap);
    Vec albedo{0, 0, 0};
    for (int i = 0; i < taps; ++i) {
        float k = (float)i - 0.5f * (float)(taps - 1);
        float u = (x + k * dx - scene.origin_x) * view.per_metre,
              v = (y + k * dy - scene.origin_y) * view.per_metre;
        albedo = albedo + scene.ground_pixel(view.level, u, v);
    }
    albedo = albedo * (1.0f / (float)taps);
    Float4 grain = scene.noise.at4(Float4{0.17f, 1.1f, 11.0f, 37.0f} * x + Float4{0, 9, 0, 0},
                                   Float4{0.17f, 1.1f, 11.0f, 37.0f} * y + Float4{0, 0, 5, 0}) -
                   0.5f;
    float n = 0.16f * grain[0] + 0.14f * grain[1] * fade(along, 1.5f) +
              0.22f * grain[2] * fade(along, 0.16f) + 0.3f * grain[3] * fade(along, 0.04f);
    albedo = albedo * albedo * (1 + n);
    Vec lit = light.sun * (light.to_sun.z * (1 - sun_share)) + light.ambient * (1 - 0.5f * contact_share);
    return haze(scene, albedo * lit, distance);
}

template <int samples>
void shade(Frame& frame, int width, int height, uint32_t seed, uint8_t* rgb, float* depth, int32_t* ids) {
    Scene& scene = frame.scene;
    const Screen& screen = frame.screen;
    const Light& light = scene.light;
    constexpr int total = samples * samples;
    const float share = 1.0f / (float)total;
    const float noise_scale =
        seed ? light.noise * 255.0f / 104.1f : 0.0f;  // 104.1: deviation of two bytes' sum
    const float middle_x = 0.5f * (float)(width - 1), middle_y = 0.5f * (float)(height - 1);
    const float corner = 1.0f / (middle_x * middle_x + middle_y * middle_y + 1.0f);
    std::vector<float> line_store((size_t)(3 * width)), grain_store((size_t)(3 * width), 0.0f);
    float *line = line_store.data(), *grain = grain_store.data();
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
            size_t place[total];
            int32_t number[total];
            bool same = true;
            for (int r = 0; r < total; ++r) {
                place[r] = (size_t)(samples * y + r / samples) * (size_t)screen.width +
                           (size_t)(samples * x + r % samples);
                number[r] = scene.numbers[place[r]];
                same = same && number[r] == number[0];
            }
            Vec color{0, 0, 0};
            int32_t main = kSky;
            float main_depth = 0;
            int most = 0;
            for (int first = 0; first < (same ? 1 : total); ++first) {
                // All samples of one surface are shaded once, at their middle.
                bool seen = false;
                for (int r = 0; r < first; ++r) seen = seen || number[r] == number[first];
                if (seen) continue;
                int count = 0, sum_x = 0, sum_y = 0, sun = 0, contact = 0;
                float inverse = 0;
                for (int r = first; r < total; ++r) {
                    if (number[r] != number[first]) continue;
                    uint8_t mark = scene.stencil[place[r]];
                    ++count;
                    sum_x += r % samples;
                    sum_y += r / samples;
                    inverse += scene.inverse_depth[place[r]];
                    sun += mark & kSunBit;
                    contact += (mark & kContactBit) != 0;
                }
                float part = 1.0f / (float)count;
                inverse *= part;
                Vec ray = frame.ray((float)(samples * x) + (float)sum_x * part,
                                    (float)(samples * y) + (float)sum_y * part);
                Vec value;
                if (number[first] == kSky) {
                    value = look_up_sky(scene, unit(ray));
                } else if (number[first] == kGround) {
                    value = shade_ground(frame, ray, inverse, (float)sun * part, (float)contact * part);
                } else {
                    const FrameTriangle& t = scene.triangles[(size_t)number[first]];
                    value = shade_triangle(frame, t, ray, inverse);
                    int dynamic = scene.frame_instances[(size_t)t.instance].dynamic;
                    if (dynamic >= 0) frame.counts[2 * dynamic] += count;
                }
                color = color + value * ((float)count * share);
                if (count > most) most = count, main = number[first], main_depth = inverse;
            }
            size_t pixel = (size_t)y * (size_t)width + (size_t)x;
            depth[pixel] = main == kSky ? INFINITY : 1.0f / main_depth;
            ids[pixel] =
                main == kSky
                    ? -1
                    : (main == kGround
                           ? 0
                           : scene.frame_instances[(size_t)scene.triangles[(size_t)main].instance].id);
            float dx = (float)x - middle_x, dy = (float)y - middle_y;
            float gain = light.exposure * (1 - light.vignette * (dx * dx + dy * dy) * corner);
            line[3 * x] = color.x * gain;
            line[3 * x + 1] = color.y * gain;
            line[3 * x + 2] = color.z * gain;
            if (seed) {
                uint64_t bits = ((uint64_t)seed << 32 | (uint64_t)pixel) * 0x9E3779B97F4A7C15ULL;
                bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL;
                bits ^= bits >> 29;
                for (int k = 0; k < 3; ++k)
                    grain[3 * x + k] =
                        (float)((int)(bits >> (16 * k + 8) & 255) + (int)(bits >> (16 * k + 16) & 255) - 255);
            }
        }
        // Exposure to bytes: bright light saturates softly, the root makes display values.
        uint8_t* out = rgb + 3 * (size_t)y * (size_t)width;
        for (int i = 0; i < 3 * width; ++i) {
            float v = std::max(line[i], 0.0f), over = std::max(v - 0.6f, 0.0f);
            v = std::min(v, 0.6f) + over / (1 + 1.25f * over);
            float byte = 255.0f * std::sqrt(std::min(v, 1.0f)) + noise_scale * grain[i] + 0.5f;
            out[i] = (uint8_t)(int)std::min(std::max(byte, 0.0f), 255.0f);
        }
    }
}

}  // namespace

API Scene* bevnext_scene_create(const Batch* batch, const uint8_t* albedo, int64_t rows, int64_t columns,
                                const double* place, const double* lighting, uint32_t cloud_seed) try {
    Scene* scene = new Scene(*batch);
    auto color = [&](int i) {
        return Vec{(float)lighting[i], (float)lighting[i + 1], (float)lighting[i + 2]};
    };
    scene->light = {color(0),
                    color(3),
                    color(6),
                    color(9),
                    color(12),
                    color(15),
                    (float)lighting[18],
                    (float)lighting[19],
                    (float)lighting[20],
                    (float)lighting[21],
                    (float)lighting[22]};
    scene->cloud_seed = hash32(cloud_seed + 1);
    scene->origin_x = (float)place[0];
    scene->origin_y = (float)place[1];
    scene->per_metre = (float)(1 / place[2]);
    scene->outside = {(float)place[3], (float)place[4], (float)place[5]};
    build_levels(*scene, albedo, rows, columns);
    paint_sky(*scene);
    scene->tree.build(scene->store.view);
    for (int64_t k = 0; k < batch->instances; ++k) scene->bounds.push_back(bounds_of(*batch, k));
    for (int64_t k = 0; k < batch->instances; ++k) {
        const Bounds& b = scene->bounds[(size_t)k];
        scene->sunlit.push_back(scene->sun_share(transform_of(*batch, k), b, b.radius * 1.05f));
    }
    return scene;
} catch (const std::bad_alloc&) {
    return nullptr;
}

API void bevnext_scene_destroy(Scene* scene) {
    delete scene;
}

API int bevnext_render(Scene* scene, const Batch* dynamic, const double* pinhole,
                       const double* camera_from_world, int64_t width, int64_t height, int64_t samples,
                       uint32_t seed, uint8_t* rgb, float* depth, int32_t* ids, int64_t* counts) try {
    double s = (double)samples;
    Screen screen{(int)(width * samples), (int)(height * samples),      pinhole[0] * s,
                  pinhole[1] * s,         pinhole[2] * s + (s - 1) / 2, pinhole[3] * s + (s - 1) / 2};
    Affine camera;
    std::copy(camera_from_world, camera_from_world + 12, camera.m);
    Affine back = rigid_inverse(camera);
    auto axis = [&](int i) { return Vec{(float)back.m[i], (float)back.m[4 + i], (float)back.m[8 + i]}; };
    Affine camera_from_eye = camera;
    camera_from_eye.m[3] = camera_from_eye.m[7] = camera_from_eye.m[11] = 0;
    Frame frame{*scene,
                screen,
                camera,
                camera_from_eye,
                axis(0),
                axis(1),
                axis(2),
                axis(3),
                counts,
                (float)(1 / screen.fx),
                (float)(1 / screen.fy),
                (float)(1 / pinhole[0])};
    size_t total = (size_t)screen.width * (size_t)screen.height;
    scene->inverse_depth.resize(total);
    scene->numbers.resize(total);
    scene->stencil.assign(total, 0);
    scene->stamp.assign(total, 0);
    scene->triangles.clear();
    scene->frame_instances.clear();
    // The ground plane first: its inverse depth is linear on the screen as well.
    double camera_height = back.m[11];
    bool above = camera_height > 1e-3;
    for (int y = 0; y < screen.height; ++y) {
        double ry = (y - screen.cy) / screen.fy;
        double start =
            above ? -(back.m[8] * (-screen.cx / screen.fx) + back.m[9] * ry + back.m[10]) / camera_height
                  : -1;
        float step = above ? (float)(-back.m[8] / screen.fx / camera_height) : 0.0f;
        float* z = &scene->inverse_depth[(size_t)y * (size_t)screen.width];
        int32_t* numbers = &scene->numbers[(size_t)y * (size_t)screen.width];
        for (int x = 0; x < screen.width; ++x) {
            float value = (float)start + step * (float)x;
            bool ground = value > 1e-6f;
            z[x] = ground ? value : 0.0f;
            numbers[x] = ground ? kGround : kSky;
        }
    }
    const Batch& still = scene->store.view;
    std::vector<Bounds> bounds;
    for (int64_t k = 0; k < dynamic->instances; ++k) bounds.push_back(bounds_of(*dynamic, k));
    for (int64_t k = 0; k < dynamic->instances; ++k) {
        const Bounds& b = bounds[(size_t)k];
        draw_instance(frame, *dynamic, k, b, scene->sun_share(transform_of(*dynamic, k), b, 0.0f), (int)k);
    }
    for (int64_t k = 0; k < still.instances; ++k)
        draw_instance(frame, still, k, scene->bounds[(size_t)k], scene->sunlit[(size_t)k], -1);
    if (above) {
        Vec sun = scene->light.to_sun, up{0, 0, 1};
        bool shines = scene->light.sun.x + scene->light.sun.y + scene->light.sun.z > 0;
        for (int64_t k = 0; k < dynamic->instances; ++k) {
            if (shines) draw_shadow(frame, *dynamic, k, bounds[(size_t)k], sun, kSunBit);
            draw_shadow(frame, *dynamic, k, bounds[(size_t)k], up, kContactBit);
        }
        for (int64_t k = 0; k < still.instances; ++k) {
            const Bounds& b = scene->bounds[(size_t)k];
            if (shines) draw_shadow(frame, still, k, b, sun, kSunBit);
            if (b.radius < 3) draw_shadow(frame, still, k, b, up, kContactBit);
        }
    }
    if (samples == 2)
        shade<2>(frame, (int)width, (int)height, seed, rgb, depth, ids);
    else
        shade<1>(frame, (int)width, (int)height, seed, rgb, depth, ids);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

API int bevnext_raycast(const Scene* scene, const Batch* dynamic, int64_t count, const double* origins,
                        const double* directions, double max_range, float* distances, int32_t* ids,
                        float* intensity) try {
    Tree moving;
    moving.build(*dynamic);
    for (int64_t i = 0; i < count; ++i) {
        const double *o = origins + 3 * i, *d = directions + 3 * i;
        Vec origin{(float)o[0], (float)o[1], (float)o[2]}, direction{(float)d[0], (float)d[1], (float)d[2]};
        float limit = (float)max_range;
        bool ground = false;
        if (o[2] > 0 && d[2] < 0 && -o[2] / d[2] <= max_range) {
            limit = (float)(-o[2] / d[2]);
            ground = true;
        }
        Hit still = scene->tree.cast(origin, direction, limit);
        Hit moved = moving.cast(origin, direction, still.distance);
        const RayTriangle* t = moved.triangle ? moved.triangle : still.triangle;
        if (t) {
            const Batch& batch = moved.triangle ? *dynamic : scene->store.view;
            const float* c = batch.colors + 3 * t->face;
            float bright = (c[0] + c[1] + c[2]) * (1.0f / 3.0f);
            float facing = std::fabs(dot(unit(cross(t->edge1, t->edge2)), direction));
            distances[i] = moved.distance;
            ids[i] = batch.ids[t->instance];
            intensity[i] = 255.0f * clamp01(bright * bright * (0.25f + 0.6f * facing) +
                                            0.15f * batch.gloss[t->face] * facing);
        } else if (ground) {
            float x = (float)(o[0] + d[0] * limit) - scene->origin_x,
                  y = (float)(o[1] + d[1] * limit) - scene->origin_y;
            Vec a = scene->ground_pixel(0, x * scene->per_metre, y * scene->per_metre);
            float bright = (a.x + a.y + a.z) * (1.0f / 3.0f);
            distances[i] = limit;
            ids[i] = 0;
            intensity[i] = 255.0f * clamp01(bright * bright * (0.3f - 0.5f * (float)d[2]));
        } else {
            distances[i] = INFINITY;
            ids[i] = -1;
            intensity[i] = 0;
        }
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
