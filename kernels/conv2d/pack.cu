// Before and after the products: filters as matrices, maps with channels inside, and the ordered sum of slabs.
#include "_device.cuh"
#include "conv2d/_taps.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;

// Filters as correlate.cu reads them, [phase][group][outputs][row], one element a thread. A row is taps and input
// channels of the product (for the input's gradient: those of dy), channels inside, and zeros behind.
extern "C" __global__ void pack_filters(const Element* w, Element* packed, long long elements, int groups, int inputs,
                                        int outputs, int row, int R, int S, int phases_w, int stride_h, int stride_w,
                                        int dilation_h, int dilation_w, int pad_h, int pad_w, int tap_step_h,
                                        int tap_step_w, long long w_group, long long w_out, long long w_in,
                                        long long w_r, long long w_s) {
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= elements) return;
    const int at = int(number % row);
    long long rest = number / row;
    const int output = int(rest % outputs);
    rest /= outputs;
    const int group = int(rest % groups), phase = int(rest / groups);
    const Taps taps_h(phase / phases_w, R, stride_h, dilation_h, pad_h, tap_step_h);
    const Taps taps_w(phase % phases_w, S, stride_w, dilation_w, pad_w, tap_step_w);
    const int tap = at / inputs, input = at - tap * inputs;
    Element value = narrow<Element>(0);
    if (tap < taps_h.count * taps_w.count) {
        const int r = taps_h.first + tap / taps_w.count * tap_step_h;
        const int s = taps_w.first + tap % taps_w.count * tap_step_w;
        value = w[group * w_group + output * w_out + input * w_in + r * w_r + s * w_s];
    }
    packed[number] = value;
}

// A map of any strides into one with channels inside: 64 pixels of 64 channels a block, read along pixels, turned in
// shared memory, written along channels.
extern "C" __global__ void __launch_bounds__(256)
to_channels_last(const Element* from, Element* to, int channels, int plane, int W, int tiles_p, int tiles_c,
                 unsigned long long by_row, long long from_n, long long from_c, long long from_h, long long from_w) {
    constexpr int SIDE = 64, ROWS = 256 / SIDE;
    __shared__ Element tile[SIDE][SIDE + 4 / sizeof(Element) + (sizeof(Element) == 8)];  // columns in different banks
    const int first_p = blockIdx.x % tiles_p * SIDE, first_c = blockIdx.x / tiles_p % tiles_c * SIDE;
    const long long n = blockIdx.x / tiles_p / tiles_c;
    const int lane = threadIdx.x % SIDE, row = threadIdx.x / SIDE;
    const int pixel = first_p + lane, h = Divisor(by_row)(pixel), w = pixel - h * W;
    if (pixel < plane)
        for (int c = row; c < SIDE && first_c + c < channels; c += ROWS)
            tile[c][lane] = from[n * from_n + (first_c + c) * from_c + h * from_h + w * from_w];
    __syncthreads();
    if (first_c + lane < channels)
        for (int p = row; p < SIDE && first_p + p < plane; p += ROWS)
            to[(n * plane + first_p + p) * channels + first_c + lane] = tile[lane][p];
}

// dw[k][c][r][s] = sum of its slabs [slab][K][R·S][C / groups]; behind the weights' elements come those of the bias.
// 32 elements and SPLIT ranges of slabs a block, each added in order, then the ranges in order.
extern "C" __global__ void __launch_bounds__(32 * SPLIT)
sum_slabs(const Accumulator* slabs, const Accumulator* bias_slabs, Element* dw, Element* db, long long weights,
          int biases, int count, int bias_count, int row, int inputs, int S, long long dw_k, long long dw_c,
          long long dw_r, long long dw_s) {
    __shared__ Accumulator parts[SPLIT][32];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    const long long number = (long long)blockIdx.x * 32 + lane;
    const bool of_weight = number < weights;
    const long long size = of_weight ? weights : biases;
    const Accumulator* from = of_weight ? slabs + number : bias_slabs + (number - weights);
    const int all = of_weight ? count : number - weights < biases ? bias_count : 0;
    const int each = (all + SPLIT - 1) / SPLIT, last = min(all, (part + 1) * each);
    Accumulator sum = 0;
    for (int slab = part * each; slab < last; ++slab) sum += from[slab * size];
    parts[part][lane] = sum;
    __syncthreads();
    if (part > 0 || all == 0) return;
    for (int other = 1; other < SPLIT; ++other) sum += parts[other][lane];
    if (of_weight) {
        const int k = int(number / row), at = int(number % row), tap = at / inputs, c = at % inputs;
        dw[k * dw_k + c * dw_c + tap / S * dw_r + tap % S * dw_s] = narrow<Element>(sum);
    } else {
        db[number - weights] = narrow<Element>(sum);
    }
}
