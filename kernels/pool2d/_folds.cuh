// What a window comes to: its maximum and where that is, or its sum.
//
// Of equal values the first counts, of NaNs the last, and a NaN counts more than any number. Where nothing is greater
// than -inf, the first element inside counts.
//
// Macros: ELEMENT, MAXIMUM (1, or 0 for sums), WHERE (what is told of a maximum: 0 nothing, 1 its tap, 2 its place in
// the plane).
#pragma once
#include "_device.cuh"

typedef ELEMENT Element;
typedef tilesmith::Numbers<Element>::Accumulator Accumulator;
#if WHERE == 1
typedef unsigned char Where;
#else
typedef long long Where;
#endif

namespace tilesmith {

constexpr bool HALF = sizeof(Element) == 2;

__device__ inline Accumulator lowest() { return -Accumulator(__int_as_float(0x7f800000)); }
// What elements outside of the input are taken for.
__device__ inline Element nothing() { return narrow<Element>(MAXIMUM ? lowest() : Accumulator(0)); }

// What a sum is divided by, as a product of what its rows and its columns count. Half types are rounded afterwards: for
// them a factor that is a few units of float32 off will do.
typedef Accumulator Share;
__device__ inline Share share_of(Accumulator count) { return HALF ? Share(__fdividef(1.0f, float(count))) : count; }
__device__ inline Accumulator mean(Accumulator sum, Share share) { return HALF ? sum * share : sum / share; }

__device__ inline Element narrowed(Element value) { return value; }
template <typename Wide>
__device__ Element narrowed(Wide value) { return narrow<Element>(value); }

// ---- one window, element by element

// The greater number, or NaN if one is.
#ifndef TILESMITH_HOST
__device__ inline float greatest(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
#else
inline float greatest(float a, float b) { return a > b || a != a ? a : b; }
#endif
__device__ inline double greatest(double a, double b) { return a > b || a != a ? a : b; }

struct Maximum {
    Accumulator value;
    int place;

    __device__ void clear(int first) { value = lowest(), place = first; }

    // The elements of a window, or of a part of it, come in order. If there was a NaN, the place is not right yet: then
    // all of them are marked, once more in order.
    __device__ void add(Accumulator v, int at) {
        place = v > value ? at : place;
        value = greatest(v, value);
    }
    __device__ bool is_nan() const { return WHERE && value != value; }
    __device__ void mark(Accumulator v, int at) { place = v != v ? at : place; }

    // Two parts of a window, in any order.
    __device__ void add(const Maximum& other) {
        const bool after = other.place > place;
        const bool takes = other.value != other.value ? value == value || after
                                                      : other.value > value || (other.value == value && !after);
        if (takes) *this = other;
    }

    __device__ Maximum from_lane(unsigned mask, int lane) const {
        return {__shfl_sync(mask, value, lane), __shfl_sync(mask, place, lane)};
    }
};

struct Sum {
    Accumulator value;

    __device__ void clear(int) { value = 0; }
    __device__ void add(Accumulator v, int) { value += v; }
    __device__ bool is_nan() const { return false; }
    __device__ void mark(Accumulator, int) {}
    __device__ void add(const Sum& other) { value += other.value; }
    __device__ Sum from_lane(unsigned mask, int lane) const { return {__shfl_sync(mask, value, lane)}; }
};

#if MAXIMUM
typedef Maximum Fold;
__device__ inline Accumulator result(const Maximum& fold, Share) { return fold.value; }
#else
typedef Sum Fold;
__device__ inline Accumulator result(const Sum& fold, Share share) { return mean(fold.value, share); }
#endif

// ---- N elements in registers; two half numbers are one word

__device__ inline unsigned bits_of(const Element& element) { return *reinterpret_cast<const unsigned short*>(&element); }

// Which of N elements are inside.
template <int N, bool WORDS = HALF>
struct Inside {
    bool real[N];

    __device__ void set(int v, bool is_real) { real[v] = is_real; }
};

template <int N>
struct Inside<N, true> {
    unsigned word[(N + 1) / 2];

    __device__ void set(int v, bool is_real) {  // in order
        const unsigned half = is_real ? 0xffffu << 16 * (v % 2) : 0u;
        word[v / 2] = v % 2 ? word[v / 2] | half : half;
    }
};

template <int N, bool WORDS = HALF>
struct Values {
    Element value[N];

    __device__ Element get(int v) const { return value[v]; }
    __device__ void set(int v, Element element) { value[v] = element; }
    __device__ void fill(Element element) {
#pragma unroll
        for (int v = 0; v < N; ++v) value[v] = element;
    }
    __device__ void keep(const Inside<N>& inside) {
#pragma unroll
        for (int v = 0; v < N; ++v) value[v] = inside.real[v] ? value[v] : nothing();
    }
    __device__ void load(const Element* from) {
        const Pack<Element, N> pack = *reinterpret_cast<const Pack<Element, N>*>(from);
#pragma unroll
        for (int v = 0; v < N; ++v) value[v] = pack.value[v];
    }
    // Side by side, or `step` apart.
    __device__ void load(const Element* from, bool together, long long step) {
        if (together) return load(from);
#pragma unroll
        for (int v = 0; v < N; ++v) set(v, from[v * step]);
    }
    __device__ void store(Element* to) const {
        Pack<Element, N> pack;
#pragma unroll
        for (int v = 0; v < N; ++v) pack.value[v] = value[v];
        *reinterpret_cast<Pack<Element, N>*>(to) = pack;
    }
};

template <int N>
struct Values<N, true> {
    static constexpr int COUNT = (N + 1) / 2;
    unsigned word[COUNT];

    __device__ Element get(int v) const {
        const unsigned short half = (unsigned short)(word[v / 2] >> 16 * (v % 2));
        return *reinterpret_cast<const Element*>(&half);
    }
    __device__ void set(int v, Element element) {  // in order
        word[v / 2] = v % 2 ? (word[v / 2] & 0xffffu) | bits_of(element) << 16 : bits_of(element);
    }
    __device__ void fill(Element element) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) word[i] = bits_of(element) * 0x10001u;
    }
    __device__ void keep(const Inside<N>& inside) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            word[i] = (word[i] & inside.word[i]) | (bits_of(nothing()) * 0x10001u & ~inside.word[i]);
    }
    __device__ void load(const Element* from) {
        if (N == 1) return set(0, *from);
        const Pack<unsigned, COUNT> pack = *reinterpret_cast<const Pack<unsigned, COUNT>*>(from);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) word[i] = pack.value[i];
    }
    __device__ void load(const Element* from, bool together, long long step) {
        if (together) return load(from);
#pragma unroll
        for (int v = 0; v < N; ++v) set(v, from[v * step]);
    }
    __device__ void store(Element* to) const {
        if (N == 1) {
            *to = get(0);
            return;
        }
        Pack<unsigned, COUNT> pack;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) pack.value[i] = word[i];
        *reinterpret_cast<Pack<unsigned, COUNT>*>(to) = pack;
    }
};

