// One block's share of a matrix product: BLOCK_M x BLOCK_N sums spread over WARPS_M x WARPS_N warps, whose operands lie
// in shared memory BLOCK_K deep at a time.
//
// MATH chooses what multiplies: tensor cores for half types (0), TF32 (1), TF32 three times (2), or plain FMAs (3).
#pragma once

#include "_device.cuh"

namespace tilesmith {

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;
typedef INDEX Index;

enum { HALF, TF32, TF32X3, FMA };

constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
constexpr int VECTOR = 16 / sizeof(Element);  // elements of 16 bytes

// A tensor core takes 16 rows, 8 columns and 32 bytes of the depth; FMAs are dealt to 8 x 4 lanes one by one.
constexpr int LANE_ROWS = MATH == FMA ? 8 : 16, LANE_COLUMNS = MATH == FMA ? 4 : 8, EACH = MATH == FMA ? 1 : 4;
constexpr int TILE_I = WARP_M / LANE_ROWS, TILE_J = WARP_N / LANE_COLUMNS;
constexpr int DEPTH = MATH == FMA ? VECTOR : 32 / sizeof(Element);

static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's tile is made of 16 x 16");
static_assert(BLOCK_K % DEPTH == 0, "a step is made of whole instructions");

struct Tile {
    Accumulator sum[TILE_I][TILE_J][EACH];

    __device__ Tile() {
#pragma unroll
        for (int i = 0; i < TILE_I; ++i)
#pragma unroll
            for (int j = 0; j < TILE_J; ++j)
#pragma unroll
                for (int e = 0; e < EACH; ++e) sum[i][j][e] = 0;
    }

    // Calls visit(row, column, sum) for each sum of this thread.
    template <typename Visit>
    __device__ void each(Visit visit) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / WARPS_N * WARP_M + lane / 4;
        const int column = warp % WARPS_N * WARP_N + lane % 4 * (MATH == FMA ? 1 : 2);
#pragma unroll
        for (int i = 0; i < TILE_I; ++i)
#pragma unroll
            for (int j = 0; j < TILE_J; ++j)
#pragma unroll
                for (int e = 0; e < EACH; ++e)
                    visit(row + i * LANE_ROWS + e / 2 * 8, column + j * LANE_COLUMNS + e % 2, sum[i][j][e]);
    }
};

#if MATH != 3  // the types of fragments make no sense for FMAs

__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma(sum, a, b, Element());
}

// The products of a warp's fragments for one step of the depth.
__device__ inline void multiply_fragments(Tile& tile, unsigned (&a)[TILE_I][4], unsigned (&b)[TILE_J][2]) {
    if constexpr (MATH == TF32X3) {
#pragma unroll
        for (int i = 0; i < TILE_I; ++i) {
            unsigned large[4], finite[4], small[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Split split(a[i][e]);
                large[e] = split.large, finite[e] = split.finite, small[e] = split.small;
            }
#pragma unroll
            for (int j = 0; j < TILE_J; ++j) {
                const Split first(b[j][0]), last(b[j][1]);
                multiply_add(tile.sum[i][j], small, {first.finite, last.finite});
                multiply_add(tile.sum[i][j], finite, {first.small, last.small});
                multiply_add(tile.sum[i][j], large, {first.large, last.large});
            }
        }
    } else {
        if constexpr (MATH == TF32) {
#pragma unroll
            for (int i = 0; i < TILE_I; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) a[i][e] = round_to_tf32(from_bits(a[i][e]));
#pragma unroll
            for (int j = 0; j < TILE_J; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) b[j][e] = round_to_tf32(from_bits(b[j][e]));
        }
#pragma unroll
        for (int i = 0; i < TILE_I; ++i)
#pragma unroll
            for (int j = 0; j < TILE_J; ++j) multiply_add(tile.sum[i][j], a[i], b[j]);
    }
}

#endif

// Adds a · bᵀ for operands that lie with the depth inside: a is [BLOCK_M][A_ROW], b is [BLOCK_N][B_ROW].
template <int A_ROW, int B_ROW>
__device__ inline void multiply_inner(Tile& tile, const Element* a, const Element* b) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    a += warp / WARPS_N * WARP_M * A_ROW;
    b += warp % WARPS_N * WARP_N * B_ROW;
