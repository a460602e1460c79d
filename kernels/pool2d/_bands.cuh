// Bands of planes in shared memory: some rows of a plane, or whole planes, as they lie in device memory.
//
// An element lies at the same place within 16 bytes in both memories, so whatever the size of a row, all but the ends of
// a run is moved 16 bytes at a time. What is outside of the input has a place, too: around a plane if each plane is a run
// of its own, also around a row if each row is.
//
// Macro: THREADS.
#pragma once
#include "_device.cuh"
#include "pool2d/_folds.cuh"

namespace tilesmith {

// What a block makes: a box of planes, rows and columns.
struct Box {
    long long image;
    int first_plane, planes, first_row, rows, first_column, columns;

    __device__ Box(int plane_count, int group, int groups, int row_count, int band, int bands, int column_count,
                   int segment, int segments, unsigned long long by_groups, unsigned long long by_bands,
                   unsigned long long by_segments) {
        const int line = Divisor(by_segments)(blockIdx.x), slab = Divisor(by_bands)(line), n = Divisor(by_groups)(slab);
        image = n;
        first_plane = (slab - n * groups) * group, planes = min(group, plane_count - first_plane);
        first_row = (line - slab * bands) * band, rows = min(band, row_count - first_row);
        first_column = (int(blockIdx.x) - line * segments) * segment;
        columns = min(segment, column_count - first_column);
    }
};

// Rows, or columns, that a band has: from `first` to before `last`, of which those from `begin` to before `end` are
// inside of the tensor.
struct Extent {
    int first, begin, end, last;

    __device__ Extent(int first, int last, int size)
        : first(first), begin(min(max(first, 0), size)), end(max(min(last, size), begin)), last(last) {}
    __device__ int count() const { return last - first; }
    __device__ int inside() const { return end - begin; }
};

// What a run is: all the planes' rows (whole ones, nothing outside), a plane's rows (whole ones), or a row.
enum Runs { ONE_RUN, PLANE_RUNS, ROW_RUNS };

// 16 bytes by one instruction, where the compiler would make four of them.
__device__ inline void store_words(void* to, const unsigned (&words)[4]) {
#ifndef TILESMITH_HOST
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
#else
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
#endif
}

// Elements of type T, held as type Held, of a tensor whose rows are `width` long and whose planes have `height` of them.
// A band's planes, rows and columns are counted from its first ones.
template <typename T, Runs RUNS, typename Held = T>
struct Band {
    static constexpr int VECTOR = 16 / sizeof(T);
    static constexpr bool LINEAR = RUNS != ROW_RUNS;  // rows of a plane are `width` apart
    Held* memory;
    Extent rows, columns;
    int planes, width, height, pitch, phase;

    // `plane` is the address of the first plane; `pitch` are the elements between runs.
    __device__ Band(void* memory, const T* plane, int planes, const Extent& rows, const Extent& columns, int width,
                    int height, int pitch)
        : memory(static_cast<Held*>(memory)), rows(rows), columns(columns), planes(planes), width(width),
          height(height), pitch(pitch) {
        const long long corner = (long long)(unsigned long long)plane / (long long)sizeof(T) +
                                 (long long)rows.first * width + columns.first;
        phase = int(corner & (VECTOR - 1));
    }

    __device__ int phase_of(int run) const {
        if (RUNS == ONE_RUN) return phase;
        return (phase + run * (RUNS == PLANE_RUNS ? height * width : width)) & (VECTOR - 1);
    }
    // Where a plane's row begins.
    __device__ int row(int plane, int row) const {
        if (RUNS == ONE_RUN) return phase + (plane * height + row) * width;
        if (RUNS == PLANE_RUNS) return plane * pitch + phase_of(plane) + row * width;
        return row * pitch + phase_of(row);
    }

    // From a dense tensor; wait_for_bands() comes later. `plane` as above.
    __device__ void load(const T* plane) const {
        pieces(
            [&](int to, long long from) { copy_async<16>(memory + to, plane + from, true); },
            [&](int to, long long from) { memory[to] = plane[from]; });
    }

    // From a tensor of any strides, whose phase is that of address 0.
    __device__ void load(const T* plane, long long step_plane, long long step_row, long long step_column) const {
        const int across = columns.inside(), down = rows.inside();
        const SmallDivisor by_across(max(across, 1)), by_down(max(down, 1));
#pragma unroll 1
        for (int i = threadIdx.x; i < planes * down * across; i += THREADS) {
            const int line = by_across(i), column = i - line * across, g = by_down(line), r = line - g * down;
            memory[row(g, rows.begin - rows.first + r) + columns.begin - columns.first + column] =
                plane[g * step_plane + (rows.begin + r) * step_row + (columns.begin + column) * step_column];
        }
    }