// Where the maxima of N windows are; bytes stay four to a register.
template <int N, bool BYTES = (sizeof(Where) == 1 && N >= 4)>
struct Places {
    Where value[N];

    __device__ Where get(int v) const { return value[v]; }
    __device__ void set(int v, Where place) { value[v] = place; }
    // Side by side, two at once; or `step` apart.
    __device__ void load(const Where* from, bool together, long long step) {
        constexpr int EACH = N < 2 ? 1 : 2;
#pragma unroll
        for (int first = 0; first < N; first += EACH) {
            Pack<Where, EACH> some;
            if (together) {
                some = *reinterpret_cast<const Pack<Where, EACH>*>(from + first);
            } else {
#pragma unroll
                for (int v = 0; v < EACH; ++v) some.value[v] = from[(first + v) * step];
            }
#pragma unroll
            for (int v = 0; v < EACH; ++v) value[first + v] = some.value[v];
        }
    }
    __device__ void store(Where* to) const {
        constexpr int EACH = N < 2 ? 1 : 2;
#pragma unroll
        for (int first = 0; first < N; first += EACH) {
            Pack<Where, EACH> some;
#pragma unroll
            for (int v = 0; v < EACH; ++v) some.value[v] = value[first + v];
            *reinterpret_cast<Pack<Where, EACH>*>(to + first) = some;
        }
    }
};

