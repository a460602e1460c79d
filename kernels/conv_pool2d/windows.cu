// 2x2 windows that do not overlap, with what stands around them here: pooling with codes, and its gradient.
//
// A thread takes UNIT neighbouring windows: of neighbouring channels where those are innermost in memory, else
// (ALONG_COLUMNS) of one row of a plane, whose 2 · UNIT columns it reads or writes at once if they are PAIRED.
//
// Macros: ELEMENT, INDEX, POOL, ACTIVATION, CODE, UNIT, ALONG_COLUMNS, PAIRED, PACKED (dy is read UNIT at once).
#include "conv2d/_pool.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;
typedef INDEX Index;
typedef Pack<Element, UNIT> Values;
typedef Pack<unsigned char, UNIT> Codes;
typedef Pack<Element, 2 * UNIT> Row;

// The windows of one thread: the first one's image, channel, row and column.
struct Windows {
    int n, c, p, q;

    __device__ Windows(int number, int units, int channels, int P, int Q, Divisor by_units, Divisor by_image,
                       Divisor by_line) {
        const int rest = by_units(number), unit = (number - rest * units) * UNIT;
        n = by_image(rest);
        if (ALONG_COLUMNS) {
            const int line = rest - n * (channels * P);
            c = by_line(line), p = line - c * P, q = unit;
        } else {
            const int pixel = rest - n * (P * Q);
            p = by_line(pixel), q = pixel - p * Q, c = unit;
        }
    }
};

extern "C" __global__ void pool(const Element* z, Element* y, unsigned char* code, int count, int units, int channels,
                                int P, int Q, unsigned long long by_units, unsigned long long by_image,
                                unsigned long long by_line, long long z_n, long long z_c, long long z_h, long long z_w,
                                long long y_n, long long y_c, long long y_h, long long y_w) {
    const long long number = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Windows at(int(number), units, channels, P, Q, Divisor(by_units), Divisor(by_image), Divisor(by_line));
    const Element* from = z + at.n * Index(z_n) + at.c * Index(z_c) + 2 * at.p * Index(z_h) + 2 * at.q * Index(z_w);
    Accumulator taps[UNIT][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (PAIRED) {
            const Row row = *reinterpret_cast<const Row*>(from + i * Index(z_h));
#pragma unroll
            for (int v = 0; v < 2 * UNIT; ++v) taps[v / 2][2 * i + v % 2] = widen(row.value[v]);
        } else {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const Values values = *reinterpret_cast<const Values*>(from + i * Index(z_h) + j * Index(z_w));
#pragma unroll
                for (int v = 0; v < UNIT; ++v) taps[v][2 * i + j] = widen(values.value[v]);
            }
        }
    }
    Values results;
    Codes codes;
#pragma unroll
    for (int v = 0; v < UNIT; ++v) {
        const Pooled<Accumulator> result = pooled<POOL, ACTIVATION>(taps[v]);
        results.value[v] = narrow<Element>(result.value), codes.value[v] = result.code;
    }
    const Index to = at.n * Index(y_n) + at.c * Index(y_c) + at.p * Index(y_h) + at.q * Index(y_w);
    *reinterpret_cast<Values*>(y + to) = results;
    if (CODE) *reinterpret_cast<Codes*>(code + to) = codes;
}

// P x Q windows cover the plane H x W, of which whole_p x whole_q are whole: an odd last row or column has gradient 0.
extern "C" __global__ void unpool(const Element* dy, const Element* y, const unsigned char* code, Element* dz, int count,
                                  int units, int channels, int P, int Q, int whole_p, int whole_q, int H, int W,
                                  unsigned long long by_units, unsigned long long by_image, unsigned long long by_line,
                                  long long dy_n, long long dy_c, long long dy_h, long long dy_w, long long y_n,
                                  long long y_c, long long y_h, long long y_w, long long z_n, long long z_c,
                                  long long z_h, long long z_w) {
    const long long number = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Windows at(int(number), units, channels, P, Q, Divisor(by_units), Divisor(by_image), Divisor(by_line));
    Accumulator gradient[UNIT];
    Codes codes = {};
    if (at.p < whole_p && at.q < whole_q) {  // of windows along a row all are whole, or there is only one
        const Element* from = dy + at.n * Index(dy_n) + at.c * Index(dy_c) + at.p * Index(dy_h) + at.q * Index(dy_w);
        const Index saved = at.n * Index(y_n) + at.c * Index(y_c) + at.p * Index(y_h) + at.q * Index(y_w);
        Values values;
        if (PACKED) {
            values = *reinterpret_cast<const Values*>(from);
        } else {
#pragma unroll
            for (int v = 0; v < UNIT; ++v) values.value[v] = from[v * Index(ALONG_COLUMNS ? dy_w : dy_c)];
        }
#pragma unroll
        for (int v = 0; v < UNIT; ++v) gradient[v] = widen(values.value[v]);
        if (ACTIVATION != NONE) {
            const Values outputs = *reinterpret_cast<const Values*>(y + saved);
#pragma unroll
            for (int v = 0; v < UNIT; ++v) {
                const Accumulator output = widen(outputs.value[v]);
                if (ACTIVATION == RELU) gradient[v] = output <= Accumulator(0) ? Accumulator(0) : gradient[v];
                else gradient[v] *= ACTIVATION == SIGMOID ? output * (1 - output) : 1 - output * output;
            }
        }
        if (CODE) codes = *reinterpret_cast<const Codes*>(code + saved);
    } else {
#pragma unroll
        for (int v = 0; v < UNIT; ++v) gradient[v] = 0, codes.value[v] = 0;
    }
    Element* to = dz + at.n * Index(z_n) + at.c * Index(z_c) + 2 * at.p * Index(z_h) + 2 * at.q * Index(z_w);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (2 * at.p + i >= H) break;
        if (PAIRED) {
            Row row;
#pragma unroll
            for (int v = 0; v < 2 * UNIT; ++v)
                row.value[v] = narrow<Element>(share_of<POOL, CODE>(gradient[v / 2], codes.value[v / 2], 2 * i + v % 2));
            *reinterpret_cast<Row*>(to + i * Index(z_h)) = row;
            continue;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (2 * at.q + j >= W) break;
            Values values;
#pragma unroll
            for (int v = 0; v < UNIT; ++v)
                values.value[v] = narrow<Element>(share_of<POOL, CODE>(gradient[v], codes.value[v], 2 * i + j));
            *reinterpret_cast<Values*>(to + i * Index(z_h) + j * Index(z_w)) = values;
        }
    }
}
