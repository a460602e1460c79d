// __nv_bfloat16 and __nv_bfloat162 for the host build, under the names of CUDA's header. Rounding is to nearest even.
#pragma once
#include "cuda_host.h"

#include "cuda_fp16.h"

namespace tilesmith_host {

inline unsigned short bfloat16_bits(float value) {
    const unsigned word = bits<unsigned>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // NaN, as the GPU's
    return (unsigned short)((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

inline float bfloat16_value(unsigned short number) { return bits<float>(unsigned(number) << 16); }

}  // namespace tilesmith_host

struct __nv_bfloat16_raw {
    unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(const __nv_bfloat16_raw& raw) : bits(raw.x) {}
    __nv_bfloat16(float value) : bits(tilesmith_host::bfloat16_bits(value)) {}
    __nv_bfloat16(double value) : __nv_bfloat16(tilesmith_host::narrow_to_odd(value)) {}
    __nv_bfloat16(int value) : __nv_bfloat16(double(value)) {}
    __nv_bfloat16(unsigned value) : __nv_bfloat16(double(value)) {}
    __nv_bfloat16(short value) : __nv_bfloat16(float(value)) {}
    __nv_bfloat16(unsigned short value) : __nv_bfloat16(float(value)) {}
    __nv_bfloat16(long value) : __nv_bfloat16(double(value)) {}
    __nv_bfloat16(unsigned long value) : __nv_bfloat16(double(value)) {}
    __nv_bfloat16(long long value) : __nv_bfloat16(double(value)) {}
    __nv_bfloat16(unsigned long long value) : __nv_bfloat16(double(value)) {}
    operator __nv_bfloat16_raw() const { return {bits}; }
    operator float() const { return tilesmith_host::bfloat16_value(bits); }
    explicit operator bool() const { return (bits & 0x7fffu) != 0; }
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;

    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return tilesmith_host::bfloat16_value(x.bits); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return __nv_bfloat162(__nv_bfloat16(x), __nv_bfloat16(y)); }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __floats2bfloat162_rn(x, x); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return __nv_bfloat162(x, x); }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 v) { return __nv_bfloat162(v.x, v.x); }
inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 v) { return __nv_bfloat162(v.y, v.y); }
inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.x, b.x); }
inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.y, b.y); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return short(x.bits); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat16 __short_as_bfloat16(short x) { return __nv_bfloat16_raw{(unsigned short)x}; }
inline __nv_bfloat16 __int2bfloat16_rn(int x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __uint2bfloat16_rn(unsigned x) { return __nv_bfloat16(x); }
inline int __bfloat162int_rn(__nv_bfloat16 x) { return __float2int_rn(__bfloat162float(x)); }
inline int __bfloat162int_rz(__nv_bfloat16 x) { return __float2int_rz(__bfloat162float(x)); }

#define TYPE __nv_bfloat16
#define RAW __nv_bfloat16_raw
#define PAIR __nv_bfloat162
#define NARROW __float2bfloat16_rn
#define WIDEN __bfloat162float
#include "cuda_half_operators.h"
#undef TYPE
#undef RAW
#undef PAIR
#undef NARROW
#undef WIDEN
