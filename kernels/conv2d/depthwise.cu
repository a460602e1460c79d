// Depthwise convolution without a product: one filter a channel, so each input is worth R·S multiplications at most and
// registers are all the reuse there is.
//
// A thread makes TILE neighbouring outputs along one axis, of CHANNELS neighbouring channels. For each row of taps it
// walks over the inputs under them once, and each input goes to all outputs that see it: a window that slides over
// registers, unrolled for the number of taps, the stride (PACE) and the dilation (SPREAD) of the axis. The other axis,
// "across", is a loop. Where channels lie inside, "along" is W and neighbouring threads (LANES of them) are
// neighbouring channels; where columns lie inside, "along" is H and neighbouring threads are neighbouring columns.
#include "_device.cuh"
#include "conv2d/_taps.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;
typedef INDEX Index;
typedef Pack<Element, CHANNELS> Channels;

constexpr int SLOTS = THREADS / LANES;  // positions that a block works on at the same time
constexpr int SPAN = (TILE - 1) * PACE + (TAPS - 1) * SPREAD + 1;

// The tap with which output t sees input i of the span, or -1. Known when the loops are unrolled.
__device__ constexpr int tap_at(int i, int t) {
    const int rest = i - t * PACE;
    return rest >= 0 && rest % SPREAD == 0 && rest / SPREAD < TAPS ? rest / SPREAD : -1;
}

__device__ constexpr bool seen(int i) {
    for (int t = 0; t < TILE; ++t)
        if (tap_at(i, t) >= 0) return true;
    return false;
}

__device__ inline void load(Accumulator (&to)[CHANNELS], const Element* from, Index offset, bool real) {
    Channels values;
    if (real) values = *reinterpret_cast<const Channels*>(from + offset);
#pragma unroll
    for (int v = 0; v < CHANNELS; ++v) to[v] = real ? widen(values.value[v]) : Accumulator(0);
}

// A block's place: its channels, and the first of its positions (image, segment along, pixel across; the last fastest).
struct Position {
    int n, along, across;

    __device__ Position(int number, int across_count, int segments, unsigned long long by_across,
                        unsigned long long by_segments) {
        const int line = Divisor(by_across)(number);
        across = number - line * across_count;
        n = Divisor(by_segments)(line);
        along = (line - n * segments) * TILE;
    }
};

#ifdef MULTIPLIER  // ---- outputs, or the input's gradient

