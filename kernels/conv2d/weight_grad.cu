// The gradients of weight and bias as an implicit product: rows are output channels of one group, columns are taps and
// input channels together (channels inside), the depth is all output pixels.
//
// The pixels are cut into slabs, one a block; each block writes its part, and sum_slabs (pack.cu) adds the parts in
// order: the result is the same on every run. The blocks of one row of tiles share the work of the bias' gradient.
#include "conv2d/_tile.cuh"

using namespace tilesmith;

// Rows of 4-byte numbers are read 4 pixels at a time: those rows must lie 8 banks apart
constexpr int PAD = sizeof(Element) == 4 ? 8 : VECTOR;
constexpr int A_ROW = BLOCK_M + PAD, B_ROW = BLOCK_N + PAD;

// How an operand of COLUMNS channels is dealt to threads: neighbouring threads take neighbouring channels, UNIT at once,
// or (ALONG) neighbouring pixels.
template <int COLUMNS, int UNIT, bool ALONG>
struct Deal {
    static constexpr int UNITS = COLUMNS / UNIT;  // of one pixel
    static constexpr int PIXEL_STEP = ALONG ? BLOCK_K : THREADS / UNITS > 0 ? THREADS / UNITS : 1;
    static constexpr int UNIT_STEP = ALONG ? THREADS / BLOCK_K : UNITS;
    static constexpr int PIXELS_EACH = PIXEL_STEP < BLOCK_K ? BLOCK_K / PIXEL_STEP : 1;
    static constexpr int UNITS_EACH = UNIT_STEP < UNITS ? UNITS / UNIT_STEP : 1;
    static constexpr bool STRAIGHT = Staged<UNIT>::STRAIGHT;
    static constexpr int HELD = STRAIGHT ? 1 : PIXELS_EACH * UNITS_EACH;
    static_assert(ALONG || THREADS % UNITS == 0, "a thread keeps to its channels");

    int pixel, unit;
    __device__ Deal() : pixel(ALONG ? threadIdx.x % BLOCK_K : threadIdx.x / UNITS),
                        unit(ALONG ? threadIdx.x / BLOCK_K : threadIdx.x % UNITS) {}
    // Calls visit(pixel, unit, number of the visit).
    template <typename Visit>
    __device__ void each(Visit visit) const {
#pragma unroll
        for (int j = 0; j < UNITS_EACH; ++j)
#pragma unroll
            for (int i = 0; i < PIXELS_EACH; ++i)
                if (pixel + i * PIXEL_STEP < BLOCK_K && unit + j * UNIT_STEP < UNITS)
                    visit(pixel + i * PIXEL_STEP, unit + j * UNIT_STEP, STRAIGHT ? 0 : j * PIXELS_EACH + i);
    }
};

struct Shared {
    Element dy[STAGES][BLOCK_K * A_ROW], x[STAGES][BLOCK_K * B_ROW];
    Place pixels[STAGES][BLOCK_K];   // in x
    Index dy_pixels[STAGES][BLOCK_K];  // -1: no pixel of the slab
    Place columns[BLOCK_N / B_UNIT];   // in x, seen from a pixel's place
    Accumulator bias[THREADS];
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
weight_grad(const Element* x, const Element* dy, Accumulator* slabs, Accumulator* bias_slabs, int pixels,
            int slab_pixels, int tiles_m, int tiles_n, int groups, int inputs, int outputs, int H, int W, int P, int Q,
            int S, int length, int stride_h, int stride_w, int dilation_h, int dilation_w, int pad_h, int pad_w,
            unsigned long long by_plane, unsigned long long by_row, unsigned long long by_inputs, long long x_n,
            long long x_c, long long x_h, long long x_w, long long dy_n, long long dy_k, long long dy_p, long long dy_q) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x;

    // This block's tile and its pixels
    int rest = blockIdx.x;
    const int tile_n = rest % tiles_n;
    rest /= tiles_n;
    const int tile_m = rest % tiles_m;
    rest /= tiles_m;
    const int group = rest % groups, slab = rest / groups;
    const int first_pixel = slab * slab_pixels;
    const int count = slab_pixels < pixels - first_pixel ? slab_pixels : pixels - first_pixel;
    const int steps = (count + BLOCK_K - 1) / BLOCK_K;
    x += Index(group) * inputs * Index(x_c);
    dy += (Index(group) * outputs + Index(tile_m) * BLOCK_M) * Index(dy_k);

    const SmallDivisor by_taps_w(S);
    for (int unit = thread; unit < BLOCK_N / B_UNIT; unit += THREADS) {
        const int column = tile_n * BLOCK_N + unit * B_UNIT;
        Place place = {NOWHERE, NOWHERE, 0};
        if (column < length) {
            const int tap = Divisor(by_inputs)(column), r = by_taps_w(tap);
            place.h = r * dilation_h, place.w = (tap - r * S) * dilation_w;
            place.offset = place.h * Index(x_h) + place.w * Index(x_w) + (column - tap * inputs) * Index(x_c);
        }
        shared.columns[unit] = place;
    }

