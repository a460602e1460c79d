// Windows too large, or too few, for a thread each: a block reduces one, or a part of one, in a fixed order.
//
// With channels inside, LANES neighbouring threads take WIDTH channels each and the others the next pixels; in a plane,
// all threads walk along its rows, VECTOR elements at a time. Of several parts (`splits`) each leaves its result, and
// `finish` puts them together.
//
// Macros: those of _windows.cuh and _folds.cuh; THREADS; INSIDE (1: those of _channels.cuh; 0: planes); VECTOR (planes:
// elements of 16 bytes where columns lie side by side, else 1); PITCH (_slide.cuh); SPLIT (1: there are several parts).
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"
#if INSIDE
#include "pool2d/_channels.cuh"
#endif

using namespace tilesmith;

#ifndef FINISH

#if INSIDE
constexpr int SLOTS = THREADS / LANES, WIDE = WIDTH;
#else
constexpr int SLOTS = THREADS, WIDE = 1;
#endif

// Adds the parts of all slots to those of slot 0, by halves.
__device__ inline void combine(Fold (&fold)[WIDE]) {
    __shared__ Fold parts[THREADS][WIDE];
    const int slot = threadIdx.x / (THREADS / SLOTS);
#pragma unroll
    for (int half = SLOTS / 2; half > 0; half /= 2) {
        if (slot >= half && slot < 2 * half) {
#pragma unroll
            for (int v = 0; v < WIDE; ++v) parts[threadIdx.x][v] = fold[v];
        }
        __syncthreads();
        if (slot < half) {
#pragma unroll
            for (int v = 0; v < WIDE; ++v) fold[v].add(parts[threadIdx.x + half * (THREADS / SLOTS)][v]);
        }
    }
}

// The results of WIDE windows side by side. Of a part of them, means are divided already; of whole windows, rounded.
__device__ inline void leave(const Fold (&fold)[WIDE], Share share, long long place, int split, long long outputs,
                             Element* y, Where* index, Accumulator* parts, int* part_places) {
#if SPLIT
    const long long at = split * outputs + place;
#pragma unroll
    for (int v = 0; v < WIDE; ++v) {
        parts[at + v] = result(fold[v], share);
#if WHERE
        part_places[at + v] = fold[v].place;
#endif
    }
#else
    Values<WIDE> values;
    Places<WIDE> places;
#pragma unroll
    for (int v = 0; v < WIDE; ++v) {
        values.set(v, narrow<Element>(result(fold[v], share)));
#if WHERE
        places.set(v, Where(fold[v].place));
#endif
    }
    values.store(y + place);
    if (WHERE) places.store(index + place);
#endif
}

// What place a tap has in the result: its number, or where it is in the plane.
struct Numbering {
    int first, row_step, column_step;

    __device__ Numbering(const Run& rows, const Run& columns, int tap_h, int tap_w, int width)
        : first(WHERE == 1 ? tap_h * PITCH + tap_w : rows.first * width + columns.first),
          row_step(WHERE == 1 ? PITCH : rows.step * width), column_step(WHERE == 1 ? 1 : columns.step) {}
    __device__ int operator()(int row, int column) const { return first + row * row_step + column * column_step; }
};

#if INSIDE

extern "C" __global__ void __launch_bounds__(THREADS, 1)
reduce_channels(const Element* x, Element* y, Where* index, Accumulator* parts, int* part_places, int channels,
                int channel_blocks, int splits, long long outputs, unsigned long long by_p, unsigned long long by_q,
                AXIS(h), AXIS(w), long long x_n, long long x_c, long long x_h, long long x_w) {
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const int unit = blockIdx.x / channel_blocks, window = unit / splits, split = unit - window * splits;
    const int channel = ((blockIdx.x - unit * channel_blocks) * LANES + lane) * WIDTH;
    const int line = Divisor(by_q)(window), q = window - line * w.count;
    const int n = Divisor(by_p)(line), p = line - n * h.count;
    int tap_h, tap_w;
    const Run rows = h.elements(p, tap_h), columns = w.elements(q, tap_w);
    const Numbering numbers(rows, columns, tap_h, tap_w, w.size);
    Fold fold[WIDTH];
#pragma unroll
    for (int v = 0; v < WIDTH; ++v) fold[v].clear(numbers.first);
    const Image image(x + n * x_n + channel * x_c, h.size, w.size, x_c, x_h, x_w);
    const int each = (rows.count * columns.count + splits - 1) / splits;
    const int last = min((split + 1) * each, rows.count * columns.count);
    // From a slot's element to its next one, in rows and columns
    const int across = max(columns.count, 1), down = SLOTS / across, right = SLOTS % across;
    const auto walk = [&](auto visit) {
        int i = split * each + slot, r = i / across, s = i % across;
#pragma unroll 4
        for (; i < last; i += SLOTS) {
            visit(image(rows.first + r * rows.step, columns.first + s * columns.step), numbers(r, s));
            r += down, s += right;
            if (s >= across) ++r, s -= across;
        }
    };
    if (channel < channels) {
        walk([&](const Values<WIDTH>& values, int at) {
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) fold[v].add(widen(values.get(v)), at);
        });
        bool any_nan = false;
#pragma unroll
        for (int v = 0; v < WIDTH; ++v) any_nan = any_nan || fold[v].is_nan();
        if (any_nan)
            walk([&](const Values<WIDTH>& values, int at) {
#pragma unroll
                for (int v = 0; v < WIDTH; ++v) fold[v].mark(widen(values.get(v)), at);
            });
    }
    combine(fold);
    if (slot > 0 || channel >= channels) return;
    const long long place = (long long)window * channels + channel;
    const Share share = MAXIMUM ? Share() : share_of(h.counted(p)) * share_of(w.counted(q));
    leave(fold, share, place, split, outputs, y, index, parts, part_places);
}