// Forward, channel k of the output reads channel k / MULTIPLIER; backward, channel c of dx reads all of its outputs.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
depthwise(const Element* source, const Element* w, const Element* bias, Element* out, int channels, int channel_blocks,
          int position_blocks, int positions, int iterations, int segments, int across_count, int along_size,
          int across_size, int along_out, int across_out, int kernel_along, int kernel_across, int stride_along,
          int stride_across, int dilation_along, int dilation_across, int pad_along, int pad_across, int step_along,
          int step_across, int spread_across, int phases_across, unsigned long long by_across,
          unsigned long long by_segments, long long source_n, long long source_c, long long source_along,
          long long source_across, long long out_n, long long out_c, long long out_along, long long out_across,
          long long w_k, long long w_along, long long w_across) {
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    int rest = blockIdx.x;
    const int position_block = rest % position_blocks;
    rest /= position_blocks;
    const int channel_block = rest % channel_blocks, phase = rest / channel_blocks;
    const int phase_along = phase / phases_across, phase_across = phase % phases_across;
    const int channel = (channel_block * LANES + lane) * CHANNELS;
    const Taps along(phase_along, kernel_along, stride_along, dilation_along, pad_along, step_along);
    const Taps across(phase_across, kernel_across, stride_across, dilation_across, pad_across, step_across);
    constexpr int SOURCES = BACKWARD ? MULTIPLIER : 1;

    // The filters of this block's channels, in the accumulator's type: [source][tap across][tap along][channel]
    constexpr int WIDTH = LANES * CHANNELS;
    const int taps = kernel_along * kernel_across;
#if FILTERS_IN_SHARED
    extern __shared__ __align__(16) unsigned char memory[];
    Accumulator* filters = reinterpret_cast<Accumulator*>(memory);
    for (int i = threadIdx.x; i < SOURCES * taps * WIDTH; i += THREADS) {
        const int tap = i % taps, c = i / taps % WIDTH, j = i / taps / WIDTH;
        const int at = channel_block * WIDTH + c;
        const Index offset = Index(at * SOURCES + j) * Index(w_k) + tap / kernel_along * Index(w_across) +
                             tap % kernel_along * Index(w_along);
        filters[(j * taps + tap) * WIDTH + c] = at < channels ? widen(w[offset]) : Accumulator(0);
    }
    __syncthreads();
#endif
    if (channel >= channels) return;

    for (int iteration = 0; iteration < iterations; ++iteration) {
        const int number = (position_block * iterations + iteration) * SLOTS + slot;
        if (number >= positions) return;
        const Position at(number, across_count, segments, by_across, by_segments);
        Accumulator sum[TILE][CHANNELS] = {};
        for (int j = 0; j < SOURCES; ++j) {
            const int from = BACKWARD ? channel * MULTIPLIER + j : channel / MULTIPLIER;
            const Index image = at.n * Index(source_n) + from * Index(source_c);
            for (int b = 0; b < across.count; ++b) {
                const int line = at.across * (BACKWARD ? 1 : stride_across) + across.start + b * spread_across;
                if (unsigned(line) >= unsigned(across_size)) continue;
                const Index line_offset = image + line * Index(source_across);
                const int tap_across = across.first + b * step_across;
                for (int chunk = 0; chunk < along.count; chunk += TAPS) {
                    // Backward the window's taps come in falling order
                    const int first = at.along * PACE + along.start +
                                      (BACKWARD ? -(chunk + TAPS - 1) * SPREAD : chunk * SPREAD);
                    Accumulator filter[TAPS][CHANNELS];
#pragma unroll
                    for (int i = 0; i < TAPS; ++i) {
                        const int tap = BACKWARD ? chunk + TAPS - 1 - i : chunk + i;
                        const int tap_along = along.first + (tap < along.count ? tap : 0) * step_along;
#pragma unroll
                        for (int v = 0; v < CHANNELS; ++v) {
#if FILTERS_IN_SHARED
                            const int index = tap_across * kernel_along + tap_along;
                            filter[i][v] = filters[(j * taps + index) * WIDTH + lane * CHANNELS + v];
#else
                            filter[i][v] = widen(w[Index((channel + v) * SOURCES + j) * Index(w_k) +
                                                   tap_across * Index(w_across) + tap_along * Index(w_along)]);
#endif
                        }
                    }
#pragma unroll
                    for (int i = 0; i < SPAN; ++i) {
                        if (!seen(i)) continue;
                        const int place = first + i;
                        const bool real = unsigned(place) < unsigned(along_size);
                        Accumulator value[CHANNELS];
                        load(value, source, real ? line_offset + place * Index(source_along) : Index(0), real);
#pragma unroll
                        for (int t = 0; t < TILE; ++t) {
                            const int tap = tap_at(i, t);
                            if (tap < 0) continue;
                            if (!EXACT && (BACKWARD ? chunk + TAPS - 1 - tap : chunk + tap) >= along.count) continue;
#pragma unroll
                            for (int v = 0; v < CHANNELS; ++v) sum[t][v] += value[v] * filter[tap][v];
                        }
                    }
                }
            }
        }
        const int y_across = BACKWARD ? at.across * stride_across + phase_across : at.across;
        if (y_across >= across_out) continue;
#pragma unroll
        for (int t = 0; t < TILE; ++t) {
            const int y_along = BACKWARD ? (at.along + t) * stride_along + phase_along : at.along + t;
            if (y_along >= along_out) continue;
            Channels values;
#pragma unroll
            for (int v = 0; v < CHANNELS; ++v) {
                Accumulator y = sum[t][v];
                if (HAS_BIAS) y += widen(bias[channel + v]);
                values.value[v] = narrow<Element>(activate<ACTIVATION>(y));
            }
            *reinterpret_cast<Channels*>(out + at.n * Index(out_n) + channel * Index(out_c) +
                                         y_across * Index(out_across) + y_along * Index(out_along)) = values;
        }
    }
}

#else  // ---- the weight's gradient