    // What is outside, where it has a place.
    __device__ void fill(Held value) const {
        const int above = rows.begin - rows.first, below = rows.last - rows.end;
        const int left = columns.begin - columns.first, right = columns.last - columns.end;
        if (RUNS != ONE_RUN && above + below > 0) {
            const int across = columns.count(), each = (above + below) * across;
#pragma unroll 1
            for (int i = threadIdx.x; i < planes * each; i += THREADS) {
                const int g = i / each, line = (i - g * each) / across, r = line < above ? line : line + rows.inside();
                memory[row(g, r) + (i - g * each) - line * across] = value;
            }
        }
        if (RUNS == ROW_RUNS && left + right > 0) {
            const int across = left + right;
#pragma unroll 1
            for (int i = threadIdx.x; i < rows.inside() * across; i += THREADS) {
                const int line = i / across, column = i - line * across;
                memory[row(0, above + line) + (column < left ? column : column + columns.inside())] = value;
            }
        }
    }

    // Into a dense tensor, after a barrier.
    __device__ void store(T* plane) const {
        pieces([&](int from, long long to) { store_vector(plane + to, memory + from); },
               [&](int from, long long to) { store_one(plane + to, memory[from]); });
    }

  private:
    // A run's length, its place in the band and its place in the tensor.
    struct Line {
        int length, to;
        long long from;
    };
    __device__ Line line(int run) const {
        const int above = rows.begin - rows.first, left = columns.begin - columns.first;
        if (RUNS == ONE_RUN)
            return {((planes - 1) * height + rows.inside()) * width, row(0, above), rows.begin * (long long)width};
        if (RUNS == PLANE_RUNS)
            return {rows.inside() * width, row(run, above), ((long long)run * height + rows.begin) * width};
        return {columns.inside(), row(0, above + run) + left, (rows.begin + run) * (long long)width + columns.begin};
    }

    // What is inside, cut at multiples of 16 bytes of device memory: `whole` gets each whole piece's place in the band and
    // in the tensor, `one` those of each element at the ends of runs. Bands of several planes have whole rows.
    template <typename Whole, typename One>
    __device__ void pieces(Whole whole, One one) const {
        if (rows.inside() <= 0 || columns.inside() <= 0) return;
        const int runs = RUNS == ONE_RUN ? 1 : RUNS == PLANE_RUNS ? planes : rows.inside();
        if (runs == 1) {
            const Line all = line(0);
            const int head = min((VECTOR - all.to) & (VECTOR - 1), all.length), wholes = (all.length - head) / VECTOR;
#pragma unroll 4
            for (int i = threadIdx.x; i < wholes; i += THREADS)
                whole(all.to + head + i * VECTOR, all.from + head + i * VECTOR);
            for (int i = threadIdx.x; i < all.length - wholes * VECTOR; i += THREADS) {
                const int at = i < head ? i : i + wholes * VECTOR;
                one(all.to + at, all.from + at);
            }
            return;
        }
        const int slots = line(0).length / VECTOR + 1;  // as many whole pieces as that, and one that is none
        const SmallDivisor by_slots(slots);
#pragma unroll 2
        for (int i = threadIdx.x; i < runs * slots; i += THREADS) {
            const int run = by_slots(i);
            const Line here = line(run);
            const int at = (i - run * slots) * VECTOR + ((VECTOR - here.to) & (VECTOR - 1));
            if (at + VECTOR <= here.length) whole(here.to + at, here.from + at);
        }
        for (int i = threadIdx.x; i < runs * 2 * VECTOR; i += THREADS) {
            const int e = i % (2 * VECTOR);
            const Line here = line(i / (2 * VECTOR));
            const int head = min((VECTOR - here.to) & (VECTOR - 1), here.length);
            const int tail = (here.length - head) % VECTOR, at = e < VECTOR ? e : here.length - tail + e - VECTOR;
            if (e < VECTOR ? e < head : e - VECTOR < tail) one(here.to + at, here.from + at);
        }
    }

    __device__ static void store_one(T* to, T value) { *to = value; }
    __device__ static void store_vector(T* to, const T* from) {
        *reinterpret_cast<Pack<T, VECTOR>*>(to) = *reinterpret_cast<const Pack<T, VECTOR>*>(from);
    }
    // Half types that were held in float32.
    template <typename Wide>
    __device__ static void store_one(T* to, Wide value) { *to = narrow<T>(value); }
    template <typename Wide>
    __device__ static void store_vector(T* to, const Wide* from) {
        const Pack<Wide, 4> first = *reinterpret_cast<const Pack<Wide, 4>*>(from);
        const Pack<Wide, 4> second = *reinterpret_cast<const Pack<Wide, 4>*>(from + 4);
        unsigned words[4];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const unsigned bits = bits_of(narrow<T>(e < 4 ? first.value[e] : second.value[e - 4]));
            words[e / 2] = e % 2 ? words[e / 2] | bits << 16 : bits;
        }
        store_words(to, words);
    }
};

__device__ inline void wait_for_bands() {
    close_group();
    wait_groups<0>();
    __syncthreads();
}

}  // namespace tilesmith
