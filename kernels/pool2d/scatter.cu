// The gradient of maxima: each window adds its gradient to one element of a tile in shared memory.
//
// Windows that could meet do so in different phases, with a barrier between. So no two threads add to one element at the
// same time, and the order is always the same.
//
// Macros: those of _windows.cuh and _folds.cuh (MAXIMUM 0); THREADS; PITCH (_slide.cuh); OVERLAP (0: no two windows
// meet); INSIDE:
// - 1: channels lie inside: WIDTH, LANES and TOGETHER (_channels.cuh), INDEX_TOGETHER (of the index).
// - 0: planes, by bands: FLAT (boxes have whole rows), DENSE and DENSE_INDEX (rows and planes of dy, of the index, are).
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"
#include "pool2d/_bands.cuh"

using namespace tilesmith;

#if OVERLAP
typedef Accumulator Held;
__device__ inline void add(Held& target, Element gradient) { target += widen(gradient); }
#else
typedef Element Held;
__device__ inline void add(Held& target, Element gradient) { target = gradient; }
#endif

__device__ inline void clear(void* memory, int bytes) {
    for (int i = threadIdx.x; i < (bytes + 15) / 16; i += THREADS)
        static_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
}

// Rows, or columns, that a window shares with a tile, counted from the tile's first.
struct Shared {
    int start, low;
    unsigned count;

    __device__ Shared(const Axis& axis, int window, int first, int size) : start(axis.element(window, 0) - first) {
        low = max(start, 0);
        count = unsigned(max(min(start + (axis.kernel - 1) * axis.dilation + 1, size) - low, 0));
    }
    __device__ bool has(int element) const { return unsigned(element - low) < count; }
};

// The element of the tile that a window's index names, if it does.
struct Target {
    int row, column;
    bool real;

    __device__ Target(Where where, const Shared& rows, const Shared& columns, int first_row, int first_column,
                      const Axis& h, const Axis& w, unsigned long long by_width) {
#if WHERE == 1
        constexpr unsigned BY_PITCH = PITCH > 1 ? 0xffffffffu / PITCH + 1 : 0;
        const int r = PITCH > 1 ? int(__umulhi(where, BY_PITCH)) : where, s = where - r * PITCH;
        row = rows.start + r * h.dilation, column = columns.start + s * w.dilation;
        real = rows.has(row) && columns.has(column);
#else
        const bool inside = (unsigned long long)where < (unsigned long long)((long long)h.size * w.size);
        const int place = inside ? int(where) : 0, line = Divisor(by_width)(place);
        row = line - first_row, column = place - line * w.size - first_column;
        real = inside && rows.has(row) && columns.has(column);
#endif
    }
};

#if INSIDE