template <int N>
struct Places<N, true> {
    unsigned word[N / 4];

    __device__ int get(int v) const { return int(word[v / 4] >> 8 * (v % 4) & 0xffu); }
    __device__ void set(int v, Where place) {  // in order
        const unsigned bits = unsigned(place) << 8 * (v % 4);
        word[v / 4] = v % 4 ? word[v / 4] | bits : bits;
    }
    __device__ void load(const Where* from, bool together, long long step) {
        if (together) {
            const Pack<unsigned, N / 4> pack = *reinterpret_cast<const Pack<unsigned, N / 4>*>(from);
#pragma unroll
            for (int i = 0; i < N / 4; ++i) word[i] = pack.value[i];
        } else {
#pragma unroll
            for (int v = 0; v < N; ++v) set(v, from[v * step]);
        }
    }
    __device__ void store(Where* to) const {
        Pack<unsigned, N / 4> pack;
#pragma unroll
        for (int i = 0; i < N / 4; ++i) pack.value[i] = word[i];
        *reinterpret_cast<Pack<unsigned, N / 4>*>(to) = pack;
    }
};

// ---- N windows side by side, tap by tap; a code is a tap's number

template <int N>
struct Sums {
    Accumulator total[N];

    __device__ void start(const Values<N>& values, const int (&)[N]) {
#pragma unroll
        for (int v = 0; v < N; ++v) total[v] = widen(values.get(v));
    }
    __device__ void add(const Values<N>& values, int) {
#pragma unroll
        for (int v = 0; v < N; ++v) total[v] += widen(values.get(v));
    }
    __device__ void start(const Sums& line, int) { *this = line; }
    __device__ void add(const Sums& line, int) {
#pragma unroll
        for (int v = 0; v < N; ++v) total[v] += line.total[v];
    }
    __device__ bool any_nan() const { return false; }
    __device__ void mark_nan(const Values<N>&, int) {}
    __device__ int code(int) const { return 0; }
    __device__ Element result(int v, Share share) const { return narrow<Element>(mean(total[v], share)); }
};

template <int N, bool WORDS = HALF>
struct Maxima {
    Values<N> best;
    int codes[N];

    __device__ void take(int v, Element other, int code) {
        const bool takes = other > best.value[v] || other != other;
        best.value[v] = takes ? other : best.value[v];
        codes[v] = takes ? code : codes[v];
    }
    // With the first tap's values; `first` are the codes of the first taps inside.
    __device__ void start(const Values<N>& values, const int (&first)[N]) {
        best = values;
#pragma unroll
        for (int v = 0; v < N; ++v) codes[v] = first[v];
    }
    __device__ void add(const Values<N>& values, int code) {
#pragma unroll
        for (int v = 0; v < N; ++v) take(v, values.value[v], code);
    }
    // With the first row's, `code` being that of the first row inside.
    __device__ void start(const Maxima& line, int code) {
        best = line.best;
#pragma unroll
        for (int v = 0; v < N; ++v) codes[v] = line.codes[v] + code;
    }
    __device__ void add(const Maxima& line, int code) {
#pragma unroll
        for (int v = 0; v < N; ++v) take(v, line.best.value[v], line.codes[v] + code);
    }
    __device__ bool any_nan() const { return false; }  // their codes are right already
    __device__ void mark_nan(const Values<N>&, int) {}
    __device__ int code(int v) const { return codes[v]; }
    __device__ Element result(int v, Share) const { return best.value[v]; }
};

