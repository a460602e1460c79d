// CUDA C++ for a CPU: what a kernel's text needs to compile with g++ and to run with one fiber a CUDA thread.
//
// The builder includes this file before a kernel's first line. `__shared__` and `__launch_bounds__` are not macros: the
// builder rewrites them in the preprocessed text, so that static shared memory lies in sections that are poisoned between
// blocks, and the runtime knows how many threads a kernel allows. The functions
// declared in `tilesmith_host` are in runtime.cpp. Overloads are those of CUDA: what nvcc refuses should not compile here.
#pragma once

#ifdef __CUDA_ARCH__
#error "the host build has no __CUDA_ARCH__"
#endif
#ifndef TILESMITH_HOST
#define TILESMITH_HOST 1
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __CUDACC__ 1

// ---- vector types

#define TILESMITH_VECTOR(T, NAME, ALIGN2, ALIGN4)                                                       \
    struct NAME##1 {                                                                                    \
        T x;                                                                                            \
    };                                                                                                  \
    struct alignas(ALIGN2) NAME##2 {                                                                    \
        T x, y;                                                                                         \
    };                                                                                                  \
    struct NAME##3 {                                                                                    \
        T x, y, z;                                                                                      \
    };                                                                                                  \
    struct alignas(ALIGN4) NAME##4 {                                                                    \
        T x, y, z, w;                                                                                   \
    };                                                                                                  \
    inline NAME##1 make_##NAME##1(T x) { return {x}; }                                                  \
    inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                          \
    inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                                  \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

TILESMITH_VECTOR(signed char, char, 2, 4)
TILESMITH_VECTOR(unsigned char, uchar, 2, 4)
TILESMITH_VECTOR(short, short, 4, 8)
TILESMITH_VECTOR(unsigned short, ushort, 4, 8)
TILESMITH_VECTOR(int, int, 8, 16)
TILESMITH_VECTOR(unsigned int, uint, 8, 16)
TILESMITH_VECTOR(long, long, 16, 16)
TILESMITH_VECTOR(unsigned long, ulong, 16, 16)
TILESMITH_VECTOR(long long, longlong, 16, 16)
TILESMITH_VECTOR(unsigned long long, ulonglong, 16, 16)
TILESMITH_VECTOR(float, float, 8, 16)
TILESMITH_VECTOR(double, double, 16, 16)
#undef TILESMITH_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

// ---- the runtime's side

// The line of the caller, for messages about threads that wait for each other.
#define TILESMITH_HERE int line = __builtin_LINE(), const char *file = __builtin_FILE()

namespace tilesmith_host {

enum BarrierKind { SYNC, COUNT, AND, OR };
enum WarpOp {
    WARP_SYNC,
    SHUFFLE,
    SHUFFLE_UP,
    SHUFFLE_DOWN,
    SHUFFLE_XOR,
    BALLOT,
    ANY,
    ALL,
    MATCH_ANY,
    MATCH_ALL,
    ADD,
    MIN_SIGNED,
    MAX_SIGNED,
    MIN_UNSIGNED,
    MAX_UNSIGNED,
    BITS_AND,
    BITS_OR,
    BITS_XOR
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
extern unsigned char dynamic_shared[];

int block_barrier(BarrierKind kind, int predicate, int line, const char* file);
void grid_barrier(int line, const char* file);

// What every lane of `mask` brings goes in, what this lane gets comes out; `source` is the lane that a shuffle reads.
unsigned long long warp_collective(WarpOp op, unsigned mask, unsigned long long value, int source, int line,
                                   const char* file);
unsigned alive_lanes();

// Lets other threads go on: for the host version of a loop that waits for a value in memory. Atomics, one of which is in
// most such loops, do it by themselves after many in a row.
void yield();
extern unsigned spins;  // since the last switch
inline void maybe_spinning() {
    if (++spins > 10000) yield();
}

// Ends the launch with an error.
[[noreturn]] void fail(const char* message, int line = __builtin_LINE(), const char* file = __builtin_FILE());

inline unsigned linear_thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline int lane() { return int(linear_thread() % 32); }

// How the runtime calls a kernel whose parameters only the compiler knows.
struct Parameter {
    int bytes;
    char kind;  // 'p'ointer, 'f'loating point, 'i'nteger, 's'truct
};
struct Entry {
    void (*invoke)(void** args);
    int count;
    const Parameter* parameters;
    int max_threads;
    int sections;
    char* const (*shared)[2];  // begin and end of each piece of static shared memory
};

constexpr int first_of(int max_threads, int = 0, int = 0) { return max_threads; }

template <typename A>
constexpr Parameter parameter() {
    static_assert(std::is_trivially_copyable<A>::value, "a kernel's parameters are passed byte by byte");
    return {int(sizeof(A)), std::is_pointer<A>::value          ? 'p'
                            : std::is_floating_point<A>::value ? 'f'
                            : std::is_integral<A>::value       ? 'i'
                                                               : 's'};
}

template <typename K>
struct Kernel;
template <typename... A>
struct Kernel<void (*)(A...)> {
    static constexpr int count = sizeof...(A);
    static constexpr Parameter parameters[sizeof...(A) + 1] = {parameter<A>()..., {0, ' '}};