#else

extern "C" __global__ void __launch_bounds__(THREADS, 1)
reduce_planes(const Element* x, Element* y, Where* index, Accumulator* parts, int* part_places, int channels,
              int splits, long long outputs, unsigned long long by_p, unsigned long long by_q,
              unsigned long long by_channels, AXIS(h), AXIS(w), long long x_n, long long x_c, long long x_h,
              long long x_w) {
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const int window = blockIdx.x / splits, split = blockIdx.x - window * splits;
    const int line = Divisor(by_q)(window), q = window - line * w.count;
    const int plane = Divisor(by_p)(line), p = line - plane * h.count;
    const int n = Divisor(by_channels)(plane), c = plane - n * channels;
    int tap_h, tap_w;
    Run rows = h.elements(p, tap_h), columns = w.elements(q, tap_w);
    const Numbering numbers(rows, columns, tap_h, tap_w, w.size);
    Fold fold[1];
    fold[0].clear(numbers.first);
    const Element* from = x + n * x_n + c * x_c + rows.first * x_h + columns.first * x_w;
    // Whole rows are one run
    if (VECTOR > 1 && WHERE != 1 && columns.count == w.size && x_h == w.size && rows.step == 1)
        columns.count *= rows.count, rows.count = min(rows.count, 1);
    // Each run in slots of 16 bytes, the ends in parts of them
    const int slots = VECTOR > 1 ? (columns.count + VECTOR - 1) / VECTOR + 1 : columns.count;
    const int each = (rows.count * slots + splits - 1) / splits, last = min((split + 1) * each, rows.count * slots);
    const auto walk = [&](auto visit) {
#pragma unroll 2
        for (int i = split * each + threadIdx.x; i < last; i += THREADS) {
            const int r = i / slots, slot = i - r * slots;
            const Element* run = from + r * rows.step * x_h;
#if VECTOR > 1
            const int begin = slot * VECTOR - int((unsigned long long)run / sizeof(Element) % VECTOR);
            if (begin >= 0 && begin + VECTOR <= columns.count) {
                const Pack<Element, VECTOR> some = *reinterpret_cast<const Pack<Element, VECTOR>*>(run + begin);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) visit(widen(some.value[e]), numbers(r, begin + e));
            } else {
                for (int e = max(begin, 0); e < min(begin + VECTOR, columns.count); ++e)
                    visit(widen(run[e]), numbers(r, e));
            }
#else
            visit(widen(run[slot * columns.step * x_w]), numbers(r, slot));
#endif
        }
    };
    walk([&](Accumulator v, int at) { fold[0].add(v, at); });
    if (fold[0].is_nan()) walk([&](Accumulator v, int at) { fold[0].mark(v, at); });
    combine(fold);
    if (threadIdx.x > 0) return;
    const Share share = MAXIMUM ? Share() : share_of(h.counted(p)) * share_of(w.counted(q));
    leave(fold, share, window, split, outputs, y, index, parts, part_places);
}

#endif

#else  // ---- the parts together

extern "C" __global__ void __launch_bounds__(THREADS, 1)
finish(const Accumulator* parts, const int* part_places, Element* y, Where* index, int splits, long long outputs) {
    const long long number = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (number >= outputs) return;
    Fold fold;
    fold.clear(0);
    for (int split = 0; split < splits; ++split) {
        Fold part;
        part.clear(WHERE ? part_places[split * outputs + number] : 0);
        part.value = parts[split * outputs + number];
        if (split == 0) fold = part;
        else fold.add(part);
    }
    y[number] = narrow<Element>(fold.value);
#if WHERE
    index[number] = Where(fold.place);
#endif
}

#endif
