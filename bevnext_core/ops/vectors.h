// SPDX-License-Identifier: Apache-2.0
// Vectors of values side by side, in GCC's and Clang's notation, for the C++ parts.

#pragma once

#include <cstdint>
#include <cstring>

// Vectors wider than the processor's are split; how one would be passed to another library plays no part.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

// One vector of values; the compiler splits it where the processor's registers are narrower.
constexpr int kBytes = 64;
template <typename T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
template <typename T>
struct VecOf {
    typedef T type __attribute__((vector_size(kBytes)));
    typedef double wide __attribute__((vector_size(kBytes / sizeof(T) * sizeof(double))));
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
using Wide = typename VecOf<T>::wide;

template <typename T>
inline Vec<T> load(const T* from) {
    Vec<T> value;
    std::memcpy(&value, from, kBytes);
    return value;
}

template <typename T>
inline void store(T* to, Vec<T> value) {
    std::memcpy(to, &value, kBytes);
}

}  // namespace