// Each block keeps sums for ROWS x TAPS taps of its channels in registers while it walks over its slab of positions,
// so x and dy come from device memory once; then its threads' sums are added in order. sum_slabs adds the slabs.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
depthwise_weight_grad(const Element* x, const Element* dy, Accumulator* slabs, Accumulator* bias_slabs, int channels,
                      int channel_blocks, int slab_count, int positions, int slab_positions, int multiplier,
                      int segments, int across_count, int along_count, int along_size, int across_size,
                      int kernel_along, int kernel_across, int tiles_along, int stride_across, int dilation_across,
                      int pad_along, int pad_across, unsigned long long by_across, unsigned long long by_segments,
                      long long x_n, long long x_c, long long x_along, long long x_across, long long dy_n,
                      long long dy_k, long long dy_along, long long dy_across, long long slab_along,
                      long long slab_across) {
    constexpr int WARPS = THREADS / 32, WIDTH = (LANES < 32 ? LANES : 32) * CHANNELS;
    __shared__ Accumulator parts[TAPS][WARPS][WIDTH];
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    int rest = blockIdx.x;
    const int slab = rest % slab_count;
    rest /= slab_count;
    const int channel_block = rest % channel_blocks, tile = rest / channel_blocks;
    const int first_along = tile % tiles_along * TAPS, first_across = tile / tiles_along * ROWS;
    const int channel = (channel_block * LANES + lane) * CHANNELS;

    Accumulator sum[ROWS][TAPS][CHANNELS] = {}, bias_sum[CHANNELS] = {};
    const int first = slab * slab_positions;
    const int last = first + (slab_positions < positions - first ? slab_positions : positions - first);
    for (int number = first + slot; number < last && channel < channels; number += SLOTS) {
        const Position at(number, across_count, segments, by_across, by_segments);
        const Index dy_line = at.n * Index(dy_n) + channel * Index(dy_k) + at.across * Index(dy_across);
        const int whole = along_count - at.along;  // outputs of this segment, if fewer than TILE
        Accumulator grad[TILE][CHANNELS], padded[CHANNELS] = {};  // zeros' share: 0, but NaN for a gradient that is not finite
#pragma unroll
        for (int t = 0; t < TILE; ++t) {
            const bool real = t < whole;
            load(grad[t], dy, real ? dy_line + (at.along + t) * Index(dy_along) : Index(0), real);
#pragma unroll
            for (int v = 0; v < CHANNELS; ++v) bias_sum[v] += grad[t][v], padded[v] += 0 * grad[t][v];
        }
        const Index image = at.n * Index(x_n) + channel / multiplier * Index(x_c);
        const int begin = at.along * PACE - pad_along + first_along * SPREAD;
#pragma unroll
        for (int b = 0; b < ROWS; ++b) {
            const int line = at.across * stride_across - pad_across + (first_across + b) * dilation_across;
            if (unsigned(line) >= unsigned(across_size)) {
#pragma unroll
                for (int i = 0; i < TAPS; ++i)
#pragma unroll
                    for (int v = 0; v < CHANNELS; ++v) sum[b][i][v] += padded[v];
                continue;
            }
            const Index x_line = image + line * Index(x_across);
#pragma unroll
            for (int i = 0; i < SPAN; ++i) {
                if (!seen(i)) continue;
                const int place = begin + i;
                const bool real = unsigned(place) < unsigned(along_size);
                Accumulator value[CHANNELS];
                load(value, x, real ? x_line + place * Index(x_along) : Index(0), real);
#pragma unroll
                for (int t = 0; t < TILE; ++t) {
                    const int tap = tap_at(i, t);
                    if (tap < 0) continue;
                    if (!EXACT && t >= whole) continue;  // 0 · NaN of an input that no output sees with this tap
#pragma unroll
                    for (int v = 0; v < CHANNELS; ++v) sum[b][tap][v] += value[v] * grad[t][v];
                }
            }
        }
    }

    // The sums of threads with the same channels: first within a warp, then warp by warp, a row of taps at a time
    const int warp = threadIdx.x / 32, column = threadIdx.x % 32 % LANES;
    const auto in_warp = [&](Accumulator value) {
        for (int offset = 16; offset >= LANES; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
        return value;
    };
    const int first_channel = channel_block * LANES * CHANNELS;
    slabs += (long long)slab * channels * kernel_along * kernel_across;
#pragma unroll
    for (int b = 0; b < ROWS; ++b) {
#pragma unroll
        for (int i = 0; i < TAPS; ++i)
#pragma unroll
            for (int v = 0; v < CHANNELS; ++v) {
                const Accumulator value = in_warp(sum[b][i][v]);
                if (threadIdx.x % 32 < LANES) parts[i][warp][column * CHANNELS + v] = value;
            }
        __syncthreads();
        for (int i = threadIdx.x; i < TAPS * WIDTH; i += THREADS) {
            const int c = i % WIDTH, tap_along = first_along + i / WIDTH, tap_across = first_across + b;
            Accumulator all = 0;
            for (int part = 0; part < WARPS; ++part) all += parts[i / WIDTH][part][c];
            if (first_channel + c < channels && tap_along < kernel_along && tap_across < kernel_across)
                slabs[(long long)(first_channel + c) * kernel_along * kernel_across + tap_along * slab_along +
                      tap_across * slab_across] = all;
        }
        __syncthreads();
    }
    if (HAS_BIAS && tile == 0) {
#pragma unroll
        for (int v = 0; v < CHANNELS; ++v) {
            const Accumulator value = in_warp(bias_sum[v]);
            if (threadIdx.x % 32 < LANES) parts[0][warp][column * CHANNELS + v] = value;
        }
        __syncthreads();
        for (int c = threadIdx.x; c < WIDTH; c += THREADS) {
            Accumulator all = 0;
            for (int part = 0; part < WARPS; ++part) all += parts[0][part][c];
            if (first_channel + c < channels) bias_slabs[(long long)slab * channels + first_channel + c] = all;
        }
    }
}

#endif
