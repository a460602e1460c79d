// Pooling of 2x2 windows behind a convolution. POOL: 0 none, 1 maximum, 2 mean.
#pragma once

#include "_device.cuh"

namespace tilesmith {

enum Pooling { NO_POOL, MAX_POOL, AVG_POOL };

template <typename A>
struct Pooled {
    A value;
    unsigned char code;
};

// A window's maximum or mean, and what a backward needs to know of it: the tap of the maximum (of equal ones the first,
// of NaNs the last), or behind a ReLU one bit for each tap that its gradient passes: it is not stopped where that is NaN.
template <int POOL_KIND, int ACTIVATION_KIND, typename A>
__device__ inline Pooled<A> pooled(const A (&tap)[4]) {
    Pooled<A> result = {tap[0], 0};
    if (POOL_KIND == MAX_POOL) {
#pragma unroll
        for (int t = 1; t < 4; ++t)
            if (tap[t] > result.value || tap[t] != tap[t]) result = {tap[t], static_cast<unsigned char>(t)};
        return result;
    }
    result.value = (tap[0] + tap[1] + tap[2] + tap[3]) * A(0.25);
    if (ACTIVATION_KIND == RELU) {
#pragma unroll
        for (int t = 0; t < 4; ++t)
            if (!(tap[t] <= A(0))) result.code |= 1 << t;
    }
    return result;
}

// What one tap gets of its window's gradient.
template <int POOL_KIND, bool HAS_CODE, typename A>
__device__ inline A share_of(A gradient, unsigned char code, int tap) {
    if (POOL_KIND == MAX_POOL) return code == tap ? gradient : A(0);
    return !HAS_CODE || code >> tap & 1 ? gradient * A(0.25) : A(0);
}

}  // namespace tilesmith
