"""The rig that runs CUDA C++ on the CPU: what it computes, and that it shows the bugs it is there to show."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tilesmith.kernels import _cuda
from tilesmith.kernels._cuda import Dim3, Program

from tests.cuda_host import ORDERS, CompileError, HostRuntime, build, run_sanitized, sanitizer_missing

Launch = Callable[..., None]
NAN = float("nan")
FULL = 0xFFFFFFFF


def dim3(sizes: int | Sequence[int]) -> Dim3:
    x, y, z = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1)[:3]
    return x, y, z


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., Launch]:
    """Writes a text to a file and gives a function that launches one of its kernels."""

    def make(text: str, name: str = "k", cooperative: bool = False, **macros: int | str) -> Launch:
        source = tmp_path / "k.cu"
        source.write_text(text)
        items = tuple(sorted((key, str(value)) for key, value in macros.items()))
        program = Program(source, name, items, cooperative)

        def launch(
            grid: int | Sequence[int], block: int | Sequence[int], *args: Any, shared: int = 0, order: str = "forward"
        ) -> None:
            HostRuntime(order).compiled(program)(dim3(grid), dim3(block), args, shared)

        return launch

    return make


# ---- threads, shared memory and barriers

REDUCE = """
template <int THREADS>
__device__ float total(float v) {
    __shared__ float parts[THREADS / 32];  // in a template: each instance has its own
    for (int d = 16; d; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (int i = 0; i < THREADS / 32; ++i) v += parts[i];
    __syncthreads();
    return v;
}
extern "C" __global__ void __launch_bounds__(128) k(const float* __restrict__ x, float* y, int n) {
    extern __shared__ __align__(16) float mirrored[];
    __shared__ __align__(8) float2 pairs[128];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float v = i < n ? x[i] : 0.0f;
    mirrored[127 - threadIdx.x] = v;
    pairs[threadIdx.x] = make_float2(v, 1.0f);
    __syncthreads();
    const float sum = total<128>(mirrored[threadIdx.x]), count = total<128>(pairs[threadIdx.x ^ 1].y);
    const float again = total<64 + 64>(pairs[threadIdx.x ^ 5].x);
    if (threadIdx.x == 0) y[3 * blockIdx.x] = sum, y[3 * blockIdx.x + 1] = count, y[3 * blockIdx.x + 2] = again;
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_reduce_with_shuffles_and_both_kinds_of_shared_memory(kernel: Any, order: str) -> None:
    x = torch.arange(999, dtype=torch.float32)
    y = torch.full((8, 3), NAN)
    kernel(REDUCE)(8, 128, x, y, np.int32(999), shared=512, order=order)
    sums = torch.nn.functional.pad(x, (0, 25)).view(8, 128).sum(1)
    assert y.tolist() == torch.stack([sums, torch.full((8,), 128.0), sums], 1).tolist()


def test_indices_and_sizes_in_three_dimensions(kernel: Any) -> None:
    launch = kernel("""
    extern "C" __global__ void k(int* y) {
        const dim3 b = blockIdx;
        const int block = b.x + gridDim.x * (b.y + gridDim.y * b.z);
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        const int row = block * blockDim.x * blockDim.y * blockDim.z + thread;
        const int v[] = {int(threadIdx.x), int(threadIdx.y), int(threadIdx.z), int(b.x), int(b.y), int(b.z), warpSize};
        for (int i = 0; i < 7; ++i) y[7 * row + i] = v[i];
    }""")
    y = torch.zeros(2, 3, 2, 2, 3, 5, 7, dtype=torch.int32)
    launch((2, 3, 2), (5, 3, 2), y)
    axes = [torch.arange(n) for n in (2, 3, 2, 2, 3, 5)]
    bz, by, bx, tz, ty, tx = torch.meshgrid(*axes, indexing="ij")
    assert torch.equal(y.long(), torch.stack([tx, ty, tz, bx, by, bz, torch.full_like(tx, 32)], -1))


MISSING_BARRIER = """
extern "C" __global__ void k(const float* x, float* y) {
    __shared__ float s[64];
    for (int i = 0; i < 3; ++i) {
        s[threadIdx.x] = x[64 * i + threadIdx.x];
        __syncthreads();
        y[64 * i + threadIdx.x] = s[(threadIdx.x + 1) % 64] + s[(threadIdx.x + 63) % 64];
        if (BARRIER) __syncthreads();
    }
}
"""


@pytest.mark.parametrize("barrier", [0, 1])
def test_a_missing_barrier_shows_as_a_difference_between_orders(kernel: Any, barrier: int) -> None:
    x = torch.arange(192, dtype=torch.float32) ** 2
    launch = kernel(MISSING_BARRIER, BARRIER=barrier)
    results = []
    for order in ORDERS:
        y = torch.full((192,), NAN)
        launch(1, 64, x, y, order=order)
        results.append(tuple(y.tolist()))
    rows = x.view(3, 64)
    right = tuple((rows.roll(-1, 1) + rows.roll(1, 1)).flatten().tolist())
    assert [result == right for result in results] == [bool(barrier)] * 3
    assert len(set(results)) == (1 if barrier else 3)


def test_a_missing_warp_barrier_and_a_race_between_blocks_show(kernel: Any) -> None:
    launch = kernel("""
    extern "C" __global__ void k(float* y, int* last) {
        __shared__ volatile float s[32];
        s[threadIdx.x] = threadIdx.x;
        y[threadIdx.x] = s[threadIdx.x ^ 1];  // lanes do not run in step
        if (threadIdx.x == 0) *last = blockIdx.x;
    }""")
    results, lasts = [], []
    for order in ORDERS:
        y, last = torch.zeros(32), torch.zeros(1, dtype=torch.int32)
        launch(9, 32, y, last, order=order)
        results.append(str(y.tolist()))
        lasts.append(last.item())
    assert len(set(results)) == 3
    assert lasts[:2] == [8, 0]
    assert lasts[2] not in (0, 8)


def test_shared_memory_that_nobody_wrote_is_nan_in_every_block(kernel: Any) -> None:
    launch = kernel("""
    #include <cuda_fp16.h>
    extern "C" __global__ void k(float* y) {
        extern __shared__ double dynamic[];
        __shared__ float fixed[32];
        __shared__ __half halves[2][16];
        float* to = y + 3 * (32 * blockIdx.x + threadIdx.x);
        to[0] = fixed[threadIdx.x], to[1] = float(dynamic[threadIdx.x]);
        to[2] = __half2float(halves[threadIdx.x / 16][threadIdx.x % 16]);
        __syncthreads();
        fixed[threadIdx.x] = 1.0f, dynamic[threadIdx.x] = 1.0, halves[threadIdx.x / 16][threadIdx.x % 16] = 1.0f;
    }""")
    y = torch.zeros(4 * 32 * 3)
    launch(4, 32, y, shared=32 * 8)
    assert y.isnan().all()


def test_an_element_of_a_local_array_that_nobody_wrote_is_far_off(kernel: Any) -> None:
    launch = kernel('extern "C" __global__ void k(float* y, int n) { float v[4]; v[1] = 1.0f; *y = v[n]; }')
    y = torch.zeros(1)
    launch(1, 1, y, np.int32(0))
    assert y.item() < -1e38


def test_dynamic_shared_memory_as_a_matrix_and_past_its_end(kernel: Any) -> None:
    launch = kernel("""
    extern __shared__ alignas(16) unsigned char bytes[];  // at namespace scope
    extern "C" __global__ void k(float* y, int rows) {
        extern __shared__ float m[][32];
        for (int r = 0; r < rows; ++r) m[r][threadIdx.x] = r * 32 + threadIdx.x;
        __syncthreads();
        const float* all = reinterpret_cast<float*>(bytes);
        for (int r = 0; r < rows; ++r) y[r * 32 + threadIdx.x] = all[r * 32 + 31 - threadIdx.x];
    }""")
    y = torch.zeros(4, 32)
    launch(1, 32, y, np.int32(4), shared=4 * 128)
    assert torch.equal(y, torch.arange(128.0).view(4, 32).flip(1))
    with pytest.raises(RuntimeError, match=r"block \(0,0,0\): a thread wrote past the 511 bytes"):
        launch(1, 32, y, np.int32(4), shared=511)


def test_threads_that_exit_early_leave_barriers_to_the_others(kernel: Any) -> None:
    launch = kernel("""
    extern "C" __global__ void k(int* y, int n) {
        __shared__ int s[96];
        if (threadIdx.x >= n) return;
        s[threadIdx.x] = threadIdx.x;
        __syncthreads();
        const int v = s[n - 1 - threadIdx.x];
        const int odd = __syncthreads_count(v & 1);
        const int all = __syncthreads_and(v >= 0), none = __syncthreads_or(v > 1000), some = __syncthreads_or(v == 5);
        y[threadIdx.x] = v + 1000 * odd + 100000 * (all + 2 * none + 4 * some);
    }""")
    for order in ORDERS:
        y = torch.zeros(96, dtype=torch.int32)
        launch(1, 96, y, np.int32(50), order=order)
        assert y.tolist() == [49 - i + 25_000 + 500_000 if i < 50 else 0 for i in range(96)]


# ---- warps

WARP = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
template <typename T>
__device__ void shuffles(double* y, T v) {
    const int lane = threadIdx.x % 32;
    y[0] = double(float(__shfl_sync(~0u, v, lane * 7 + 3)));
    y[1] = double(float(__shfl_sync(~0u, v, 37, 8)));
    y[2] = double(float(__shfl_up_sync(~0u, v, 3, 16)));
    y[3] = double(float(__shfl_down_sync(~0u, v, 5, 8)));
    y[4] = double(float(__shfl_xor_sync(~0u, v, 9, 16)));
    y[5] = double(float(__shfl_xor_sync(~0u, v, 16, 8)));
}
extern "C" __global__ void numbers(double* y) {
    const int i = threadIdx.x;
    double* to = y + 54 * i;
    shuffles(to, int(i - 5)), shuffles(to + 6, unsigned(i)), shuffles(to + 12, (long long)i);
    shuffles(to + 18, float(i)), shuffles(to + 24, double(i)), shuffles(to + 30, __half(i));
    shuffles(to + 36, __nv_bfloat16(i));
    shuffles(to + 42, (unsigned long long)i), shuffles(to + 48, (unsigned long)i);
}
extern "C" __global__ void wide(unsigned long long* y, __half2* h) {
    const int i = threadIdx.x;
    y[i] = __shfl_xor_sync(~0u, 0x123456789abcdef0ull * (i + 1), 1);
    const __half2 pair = __shfl_down_sync(~0u, __floats2half2_rn(i, -i), 1);
    h[i] = __hadd2(pair, __shfl_sync(~0u, __floats2half2_rn(0.5f, i), 2));
}
extern "C" __global__ void votes(int* y) {
    const int i = threadIdx.x;
    int* to = y + 24 * i;
    if (i % 2) {
        to[0] = __ballot_sync(0xaaaaaaaau, i % 3 == 0);
    } else {
        to[0] = __ballot_sync(0x55555555u, i % 3 == 0);
        __syncwarp(0x55555555u);
        to[1] = __any_sync(0x55555555u, i == 4) + 2 * __any_sync(0x55555555u, i == 5);
    }
    to[2] = __all_sync(~0u, i < 32) + 2 * __all_sync(~0u, i < 31);
    to[3] = __activemask();
    to[4] = __match_any_sync(~0u, i % 5);
    int all, some;
    to[5] = __match_all_sync(~0u, 7.5, &all);
    to[6] = __match_all_sync(~0u, i == 9 ? 1u : 0u, &some) + 2 * all + 4 * some;
    to[7] = __reduce_add_sync(~0u, i - 20), to[8] = __reduce_add_sync(0xfffffffeu | 1u, unsigned(i));
    to[9] = __reduce_min_sync(~0u, i - 20), to[10] = __reduce_max_sync(~0u, i - 20);
    to[11] = __reduce_min_sync(~0u, unsigned(i - 20)), to[12] = __reduce_max_sync(~0u, unsigned(i - 20));
    to[13] = __reduce_and_sync(~0u, ~(1u << i)), to[14] = __reduce_or_sync(~0u, 1u << i);
    to[15] = __reduce_xor_sync(~0u, unsigned(i == 3 ? 0xff : 0x0f));
    const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    to[16] = tile.thread_rank() + 100 * tile.meta_group_rank() + 10000 * tile.size();
    to[17] = tile.ballot(i % 3 == 0), to[18] = tile.shfl_xor(i, 7), to[19] = tile.any(i == 9) + 2 * tile.all(i > 7);
    to[20] = tile.shfl(i, 3) + 100 * tile.shfl_down(i, 2) + 10000 * tile.shfl_up(i, 2);
    tile.sync();
    cg::this_thread_block().sync();
}
extern "C" __global__ void partial(float* y) {
    if (threadIdx.x == 7) return;
    const unsigned mask = 0xffffffffu & ~(1u << 7);
    y[threadIdx.x] = threadIdx.x < 32 ? __shfl_down_sync(mask, float(threadIdx.x), 1) : __shfl_xor_sync(~0u, 1.0f, 8);
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_of_every_type(kernel: Any, order: str) -> None:
    y = torch.full((64, 9, 6), NAN, dtype=torch.float64)
    kernel(WARP, "numbers")(1, 64, y, order=order)
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32

    def inside(source: np.ndarray, width: int, lowest: bool = True) -> np.ndarray:
        first = lane // width * width
        return np.where((source >= (first if lowest else 0)) & (source < first + width), source, lane) + warp

    sources = [
        (lane * 7 + 3) % 32 + warp,
        lane // 8 * 8 + 37 % 8 + warp,
        inside(lane - 3, 16),
        inside(lane + 5, 8),
        inside(lane ^ 9, 16),
        inside(lane ^ 16, 8, lowest=False),
    ]
    expected = np.stack(sources, 1)[:, None].repeat(9, 1)
    expected[:, 0] -= 5
    assert np.array_equal(y.numpy(), expected)


def test_shuffles_of_64_bits_and_of_pairs(kernel: Any) -> None:
    y = torch.zeros(32, dtype=torch.uint64)
    h = torch.full((32, 2), NAN, dtype=torch.float16)
    kernel(WARP, "wide")(1, 32, y, h)
    assert y.tolist() == [0x123456789ABCDEF0 * ((i ^ 1) + 1) % 2**64 for i in range(32)]
    assert h.tolist() == [[min(i + 1, 31) + 0.5, -min(i + 1, 31) + 2.0] for i in range(32)]


@pytest.mark.parametrize("order", ORDERS)
def test_votes_matches_reductions_and_tiles(kernel: Any, order: str) -> None:
    y = torch.zeros(32, 24, dtype=torch.int32)
    kernel(WARP, "votes")(1, 32, y, order=order)
    for i, row in enumerate(y.tolist()):
        tile, rank = i // 8, i % 8
        expected = [
            sum(1 << j for j in range(i % 2, 32, 2) if j % 3 == 0),
            0 if i % 2 else 1,
            1,
            FULL,
            sum(1 << j for j in range(32) if j % 5 == i % 5),
            FULL,
            2,
            sum(range(32)) - 640,
            sum(range(32)),
            -20,
            11,
            0,
            2**32 - 1,
            0,
            FULL,
            0xFF ^ 0x0F,
            rank + 100 * tile + 80_000,
            sum(1 << j for j in range(8) if (8 * tile + j) % 3 == 0),
            8 * tile + 7 - rank,
            (tile == 1) + 2 * (tile > 0),
            8 * tile + 3 + 100 * (i + 2 if rank < 6 else i) + 10_000 * (i - 2 if rank > 1 else i),
        ]
        assert [v % 2**32 for v in row[:21]] == [v % 2**32 for v in expected], i


def test_a_lane_that_takes_no_part_has_no_value(kernel: Any) -> None:
    y = torch.zeros(48)
    kernel(WARP, "partial")(1, 48, y)
    expected = [min(i + 1, 31) for i in range(32)] + [1] * 16  # the second warp has 16 lanes, which read each other
    expected[7] = 0
    assert y[6].isnan()
    assert y[:6].tolist() + y[7:].tolist() == expected[:6] + expected[7:]


def test_atomics(kernel: Any) -> None:
    launch = kernel("""
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void k(int* i, unsigned* u, unsigned long long* w, float* f, double* d, __half* h,
                                 __nv_bfloat16* b, __half2* p) {
        const int t = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(i, 1), atomicMin(i + 1, t - 5), atomicMax(i + 2, t), atomicSub(i + 3, 2);
        const int old = atomicExch(i + 4, t);
        if (old == 1000) i[5] = t;
        atomicAdd(u, 3u), atomicOr(u + 1, 1u << t % 32), atomicAnd(u + 2, ~(1u << t % 8));
        atomicXor(u + 3, 1u << t % 3);
        atomicInc(u + 4, 9u), atomicDec(u + 5, 9u), atomicMax(u + 6, unsigned(t)), atomicMin(u + 7, unsigned(t));
        atomicAdd(w, 1ull << 33);
        if (atomicCAS(w + 1, 0ull, (unsigned long long)t + 1) == 0ull) atomicAdd(w + 2, 1ull);
        atomicAdd(f, 0.5f), atomicAdd(d, 0.25), atomicAdd(h, __half(1.0f)), atomicAdd(b, __nv_bfloat16(1.0f));
        atomicAdd(p, __half2(1.0f, 2.0f));
        __threadfence(), __threadfence_block(), __threadfence_system();
    }""")
    i = torch.tensor([0, 99, -99, 0, 1000, 0], dtype=torch.int32)
    u = torch.tensor([0, 0, FULL, 0, 0, 0, 0, 99], dtype=torch.uint32)
    w = torch.zeros(3, dtype=torch.uint64)
    f, d, h, b = (torch.zeros(1, dtype=t) for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16))
    p = torch.zeros(2, dtype=torch.float16)
    launch(3, 100, i, u, w, f, d, h, b, p, order="shuffled")
    assert i[:4].tolist() == [300, -5, 299, -600]
    assert u.tolist() == [900, FULL, FULL - 255, 0, 0, 0, 299, 0]
    assert (w[0].item(), w[2].item()) == (300 << 33, 1)
    assert 1 <= w[1].item() <= 300
    assert w[1].item() - 1 == i[5].item()  # the first thread to run, for both
    assert [v.item() for v in (f, d, h, b)] == [150, 75, 300, 256]  # 256 + 1 is no bfloat16
    assert p.tolist() == [300, 600]


# ---- the grid's barrier

GRID = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void k(float* x, float* y, int n, int steps) {
    extern __shared__ float mine[];
    __shared__ float sums[2];
    const auto grid = cg::this_grid();
    const int i = int(grid.thread_rank());
    mine[threadIdx.x] = x[i];
    sums[threadIdx.x % 2] = float(blockIdx.x);  // a race of equal values
    for (int s = 0; s < steps; ++s) {
        y[i] = mine[threadIdx.x];
        grid.sync();
        mine[threadIdx.x] = y[(i + n - 1) % n] + sums[s % 2] - float(blockIdx.x);
        grid.sync();
    }
    x[i] = mine[threadIdx.x];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_cooperative_launch_meet_and_keep_their_shared_memory(kernel: Any, order: str) -> None:
    x, y = torch.arange(200.0), torch.full((200,), NAN)
    kernel(GRID, cooperative=True)(5, 40, x, y, np.int32(200), np.int32(7), shared=160, order=order)
    assert torch.equal(x, torch.arange(200.0).roll(7))


def test_a_grid_barrier_that_cannot_open_is_an_error(kernel: Any) -> None:
    with pytest.raises(RuntimeError, match=r"grid\.sync\(\) in a launch that is not cooperative at k\.cu:"):
        kernel(GRID)(1, 40, torch.zeros(40), torch.zeros(40), np.int32(40), np.int32(1), shared=160)
    launch = kernel(
        """
    #include <cooperative_groups.h>
    extern "C" __global__ void leaves(int block) {
        if (blockIdx.x == block) return;
        cooperative_groups::this_grid().sync();
    }""",
        "leaves",
        cooperative=True,
    )
    launch(3, 32, np.int32(7))
    with pytest.raises(
        RuntimeError, match=r"block \(0,0,0\): it waits for the grid, of which a block has ended.*k\.cu:5"
    ):
        launch(3, 32, np.int32(1))


def test_threads_that_wait_in_a_loop_let_others_go_on(kernel: Any) -> None:
    text = """
    extern "C" __global__ void k(int* lock, int* flag, int* sum) {
        while (atomicCAS(lock, 0, 1) != 0) {}
        *sum += 1;
        atomicExch(lock, 0);
        if (threadIdx.x == 0 && blockIdx.x == 0) while (atomicAdd(flag, 0) < FROM) WAIT;
        if (threadIdx.x == 20 && blockIdx.x == gridDim.x - 1) atomicAdd(flag, 1);
    }"""
    for order, wait in zip(ORDERS, ("__nanosleep(20)", "", "tilesmith_host::yield()"), strict=True):
        lock, flag, total = (torch.zeros(1, dtype=torch.int32) for _ in range(3))
        kernel(text, cooperative=True, FROM=1, WAIT=wait)(3, 64, lock, flag, total, order=order)
        assert total.item() == 192
    with pytest.raises(RuntimeError, match=r"block \(0,0,0\): its threads spin on memory that nobody changes"):
        kernel(text, FROM=2, WAIT="__nanosleep(20)")(3, 64, lock * 0, flag * 0, total)


# ---- errors

DIVERGENCE = """
extern "C" __global__ void k(int what) {
    const int t = threadIdx.x;
    if (what == 0) { if (t < 32) __syncthreads(); else __syncthreads_count(1); }
    if (what == 1) { if (t < 40) __shfl_sync(~0u, t, 0); else __syncthreads(); }
    if (what == 2) { if (t == 9) return; __shfl_down_sync(~0u, t, 1); }
    if (what == 3) { if (t == 60) return; if (t == 61) __ballot_sync(0x0fffffffu, 1); }
    if (what == 4) { if (t % 2) __syncwarp(); else __any_sync(~0u, 1); }
    if (what == 5) { if (t < 16) __syncwarp(0x0001ffffu); else __syncwarp(); }
    if (what == 6) {
        if (t < 33)
            __syncthreads();
        else
            __syncthreads();
    }
    if (what == 7) { if (t == 3) __trap(); __syncthreads(); }
    if (what == 8) __shfl_sync(~0u, t, 0, 12);
    if (what == 9) { if (t == 33) __syncthreads(); else if (t >= 32) __syncwarp(); }
    if (what == 10) { if (t % 32 == 0) return; __shfl_down_sync(~0u, t, 1); }
}
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (0, r"thread \(\d+,0,0\): a barrier that diverges: it waits in __syncthreads\w* at k\.cu:4 while thread \("),
        (1, r"no thread can go on: .*waits in __shfl_sync at k\.cu:5 with mask 0xffffffff.*__syncthreads at k\.cu:5"),
        (2, r"thread \(\d+,0,0\).*__shfl_down_sync at k\.cu:6 with mask 0xffffffff, which names its lane 9"),
        (3, r"thread \(61,0,0\): __ballot_sync at k\.cu:7 has mask 0x0fffffff without its own lane 29"),
        (4, r"warp functions that diverge: it waits in __\w+ at k\.cu:8 .* while thread \(\d+,0,0\) waits in __\w+"),
        (5, r"warp functions that diverge: it waits in __syncwarp at k\.cu:9 with mask 0x\w+ while thread"),
        (
            6,
            r"a barrier that diverges: it waits in __syncthreads at k\.cu:1[24] while .*__syncthreads at k\.cu:1[24]",
        ),
        (7, r"thread \(3,0,0\): __trap\(\) at k\.cu:16"),
        (8, r"a shuffle's width is a power of 2 up to 32 at k\.cu:17"),
        (9, r"no thread can go on: .*thread \(33,0,0\) waits in __syncthreads at k\.cu:18|exits while"),
        (10, r"__shfl_down_sync at k\.cu:19 (has mask 0xffffffff, but its lane 0|with .* names its lane 0)"),
    ],
)
def test_threads_that_wait_for_each_other_in_vain_are_an_error(kernel: Any, what: int, says: str, order: str) -> None:
    launch = kernel(DIVERGENCE)
    with pytest.raises(RuntimeError, match=r"^k\.cu: k: block \([01],0,0\)") as error:
        launch(2, 64, np.int32(what), order=order)
    error.match(says)
    launch(2, 64, np.int32(99), order=order)  # and the runtime goes on


def test_an_error_leaves_no_half_written_globals(kernel: Any) -> None:
    launch = kernel("""
    #include <vector>
    inline std::vector<int> seen;
    extern "C" __global__ void k(int* y, int fail) {
        seen.push_back(threadIdx.x);
        if (fail && threadIdx.x == 5) __trap();
        *y = int(seen.size());
    }""")
    y = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="__trap"):
        launch(1, 32, y, np.int32(1))
    launch(1, 32, y, np.int32(0))
    assert y.item() == 32


def test_arguments_must_fit_the_parameters(kernel: Any) -> None:
    launch = kernel("""
    struct Pair { float a; int b; };
    extern "C" __global__ void k(float* y, const float* x, int n, float scale, long long big, bool on,
                                 unsigned char c) {
        y[0] = (x ? x[0] : -1.0f) + n * scale + float(big >> 33) + (on ? 100.0f : 0.0f) + c;
    }""")
    x, y = torch.tensor([0.0, 7.0]), torch.zeros(1)
    rest = (np.int32(-2), np.float32(1.5), np.int64(5 << 33), np.bool_(True), np.uint8(200))
    launch(1, 1, y, x[1:], *rest)
    assert y.item() == 7 - 3 + 5 + 100 + 200
    launch(1, 1, y, None, *rest)
    assert y.item() == 301
    for args, says in (
        ((y, x), "k has 7 parameters; 2 arguments were given"),
        ((y, x, np.int64(2), *rest[1:]), "argument 2 is a int64 scalar; the parameter is a integer of 4 bytes"),
        ((y, x, np.float32(2), *rest[1:]), "argument 2 is a float32 scalar"),
        ((y, x, rest[0], np.int32(1), *rest[2:]), "argument 3 is a int32 scalar; the parameter is a floating-point"),
        ((y, x, y, *rest[1:]), "argument 2 is a pointer"),
        ((y, x, 2, *rest[1:]), "argument 2 is a int; tensors, None and NumPy scalars"),
        ((y, x.to("meta"), *rest), "argument 1 is on meta"),
    ):
        with pytest.raises(RuntimeError, match=says):
            launch(1, 1, *args)


BOUNDED = """
extern "C" __global__ void __launch_bounds__(32) other() {}
extern "C" __global__ __launch_bounds__((THREADS) * 2, 4) void k() {}
extern "C" __global__ void __launch_bounds__(16) last() {}
"""


def test_a_gpus_limits(kernel: Any) -> None:
    launch = kernel('extern "C" __global__ void k() { __shared__ volatile float s[12000]; s[threadIdx.x] = 0; }')
    launch(1, 1024, shared=227 * 1024 - 48_000)
    for grid, block, shared, says in (
        (1, 1025, 0, "a block of"),
        (1, (32, 64), 0, "a block of"),
        ((1, 65536), 1, 0, "a grid of"),
        (0, 1, 0, "a grid of"),
        (1, 32, 227 * 1024, "232448 bytes of dynamic and 48000 of static"),
    ):
        with pytest.raises(RuntimeError, match=says):
            launch(grid, block, shared=shared)
    bounded = kernel(BOUNDED, THREADS=64)
    bounded(1, 128)
    with pytest.raises(RuntimeError, match="129 threads a block; its __launch_bounds__ allow 128"):
        bounded(1, 129)
    with pytest.raises(RuntimeError, match="52000 bytes of static shared memory"):
        kernel('extern "C" __global__ void big() { __shared__ volatile float s[13000]; s[0] = 0; }', "big")(1, 1)


def test_a_compile_error_carries_the_compilers_message(kernel: Any) -> None:
    with pytest.raises(
        CompileError, match=r"(?s)k\.cu: k \(SIZE=3\) does not compile.*k\.cu:2:\d+: error: .*undeclared_name"
    ):
        kernel('extern "C" __global__ void k(int* y) {\n    *y = undeclared_name + SIZE;\n}', SIZE=3)(1, 1, None)
    with pytest.raises(CompileError, match="missing"):
        kernel('extern "C" __global__ void k() {}', "missing")(1, 1)
    with pytest.raises(CompileError, match="passed byte by byte"):
        kernel("#include <vector>\n__global__ void bad(std::vector<int> v) {}", "bad")(1, 1, None)
    with pytest.raises(CompileError, match="atomicAdd"):  # CUDA has none for signed 64 bits either
        kernel("__global__ void none(long long* x) { atomicAdd(x, 1ll); }", "none")(1, 1, None)


def test_an_unknown_order_and_sanitizers_outside_their_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sideways'; it is one of"):
        HostRuntime("sideways")
    with pytest.raises(RuntimeError, match="run_sanitized"):
        HostRuntime(sanitize=True).compiled(Program(tmp_path / "k.cu", "k", ()))


# ---- numbers

NUMBERS = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void widen(const __half* h, const __nv_bfloat16* b, float* from_h, float* from_b, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) from_h[i] = __half2float(h[i]), from_b[i] = __bfloat162float(b[i]);
}
extern "C" __global__ void narrow(const float* x, __half* h, __nv_bfloat16* b, __half2* hh, __nv_bfloat162* bb, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]), b[i] = __float2bfloat16(x[i]);
    hh[i] = __floats2half2_rn(x[i], -x[i]), bb[i] = __floats2bfloat162_rn(x[i], -x[i]);
}
extern "C" __global__ void from_double(const double* x, __half* h, __nv_bfloat16* b, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) h[i] = __double2half(x[i]), b[i] = __double2bfloat16(x[i]);
}
template <typename T>
__device__ void arithmetic(const T* x, const T* y, const T* z, T* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    T sum = x[i];
    sum += y[i];
    const T values[] = {sum, x[i] - y[i], x[i] * y[i], x[i] / y[i], -x[i], __hmax(x[i], y[i]), __hmin(x[i], y[i]),
                        hsqrt(__habs(x[i])), T(float(x[i] < y[i])), T(float(__hge(x[i], y[i]))),
                        __hfma(x[i], y[i], z[i])};
    for (int k = 0; k < 11; ++k) out[k * n + i] = values[k];
}
extern "C" __global__ void half_arithmetic(const __half* x, const __half* y, const __half* z, __half* out, int n) {
    arithmetic(x, y, z, out, n);
}
extern "C" __global__ void bfloat16_arithmetic(const __nv_bfloat16* x, const __nv_bfloat16* y, const __nv_bfloat16* z,
                                               __nv_bfloat16* out, int n) {
    arithmetic(x, y, z, out, n);
}
"""
BLOCKS = (512, 128)  # of 2**16 numbers


def every(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit by bit, but for what is in a NaN."""
    words = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return bool(((a.view(words) == b.view(words)) | (a.isnan() & b.isnan())).all())


def test_every_half_and_bfloat16_becomes_the_right_float(kernel: Any) -> None:
    h, b = every(torch.float16), every(torch.bfloat16)
    from_h, from_b = torch.full((2**16,), 7.0), torch.full((2**16,), 7.0)
    kernel(NUMBERS, "widen")(*BLOCKS, h, b, from_h, from_b, np.int32(2**16))
    assert same(from_h, h.float())
    assert same(from_b, b.float())


def test_floats_round_to_half_and_bfloat16_as_torchs_do(kernel: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**18,), generator=generator).to(torch.int32)
    exact = torch.cat([every(torch.float16).float(), every(torch.bfloat16).float()]).view(torch.int32)
    near = torch.cat([exact + (1 << shift) + step for shift in (12, 15) for step in (-1, 0, 1)])  # about the midpoints
    x = torch.cat([bits, exact, near, near + (1 << 13)]).view(torch.float32)
    n = len(x)
    h, b = torch.zeros(n, dtype=torch.float16), torch.zeros(n, dtype=torch.bfloat16)
    hh, bb = torch.zeros(n, 2, dtype=torch.float16), torch.zeros(n, 2, dtype=torch.bfloat16)
    kernel(NUMBERS, "narrow")(-(-n // 256), 256, x, h, b, hh, bb, np.int32(n))
    assert same(h, x.half())
    assert same(b, x.bfloat16())
    assert same(hh, torch.stack([x, -x], 1).half())
    assert same(bb, torch.stack([x, -x], 1).bfloat16())
    assert (h.view(torch.int16)[x.isnan()] == 0x7FFF).all()


def test_doubles_round_once(kernel: Any) -> None:
    halves = every(torch.float16).double()
    halves = halves[halves.isfinite()]
    middles = halves + 2.0 ** (torch.floor(torch.log2(halves.abs().clamp(min=2.0**-14))) - 11)
    x = torch.cat(
        [middles, middles * (1 + 2.0**-45), middles * (1 - 2.0**-45), torch.tensor([1e300, -1e-300, 2.0**-25])]
    )
    n = len(x)
    h, b = torch.zeros(n, dtype=torch.float16), torch.zeros(n, dtype=torch.bfloat16)
    kernel(NUMBERS, "from_double")(-(-n // 256), 256, x, h, b, np.int32(n))
    with np.errstate(over="ignore"):
        assert same(h, torch.from_numpy(x.numpy().astype(np.float16)))
    few = torch.tensor([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40, 1e300], dtype=torch.float64)
    kernel(NUMBERS, "from_double")(1, 4, few, h, b, np.int32(4))
    assert b[:4].tolist() == [1 + 2.0**-7, 1.0, 1 + 2.0**-7, float("inf")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_arithmetic_rounds_each_operation(kernel: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    n = 2**14
    x, y, z = every(dtype)[torch.randint(0, 2**16, (3, n), generator=generator)]
    x[:4096] = (1 + torch.rand(4096, generator=generator)).to(dtype)  # where the sum's digits overlap the product's
    y[:4096] = (1 + torch.rand(4096, generator=generator)).to(dtype)
    z[:4096] = (-2 + 4 * torch.rand(4096, generator=generator)).to(dtype)
    z[:2048] *= 2.0**-12
    name = "half" if dtype is torch.float16 else "bfloat16"
    out = torch.zeros(11, n, dtype=dtype)
    kernel(NUMBERS, f"{name}_arithmetic")(-(-n // 128), 128, x, y, z, out, np.int32(n))
    largest, least = torch.maximum(x, y), torch.minimum(x, y)
    larger, smaller = (torch.where(x.isnan(), y, torch.where(y.isnan(), x, both)) for both in (largest, least))
    expected = [x + y, x - y, x * y, x / y, -x, larger, smaller, x.abs().sqrt(), (x < y).to(dtype), (x >= y).to(dtype)]
    for i, right in enumerate(expected):
        zeros = (out[i] == 0) & (right == 0) if i in (5, 6) else torch.zeros(n, dtype=torch.bool)  # of +0 and -0 either
        assert same(out[i][~zeros], right[~zeros]), i
    finite = (x.isfinite() & y.isfinite() & z.isfinite() & out[10].isfinite()).nonzero().flatten()
    words = out[10].view(torch.int16)
    for i in finite[::5].tolist():
        exact = Fraction(x[i].item()) * Fraction(y[i].item()) + Fraction(z[i].item())
        error = abs(Fraction(out[10, i].item()) - exact)
        for step in (-1, 1):
            other = (words[i : i + 1] + step).view(dtype)
            if other.isfinite():
                further = abs(Fraction(other.item()) - exact)
                assert error < further or (error == further and words[i].item() % 2 == 0), i


INTRINSICS = """
extern "C" __global__ void k(unsigned* u, float* f, double* d, const float4* x4) {
    const unsigned a = 0x89abcdefu, b = 0x13579bdfu;
    *u++ = __umulhi(a, b), *u++ = __mulhi(int(a), int(b)), *u++ = unsigned(__umul64hi(1ull << 63, 6ull));
    *u++ = __popc(a), *u++ = __popcll(~0ull), *u++ = __clz(1), *u++ = __clz(0), *u++ = __ffs(0), *u++ = __ffs(8);
    *u++ = __brev(a), *u++ = __byte_perm(a, b, 0x7153), *u++ = __funnelshift_l(a, b, 8);
    *u++ = __funnelshift_r(a, b, 8), *u++ = __float_as_uint(1.0f), *u++ = __float_as_int(-2.0f);
    *u++ = __dp4a(0x01ff0203, 0x02030405, 10);
    *u++ = __float2int_rn(2.5f), *u++ = __float2int_rz(-2.7f), *u++ = __float2int_rd(-2.1f);
    *u++ = __float2int_ru(2.1f);
    *u++ = __float2int_rn(1e20f), *u++ = __float2uint_rn(-3.0f), *u++ = __float2int_rn(NAN), *u++ = min(3, -4);
    *u++ = max(3u, 4u), *u++ = unsigned(min(5ll, 6ll)), *u++ = __mul24(-3, 7), *u++ = sizeof(long2) + sizeof(float3);
    const uchar4 c = make_uchar4(1, 2, 3, 4);
    const short4 s = make_short4(-1, 2, -3, 4);
    const int4 i4 = make_int4(1, 2, 3, 4);
    *u++ = c.x + 10 * c.w + 100 * alignof(uchar4) + 1000 * alignof(short4) + 10000 * alignof(double2) + sizeof(ushort2);
    *u++ = s.x + s.y + s.z + s.w + i4.z + int(make_uint2(7, 8).y) + __ldg(&i4.w);
    const float4 v = x4[1];
    *f++ = v.x + 10 * v.y + 100 * v.z + 1000 * v.w, *f++ = __uint_as_float(0x40490fdbu), *f++ = fmaf(3.0f, 4.0f, 5.0f);
    *f++ = rsqrtf(4.0f), *f++ = __fdividef(1.0f, 4.0f), *f++ = __saturatef(1.5f), *f++ = __saturatef(NAN);
    *f++ = __expf(0.0f), *f++ = min(1.0f, NAN), *f++ = max(NAN, 2.0f), *f++ = __frcp_rn(8.0f), *f++ = fmaxf(1.0f, 3.0f);
    *f++ = __int2float_rn(16777217), *f++ = __fmul_rn(1.5f, 2.0f), *f++ = __powf(2.0f, 5.0f), *f++ = exp2f(3.0f);
    *d++ = min(1.0, 2.0f), *d++ = rsqrt(16.0), *d++ = make_double2(1.0, 9.0).y, *d++ = __hiloint2double(0x40000000, 0);
    *d++ = __fma_rn(2.0, 3.0, 4.0), *d++ = fabs(-2.5), *d++ = __longlong_as_double(0x3ff0000000000000ll);
}
"""


def test_vector_types_bits_and_mathematics(kernel: Any) -> None:
    u, f, d = torch.zeros(30, dtype=torch.uint32), torch.zeros(16), torch.zeros(7, dtype=torch.float64)
    kernel(INTRINSICS)(1, 1, u, f, d, torch.arange(8.0))
    a, b = 0x89ABCDEF, 0x13579BDF
    pair = b << 32 | a
    products = [a * b >> 32, (a - 2**32) * b >> 32, 3]
    counts = [bin(a).count("1"), 64, 31, 32, 0, 4]
    moved = [int(f"{a:032b}"[::-1], 2), 0x13CD9B89, pair << 8 >> 32, pair >> 8]
    casts = [0x3F800000, 0xC0000000, 2 - 3 + 8 + 15 + 10, 2, -2, -3, 3, 2**31 - 1, 0, 0]
    least = [-4, 4, 5, -21, 16 + 12]
    fields = [1 + 40 + 400 + 8000 + 160_000 + 4, 2 + 3 + 8 + 4]
    expected = products + counts + moved + casts + least + fields
    assert [v % 2**32 for v in u.tolist()] == [v % 2**32 for v in expected]
    pi = np.float32(np.pi).item()
    assert f.tolist() == [7654.0, pi, 17, 0.5, 0.25, 1, 0, 1, 1, 2, 0.125, 3, 16777216, 3, 32, 8]
    assert d.tolist() == [1, 0.25, 9, 2, 10, 2.5, 1]


# ---- the builder

INCLUDER = '#include "nested.cuh"\nextern "C" __global__ void k(int* y) { *y = VALUE; }'


def test_a_program_is_compiled_once_until_a_header_changes(
    kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []
    run = subprocess.run

    def counted(command: Any, **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    y = torch.zeros(1, dtype=torch.int32)
    (tmp_path / "nested.cuh").write_text('#pragma once\n#include "value.cuh"')
    (tmp_path / "value.cuh").write_text(f"#define VALUE {id(y) % 1000}  // {tmp_path}")
    launch = kernel(INCLUDER)
    launch(1, 1, y)
    assert y.item() == id(y) % 1000
    monkeypatch.setattr(build.subprocess, "run", counted)
    program = Program(tmp_path / "k.cu", "k", ())
    first = build.library(program, False)
    assert not commands
    (tmp_path / "value.cuh").write_text("#define VALUE 1001")
    assert build.library(program, False) != first
    assert build.library(Program(tmp_path / "k.cu", "k", (("UNUSED", "1"),)), False) != first


def test_it_takes_the_place_of_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "k.cu"
    source.write_text('extern "C" __global__ void k(float* y, int n) { if (threadIdx.x < n) y[threadIdx.x] = STEP; }')
    monkeypatch.setattr(_cuda, "emulator", HostRuntime())
    y = torch.zeros(4)
    _cuda.launch(source, "k", {"STEP": 3}, (1,), (32,), (y, np.int32(3)))
    assert y.tolist() == [3, 3, 3, 0]


# ---- sanitizers

SANITIZED = """
import os, sys
import numpy as np, torch
from pathlib import Path
from tilesmith.kernels._cuda import Program
from tests.cuda_host import HostRuntime

for case in CASES:
    for order in ("forward", "backward") if case == 0 else ("shuffled",):
        child = os.fork()  # one import of torch serves all: an error ends its process
        if not child:
            os.dup2(os.open(f"FOLDER/{case}.{order}", os.O_WRONLY | os.O_CREAT), 2)
            x = torch.ones(100, dtype=torch.float32)
            y = torch.zeros(100, dtype=torch.float32)
            launch = HostRuntime(order, sanitize=True).compiled(Program(Path("FOLDER/k.cu"), "k", ()))
            launch((2, 1, 1), (64, 1, 1), (x, y, np.int32(100), np.int32(case)), 64 * 4)
            assert y.tolist() == [2.0] * 100
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(case, order, os.waitstatus_to_exitcode(status))
"""
ERRORS = """
extern "C" __global__ void k(const float* x, float* y, int n, int what) {
    extern __shared__ float dynamic[];
    __shared__ float fixed[64], more[64];
    const int t = threadIdx.x, i = blockIdx.x * 64 + t;
    float local[4] = {x[0], x[1], x[2], x[3]};
    dynamic[t] = 1.0f, fixed[t] = 1.0f, more[t] = 0.0f;
    __syncthreads();
    const float v = fixed[63 - t] + dynamic[t] + __shfl_xor_sync(~0u, more[t], 1);
    if (i < n) y[i] = v;
    if (i != 70) return;
    if (what == 1) y[0] = x[n];           // one past a tensor
    if (what == 2) y[n + what - 2] = 1.0f;
    if (what == 3) y[0] = dynamic[n - 36];  // one past the dynamic shared memory
    float* all = fixed;
    if (what == 4) y[0] = all[n - 36];    // between two arrays
    if (what == 5) y[0] = float(1 << (n - 68 + what - 5));
    if (what == 6) y[0] = float(2147483647 + (n - 90));
    if (what == 7) y[0] = local[n - 96];
    if (what == 8) y[0] = reinterpret_cast<const float4*>(x + n - 99)->x;
}
"""


def test_sanitizers_find_accesses_out_of_bounds_and_undefined_arithmetic(tmp_path: Path) -> None:
    reason = sanitizer_missing()
    if reason:
        pytest.skip(reason)
    (tmp_path / "k.cu").write_text(ERRORS)
    expected = {
        0: "",
        1: "heap-buffer-overflow",
        2: "heap-buffer-overflow",
        3: "use-after-poison",
        4: "global-buffer-overflow",
        5: "shift exponent 32 is too large",
        6: "signed integer overflow",
        7: "index 4 out of bounds",
        8: "misaligned address",
    }
    script = SANITIZED.replace("CASES", repr(list(expected))).replace("FOLDER", str(tmp_path))
    done = run_sanitized(["-c", script])
    assert done.returncode == 0, done.stderr
    for case, says in expected.items():
        for order in ("forward", "backward") if case == 0 else ("shuffled",):
            report = (tmp_path / f"{case}.{order}").read_text()
            assert says in report, f"{case} {order}: {report}"
            assert ("k.cu:" in report) == bool(case), report
            assert (f"{case} {order} 0" in done.stdout.splitlines()) == (case == 0), report