    template <void (*KERNEL)(A...), size_t... I>
    static void call(void** args, std::integer_sequence<size_t, I...>) {
        KERNEL(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    }
    template <void (*KERNEL)(A...)>
    static void invoke(void** args) {
        call<KERNEL>(args, std::make_integer_sequence<size_t, sizeof...(A)>());
    }
};

template <typename To, typename From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
    To to;
    memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(To));
    return to;
}

template <typename T>
inline unsigned long long pack(T value) {
    unsigned long long word = 0;
    memcpy(&word, static_cast<const void*>(&value), sizeof(T));
    return word;
}
template <typename T>
inline T unpack(unsigned long long word) {
    T value;
    memcpy(static_cast<void*>(&value), &word, sizeof(T));
    return value;
}

inline void check_width(int width, int line, const char* file) {
    if (width < 1 || width > 32 || (width & (width - 1))) fail("a shuffle's width is a power of 2 up to 32", line, file);
}

template <typename T>
inline T shuffle(WarpOp op, unsigned mask, T value, int operand, int width, int line, const char* file) {
    check_width(width, line, file);
    const int self = lane(), first = self & ~(width - 1), last = first + width - 1;
    int source = self;
    if (op == SHUFFLE) source = first | (operand & (width - 1));
    if (op == SHUFFLE_UP && unsigned(operand) <= unsigned(self - first)) source = self - operand;
    if (op == SHUFFLE_DOWN && unsigned(operand) <= unsigned(last - self)) source = self + operand;
    if (op == SHUFFLE_XOR && (self ^ operand) <= last) source = (self ^ operand) & 31;
    return unpack<T>(warp_collective(op, mask, pack(value), source, line, file));
}

template <typename T>
inline T exchange(T* address, T value) {
    const T old = *address;
    *address = value;
    return old;
}
}  // namespace tilesmith_host

using tilesmith_host::blockDim;
using tilesmith_host::blockIdx;
using tilesmith_host::gridDim;
using tilesmith_host::threadIdx;
constexpr int warpSize = 32;

// ---- barriers

inline void __syncthreads(TILESMITH_HERE) { tilesmith_host::block_barrier(tilesmith_host::SYNC, 0, line, file); }
inline int __syncthreads_count(int predicate, TILESMITH_HERE) {
    return tilesmith_host::block_barrier(tilesmith_host::COUNT, predicate, line, file);
}
inline int __syncthreads_and(int predicate, TILESMITH_HERE) {
    return tilesmith_host::block_barrier(tilesmith_host::AND, predicate, line, file);
}
inline int __syncthreads_or(int predicate, TILESMITH_HERE) {
    return tilesmith_host::block_barrier(tilesmith_host::OR, predicate, line, file);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, TILESMITH_HERE) {
    tilesmith_host::warp_collective(tilesmith_host::WARP_SYNC, mask, 0, 0, line, file);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { tilesmith_host::yield(); }
[[noreturn]] inline void __trap(TILESMITH_HERE) { tilesmith_host::fail("__trap()", line, file); }

// ---- warp collectives

#define TILESMITH_SHUFFLES(T)                                                                                 \
    inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, TILESMITH_HERE) {                \
        return tilesmith_host::shuffle(tilesmith_host::SHUFFLE, mask, value, source, width, line, file);      \
    }                                                                                                         \
    inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, TILESMITH_HERE) {         \
        return tilesmith_host::shuffle(tilesmith_host::SHUFFLE_UP, mask, value, delta, width, line, file);    \
    }                                                                                                         \
    inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, TILESMITH_HERE) {       \
        return tilesmith_host::shuffle(tilesmith_host::SHUFFLE_DOWN, mask, value, delta, width, line, file);  \
    }                                                                                                         \
    inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, TILESMITH_HERE) {             \
        return tilesmith_host::shuffle(tilesmith_host::SHUFFLE_XOR, mask, value, lanes, width, line, file);   \
    }
