// ddy = ddx at the place of each window's maximum: the derivative of what backward does with an index.
//
// One window a thread, in the order in which ddy lies in memory. Macros: those of _windows.cuh and _folds.cuh; INSIDE
// (ddy has channels inside), PITCH (_slide.cuh), THREADS.
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"

using namespace tilesmith;

__device__ inline Index quotient(Index n, int d, unsigned long long by_d) {
    return sizeof(Index) == 4 ? Index(Divisor(by_d)(int(n))) : n / d;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gather(const Element* ddx, const Where* index, Element* ddy, long long windows, int channels,
       unsigned long long by_channels, unsigned long long by_p, unsigned long long by_q, AXIS(h), AXIS(w),
       long long ddx_n, long long ddx_c, long long ddx_h, long long ddx_w, long long index_n, long long index_c,
       long long index_p, long long index_q) {
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const long long number = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (number >= windows) return;
    Index rest = Index(number), n, c, p, q;
#if INSIDE
    n = quotient(rest, channels, by_channels), c = rest - n * channels, rest = n;
#endif
    n = quotient(rest, w.count, by_q), q = rest - n * w.count, rest = n;
    n = quotient(rest, h.count, by_p), p = rest - n * h.count, rest = n;
#if !INSIDE
    n = quotient(rest, channels, by_channels), c = rest - n * channels;
#endif
    const Where where = index[n * index_n + c * index_c + p * index_p + q * index_q];
#if WHERE == 1
    const long long row = h.element(int(p), where / PITCH), column = w.element(int(q), where % PITCH);
#else
    const long long row = where / w.size, column = where % w.size;
#endif
    const bool real = row >= 0 && row < h.size && column >= 0 && column < w.size;
    ddy[number] = real ? ddx[n * ddx_n + c * ddx_c + row * ddx_h + column * ddx_w] : narrow<Element>(0);
}
