// What CUDA kernels share: element types, fast division, copies into shared memory, tensor cores, activations.
//
// ELEMENT is the tensors' type: double, float, __half or __nv_bfloat16. Whatever needs an instruction of its own lies
// behind a function here with a second version for TILESMITH_HOST, where a CPU runs each thread as a fiber.
#pragma once

#ifdef TILESMITH_HOST
#include <cstring>
#include <vector>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace tilesmith {

// ---- element types

template <typename T>
struct Numbers {
    typedef float Accumulator;
};
template <>
struct Numbers<double> {
    typedef double Accumulator;
};

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// One rounding from the accumulator's type to the tensors'.
template <typename T>
__device__ T narrow(typename Numbers<T>::Accumulator value);
template <>
__device__ inline double narrow<double>(double value) { return value; }
template <>
__device__ inline float narrow<float>(float value) { return value; }
template <>
__device__ inline __half narrow<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// COUNT neighbours in memory, moved by one instruction.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
    T value[COUNT];
};

// ---- division by a number that only the host knows: n / d for 0 <= n < 2^31

struct Divisor {
    unsigned multiplier, shift;

    __device__ explicit Divisor(unsigned long long packed) : multiplier(unsigned(packed)), shift(unsigned(packed >> 32)) {}
    __device__ int operator()(int n) const { return int(__umulhi(2u * unsigned(n), multiplier) >> shift); }
};

// The same with a number of the kernel's own, for n · d < 2^32.
struct SmallDivisor {
    unsigned multiplier;

    __device__ explicit SmallDivisor(int d) : multiplier(d > 1 ? 0xffffffffu / unsigned(d) + 1u : 0u) {}
    __device__ int operator()(int n) const { return multiplier ? int(__umulhi(unsigned(n), multiplier)) : n; }
};

// ---- activations

enum Activation { NONE, RELU, SIGMOID, TANH };

__device__ inline float exponential(float z) { return expf(z); }
__device__ inline double exponential(double z) { return exp(z); }
__device__ inline float hyperbolic_tangent(float z) { return tanhf(z); }
__device__ inline double hyperbolic_tangent(double z) { return tanh(z); }

template <int ACTIVATION_KIND, typename A>
__device__ A activate(A z) {
    if (ACTIVATION_KIND == RELU) return z > A(0) ? z : z == z ? A(0) : z;  // NaN stays NaN
    if (ACTIVATION_KIND == SIGMOID) {
        const A e = exponential(z < A(0) ? z : -z);  // of a negative number: nothing overflows
        return z < A(0) ? e / (A(1) + e) : A(1) / (A(1) + e);
    }
    if (ACTIVATION_KIND == TANH) return hyperbolic_tangent(z);
    return z;
}

// ---- copies from device memory into shared memory that nobody waits for

#ifndef TILESMITH_HOST

// BYTES (4, 8 or 16) to `shared`, zeros where not `inside`; `global` must be an address of the tensor in any case.
template <int BYTES>
__device__ inline void copy_async(void* shared, const void* global, bool inside) {
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    const int bytes = inside ? BYTES : 0;
    if (BYTES == 16) {  // past L1: a vector of channels is read again only by other blocks, or from L2
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(bytes)
                     : "memory");
    }
}

__device__ inline void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than PENDING groups of this thread's copies are under way.
template <int PENDING>
__device__ inline void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#else

// Each thread's copies wait in a queue until it waits for them: who forgets to, reads what lay there before.
struct Copy {
    void* to;
    const void* from;
    int bytes, group;
};
inline std::vector<Copy> copies[1024];
inline int closed_groups[1024];

template <int BYTES>
inline void copy_async(void* shared, const void* global, bool inside) {
    copies[threadIdx.x].push_back({shared, inside ? global : nullptr, BYTES, closed_groups[threadIdx.x]});
}
inline void close_group() { ++closed_groups[threadIdx.x]; }
template <int PENDING>
inline void wait_groups() {
    std::vector<Copy>& queue = copies[threadIdx.x];
    size_t done = 0;
    for (; done < queue.size() && queue[done].group < closed_groups[threadIdx.x] - PENDING; ++done) {
        const Copy& copy = queue[done];
        if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
        else std::memset(copy.to, 0, copy.bytes);
    }
    queue.erase(queue.begin(), queue.begin() + done);
}

#endif

