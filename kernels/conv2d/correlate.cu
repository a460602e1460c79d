// Convolution as an implicit product, forward and for the input's gradient: rows are output pixels, columns are output
// channels of one group, the depth is taps and input channels together, channels inside. The filters come packed as a
// matrix [phase][group][columns][depth] (pack.cu).
//
// For the input's gradient each phase (_taps.cuh) is a product of its own. With POOL (_pool.cuh) four rows in a row are a
// 2x2 window of outputs that becomes one; P and Q then count windows.
#include "conv2d/_pool.cuh"
#include "conv2d/_taps.cuh"
#include "conv2d/_tile.cuh"

using namespace tilesmith;

constexpr int A_ROW = BLOCK_K + VECTOR, B_ROW = BLOCK_K + VECTOR;  // padded: 8 rows lie in 8 different sets of banks
constexpr int OUT_ROW = BLOCK_N + VECTOR;
constexpr int AREA = POOL ? 4 : 1, OUT_ROWS = BLOCK_M / AREA;

// How the source is dealt to threads: neighbouring threads take neighbouring channels of a pixel, A_UNIT at once, or
// (ALONG_PIXELS) neighbouring pixels.
constexpr int A_UNITS = BLOCK_K / A_UNIT;  // of one row
constexpr int ROW_STEP = ALONG_PIXELS ? BLOCK_M : THREADS / A_UNITS;
constexpr int UNIT_STEP = ALONG_PIXELS ? THREADS / BLOCK_M : A_UNITS;
constexpr int ROWS_EACH = BLOCK_M / ROW_STEP, UNITS_EACH = A_UNITS / UNIT_STEP;
constexpr bool A_STRAIGHT = Staged<A_UNIT>::STRAIGHT;
constexpr int B_UNITS = BLOCK_K / VECTOR;

static_assert(ROWS_EACH > 0 && UNITS_EACH > 0 && THREADS % A_UNITS == 0, "every thread takes part in the copy");

struct Shared {
    union {
        struct {
            Element a[STAGES][BLOCK_M * A_ROW], b[STAGES][BLOCK_N * B_ROW];
        } operands;
        Element out[BLOCK_M * OUT_ROW];
    };
    Place depth[STAGES][A_UNITS];  // of each unit of a step: taps and channels
    Index out_pixel[OUT_ROWS];
};

// Image, row and column of pixel number `pixel` of N·P·Q.
struct Pixel {
    int n, p, q;

    __device__ Pixel(int pixel, int P, int Q, Divisor by_plane, Divisor by_row) {
        n = by_plane(pixel), p = by_row(pixel - n * (P * Q));
        q = pixel - n * (P * Q) - p * Q;
    }
};

