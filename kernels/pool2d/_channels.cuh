// Maps with channels inside: a thread takes WIDTH neighbouring channels of a tile of pixels.
//
// Macros: WIDTH, LANES (neighbouring threads that are neighbouring channels), TOGETHER (1: these channels lie
// side by side, and one load brings them), THREADS.
#pragma once
#include "_device.cuh"
#include "pool2d/_folds.cuh"
#include "pool2d/_windows.cuh"

namespace tilesmith {

// A thread's tile. Of `below` tiles below each other the threads are neighbours, too: rows that their windows share are
// still in L1.
struct Tile {
    int number, channel, down, right;
    long long image;

    __device__ Tile(int below, int channel_blocks, int groups, int tiles, unsigned long long by_groups,
                    unsigned long long by_tiles) {
        const int block = blockIdx.x / channel_blocks;
        channel = ((blockIdx.x - block * channel_blocks) * LANES + threadIdx.x % LANES) * WIDTH;
        number = block * (THREADS / LANES) + threadIdx.x / LANES;
        const int line = Divisor(by_tiles)(number / below), n = Divisor(by_groups)(line);
        right = number / below - line * tiles;
        down = (line - n * groups) * below + number % below;
        image = n;
    }
};

// The thread's channels of one image.
struct Image {
    const Element* from;
    int H, W;
    long long step_c;
    Index step_h, step_w;

    __device__ Image(const Element* from, int H, int W, long long step_c, long long step_h, long long step_w)
        : from(from), H(H), W(W), step_c(step_c), step_h(Index(step_h)), step_w(Index(step_w)) {}

    __device__ static int shift(int) { return 0; }
    __device__ Values<WIDTH> operator()(int row, int column) const {
        Values<WIDTH> values;
        values.fill(nothing());
        const bool real = unsigned(row) < unsigned(H) && unsigned(column) < unsigned(W);
        if (real) values.load(from + (row * step_h + column * step_w), TOGETHER, step_c);
        return values;
    }
};

}  // namespace tilesmith
