// The gradient of means: each element gathers its share from the windows that see it, in order.
//
// Macros: those of _windows.cuh, _folds.cuh (MAXIMUM and WHERE 0) and
// - THREADS; INSIDE (1: channels lie inside: those of _channels.cuh, and DOWN as in forward.cu; 0: planes: FLAT, DENSE,
//   SOURCE_RUNS and MASKED as in forward.cu).
// - SLIDING (1: a thread makes the tile under ROWS x COLS windows, of constant KERNEL_H, ..., STRIDE_W; 0: elements
//   look their windows up, and a thread makes COLS neighbours, in planes of STRIP rows).
// Or WHOLE: of windows that see a whole plane; VECTOR (elements written at once), THREADS.
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"
#if INSIDE
#include "pool2d/_channels.cuh"
#elif !defined(WHOLE)
#include "pool2d/_bands.cuh"
#endif

using namespace tilesmith;

#ifdef WHOLE

// A block fills `group` planes, which lie side by side and are whole vectors; their elements are counted in 31 bits.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
spread_whole(const Element* dy, Element* dx, int planes, int group, int size, int channels, unsigned long long by_size,
             unsigned long long by_channels, Accumulator scale, long long dy_n, long long dy_c) {
    const int first = blockIdx.x * group;
    const int elements = min(group, planes - first) * size;
    const auto of_plane = [&](int plane) {
        const int n = Divisor(by_channels)(first + plane), c = first + plane - n * channels;
        return narrow<Element>(widen(dy[n * dy_n + c * dy_c]) * scale);
    };
    Element* out = dx + (long long)first * size;
#pragma unroll 4
    for (int at = threadIdx.x * VECTOR; at < elements; at += THREADS * VECTOR) {
        const int plane = Divisor(by_size)(at);
        Values<VECTOR> values;
        if (at + VECTOR <= (plane + 1) * size) {
            values.fill(of_plane(plane));
            values.store(out + at);
        } else {
            for (int e = at; e < min(at + VECTOR, elements); ++e) out[e] = of_plane(Divisor(by_size)(e));
        }
    }
}

#else

__device__ inline float inverse(float count) { return sizeof(Element) == 2 ? __fdividef(1.0f, count) : 1.0f / count; }
__device__ inline double inverse(double count) { return 1.0 / count; }

// Elements side by side in registers
#if INSIDE
constexpr int WIDE = WIDTH;
#else
constexpr int WIDE = 1;
#endif

#if SLIDING

// A tile's elements, and the windows that see some of them: ROWS x COLS begin inside of it, BACK_H and BACK_W rows and
// columns of windows before.
constexpr int TILE_H = ROWS * STRIDE_H, TILE_W = COLS * STRIDE_W;
constexpr int BACK_H = (KERNEL_H - 1) / STRIDE_H, BACK_W = (KERNEL_W - 1) / STRIDE_W;
constexpr int WINDOWS_H = ROWS + BACK_H, WINDOWS_W = COLS + BACK_W;
constexpr int UNROLL = WINDOWS_H * WINDOWS_W * TILE_W * WIDE <= 512 ? WINDOWS_H : 1;

// Whether window number `window` sees element number `element`.
__device__ constexpr bool sees(int window, int element, int back, int kernel, int stride) {
    const int distance = element + (back - window) * stride;
    return distance >= 0 && distance < kernel;
}

// Means: what the windows of a row give to each column first, then that to each row. `source(p, q)` is dy, 0 outside;
// source.of_row(p) and source.of_column(q) are the factors of what it is multiplied by.
template <typename Source>
__device__ void spread(Accumulator (&sum)[TILE_H][TILE_W][WIDE], const Source& source, int first_p, int first_q) {
    Accumulator scale[WINDOWS_W];
#pragma unroll
    for (int b = 0; b < WINDOWS_W; ++b) scale[b] = source.of_column(first_q + b);
#pragma unroll UNROLL
    for (int a = 0; a < WINDOWS_H; ++a) {
        Accumulator of_row[TILE_W][WIDE] = {};
#pragma unroll
        for (int b = 0; b < WINDOWS_W; ++b) {
            const Values<WIDE> gradient = source(first_p + a, first_q + b);
#pragma unroll
            for (int j = 0; j < TILE_W; ++j)
                if (sees(b, j, BACK_W, KERNEL_W, STRIDE_W))
#pragma unroll
                    for (int v = 0; v < WIDE; ++v) of_row[j][v] += widen(gradient.get(v)) * scale[b];
        }
        const Accumulator scale_h = source.of_row(first_p + a);
#pragma unroll
        for (int i = 0; i < TILE_H; ++i)
            if (sees(a, i, BACK_H, KERNEL_H, STRIDE_H))
#pragma unroll
                for (int j = 0; j < TILE_W; ++j)
#pragma unroll
                    for (int v = 0; v < WIDE; ++v) sum[i][j][v] += of_row[j][v] * scale_h;
    }
}