#define TILESMITH_MATCHES(T)                                                                                           \
    inline unsigned __match_any_sync(unsigned mask, T value, TILESMITH_HERE) {                                         \
        using namespace tilesmith_host;                                                                                \
        return unsigned(warp_collective(MATCH_ANY, mask, pack(value), 0, line, file));                                 \
    }                                                                                                                  \
    inline unsigned __match_all_sync(unsigned mask, T value, int* all, TILESMITH_HERE) {                               \
        using namespace tilesmith_host;                                                                                \
        const unsigned lanes = unsigned(warp_collective(MATCH_ALL, mask, pack(value), 0, line, file));                 \
        *all = lanes != 0;                                                                                             \
        return lanes;                                                                                                  \
    }
#define TILESMITH_BOTH(T) TILESMITH_SHUFFLES(T) TILESMITH_MATCHES(T)
TILESMITH_BOTH(int)
TILESMITH_BOTH(unsigned)
TILESMITH_BOTH(long)
TILESMITH_BOTH(unsigned long)
TILESMITH_BOTH(long long)
TILESMITH_BOTH(unsigned long long)
TILESMITH_BOTH(float)
TILESMITH_BOTH(double)
#undef TILESMITH_BOTH
#undef TILESMITH_MATCHES

inline unsigned __ballot_sync(unsigned mask, int predicate, TILESMITH_HERE) {
    return unsigned(tilesmith_host::warp_collective(tilesmith_host::BALLOT, mask, predicate != 0, 0, line, file));
}
inline int __any_sync(unsigned mask, int predicate, TILESMITH_HERE) {
    return int(tilesmith_host::warp_collective(tilesmith_host::ANY, mask, predicate != 0, 0, line, file));
}
inline int __all_sync(unsigned mask, int predicate, TILESMITH_HERE) {
    return int(tilesmith_host::warp_collective(tilesmith_host::ALL, mask, predicate != 0, 0, line, file));
}
// The lanes that have not returned: on a GPU it may be any part of them that contains the caller.
inline unsigned __activemask() { return tilesmith_host::alive_lanes(); }

#define TILESMITH_REDUCE(NAME, T, OP)                                                                              \
    inline T NAME(unsigned mask, T value, TILESMITH_HERE) {                                                        \
        return T(tilesmith_host::warp_collective(tilesmith_host::OP, mask, (unsigned long long)(value), 0, line, file)); \
    }
TILESMITH_REDUCE(__reduce_add_sync, int, ADD)
TILESMITH_REDUCE(__reduce_add_sync, unsigned, ADD)
TILESMITH_REDUCE(__reduce_min_sync, int, MIN_SIGNED)
TILESMITH_REDUCE(__reduce_min_sync, unsigned, MIN_UNSIGNED)
TILESMITH_REDUCE(__reduce_max_sync, int, MAX_SIGNED)
TILESMITH_REDUCE(__reduce_max_sync, unsigned, MAX_UNSIGNED)
TILESMITH_REDUCE(__reduce_and_sync, unsigned, BITS_AND)
TILESMITH_REDUCE(__reduce_or_sync, unsigned, BITS_OR)
TILESMITH_REDUCE(__reduce_xor_sync, unsigned, BITS_XOR)
#undef TILESMITH_REDUCE

// ---- bits