#pragma unroll
    for (int k = 0; k < BLOCK_K; k += DEPTH) {
#if MATH == 3
        {
            typedef Pack<Element, VECTOR> Vector;
            Vector columns[TILE_J];
#pragma unroll
            for (int j = 0; j < TILE_J; ++j)
                columns[j] = *reinterpret_cast<const Vector*>(b + (j * LANE_COLUMNS + lane % 4) * B_ROW + k);
#pragma unroll
            for (int i = 0; i < TILE_I; ++i) {
                const Vector row = *reinterpret_cast<const Vector*>(a + (i * LANE_ROWS + lane / 4) * A_ROW + k);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v)
#pragma unroll
                    for (int j = 0; j < TILE_J; ++j)
                        tile.sum[i][j][0] += widen(row.value[v]) * widen(columns[j].value[v]);
            }
        }
#else
        {
            unsigned rows[TILE_I][4], columns[TILE_J][2];
            const int block = lane / 8;  // whose row this lane names
#pragma unroll
            for (int i = 0; i < TILE_I; ++i)
                load_fragments(rows[i], a + (i * 16 + block % 2 * 8 + lane % 8) * A_ROW + k + block / 2 * VECTOR);
#pragma unroll
            for (int j = 0; j < TILE_J; j += 2) {
                unsigned both[4];
                load_fragments(both, b + (j * 8 + block / 2 * 8 + lane % 8) * B_ROW + k + block % 2 * VECTOR);
                columns[j][0] = both[0], columns[j][1] = both[1];
                columns[j + 1][0] = both[2], columns[j + 1][1] = both[3];
            }
            multiply_fragments(tile, rows, columns);
        }
#endif
    }
}

// Adds aᵀ · b for operands that lie with the depth outside: a is [BLOCK_K][A_ROW], b is [BLOCK_K][B_ROW].
template <int A_ROW, int B_ROW>
__device__ inline void multiply_outer(Tile& tile, const Element* a, const Element* b) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    a += warp / WARPS_N * WARP_M;
    b += warp % WARPS_N * WARP_N;
#pragma unroll
    for (int k = 0; k < BLOCK_K; k += DEPTH) {
#if MATH == 3
        {
#pragma unroll
            for (int v = 0; v < DEPTH; ++v) {
                Accumulator columns[TILE_J];
#pragma unroll
                for (int j = 0; j < TILE_J; ++j) columns[j] = widen(b[(k + v) * B_ROW + j * LANE_COLUMNS + t]);
#pragma unroll
                for (int i = 0; i < TILE_I; ++i) {
                    const Accumulator row = widen(a[(k + v) * A_ROW + i * LANE_ROWS + g]);
#pragma unroll
                    for (int j = 0; j < TILE_J; ++j) tile.sum[i][j][0] += row * columns[j];
                }
            }
        }
#else
        {
            unsigned rows[TILE_I][4], columns[TILE_J][2];
            if constexpr (MATH == HALF) {
                const int block = lane / 8;
#pragma unroll
                for (int i = 0; i < TILE_I; ++i)
                    load_fragments_transposed(
                        rows[i], a + (k + block / 2 * 8 + lane % 8) * A_ROW + i * 16 + block % 2 * 8);
#pragma unroll
                for (int j = 0; j < TILE_J; j += 2) {
                    unsigned both[4];
                    load_fragments_transposed(both, b + (k + block % 2 * 8 + lane % 8) * B_ROW + j * 8 + block / 2 * 8);
                    columns[j][0] = both[0], columns[j][1] = both[1];
                    columns[j + 1][0] = both[2], columns[j + 1][1] = both[3];
                }
            } else {  // no instruction transposes numbers of 4 bytes
                const unsigned* a_bits = reinterpret_cast<const unsigned*>(a);
                const unsigned* b_bits = reinterpret_cast<const unsigned*>(b);
#pragma unroll
                for (int i = 0; i < TILE_I; ++i)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        rows[i][e] = a_bits[(k + e / 2 * 4 + t) * A_ROW + i * 16 + e % 2 * 8 + g];
#pragma unroll
                for (int j = 0; j < TILE_J; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) columns[j][e] = b_bits[(k + e * 4 + t) * B_ROW + j * 8 + g];
            }
            multiply_fragments(tile, rows, columns);
        }
#endif
    }
}

// ---- what both kinds of product need to bring their operands

constexpr int NOWHERE = -0x40000000;  // a row or column that no tap brings back into a map

// Where one element of a row, or of the depth, lies: the sum of two such places is an element of a map.
struct Place {
    int h, w;
    Index offset;
};

__device__ inline bool inside(const Place& a, const Place& b, int H, int W) {
    return unsigned(a.h + b.h) < unsigned(H) && unsigned(a.w + b.w) < unsigned(W);
}

// Elements of UNIT neighbours go to shared memory straight, or, if they have only 2 bytes, by way of registers.
template <int UNIT>
struct Staged {
    static constexpr int BYTES = UNIT * int(sizeof(Element));
    static constexpr bool STRAIGHT = BYTES >= 4;
};

}  // namespace tilesmith
