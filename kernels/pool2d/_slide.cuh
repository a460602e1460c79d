// Windows that slide over registers: a thread makes a tile of outputs and walks once over the rows under it.
//
// Each row comes to one value (or sum) a window first, and that goes to all windows above and below that see the row:
// what is loaded serves every window that needs it, and R + S taps do the work of R · S.
//
// A tile is ROWS outputs high and COLS wide, and there are WIDTH of them side by side in registers: of neighbouring
// channels, or from different parts of a plane's rows.
//
// Macros: KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W; ROWS, COLS, WIDTH; PITCH (tap (r, s) is number
// r · PITCH + s).
#pragma once
#include "pool2d/_folds.cuh"

namespace tilesmith {

constexpr int SPAN_H = (ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1;
constexpr int SPAN_W = (COLS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1;
constexpr int UNROLL = SPAN_H * SPAN_W * WIDTH <= 512 ? SPAN_H : 1;

// The tap with which window number `window` of a tile sees place `place` of its span, or -1.
__device__ constexpr int tap_of(int place, int window, int kernel, int stride, int dilation) {
    const int rest = place - window * stride;
    return rest >= 0 && rest % dilation == 0 && rest / dilation < kernel ? rest / dilation : -1;
}
__device__ constexpr bool seen(int place, int windows, int kernel, int stride, int dilation) {
    for (int window = 0; window < windows; ++window)
        if (tap_of(place, window, kernel, stride, dilation) >= 0) return true;
    return false;
}

__device__ inline int first_inside(int start, int dilation) {
    return start < 0 ? (dilation - 1 - start) / dilation : 0;
}

// The tiles' first windows begin at row `top`, and at column `left` plus source.shift(v) for tile v. `source(row, column)`
// are the tiles' elements there, nothing() where that is outside.
template <typename Source>
__device__ void slide(Folds<WIDTH> (&best)[ROWS][COLS], const Source& source, int top, int left) {
    int first[COLS][WIDTH];
#pragma unroll
    for (int c = 0; c < COLS; ++c)
#pragma unroll
        for (int v = 0; v < WIDTH; ++v) first[c][v] = first_inside(left + c * STRIDE_W + source.shift(v), DILATION_W);
#pragma unroll UNROLL
    for (int i = 0; i < SPAN_H; ++i) {
        if (!seen(i, ROWS, KERNEL_H, STRIDE_H, DILATION_H)) continue;
        Values<WIDTH> line[SPAN_W];
#pragma unroll
        for (int j = 0; j < SPAN_W; ++j)
            if (seen(j, COLS, KERNEL_W, STRIDE_W, DILATION_W)) line[j] = source(top + i, left + j);
#pragma unroll
        for (int c = 0; c < COLS; ++c) {
            Folds<WIDTH> of_row;
            of_row.start(line[c * STRIDE_W], first[c]);
#pragma unroll
            for (int s = 1; s < KERNEL_W; ++s) of_row.add(line[c * STRIDE_W + s * DILATION_W], s);
#pragma unroll
            for (int p = 0; p < ROWS; ++p) {
                const int r = tap_of(i, p, KERNEL_H, STRIDE_H, DILATION_H);
                if (r == 0) best[p][c].start(of_row, first_inside(top + p * STRIDE_H, DILATION_H) * PITCH);
                if (r > 0) best[p][c].add(of_row, r * PITCH);
            }
        }
    }
#if WHERE
    bool any = false;
#pragma unroll
    for (int p = 0; p < ROWS; ++p)
#pragma unroll
        for (int c = 0; c < COLS; ++c) any = any || best[p][c].any_nan();
    if (!any) return;
#pragma unroll 1
    for (int r = 0; r < KERNEL_H; ++r)
#pragma unroll 1
        for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
            for (int p = 0; p < ROWS; ++p) {
                const int row = top + p * STRIDE_H + r * DILATION_H;
#pragma unroll
                for (int c = 0; c < COLS; ++c)
                    best[p][c].mark_nan(source(row, left + c * STRIDE_W + s * DILATION_W), r * PITCH + s);
            }
#endif
}

// What is told of a maximum with a code: the code, or the place in the plane of its element.
__device__ inline Where where_is(int code, int top, int left, int width) {
#if WHERE == 2
    return (top + code / PITCH * DILATION_H) * width + left + code % PITCH * DILATION_W;
#else
    return Where(code);
#endif
}

}  // namespace tilesmith