inline int __float_as_int(float x) { return tilesmith_host::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return tilesmith_host::bits<unsigned>(x); }
inline float __int_as_float(int x) { return tilesmith_host::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return tilesmith_host::bits<float>(x); }
inline long long __double_as_longlong(double x) { return tilesmith_host::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return tilesmith_host::bits<double>(x); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
    return tilesmith_host::bits<double>((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}

inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __mul24(int a, int b) { return int(unsigned(int(unsigned(a) << 8) >> 8) * unsigned(int(unsigned(b) << 8) >> 8)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev(unsigned(x)) << 32 | __brev(unsigned(x >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
// Each nibble of the selector picks a byte of (b, a), or with its high bit that byte's sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 15u;
        unsigned byte = unsigned(bytes >> (8 * (pick & 7u))) & 0xffu;
        if (pick & 8u) byte = byte & 0x80u ? 0xffu : 0u;
        result |= byte << (8 * i);
    }
    return result;
}
inline int __dp4a(int a, int b, int sum) {
    unsigned total = unsigned(sum);
    for (int i = 0; i < 4; ++i) total += unsigned(int((signed char)(a >> (8 * i))) * int((signed char)(b >> (8 * i))));
    return int(total);
}
inline size_t __cvta_generic_to_shared(const void* pointer) { return size_t(pointer); }

template <typename T>
inline T __ldg(const T* address) {
    return *address;
}
template <typename T>
inline T __ldca(const T* address) {
    return *address;
}
template <typename T>
inline T __ldcg(const T* address) {
    return *address;
}
template <typename T>
inline T __ldcs(const T* address) {
    return *address;
}
template <typename T>
inline void __stcg(T* address, T value) {
    *address = value;
}
template <typename T>
inline void __stcs(T* address, T value) {
    *address = value;
}
inline void __builtin_assume(bool) {}
inline void __assume(bool) {}

// ---- min and max: NaN loses, as in fminf

#define TILESMITH_MIN_MAX(T, A, B)                                                \
    inline T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; }                  \
    inline T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
TILESMITH_MIN_MAX(int, int, int)
TILESMITH_MIN_MAX(unsigned, unsigned, unsigned)
TILESMITH_MIN_MAX(unsigned, int, unsigned)
TILESMITH_MIN_MAX(unsigned, unsigned, int)
TILESMITH_MIN_MAX(long, long, long)
TILESMITH_MIN_MAX(unsigned long, unsigned long, unsigned long)
TILESMITH_MIN_MAX(unsigned long, long, unsigned long)
TILESMITH_MIN_MAX(unsigned long, unsigned long, long)
TILESMITH_MIN_MAX(long long, long long, long long)
TILESMITH_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
TILESMITH_MIN_MAX(unsigned long long, long long, unsigned long long)
TILESMITH_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef TILESMITH_MIN_MAX
// Not libm's, which give NaN for a signalling one.
#define TILESMITH_MIN_MAX(T, A, B)                                                                      \
    inline T min(A a, B b) { return b != b || (T)a < (T)b ? (T)a : (T)b; } \
    inline T max(A a, B b) { return b != b || (T)a > (T)b ? (T)a : (T)b; }
TILESMITH_MIN_MAX(float, float, float)
TILESMITH_MIN_MAX(double, double, double)
TILESMITH_MIN_MAX(double, float, double)
TILESMITH_MIN_MAX(double, double, float)
#undef TILESMITH_MIN_MAX

// ---- mathematics: the fast versions are the exact ones here

inline float rsqrtf(float x) { return float(1.0 / ::sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float rcbrtf(float x) { return float(1.0 / ::cbrt(double(x))); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __expf(float x) { return ::expf(x); }
inline float __exp10f(float x) { return float(::pow(10.0, double(x))); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __log10f(float x) { return ::log10f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __sinf(float x) { return ::sinf(x); }
inline float __cosf(float x) { return ::cosf(x); }
inline float __tanf(float x) { return ::tanf(x); }
inline void __sincosf(float x, float* sine, float* cosine) { *sine = ::sinf(x), *cosine = ::cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return ::sqrtf(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }

namespace tilesmith_host {
// To the nearest number that the integer type holds; NaN becomes 0.
template <typename I>
inline I to_integer(double x) {
    constexpr I LOWEST = std::is_signed<I>::value ? I(I(1) << (8 * sizeof(I) - 2)) * -2 : I(0), HIGHEST = I(~LOWEST);
    if (x != x) return I(0);
    if (x <= double(LOWEST)) return LOWEST;
    return x >= double(HIGHEST) ? HIGHEST : I(x);
}
}  // namespace tilesmith_host

#define TILESMITH_ROUNDINGS(FROM, NAME, I, TO)                                                              \
    inline I __##NAME##2##TO##_rn(FROM x) { return tilesmith_host::to_integer<I>(::nearbyint(double(x))); } \
    inline I __##NAME##2##TO##_rz(FROM x) { return tilesmith_host::to_integer<I>(::trunc(double(x))); }     \
    inline I __##NAME##2##TO##_rd(FROM x) { return tilesmith_host::to_integer<I>(::floor(double(x))); }     \
    inline I __##NAME##2##TO##_ru(FROM x) { return tilesmith_host::to_integer<I>(::ceil(double(x))); }
TILESMITH_ROUNDINGS(float, float, int, int)
TILESMITH_ROUNDINGS(float, float, unsigned, uint)
TILESMITH_ROUNDINGS(float, float, long long, ll)
TILESMITH_ROUNDINGS(float, float, unsigned long long, ull)
TILESMITH_ROUNDINGS(double, double, int, int)
TILESMITH_ROUNDINGS(double, double, unsigned, uint)
TILESMITH_ROUNDINGS(double, double, long long, ll)
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

// ---- atomics: fibers are switched at barriers only, so plain operations are atomic

#define TILESMITH_ATOMIC(NAME, T, NEW)                                                                 \
    inline T NAME(T* address, T value) {                                                               \
        tilesmith_host::maybe_spinning();                                                              \
        const T old = *address;                                                                        \
        *address = NEW;                                                                                \
        return old;                                                                                    \
    }                                                                                                  \
    inline T NAME##_block(T* address, T value) { return NAME(address, value); }                        \
    inline T NAME##_system(T* address, T value) { return NAME(address, value); }
#define TILESMITH_ATOMICS(T)                                       \
    TILESMITH_ATOMIC(atomicMin, T, value < old ? value : old)      \
    TILESMITH_ATOMIC(atomicMax, T, value > old ? value : old)      \
    TILESMITH_ATOMIC(atomicAnd, T, old& value)                     \
    TILESMITH_ATOMIC(atomicOr, T, old | value)                     \
    TILESMITH_ATOMIC(atomicXor, T, old ^ value)
TILESMITH_ATOMICS(int)
TILESMITH_ATOMICS(unsigned)
TILESMITH_ATOMICS(long long)
TILESMITH_ATOMICS(unsigned long long)
TILESMITH_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(value)))
TILESMITH_ATOMIC(atomicAdd, unsigned, old + value)
TILESMITH_ATOMIC(atomicAdd, unsigned long long, old + value)
TILESMITH_ATOMIC(atomicAdd, float, old + value)
TILESMITH_ATOMIC(atomicAdd, double, old + value)
TILESMITH_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(value)))
TILESMITH_ATOMIC(atomicSub, unsigned, old - value)
TILESMITH_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
TILESMITH_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
#undef TILESMITH_ATOMICS

#define TILESMITH_LOCKS(T)                                                     \
    inline T atomicExch(T* address, T value) {                                 \
        tilesmith_host::maybe_spinning();                                      \
        return tilesmith_host::exchange(address, value);                       \
    }                                                                          \
    inline T atomicCAS(T* address, T expected, T value) {                      \
        tilesmith_host::maybe_spinning();                                      \
        const T old = *address;                                                \
        if (tilesmith_host::same_bits(old, expected)) *address = value;        \
        return old;                                                            \
    }
namespace tilesmith_host {
template <typename T>
inline bool same_bits(T a, T b) {
    return memcmp(&a, &b, sizeof(T)) == 0;
}
}  // namespace tilesmith_host
TILESMITH_LOCKS(int)
TILESMITH_LOCKS(unsigned)
TILESMITH_LOCKS(unsigned long long)
TILESMITH_LOCKS(unsigned short)
inline float atomicExch(float* address, float value) { return tilesmith_host::exchange(address, value); }
#undef TILESMITH_LOCKS

#include "cuda_bf16.h"
#include "cuda_fp16.h"