// An instruction for two maxima, one for two comparisons, one for two codes. The comparisons know nothing of NaN, whose
// codes are marked afterwards if there are any.
__device__ inline __half2 both(unsigned word, __half) { return *reinterpret_cast<__half2*>(&word); }
__device__ inline __nv_bfloat162 both(unsigned word, __nv_bfloat16) { return *reinterpret_cast<__nv_bfloat162*>(&word); }

#ifndef TILESMITH_HOST
template <typename T>
__device__ inline unsigned greatest(unsigned a, unsigned b) {
    const auto result = __hmax2_nan(both(a, T()), both(b, T()));
    return *reinterpret_cast<const unsigned*>(&result);
}
template <typename T>
__device__ inline unsigned greater(unsigned a, unsigned b) { return __hgt2_mask(both(a, T()), both(b, T())); }
template <typename T>
__device__ inline unsigned not_numbers(unsigned a) { return __hneu2_mask(both(a, T()), both(a, T())); }
#else
template <typename T>
inline unsigned greater(unsigned a, unsigned b) {
    const auto x = both(a, T()), y = both(b, T());
    return (x.x > y.x ? 0xffffu : 0u) | (x.y > y.y ? 0xffff0000u : 0u);
}
template <typename T>
inline unsigned not_numbers(unsigned a) {
    const auto x = both(a, T());
    return (__hisnan(x.x) ? 0xffffu : 0u) | (__hisnan(x.y) ? 0xffff0000u : 0u);
}
template <typename T>
inline unsigned greatest(unsigned a, unsigned b) {
    const unsigned first = greater<T>(a, b) | not_numbers<T>(a);
    return (a & first) | (b & ~first);
}
#endif

template <int N>
struct Maxima<N, true> {
    Values<N> best;
    unsigned codes[Values<N>::COUNT];

    __device__ static unsigned pair(const int (&first)[N], int i) {
        return unsigned(first[2 * i]) | (N > 1 ? unsigned(first[2 * i + (N > 1)]) << 16 : 0u);
    }
    __device__ void take(int i, unsigned other, unsigned code) {
        const unsigned takes = greater<Element>(other, best.word[i]);
        best.word[i] = greatest<Element>(other, best.word[i]);
        codes[i] = (codes[i] & ~takes) | (code & takes);
    }
    __device__ void start(const Values<N>& values, const int (&first)[N]) {
        best = values;
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) codes[i] = pair(first, i);
    }
    __device__ void add(const Values<N>& values, int code) {
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) take(i, values.word[i], unsigned(code) * 0x10001u);
    }
    __device__ void start(const Maxima& line, int code) {
        best = line.best;
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) codes[i] = line.codes[i] + unsigned(code) * 0x10001u;
    }
    __device__ void add(const Maxima& line, int code) {
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) take(i, line.best.word[i], line.codes[i] + unsigned(code) * 0x10001u);
    }
    __device__ bool any_nan() const {
        unsigned any = 0;
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) any |= not_numbers<Element>(best.word[i]);
        return any != 0;
    }
    // In one pass over all taps in order: the last NaN's code stays.
    __device__ void mark_nan(const Values<N>& values, int code) {
#pragma unroll
        for (int i = 0; i < Values<N>::COUNT; ++i) {
            const unsigned takes = not_numbers<Element>(values.word[i]);
            codes[i] = (codes[i] & ~takes) | (unsigned(code) * 0x10001u & takes);
        }
    }
    __device__ int code(int v) const { return int(codes[v / 2] >> 16 * (v % 2) & 0xffffu); }
    __device__ Element result(int v, Share) const { return best.get(v); }
};

#if MAXIMUM
template <int N>
using Folds = Maxima<N>;
#else
template <int N>
using Folds = Sums<N>;
#endif

}  // namespace tilesmith
