// Pooling forward: maxima or means of windows that fit into registers or shared memory.
//
// Macros: those of _windows.cuh, _folds.cuh and _slide.cuh, and
// - THREADS.
// - INSIDE (1: channels lie inside, and a thread takes WIDTH of them; 0: planes, by bands in shared memory).
// - inside: LANES (neighbouring threads that are neighbouring channels), DOWN (neighbouring tiles that lie below each
//   other), TOGETHER (_channels.cuh).
// - planes: FLAT (boxes have whole rows), DENSE (the input's rows and planes are), SOURCE_RUNS (_bands.cuh),
//   MASKED (columns outside have no place of their own), SLIDING (1; 0: TEAM threads reduce a window).
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"
#if INSIDE
#include "pool2d/_channels.cuh"
#else
#include "pool2d/_bands.cuh"
#endif
#if SLIDING
#include "pool2d/_slide.cuh"
#endif

using namespace tilesmith;

#if INSIDE

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward_channels(const Element* x, Element* y, Where* index, int channels, int channel_blocks, int positions,
                 int groups, int tiles, unsigned long long by_groups, unsigned long long by_tiles, AXIS(h), AXIS(w),
                 long long x_n, long long x_c, long long x_h, long long x_w) {
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const Tile at(DOWN, channel_blocks, groups, tiles, by_groups, by_tiles);
    if (at.number >= positions || at.channel >= channels || at.down * ROWS >= h.count) return;
    const Image image(x + at.image * x_n + at.channel * x_c, h.size, w.size, x_c, x_h, x_w);
    const int first_p = at.down * ROWS, first_q = at.right * COLS;
    const int top = first_p * STRIDE_H - h.padding, left = first_q * STRIDE_W - w.padding;
    Folds<WIDTH> best[ROWS][COLS];
    slide(best, image, top, left);

    const long long first = at.image * h.count * w.count * channels + at.channel;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLS; ++c) {
            const int p = first_p + r, q = first_q + c;
            if (p >= h.count || q >= w.count) continue;
            const long long place = first + (Index(p) * w.count + q) * Index(channels);
            const Share share = MAXIMUM ? Share() : share_of(h.counted(p)) * share_of(w.counted(q));
            Values<WIDTH> values;
            Places<WIDTH> places;
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) {
                values.set(v, best[r][c].result(v, share));
                if (WHERE)
                    places.set(v, where_is(best[r][c].code(v), top + r * STRIDE_H, left + c * STRIDE_W, w.size));
            }
            values.store(y + place);
            if (WHERE) places.store(index + place);
        }
}

#else  // ---- planes

typedef Band<Element, SOURCE_RUNS> Source;
typedef Band<Element, FLAT ? ONE_RUN : ROW_RUNS> Result;
typedef Band<Where, FLAT ? ONE_RUN : ROW_RUNS> ResultPlaces;

#if SLIDING

// A plane of a band; what is outside of it is nothing() there. Element v of a tile is `apart` · v windows further right.
struct Staged {
    const Source& band;
    int plane, start, apart, W;

    __device__ Staged(const Source& band, int plane, int apart, int W)
        : band(band), plane(plane), start((Source::LINEAR ? band.row(plane, 0) : 0) - band.columns.first),
          apart(apart * STRIDE_W), W(W) {}

    __device__ int shift(int v) const { return v * apart; }
    __device__ Values<WIDTH> operator()(int row, int column) const {
        const int line = row - band.rows.first;
        const Element* from =
            band.memory + ((Source::LINEAR ? line * band.width : band.row(plane, line)) + (start + column));
        Values<WIDTH> values;
        Inside<WIDTH> inside;
#pragma unroll
        for (int v = 0; v < WIDTH; ++v) {
            values.set(v, from[shift(v)]);
            inside.set(v, unsigned(column + shift(v)) < unsigned(W));
        }
        if (MASKED) values.keep(inside);
        return values;
    }
};