// A block has a tile of `tile_h` x `tile_w` elements of LANES · WIDTH channels; a thread has WIDTH neighbouring ones, and
// takes windows by patches of `patch_h` x `patch_w`. Patches of one phase, every second one each way, do not meet. In
// shared memory the first channels of all threads come first: neighbours meet in no bank.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
scatter_channels(const Element* dy, const Where* index, Element* dx, int channels, int channel_blocks, int tile_h,
                 int tile_w, int tiles_h, int tiles_w, int patch_h, int patch_w, int phases_h, int phases_w,
                 unsigned long long by_channel_blocks, unsigned long long by_tiles_h, unsigned long long by_tiles_w,
                 unsigned long long by_width, AXIS(h), AXIS(w), long long dy_n, long long dy_c, long long dy_p,
                 long long dy_q, long long index_n, long long index_c, long long index_p, long long index_q,
                 long long dx_n, long long dx_c, long long dx_h, long long dx_w) {
    constexpr int PIXEL = LANES * WIDTH + LANES;  // a little more than there is: so pixels begin in different banks
    extern __shared__ __align__(16) unsigned char memory[];
    Held* tile = reinterpret_cast<Held*>(memory);
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const int unit = Divisor(by_channel_blocks)(blockIdx.x), line = Divisor(by_tiles_w)(unit);
    const int image = Divisor(by_tiles_h)(line);
    const int channel = ((int(blockIdx.x) - unit * channel_blocks) * LANES + lane) * WIDTH;
    const bool there = channel < channels;
    const int first_row = (line - image * tiles_h) * tile_h, first_column = (unit - line * tiles_w) * tile_w;
    const int rows = min(tile_h, h.size - first_row), columns = min(tile_w, w.size - first_column);

    // The windows that see the tile
    const Run last_h = h.windows(first_row + rows - 1), last_w = w.windows(first_column + columns - 1);
    const Extent seen_h(h.windows(first_row).first, last_h.first + last_h.count, h.count);
    const Extent seen_w(w.windows(first_column).first, last_w.first + last_w.count, w.count);
    dy += image * dy_n + channel * dy_c;
    index += image * index_n + channel * index_c;
    clear(memory, tile_h * tile_w * PIXEL * int(sizeof(Held)));
    __syncthreads();

    const int patches_h = (seen_h.inside() + patch_h - 1) / patch_h;
    const int patches_w = (seen_w.inside() + patch_w - 1) / patch_w;
    for (int phase = 0; phase < phases_h * phases_w; ++phase) {
        const int phase_h = phase / phases_w, phase_w = phase - phase_h * phases_w;
        const int down = (patches_h - phase_h + phases_h - 1) / phases_h;
        const int across = (patches_w - phase_w + phases_w - 1) / phases_w;
        const SmallDivisor by_across(max(across, 1));
#pragma unroll 1
        for (int patch = slot; patch < across * down && there; patch += THREADS / LANES) {
            const int patch_row = by_across(patch), patch_column = patch - patch_row * across;
            const int begin_p = seen_h.begin + (patch_row * phases_h + phase_h) * patch_h;
            const int begin_q = seen_w.begin + (patch_column * phases_w + phase_w) * patch_w;
            const int end_p = min(begin_p + patch_h, seen_h.end), end_q = min(begin_q + patch_w, seen_w.end);
#pragma unroll 1
            for (int p = begin_p; p < end_p; ++p) {
                const Shared shared_rows(h, p, first_row, rows);
#pragma unroll 2
                for (int q = begin_q; q < end_q; ++q) {
                    Values<WIDTH> gradients;
                    gradients.load(dy + (p * Index(dy_p) + q * Index(dy_q)), TOGETHER, dy_c);
                    Places<WIDTH> places;
                    places.load(index + (p * Index(index_p) + q * Index(index_q)), INDEX_TOGETHER, index_c);
                    const Shared shared_columns(w, q, first_column, columns);
                    // First all that is there, then all sums: channels do not meet
                    int at[WIDTH];
                    Held sums[WIDTH];
#pragma unroll
                    for (int v = 0; v < WIDTH; ++v) {
                        const Target target(places.get(v), shared_rows, shared_columns, first_row, first_column, h, w,
                                            by_width);
                        const int pixel = target.row * tile_w + target.column;
                        at[v] = target.real ? pixel * PIXEL + v * LANES + lane : -1;
                        sums[v] = OVERLAP && target.real ? tile[at[v]] : Held();
                    }
#pragma unroll
                    for (int v = 0; v < WIDTH; ++v) {
                        add(sums[v], gradients.get(v));
                        if (at[v] >= 0) tile[at[v]] = sums[v];
                    }
                }
            }
        }
        __syncthreads();
    }

    const SmallDivisor by_columns(columns);
    dx += image * dx_n + channel * dx_c;
    for (int i = slot; i < rows * columns && there; i += THREADS / LANES) {
        const int row = by_columns(i), column = i - row * columns;
        const Held* from = tile + (row * tile_w + column) * PIXEL + lane;
        Values<WIDTH> values;
#pragma unroll
        for (int v = 0; v < WIDTH; ++v) values.set(v, narrowed(from[v * LANES]));
        values.store(dx + ((first_row + row) * Index(dx_h) + (first_column + column) * Index(dx_w)));
    }
}

#else  // ---- planes