// ---- tensor cores
//
// A lane is (g, t) = (lane / 4, lane % 4). A fragment register holds 4 bytes of a row: two halves or one TF32 number.
// A, 16 rows of 32 bytes: registers 0 to 3 are rows g, g + 8, g, g + 8; bytes 4t of the first 16, first, last, last.
// B, 8 columns of 32 bytes: registers 0 and 1 are column g, bytes 4t of the first and of the last 16.
// The product, 16 x 8: registers 0 to 3 are row g columns 2t and 2t + 1, row g + 8 columns 2t and 2t + 1.

#ifndef TILESMITH_HOST

__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], float) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four blocks of 8 rows of 16 bytes: lane l names row l % 8 of block l / 8, and gets 4 bytes of row g of each block.
__device__ inline void load_fragments(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

// The same with each block of 8 x 8 halves transposed: a lane gets rows 2t and 2t + 1 of column g.
__device__ inline void load_fragments_transposed(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

__device__ inline unsigned round_to_tf32(float value) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

__device__ inline float from_bits(unsigned bits) { return __uint_as_float(bits); }

#else

template <typename T>
inline T reinterpret(const void* from) {
    T value;
    for (unsigned i = 0; i < sizeof(T); ++i) reinterpret_cast<char*>(&value)[i] = static_cast<const char*>(from)[i];
    return value;
}
inline float from_bits(unsigned bits) { return reinterpret<float>(&bits); }

// The lowest 13 bits round away; what is half way goes away from zero.
inline unsigned round_to_tf32(float value) {
    const unsigned bits = reinterpret<unsigned>(&value);
    return value - value == 0 ? (bits + 0x1000u) & ~0x1fffu : bits;
}

// Every lane fetches the rows and columns of its four results from the lanes that hold them.
template <typename T>
inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], T) {
    constexpr int PER = 4 / sizeof(T);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const unsigned long long low = a[0] | (unsigned long long)a[1] << 32, high = a[2] | (unsigned long long)a[3] << 32;
    const unsigned long long both = b[0] | (unsigned long long)b[1] << 32;
    unsigned rows[2][8], columns[2][8];  // [which of the two][4 bytes of 32]
    for (int i = 0; i < 4; ++i) {
        const unsigned long long first = __shfl_sync(0xffffffffu, low, 4 * g + i);
        const unsigned long long last = __shfl_sync(0xffffffffu, high, 4 * g + i);
        rows[0][i] = unsigned(first), rows[1][i] = unsigned(first >> 32);
        rows[0][4 + i] = unsigned(last), rows[1][4 + i] = unsigned(last >> 32);
        for (int column = 0; column < 2; ++column) {
            const unsigned long long pair = __shfl_sync(0xffffffffu, both, 4 * (2 * t + column) + i);
            columns[column][i] = unsigned(pair), columns[column][4 + i] = unsigned(pair >> 32);
        }
    }
    for (int e = 0; e < 4; ++e) {
        const T* x = reinterpret_cast<const T*>(rows[e / 2]);
        const T* y = reinterpret_cast<const T*>(columns[e % 2]);
        for (int k = 0; k < 8 * PER; ++k) {
            float p = widen(x[k]), q = widen(y[k]);
            if (PER == 1) p = from_bits(round_to_tf32(p)), q = from_bits(round_to_tf32(q));
            d[e] += p * q;
        }
    }
}

inline void load_fragments(unsigned (&to)[4], const void* row) {
    const int lane = threadIdx.x % 32;
    for (int block = 0; block < 4; ++block) {
        const auto address = __shfl_sync(0xffffffffu, (unsigned long long)row, 8 * block + lane / 4);
        to[block] = reinterpret_cast<const unsigned*>(address)[lane % 4];
    }
}

inline void load_fragments_transposed(unsigned (&to)[4], const void* row) {
    const int lane = threadIdx.x % 32;
    for (int block = 0; block < 4; ++block) {
        unsigned halves[2];
        for (int i = 0; i < 2; ++i) {
            const auto address = __shfl_sync(0xffffffffu, (unsigned long long)row, 8 * block + 2 * (lane % 4) + i);
            halves[i] = reinterpret_cast<const unsigned short*>(address)[lane / 4];
        }
        to[block] = halves[0] | halves[1] << 16;
    }
}

#endif

// A float32 number as a sum of two TF32 numbers, for products that leave out only small · small. An infinity stays in
// the large part alone, and `finite` is that part without it: infinity · 0 must not come into the small products.
struct Split {
    unsigned large, finite, small;

    __device__ explicit Split(unsigned bits) {
        const float value = from_bits(bits);
        large = round_to_tf32(value);
        const float rest = value - from_bits(large);
        const bool usable = rest - rest == 0.0f;
        finite = usable ? large : 0u;
        small = usable ? round_to_tf32(rest) : 0u;
    }
};

}  // namespace tilesmith