#endif

#if INSIDE

// The thread's channels of dy; of windows that are not there, whatever factors.
struct Gradients {
    const Image& image;
    const Axis &h, &w;

    __device__ Values<WIDTH> operator()(int p, int q) const { return image(p, q); }
    __device__ Accumulator of_row(int p) const { return inverse(h.counted(p)); }
    __device__ Accumulator of_column(int q) const { return inverse(w.counted(q)); }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
spread_channels(const Element* dy, Element* dx, int channels, int channel_blocks, int positions, int groups, int tiles,
                unsigned long long by_groups, unsigned long long by_tiles, AXIS(h), AXIS(w), long long dy_n,
                long long dy_c, long long dy_p, long long dy_q, long long dx_n, long long dx_c, long long dx_h,
                long long dx_w) {
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const Tile at(DOWN, channel_blocks, groups, tiles, by_groups, by_tiles);
    if (at.number >= positions || at.channel >= channels) return;
    const Image image(dy + at.image * dy_n + at.channel * dy_c, h.count, w.count, dy_c, dy_p, dy_q);
    Element* out = dx + at.image * dx_n + at.channel * dx_c;

#if SLIDING
    const int first_h = at.down * TILE_H - h.padding, first_w = at.right * TILE_W - w.padding;
    if (first_h >= h.size) return;
    Accumulator sum[TILE_H][TILE_W][WIDTH] = {};
    spread(sum, Gradients{image, h, w}, at.down * ROWS - BACK_H, at.right * COLS - BACK_W);
#pragma unroll
    for (int i = 0; i < TILE_H; ++i)
#pragma unroll
        for (int j = 0; j < TILE_W; ++j) {
            const int row = first_h + i, column = first_w + j;
            if (unsigned(row) >= unsigned(h.size) || unsigned(column) >= unsigned(w.size)) continue;
            Values<WIDTH> values;
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) values.set(v, narrow<Element>(sum[i][j][v]));
            values.store(out + (row * Index(dx_h) + column * Index(dx_w)));
        }
#else
    const int row = at.down;
    if (row >= h.size) return;
    const Run down = h.windows(row);
    Run right = {-1, 0, 1};
    Values<WIDTH> values;
#pragma unroll
    for (int j = 0; j < COLS; ++j) {
        const int column = at.right * COLS + j;
        if (column >= w.size) return;
        const Run here = w.windows(column);
        if (here.first != right.first || here.count != right.count) {  // neighbours often lie in the same windows
            right = here;
            Accumulator sum[WIDTH] = {};
            for (int p = down.first; p < down.first + down.count; ++p)
                for (int q = right.first; q < right.first + right.count; ++q) {
                    const Values<WIDTH> gradient = image(p, q);
                    const Accumulator scale = inverse(h.counted(p) * w.counted(q));
#pragma unroll
                    for (int v = 0; v < WIDTH; ++v) sum[v] += widen(gradient.get(v)) * scale;
                }
#pragma unroll
            for (int v = 0; v < WIDTH; ++v) values.set(v, narrow<Element>(sum[v]));
        }
        values.store(out + (row * Index(dx_h) + column * Index(dx_w)));
    }
#endif
}

#else  // ---- planes

typedef Band<Element, SOURCE_RUNS> Source;

// A plane of a band of dy, by windows; what is outside of it is 0 there. With the tables of the windows' factors.
struct Staged {
    const Source& band;
    const Accumulator *scale_h, *scale_w;
    int plane, start, Q;

    __device__ Staged(const Source& band, const Accumulator* scale_h, const Accumulator* scale_w, int plane, int Q)
        : band(band), scale_h(scale_h), scale_w(scale_w), plane(plane),
          start((Source::LINEAR ? band.row(plane, 0) : 0) - band.columns.first), Q(Q) {}