constexpr Runs RUNS = FLAT ? ONE_RUN : ROW_RUNS;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
scatter_planes(const Element* dy, const Where* index, Element* dx, int planes, int group, int groups, int band_rows,
               int bands, int segment, int segments, int strip, int phases_w, int dy_pitch, int index_pitch,
               int dx_pitch, int index_at, int dx_at, int dx_bytes, unsigned long long by_groups,
               unsigned long long by_bands, unsigned long long by_segments, unsigned long long by_width, AXIS(h),
               AXIS(w), long long dy_n, long long dy_c, long long dy_p, long long dy_q, long long index_n,
               long long index_c, long long index_p, long long index_q) {
    extern __shared__ __align__(16) unsigned char memory[];
    const Axis h AXIS_OF(h), w AXIS_OF(w);
    const Box box(planes, group, groups, h.size, band_rows, bands, w.size, segment, segments, by_groups, by_bands,
                  by_segments);

    // The windows that see the box
    const int last_row = box.first_row + box.rows - 1, last_column = box.first_column + box.columns - 1;
    const Run last_h = h.windows(last_row), last_w = w.windows(last_column);
    const Extent seen_h(h.windows(box.first_row).first, last_h.first + last_h.count, h.count);
    const Extent seen_w(FLAT ? 0 : w.windows(box.first_column).first, FLAT ? w.count : last_w.first + last_w.count,
                        w.count);
    const Element* plane = dy + box.image * dy_n + box.first_plane * dy_c;
    const Where* plane_of_index = index + box.image * index_n + box.first_plane * index_c;
    const Band<Element, RUNS> source(memory, DENSE ? plane : nullptr, box.planes, seen_h, seen_w, w.count, h.count,
                                     dy_pitch);
    const Band<Where, RUNS> places(memory + index_at, DENSE_INDEX ? plane_of_index : nullptr, box.planes, seen_h, seen_w,
                                   w.count, h.count, index_pitch);
#if DENSE
    source.load(plane);
#else
    source.load(plane, dy_c, dy_p, dy_q);
#endif
#if DENSE_INDEX
    places.load(plane_of_index);
#else
    places.load(plane_of_index, index_c, index_p, index_q);
#endif
    const long long first = (box.image * planes + box.first_plane) * h.size * w.size;
    const Extent box_rows(box.first_row, last_row + 1, h.size), box_columns(box.first_column, last_column + 1, w.size);
    const Band<Element, RUNS, Held> out(memory + dx_at, dx + first, box.planes, box_rows, box_columns, w.size,
                                               h.size, dx_pitch);
    clear(memory + dx_at, dx_bytes);
    wait_for_bands();

    // A thread walks down a strip of one column of windows; strips lie in two phases, columns in phases_w
    const int rows = seen_h.inside(), columns = seen_w.inside();
    const int across = (columns + phases_w - 1) / phases_w, strips = (rows + strip - 1) / strip;
    const int strips_each = OVERLAP ? (strips + 1) / 2 : strips;
    const SmallDivisor by_across(max(across, 1)), by_strips(max(strips_each, 1));
    for (int phase = 0; phase < (OVERLAP ? 2 : 1) * phases_w; ++phase) {
        const int phase_h = phase / phases_w, phase_w = phase - phase_h * phases_w;
#pragma unroll 1
        for (int item = threadIdx.x; item < box.planes * strips_each * across; item += THREADS) {
            const int line = by_across(item), g = by_strips(line);
            const int q = (item - line * across) * phases_w + phase_w;
            const int begin = ((line - g * strips_each) * (OVERLAP ? 2 : 1) + phase_h) * strip;
            if (q >= columns) continue;
            const Shared shared_columns(w, seen_w.begin + q, box.first_column, box.columns);
#pragma unroll 2
            for (int p = begin; p < min(begin + strip, rows); ++p) {
                const Shared shared_rows(h, seen_h.begin + p, box.first_row, box.rows);
                const Target target(places.memory[places.row(g, p) + q], shared_rows, shared_columns, box.first_row,
                                    box.first_column, h, w, by_width);
                if (target.real)
                    add(out.memory[out.row(g, target.row) + target.column], source.memory[source.row(g, p) + q]);
            }
        }
        __syncthreads();
    }
    out.store(dx + first);
}

#endif