    const Deal<BLOCK_M, A_UNIT, A_ALONG_PIXELS> deal_dy;
    const Deal<BLOCK_N, B_UNIT, B_ALONG_PIXELS> deal_x;
    Element held_dy[deal_dy.HELD], held_x[deal_x.HELD];
    const auto find = [&](int step) {
        if (thread >= BLOCK_K) return;
        const int number = step * BLOCK_K + thread;
        Place place = {NOWHERE, NOWHERE, 0};
        Index dy_pixel = -1;
        if (number < count) {
            const int pixel = first_pixel + number;
            const int n = Divisor(by_plane)(pixel), p = Divisor(by_row)(pixel - n * (P * Q));
            const int q = pixel - n * (P * Q) - p * Q;
            place.h = p * stride_h - pad_h, place.w = q * stride_w - pad_w;
            place.offset = n * Index(x_n) + place.h * Index(x_h) + place.w * Index(x_w);
            dy_pixel = n * Index(dy_n) + p * Index(dy_p) + q * Index(dy_q);
        }
        shared.pixels[step % STAGES][thread] = place;
        shared.dy_pixels[step % STAGES][thread] = dy_pixel;
    };
    const auto fetch = [&](int step) {
        const int stage = step % STAGES;
        deal_dy.each([&](int pixel, int unit, int visit) {
            const Index place = shared.dy_pixels[stage][pixel];
            const bool real = place >= 0 && tile_m * BLOCK_M + unit * A_UNIT < outputs;
            const Element* from = dy + (real ? place + unit * A_UNIT * Index(dy_k) : Index(0));
            if constexpr (Staged<A_UNIT>::STRAIGHT)
                copy_async<Staged<A_UNIT>::BYTES>(shared.dy[stage] + pixel * A_ROW + unit * A_UNIT, from, real);
            else
                held_dy[visit] = real ? *from : narrow<Element>(0);
        });
        deal_x.each([&](int pixel, int unit, int visit) {
            const Place row = shared.pixels[stage][pixel], column = shared.columns[unit];
            const bool real = inside(row, column, H, W);
            const Element* from = x + (real ? row.offset + column.offset : Index(0));
            if constexpr (Staged<B_UNIT>::STRAIGHT)
                copy_async<Staged<B_UNIT>::BYTES>(shared.x[stage] + pixel * B_ROW + unit * B_UNIT, from, real);
            else
                held_x[visit] = real ? *from : narrow<Element>(0);
        });
    };
    const auto store = [&](int step) {  // what came by way of registers
        const int stage = step % STAGES;
        if constexpr (!Staged<A_UNIT>::STRAIGHT)
            deal_dy.each([&](int pixel, int unit, int visit) {
                shared.dy[stage][pixel * A_ROW + unit] = held_dy[visit];
            });
        if constexpr (!Staged<B_UNIT>::STRAIGHT)
            deal_x.each([&](int pixel, int unit, int visit) {
                shared.x[stage][pixel * B_ROW + unit] = held_x[visit];
            });
    };

    // The loop over the pixels: STAGES - 1 steps are under way while one is multiplied
    for (int step = 0; step < STAGES; ++step) find(step);
    __syncthreads();
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) fetch(step), store(step);
        close_group();
    }
    Tile tile;
    Accumulator bias_sum = 0;
    for (int step = 0; step < steps; ++step) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < steps) fetch(ahead);
        close_group();
        find(ahead + 1);
        const int stage = step % STAGES;
        multiply_outer<A_ROW, B_ROW>(tile, shared.dy[stage], shared.x[stage]);
        if (HAS_BIAS && step % tiles_n == tile_n) {
#pragma unroll
            for (int pixel = thread / BLOCK_M; pixel < BLOCK_K; pixel += THREADS / BLOCK_M)
                bias_sum += widen(shared.dy[stage][pixel * A_ROW + thread % BLOCK_M]);
        }
        if (ahead < steps) store(ahead);
    }

    // The epilogue: parts of the sums, in the accumulator's type
    slabs += ((long long)slab * groups + group) * outputs * length;
    tile.each([&](int row, int column, Accumulator sum) {
        const int output = tile_m * BLOCK_M + row, at = tile_n * BLOCK_N + column;
        if (output < outputs && at < length) slabs[(long long)output * length + at] = sum;
    });
    if (HAS_BIAS) {
        shared.bias[thread] = bias_sum;
        __syncthreads();
        const int output = tile_m * BLOCK_M + thread;
        if (thread < BLOCK_M && output < outputs) {
            for (int part = 1; part < THREADS / BLOCK_M; ++part) bias_sum += shared.bias[part * BLOCK_M + thread];
            bias_slabs[((long long)slab * tiles_n + tile_n) * groups * outputs + group * outputs + output] = bias_sum;
        }
    }
}