// Writes where the units of step `step` of the depth lie, from the source's place of a row.
__device__ inline void find_depth(Place* depth, int step, int length, int inputs, Divisor by_inputs, Taps taps_h,
                                  Taps taps_w, SmallDivisor by_taps_w, int spread_h, int spread_w, Index source_c,
                                  Index source_h, Index source_w) {
    const int unit = threadIdx.x;
    if (unit >= A_UNITS) return;
    const int element = (step * A_UNITS + unit) * A_UNIT;
    Place place = {NOWHERE, NOWHERE, 0};
    if (element < length) {
        const int tap = by_inputs(element), i = by_taps_w(tap), j = tap - i * taps_w.count;
        place.h = i * spread_h, place.w = j * spread_w;
        place.offset = place.h * source_h + place.w * source_w + (element - tap * inputs) * source_c;
    }
    depth[unit] = place;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
correlate(const Element* source, const Element* filters, const Element* bias, Element* out, unsigned char* code,
          int pixels, int phases, int tiles_n, int groups, int inputs, int outputs, int filter_row, int H, int W, int Y_H,
          int Y_W, int P, int Q, int R, int S, int stride_h, int stride_w, int dilation_h, int dilation_w, int pad_h, int pad_w, int pace_h,
          int pace_w, int spread_h, int spread_w, int tap_step_h, int tap_step_w, int phases_w,
          unsigned long long by_plane, unsigned long long by_row, unsigned long long by_inputs, long long source_n,
          long long source_c, long long source_h, long long source_w, long long out_n, long long out_c, long long out_h,
          long long out_w) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x;

    // This block's tile. Neighbouring blocks share their pixels: columns, then phases, then groups, whose channels lie in
    // the same sectors
    int rest = blockIdx.x;
    const int tile_n = rest % tiles_n;
    rest /= tiles_n;
    const int phase = rest % phases;
    rest /= phases;
    const int group = rest % groups, tile_m = rest / groups;
    const int phase_h = phase / phases_w, phase_w = phase % phases_w;
    const Taps taps_h(phase_h, R, stride_h, dilation_h, pad_h, tap_step_h);
    const Taps taps_w(phase_w, S, stride_w, dilation_w, pad_w, tap_step_w);
    const SmallDivisor by_taps_w(taps_w.count);
    const int length = taps_h.count * taps_w.count * inputs, steps = (length + BLOCK_K - 1) / BLOCK_K;
    source += Index(group) * inputs * Index(source_c);
    filters += (long long)(phase * groups + group) * outputs * filter_row;

    // The rows of which this thread brings elements
    Place rows[ROWS_EACH];
    const int first_row = ALONG_PIXELS ? thread % BLOCK_M : thread / A_UNITS;
    const int first_unit = ALONG_PIXELS ? thread / BLOCK_M : thread % A_UNITS;
#pragma unroll
    for (int i = 0; i < ROWS_EACH; ++i) {
        const int pixel = tile_m * BLOCK_M + first_row + i * ROW_STEP;
        rows[i] = {NOWHERE, NOWHERE, 0};
        if (pixel < pixels) {
            Pixel at(pixel / AREA, P, Q, Divisor(by_plane), Divisor(by_row));
            if (POOL) at.p = 2 * at.p + pixel % 4 / 2, at.q = 2 * at.q + pixel % 2;
            rows[i].h = at.p * pace_h + taps_h.start, rows[i].w = at.q * pace_w + taps_w.start;
            rows[i].offset = at.n * Index(source_n) + rows[i].h * Index(source_h) + rows[i].w * Index(source_w);
        }
    }
    for (int row = thread; row < OUT_ROWS; row += THREADS) {
        const int pixel = tile_m * OUT_ROWS + row;
        const Pixel at(pixel, P, Q, Divisor(by_plane), Divisor(by_row));
        const int y_h = BACKWARD ? at.p * stride_h + phase_h : at.p, y_w = BACKWARD ? at.q * stride_w + phase_w : at.q;
        const bool real = pixel < pixels / AREA && y_h < Y_H && y_w < Y_W;
        shared.out_pixel[row] = real ? at.n * Index(out_n) + y_h * Index(out_h) + y_w * Index(out_w) : Index(-1);
    }

    Element held[A_STRAIGHT ? 1 : ROWS_EACH * UNITS_EACH];
    const auto find = [&](int step) {
        find_depth(shared.depth[step % STAGES], step, length, inputs, Divisor(by_inputs), taps_h, taps_w, by_taps_w,
                   spread_h, spread_w, source_c, source_h, source_w);
    };
    const auto fetch = [&](int step) {
        Element* a = shared.operands.a[step % STAGES];
        Element* b = shared.operands.b[step % STAGES];
#pragma unroll
        for (int j = 0; j < UNITS_EACH; ++j) {
            const int unit = first_unit + j * UNIT_STEP;
            const Place place = shared.depth[step % STAGES][unit];
#pragma unroll
            for (int i = 0; i < ROWS_EACH; ++i) {
                const bool real = inside(rows[i], place, H, W);
                const Element* from = source + (real ? rows[i].offset + place.offset : Index(0));
                if constexpr (A_STRAIGHT)
                    copy_async<Staged<A_UNIT>::BYTES>(a + (first_row + i * ROW_STEP) * A_ROW + unit * A_UNIT, from, real);
                else
                    held[i * UNITS_EACH + j] = real ? *from : narrow<Element>(0);
            }
        }
#pragma unroll
        for (int i = 0; i < BLOCK_N * B_UNITS; i += THREADS) {
            const int row = (i + thread) / B_UNITS, unit = thread % B_UNITS, element = step * BLOCK_K + unit * VECTOR;
            if (BLOCK_N * B_UNITS % THREADS != 0 && row >= BLOCK_N) break;
            const bool real = tile_n * BLOCK_N + row < outputs && element < filter_row;
            const long long offset = (long long)(tile_n * BLOCK_N + row) * filter_row + element;
            copy_async<16>(b + row * B_ROW + unit * VECTOR, filters + (real ? offset : 0), real);
        }
    };
    const auto store = [&](int step) {  // what came by way of registers
        if constexpr (!A_STRAIGHT) {
            Element* a = shared.operands.a[step % STAGES];
#pragma unroll
            for (int i = 0; i < ROWS_EACH; ++i)
#pragma unroll
                for (int j = 0; j < UNITS_EACH; ++j)
                    a[(first_row + i * ROW_STEP) * A_ROW + first_unit + j * UNIT_STEP] = held[i * UNITS_EACH + j];
        }
    };

    // The loop over the depth: STAGES - 1 steps are under way while one is multiplied
    for (int step = 0; step < STAGES; ++step) find(step);
    __syncthreads();
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) fetch(step), store(step);
        close_group();
    }
    Tile tile;
    for (int step = 0; step < steps; ++step) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < steps) fetch(ahead);
        close_group();
        find(ahead + 1);
        const int stage = step % STAGES;
        multiply_inner<A_ROW, B_ROW>(tile, shared.operands.a[stage], shared.operands.b[stage]);
        if (ahead < steps) store(ahead);
    }
    wait_groups<0>();
    __syncthreads();

    // The epilogue: bias, activation and the one rounding; then from shared memory out in the order of the output
    tile.each([&](int row, int column, Accumulator sum) {
        const int output = tile_n * BLOCK_N + column;
        if (HAS_BIAS && output < outputs) sum += widen(bias[group * outputs + output]);
        shared.out[row * OUT_ROW + column] = narrow<Element>(activate<ACTIVATION>(sum));
    });
    __syncthreads();
    constexpr int OUT_UNITS = BLOCK_N / OUT_UNIT;
    for (int i = thread; i < OUT_ROWS * OUT_UNITS; i += THREADS) {
        const int row = OUT_ALONG_PIXELS ? i % OUT_ROWS : i / OUT_UNITS;
        const int column = (OUT_ALONG_PIXELS ? i / OUT_ROWS : i % OUT_UNITS) * OUT_UNIT;
        const int output = tile_n * BLOCK_N + column;
        const Index pixel = shared.out_pixel[row];
        if (pixel < 0 || output >= outputs) continue;
        typedef Pack<Element, OUT_UNIT> Unit;
        const Index to = pixel + (Index(group) * outputs + output) * Index(out_c);
        const Element* from = shared.out + row * AREA * OUT_ROW + column;
        if constexpr (POOL) {
            Unit values;
            Pack<unsigned char, OUT_UNIT> codes;
#pragma unroll
            for (int v = 0; v < OUT_UNIT; ++v) {
                const Accumulator taps[4] = {widen(from[v]), widen(from[OUT_ROW + v]), widen(from[2 * OUT_ROW + v]),
                                             widen(from[3 * OUT_ROW + v])};
                const Pooled<Accumulator> window = pooled<POOL, ACTIVATION>(taps);
                values.value[v] = narrow<Element>(window.value), codes.value[v] = window.code;
            }
            *reinterpret_cast<Unit*>(out + to) = values;
            if (CODE) *reinterpret_cast<Pack<unsigned char, OUT_UNIT>*>(code + to) = codes;
        } else {
            *reinterpret_cast<Unit*>(out + to) = *reinterpret_cast<const Unit*>(from);
        }
    }
}