#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward_planes(const Element* x, Element* y, Where* index, int planes, int group, int groups, int band_rows, int bands,
               int segment, int segments, int tiles_h, int tiles_w, int x_pitch, int y_pitch, int index_pitch, int x_at,
               int y_at, int index_at, int shares_at, int across, unsigned long long by_groups, unsigned long long by_bands,
               unsigned long long by_segments, unsigned long long by_tiles_h, unsigned long long by_tiles_w, AXIS(h),
               AXIS(w), long long x_n, long long x_c, long long x_h, long long x_w) {
    extern __shared__ __align__(16) unsigned char memory[];
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const Box box(planes, group, groups, h.count, band_rows, bands, w.count, segment, segments, by_groups, by_bands,
                  by_segments);

    // The input under the box
    const int last_p = box.first_row + box.rows - 1, last_q = box.first_column + box.columns - 1;
#if SLIDING
    const int top = box.first_row * STRIDE_H - h.padding, left = box.first_column * STRIDE_W - w.padding;
    const Extent rows(top, last_p * STRIDE_H - h.padding + (KERNEL_H - 1) * DILATION_H + 1, h.size);
    const Extent columns(SOURCE_RUNS == ROW_RUNS ? left : 0,
                         SOURCE_RUNS == ROW_RUNS ? last_q * STRIDE_W - w.padding + (KERNEL_W - 1) * DILATION_W + 1 : w.size,
                         w.size);
#else
    const Extent rows(h.begin(box.first_row), h.end(last_p), h.size);
    const Extent columns(FLAT ? 0 : w.begin(box.first_column), FLAT ? w.size : w.end(last_q), w.size);
#endif
    const Element* plane = x + box.image * x_n + box.first_plane * x_c;
    const Source source(memory + x_at, DENSE ? plane : nullptr, box.planes, rows, columns, w.size, h.size, x_pitch);
#if DENSE
    source.load(plane);
#else
    source.load(plane, x_c, x_h, x_w);
#endif
    source.fill(nothing());
#if !MAXIMUM
    Share* of_rows = reinterpret_cast<Share*>(memory + shares_at);
    Share* of_columns = of_rows + tiles_h * ROWS;
    for (int i = threadIdx.x; i < box.rows; i += THREADS) of_rows[i] = share_of(h.counted(box.first_row + i));
    for (int i = threadIdx.x; i < box.columns; i += THREADS) of_columns[i] = share_of(w.counted(box.first_column + i));
#endif
    wait_for_bands();

    const Extent out_rows(box.first_row, last_p + 1, h.count), out_columns(box.first_column, last_q + 1, w.count);
    const long long first = (box.image * planes + box.first_plane) * h.count * w.count;
    const Result out(memory + y_at, y + first, box.planes, out_rows, out_columns, w.count, h.count, y_pitch);
    const ResultPlaces places(memory + index_at, index + first, box.planes, out_rows, out_columns, w.count, h.count,
                        index_pitch);

    const Divisor by_columns(by_tiles_w), by_rows(by_tiles_h);
#if SLIDING
    const int apart = tiles_w * COLS;
#pragma unroll 1
    for (int item = threadIdx.x; item < box.planes * tiles_h * tiles_w; item += THREADS) {
        const int line = by_columns(item), first_q = (item - line * tiles_w) * COLS;
        const int g = by_rows(line), first_p = (line - g * tiles_h) * ROWS;
        if (first_p >= box.rows) continue;
        Folds<WIDTH> best[ROWS][COLS];
        const int start_h = top + first_p * STRIDE_H, start_w = left + first_q * STRIDE_W;
        slide(best, Staged(source, g, apart, w.size), start_h, start_w);
        Share of_row[ROWS] = {}, of_column[COLS][WIDTH] = {};
#if !MAXIMUM
#pragma unroll
        for (int r = 0; r < ROWS; ++r) of_row[r] = of_rows[first_p + r];
#pragma unroll
        for (int c = 0; c < COLS; ++c)
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) of_column[c][v] = of_columns[first_q + c + v * apart];
#endif
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int p = first_p + r, place = out.row(g, p) + first_q, where = places.row(g, p) + first_q;
#pragma unroll
            for (int c = 0; c < COLS; ++c)
#pragma unroll
                for (int v = 0; v < WIDTH; ++v) {
                    const int right = c + v * apart;
                    const bool real = p < box.rows && first_q + right < box.columns;
                    const Element value = best[r][c].result(v, of_row[r] * of_column[c][v]);
                    if (real) out.memory[place + right] = value;
#if WHERE
                    const Where found = where_is(best[r][c].code(v), start_h + r * STRIDE_H, start_w + right * STRIDE_W,
                                                 w.size);
                    if (real) places.memory[where + right] = found;
#endif
                }
        }
    }
#else
    // A window's elements are dealt to its threads by columns (`across` of them) and rows
    const int lane = threadIdx.x % TEAM, lane_row = lane / across, lane_column = lane % across;
    const unsigned team = (TEAM == 32 ? ~0u : (1u << TEAM) - 1u) << threadIdx.x % 32 / TEAM * TEAM;
#pragma unroll 1
    for (int item = threadIdx.x / TEAM; item < box.planes * tiles_h * tiles_w; item += THREADS / TEAM) {
        const int line = by_columns(item), q = item - line * tiles_w;
        const int g = by_rows(line), p = line - g * tiles_h;
        if (p >= box.rows || q >= box.columns) continue;
        int tap_h, tap_w;
        const Run down = h.elements(box.first_row + p, tap_h), right = w.elements(box.first_column + q, tap_w);
        const int row_step = WHERE == 1 ? PITCH : down.step * w.size, column_step = WHERE == 1 ? 1 : right.step;
        const int place = WHERE == 1 ? tap_h * PITCH + tap_w : down.first * w.size + right.first;
        const auto each = [&](auto visit) {
            for (int r = lane_row; r < down.count; r += TEAM / across) {
                const Element* from = source.memory + source.row(g, down.first + r * down.step - rows.first) +
                                      right.first - columns.first;
                const int of_row = place + r * row_step;
                int s = lane_column;
                for (; s + 3 * across < right.count; s += 4 * across)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        visit(widen(from[(s + i * across) * right.step]), of_row + (s + i * across) * column_step);
                for (; s < right.count; s += across) visit(widen(from[s * right.step]), of_row + s * column_step);
            }
        };
        Fold fold;
        fold.clear(place);
        each([&](Accumulator v, int at) { fold.add(v, at); });
        if (fold.is_nan()) each([&](Accumulator v, int at) { fold.mark(v, at); });
        for (int other = TEAM / 2; other > 0; other /= 2)
            fold.add(fold.from_lane(team, int(threadIdx.x % 32) ^ other));
        if (lane > 0) continue;
#if MAXIMUM
        const Share share = Share();
#else
        const Share share = of_rows[p] * of_columns[q];
#endif
        out.memory[out.row(g, p) + q] = narrow<Element>(result(fold, share));
#if WHERE
        places.memory[places.row(g, p) + q] = Where(fold.place);
#endif
    }
#endif
    __syncthreads();
    out.store(y + first);
#if WHERE
    places.store(index + first);
#endif
}

#endif