    __device__ Accumulator of_row(int p) const { return scale_h[p - band.rows.first]; }
    __device__ Accumulator of_column(int q) const { return scale_w[q]; }

    __device__ Values<1> operator()(int p, int q) const {
        const int line = p - band.rows.first;
        Values<1> value;
        value.load(band.memory + ((Source::LINEAR ? line * band.width : band.row(plane, line)) + (start + q)));
        if (MASKED && unsigned(q) >= unsigned(Q)) value.fill(nothing());
        return value;
    }
};

// Boxes are of rows and columns of the padded input if windows slide, so that each tile begins with a window.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
spread_planes(const Element* dy, Element* dx, int planes, int group, int groups, int row_count, int band_rows,
                int bands, int column_count, int segment, int segments, int tiles_h, int tiles_w, int dy_pitch,
                int dx_pitch, int dy_at, int dx_at, int tables_at, unsigned long long by_groups,
                unsigned long long by_bands, unsigned long long by_segments, unsigned long long by_tiles_h,
                unsigned long long by_tiles_w, AXIS(h), AXIS(w), long long dy_n, long long dy_c, long long dy_p,
                long long dy_q) {
    extern __shared__ __align__(16) unsigned char memory[];
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const Box box(planes, group, groups, row_count, band_rows, bands, column_count, segment, segments, by_groups,
                  by_bands, by_segments);
    const int pad_h = SLIDING ? h.padding : 0, pad_w = SLIDING ? w.padding : 0;
    const Extent rows(box.first_row - pad_h, box.first_row - pad_h + box.rows, h.size);
    const Extent columns(box.first_column - pad_w, box.first_column - pad_w + box.columns, w.size);
    if (rows.inside() <= 0 || columns.inside() <= 0) return;

    // The windows that see the box
#if SLIDING
    const Extent seen_h(box.first_row / STRIDE_H - BACK_H, (box.first_row + box.rows + STRIDE_H - 1) / STRIDE_H, h.count);
    const Extent seen_w(SOURCE_RUNS == ROW_RUNS ? box.first_column / STRIDE_W - BACK_W : 0,
                        SOURCE_RUNS == ROW_RUNS ? (box.first_column + box.columns + STRIDE_W - 1) / STRIDE_W : w.count,
                        w.count);
#else
    const Run last_h = h.windows(rows.end - 1), last_w = w.windows(columns.end - 1);
    const Extent seen_h(h.windows(rows.begin).first, last_h.first + last_h.count, h.count);
    const Extent seen_w(FLAT ? 0 : w.windows(columns.begin).first, FLAT ? w.count : last_w.first + last_w.count, w.count);
#endif
    const Element* plane = dy + box.image * dy_n + box.first_plane * dy_c;
    const Source source(memory + dy_at, DENSE ? plane : nullptr, box.planes, seen_h, seen_w, w.count, h.count, dy_pitch);
#if DENSE
    source.load(plane);
#else
    source.load(plane, dy_c, dy_p, dy_q);
#endif
    source.fill(nothing());
    const long long first = (box.image * planes + box.first_plane) * h.size * w.size;
    const Extent down(rows.begin, rows.end, h.size), right(columns.begin, columns.end, w.size);
    const Band<Element, FLAT ? ONE_RUN : ROW_RUNS> out(memory + dx_at, dx + first, box.planes, down, right, w.size,
                                                       h.size, dx_pitch);

#if SLIDING
    // Factors for all windows that some tile reads, those that are not there included
    Accumulator* scale_h = reinterpret_cast<Accumulator*>(memory + tables_at);
    const int table_h = BACK_H + tiles_h * ROWS, table_w = BACK_W + tiles_w * COLS;
    Accumulator* scale_w = scale_h + table_h - (box.first_column / STRIDE_W - BACK_W);
    for (int i = threadIdx.x; i < table_h; i += THREADS)
        scale_h[i] = inverse(h.counted(seen_h.first + i));
    for (int i = threadIdx.x; i < table_w; i += THREADS)
        scale_h[table_h + i] = inverse(w.counted(box.first_column / STRIDE_W - BACK_W + i));
    wait_for_bands();
    const Divisor by_columns(by_tiles_w), by_rows(by_tiles_h);
#pragma unroll 1
    for (int item = threadIdx.x; item < box.planes * tiles_h * tiles_w; item += THREADS) {
        const int line = by_columns(item), tile_w = item - line * tiles_w;
        const int g = by_rows(line), tile_h = line - g * tiles_h;
        const int first_h = rows.first + tile_h * TILE_H, first_w = columns.first + tile_w * TILE_W;
        if (first_h >= rows.end) continue;
        Accumulator sum[TILE_H][TILE_W][WIDE] = {};
        spread(sum, Staged(source, scale_h, scale_w, g, w.count), seen_h.first + tile_h * ROWS,
               box.first_column / STRIDE_W + tile_w * COLS - BACK_W);
#pragma unroll
        for (int i = 0; i < TILE_H; ++i) {
            const int row = first_h + i - rows.begin, place = out.row(g, row) + first_w - columns.begin;
#pragma unroll
            for (int j = 0; j < TILE_W; ++j) {
                const Element value = narrow<Element>(sum[i][j][0]);
                if (unsigned(row) < unsigned(rows.inside()) &&
                    unsigned(first_w + j - columns.begin) < unsigned(columns.inside()))
                    out.memory[place + j] = value;
            }
        }
    }
#else
    // Tables: the windows of each row and where they change, the windows of each column, the factors of the windows
    int4* of_rows = reinterpret_cast<int4*>(memory + tables_at);
    int2* of_columns = reinterpret_cast<int2*>(of_rows + band_rows);
    Accumulator* scale_h = reinterpret_cast<Accumulator*>(of_columns + segment);
    Accumulator* scale_w = scale_h + seen_h.inside();
    for (int i = threadIdx.x; i < rows.inside(); i += THREADS) {
        const Run run = h.windows(rows.begin + i);
        of_rows[i] = make_int4(run.first, run.first + run.count, h.next_change(rows.begin + i, run) - rows.begin, 0);
    }
    for (int j = threadIdx.x; j < columns.inside(); j += THREADS) {
        const Run run = w.windows(columns.begin + j);
        of_columns[j] = make_int2(run.first, run.first + run.count);
    }
    for (int i = threadIdx.x; i < seen_h.inside(); i += THREADS)
        scale_h[i] = inverse(h.counted(seen_h.begin + i));
    for (int i = threadIdx.x; i < seen_w.inside(); i += THREADS)
        scale_w[i] = inverse(w.counted(seen_w.begin + i));
    wait_for_bands();
    // A thread goes down STRIP rows, from change to change
    const Divisor by_columns(by_tiles_w), by_rows(by_tiles_h);
#pragma unroll 1
    for (int item = threadIdx.x; item < box.planes * tiles_h * tiles_w; item += THREADS) {
        const int line = by_columns(item), left = (item - line * tiles_w) * COLS;
        const int g = by_rows(line), strip = (line - g * tiles_h) * STRIP, stop = min(strip + STRIP, rows.inside());
        int2 across[COLS];
#pragma unroll
        for (int j = 0; j < COLS; ++j) across[j] = of_columns[min(left + j, columns.inside() - 1)];
        for (int row = strip; row < stop;) {
            const int4 here = of_rows[row];
            Element value[COLS];
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                Accumulator sum = 0;
                for (int p = here.x; p < here.y; ++p) {
                    const Element* from = source.memory + source.row(g, p - seen_h.first) - seen_w.first;
                    Accumulator of_row = 0;
#pragma unroll 1
                    for (int q = across[j].x; q < across[j].y; ++q)
                        of_row += widen(from[q]) * scale_w[q - seen_w.begin];
                    sum += of_row * scale_h[p - seen_h.begin];
                }
                value[j] = narrow<Element>(sum);
            }
            int place = out.row(g, row) + left;
            const int change = min(here.z, stop);
#pragma unroll 4
            for (; row < change; ++row) {
                if (!out.LINEAR) place = out.row(g, row) + left;
#pragma unroll
                for (int j = 0; j < COLS; ++j)
                    if (left + j < columns.inside()) out.memory[place + j] = value[j];
                place += w.size;
            }
        }
    }
#endif
    __syncthreads();
    out.store(dx + first);
}

#endif

#endif  // WHOLE
