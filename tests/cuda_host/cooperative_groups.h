// The part of cooperative groups that kernels use: the grid, the block and tiles of a warp.
#pragma once
#include "cuda_host.h"

namespace cooperative_groups {

inline unsigned linear(uint3 index, dim3 size) { return index.x + size.x * (index.y + size.y * index.z); }
inline unsigned volume(dim3 size) { return size.x * size.y * size.z; }

struct thread_block {
    static void sync(TILESMITH_HERE) { ::__syncthreads(line, file); }
    static unsigned thread_rank() { return tilesmith_host::linear_thread(); }
    static unsigned num_threads() { return volume(blockDim); }
    static unsigned size() { return num_threads(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
};

struct grid_group {
    static void sync(TILESMITH_HERE) { tilesmith_host::grid_barrier(line, file); }
    static bool is_valid() { return true; }
    static unsigned long long block_rank() { return linear(blockIdx, gridDim); }
    static unsigned long long num_blocks() { return volume(gridDim); }
    static unsigned long long thread_rank() { return block_rank() * volume(blockDim) + tilesmith_host::linear_thread(); }
    static unsigned long long num_threads() { return num_blocks() * volume(blockDim); }
    static unsigned long long size() { return num_threads(); }
    static dim3 group_dim() { return gridDim; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 block_index() { return blockIdx; }
};

template <unsigned SIZE>
struct thread_block_tile {
    static_assert(SIZE && SIZE <= 32 && (SIZE & (SIZE - 1)) == 0, "a tile has a power of 2 of lanes");

    static unsigned thread_rank() { return tilesmith_host::linear_thread() % SIZE; }
    static constexpr unsigned num_threads() { return SIZE; }
    static constexpr unsigned size() { return SIZE; }
    static unsigned meta_group_rank() { return tilesmith_host::linear_thread() / SIZE; }
    static unsigned meta_group_size() { return (volume(blockDim) + SIZE - 1) / SIZE; }
    static void sync(TILESMITH_HERE) { ::__syncwarp(mask(), line, file); }
    template <typename T>
    static T shfl(T value, int source, TILESMITH_HERE) {
        return ::__shfl_sync(mask(), value, source, SIZE, line, file);
    }
    template <typename T>
    static T shfl_up(T value, unsigned delta, TILESMITH_HERE) {
        return ::__shfl_up_sync(mask(), value, delta, SIZE, line, file);
    }
    template <typename T>
    static T shfl_down(T value, unsigned delta, TILESMITH_HERE) {
        return ::__shfl_down_sync(mask(), value, delta, SIZE, line, file);
    }
    template <typename T>
    static T shfl_xor(T value, int lanes, TILESMITH_HERE) {
        return ::__shfl_xor_sync(mask(), value, lanes, SIZE, line, file);
    }
    static unsigned ballot(int predicate, TILESMITH_HERE) { return ::__ballot_sync(mask(), predicate, line, file) >> first(); }
    static int any(int predicate, TILESMITH_HERE) { return ::__any_sync(mask(), predicate, line, file); }
    static int all(int predicate, TILESMITH_HERE) { return ::__all_sync(mask(), predicate, line, file); }

  private:
    static unsigned first() { return unsigned(tilesmith_host::lane()) & ~(SIZE - 1); }
    static unsigned mask() { return (SIZE == 32 ? 0xffffffffu : (1u << SIZE % 32) - 1u) << first(); }
};

inline thread_block this_thread_block() { return {}; }
inline grid_group this_grid() { return {}; }
template <unsigned SIZE, typename Parent>
inline thread_block_tile<SIZE> tiled_partition(const Parent&) {
    return {};
}
inline void sync(const thread_block&, TILESMITH_HERE) { ::__syncthreads(line, file); }
inline void sync(const grid_group&, TILESMITH_HERE) { tilesmith_host::grid_barrier(line, file); }

}  // namespace cooperative_groups
