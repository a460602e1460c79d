// __half and __half2 for the host build, under the names of CUDA's header. Rounding is to nearest even.
#pragma once
#include "cuda_host.h"

namespace tilesmith_host {

// The float next to x towards zero if x is no float, with its last digit made odd: it rounds like x to fewer digits.
inline float narrow_to_odd(double x) {
    float near = float(x);
    if (x != x || double(near) == x) return near;
    unsigned word = bits<unsigned>(near);
    if (::fabs(double(near)) > ::fabs(x)) --word;
    return bits<float>(word | 1u);
}

// a * b + c likewise as a double. The product of two numbers of at most 24 digits is a double.
inline double fma_to_odd(float a, float b, float c) {
    const double product = double(a) * double(b), sum = product + double(c);
    if (!(::fabs(sum) <= DBL_MAX)) return sum;
    const double part = sum - product, error = (product - (sum - part)) + (double(c) - part);
    if (error == 0.0) return sum;
    const unsigned long long word = bits<unsigned long long>(sum);
    if (word & 1ull) return sum;
    return bits<double>((error > 0.0) == (sum > 0.0) ? word + 1ull : word - 1ull);
}

inline unsigned short half_bits(float value) {
    const unsigned word = bits<unsigned>(value), sign = word >> 16 & 0x8000u, size = word & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fffu;                             // NaN, as the GPU's
    if (size >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // 65520 and more
    if (size < 0x38800000u) {                                          // below 2^-14: a multiple of 2^-24
        const float scaled = bits<float>(size) + 0.5f;                 // in whose last digit 2^-24 is
        return (unsigned short)(sign | (bits<unsigned>(scaled) - 0x3f000000u));
    }
    return (unsigned short)(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

inline float half_value(unsigned short half) {
    const unsigned sign = unsigned(half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    if (size < 0x400u) return bits<float>(sign | bits<unsigned>(float(size) * 0x1p-24f));
    return bits<float>(sign | ((size << 13) + 0x38000000u));
}

}  // namespace tilesmith_host

struct __half_raw {
    unsigned short x;
};

struct alignas(2) __half {
    unsigned short bits;

    __half() = default;
    __half(const __half_raw& raw) : bits(raw.x) {}
    __half(float value) : bits(tilesmith_host::half_bits(value)) {}
    __half(double value) : __half(tilesmith_host::narrow_to_odd(value)) {}
    __half(int value) : __half(double(value)) {}
    __half(unsigned value) : __half(double(value)) {}
    __half(short value) : __half(float(value)) {}
    __half(unsigned short value) : __half(float(value)) {}
    __half(long value) : __half(double(value)) {}
    __half(unsigned long value) : __half(double(value)) {}
    __half(long long value) : __half(double(value)) {}
    __half(unsigned long long value) : __half(double(value)) {}
    operator __half_raw() const { return {bits}; }
    operator float() const { return tilesmith_host::half_value(bits); }
    explicit operator bool() const { return (bits & 0x7fffu) != 0; }
};
typedef __half half;

struct alignas(4) __half2 {
    __half x, y;

    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};
typedef __half2 half2;

inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __double2half(double x) { return __half(x); }
inline float __half2float(__half x) { return tilesmith_host::half_value(x.bits); }
inline __half2 __floats2half2_rn(float x, float y) { return __half2(__half(x), __half(y)); }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
inline __half2 __half2half2(__half x) { return __half2(x, x); }
inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
inline __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
inline __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
inline __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline short __half_as_short(__half x) { return short(x.bits); }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline __half __short_as_half(short x) { return __half_raw{(unsigned short)x}; }
inline __half __int2half_rn(int x) { return __half(x); }
inline __half __uint2half_rn(unsigned x) { return __half(x); }
inline int __half2int_rn(__half x) { return __float2int_rn(__half2float(x)); }
inline int __half2int_rz(__half x) { return __float2int_rz(__half2float(x)); }

#define TYPE __half
#define RAW __half_raw
#define PAIR __half2
#define NARROW __float2half_rn
#define WIDEN __half2float
#include "cuda_half_operators.h"
#undef TYPE
#undef RAW
#undef PAIR
#undef NARROW
#undef WIDEN
