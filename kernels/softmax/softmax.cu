// Softmax and log-softmax along one dimension of a contiguous [outer, length, inner], and their gradients.
//
// A team of TEAM threads has one slice, or UNIT neighbouring ones; a block has THREADS / TEAM teams. Units are vectors of
// UNIT elements. In rows (inner is 1) a unit lies along a slice and the threads of a team are neighbours; in COLUMNS a
// unit is one element of each of UNIT slices, and neighbouring threads are of neighbouring teams. A thread takes every
// TEAM-th unit of its slices, UNITS at a time.
//
// One pass READS, another WRITES. In between the elements wait in registers if they fit (WHOLE: UNITS are all of them),
// or in shared memory (CACHED, each thread's beside its own), or they are read again. With READS and WRITES in different
// launches slices are cut into parts, each a block's, whose numbers lie in `statistics` in between and are put together
// in order.
//
// SHARED_ENDS: rows start anywhere. Their units are the aligned vectors of memory that they touch; of the first and the
// last one they have a few elements.
//
// Macros: ELEMENT, INDEX, LOG, COLUMNS, UNIT, UNITS, TEAM, THREADS, WHOLE, CACHED, READS, WRITES, SHARED_ENDS.
#include "_device.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;
typedef INDEX Index;
typedef Pack<Element, UNIT> Unit;

constexpr int TEAMS = THREADS / TEAM;
constexpr int SLICES = COLUMNS ? UNIT : 1;  // of a thread

// ---- numbers

__device__ inline float infinity(float) { return __int_as_float(0x7f800000); }
__device__ inline double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ inline float largest_finite(float) { return __int_as_float(0x7f7fffff); }
__device__ inline double largest_finite(double) { return __longlong_as_double(0x7fefffffffffffffll); }

// exp(z) for z up to 0. Of float32 by the hardware's power of two, with an error below 3e-7 of exp(0).
#ifndef TILESMITH_HOST
__device__ inline float power(float z) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(z * 1.4426950408889634f));
    return result;
}
#else
inline float power(float z) { return exp2f(z * 1.4426950408889634f); }
#endif
__device__ inline double power(double z) { return exp(z); }
__device__ inline float logarithm(float z) { return logf(z); }
__device__ inline double logarithm(double z) { return log(z); }

// ---- where a thread's elements lie

struct Place {
    int member, team;  // of the block: which thread of which team
    int part;
    Index slice;       // the first one of this thread's
    Index first;       // offset of unit 0
    Index step;        // from unit to unit
    Index begin, end;  // units of this part; none where there is no such slice
    Index low, high;   // SHARED_ENDS: the row's elements

    __device__ Place(Index slices, Index length, Index inner, int parts, Index units_each) {
        member = COLUMNS ? threadIdx.x / TEAMS : threadIdx.x % TEAM;
        team = COLUMNS ? threadIdx.x % TEAMS : threadIdx.x / TEAM;
        part = blockIdx.x % parts;
        slice = (Index(blockIdx.x / parts) * TEAMS + team) * SLICES;
        const bool real = slice < slices;
        if (!real) slice = 0;
        Index units;
        if (COLUMNS) {
            const Index outer = slice / inner;
            first = outer * (length - 1) * inner + slice;
            step = inner;
            units = length;
        } else {
            low = slice * length, high = low + length;
            first = SHARED_ENDS ? low - low % UNIT : low;
            step = UNIT;
            units = (high - first + UNIT - 1) / UNIT;
        }
        begin = part * units_each;
        end = real ? (units - begin < units_each ? units : begin + units_each) : 0;
        begin += member;
    }
};

// UNITS units from unit number p on, `missing` where there is no element.
__device__ inline void load(Unit (&units)[UNITS], const Element* from, const Place& at, Index p, Element missing) {
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        const Index number = p + k * TEAM, offset = at.first + number * at.step;
        const bool real = number < at.end;
        if (real && (!SHARED_ENDS || (offset >= at.low && offset + UNIT <= at.high))) {
            units[k] = *reinterpret_cast<const Unit*>(from + offset);
            continue;
        }
#pragma unroll
        for (int v = 0; v < UNIT; ++v)
            units[k].value[v] =
                SHARED_ENDS && real && offset + v >= at.low && offset + v < at.high ? from[offset + v] : missing;
    }
}

__device__ inline void store(const Unit (&units)[UNITS], Element* to, const Place& at, Index p) {
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        const Index number = p + k * TEAM, offset = at.first + number * at.step;
        if (number >= at.end) continue;
        if (!SHARED_ENDS || (offset >= at.low && offset + UNIT <= at.high)) {
            *reinterpret_cast<Unit*>(to + offset) = units[k];
            continue;
        }
#pragma unroll
        for (int v = 0; v < UNIT; ++v)
            if (offset + v >= at.low && offset + v < at.high) to[offset + v] = units[k].value[v];
    }
}

// What waits in shared memory: places of UNITS units for each thread.
__device__ inline Unit* cached(int place) {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<Unit*>(memory) + place * UNITS * THREADS + threadIdx.x;
}

__device__ inline void to_cache(const Unit (&units)[UNITS], int place) {
#pragma unroll
    for (int k = 0; k < UNITS; ++k) cached(place)[k * THREADS] = units[k];
}

__device__ inline void from_cache(Unit (&units)[UNITS], int place) {
#pragma unroll
    for (int k = 0; k < UNITS; ++k) units[k] = cached(place)[k * THREADS];
}

// Which of the thread's slices element v of a unit belongs to.
__device__ constexpr int slice_of(int v) { return COLUMNS ? v : 0; }

// ---- what the threads of a team know together

template <bool LARGEST>
__device__ inline Accumulator both(Accumulator a, Accumulator b) {
    return LARGEST ? (b > a ? b : a) : a + b;
}

// The sum, or the largest, of each slice's values over its team, in one order for all: every thread gets it. All threads
// of a block have to call this.
template <bool LARGEST>
__device__ inline void reduce(Accumulator (&values)[SLICES], const Place& at) {
    if (TEAM == 1) return;
#if COLUMNS
    constexpr int WIDTH = TEAMS * SLICES;
    __shared__ Accumulator shared[TEAM][WIDTH];
#pragma unroll
    for (int s = 0; s < SLICES; ++s) shared[at.member][at.team * SLICES + s] = values[s];
    __syncthreads();
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        Accumulator all = shared[0][i];
        for (int other = 1; other < TEAM; ++other) all = both<LARGEST>(all, shared[other][i]);
        shared[0][i] = all;
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < SLICES; ++s) values[s] = shared[0][at.team * SLICES + s];
    __syncthreads();
#else
    constexpr int LANES = TEAM < 32 ? TEAM : 32, WARPS = TEAM / LANES;
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
        values[0] = both<LARGEST>(values[0], __shfl_xor_sync(0xffffffffu, values[0], lanes));
    if (WARPS == 1) return;
    __shared__ Accumulator shared[THREADS / 32];
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = values[0];
    __syncthreads();
    values[0] = shared[at.team * WARPS];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) values[0] = both<LARGEST>(values[0], shared[at.team * WARPS + warp]);
    __syncthreads();
#endif
}

// ---- forward

// The largest number so far and the sum of exp(number - largest). The first starts with the lowest finite number, so
// that -infinity is below it: a slice of nothing else has the sum 0 in the end, and NaN as its result. NaN and infinity
// make the sum NaN.
struct Statistics {
    Accumulator largest[SLICES], sum[SLICES];

    __device__ Statistics() {
#pragma unroll
        for (int s = 0; s < SLICES; ++s) largest[s] = -largest_finite(Accumulator(0)), sum[s] = 0;
    }

    __device__ void take(const Unit (&units)[UNITS]) {
        Accumulator top[SLICES];
#pragma unroll
        for (int s = 0; s < SLICES; ++s) top[s] = largest[s];
#pragma unroll
        for (int k = 0; k < UNITS; ++k)
#pragma unroll
            for (int v = 0; v < UNIT; ++v) {
                const Accumulator z = widen(units[k].value[v]);
                top[slice_of(v)] = both<true>(top[slice_of(v)], z);
            }
        rise_to(top);
#pragma unroll
        for (int k = 0; k < UNITS; ++k)
#pragma unroll
            for (int v = 0; v < UNIT; ++v) {
                const Accumulator z = widen(units[k].value[v]);
                sum[slice_of(v)] += power(z - top[slice_of(v)]);
            }
    }

    // A larger number than `largest`, or the same, takes its place.
    __device__ void rise_to(const Accumulator (&top)[SLICES]) {
#pragma unroll
        for (int s = 0; s < SLICES; ++s) sum[s] *= power(largest[s] - top[s]), largest[s] = top[s];
    }

    __device__ void take(const Accumulator* part, Index slices) {
#pragma unroll
        for (int s = 0; s < SLICES; ++s) {
            const Accumulator other = part[s], top = both<true>(largest[s], other);
            sum[s] = sum[s] * power(largest[s] - top) + part[slices + s] * power(other - top);
            largest[s] = top;
        }
    }

    __device__ void put_together(const Place& at) {
        Accumulator top[SLICES];
#pragma unroll
        for (int s = 0; s < SLICES; ++s) top[s] = largest[s];
        reduce<true>(top, at);
        rise_to(top);
        reduce<false>(sum, at);
    }
};

// `statistics` is [parts][largest, sum][slices].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
softmax_forward(const Element* x, Element* y, Accumulator* statistics, Index slices, Index length, Index inner,
                int parts, Index units_each) {
    const Place at(slices, length, inner, parts, units_each);
    const Element missing = narrow<Element>(-infinity(Accumulator(0)));
    Unit units[UNITS];
    Statistics seen;
    int place = 0;
    if (READS) {
#pragma unroll 1
        for (Index p = at.begin; p < at.end; p += TEAM * UNITS) {
            load(units, x, at, p, missing);
            if (CACHED) to_cache(units, place++);
            seen.take(units);
            if (WHOLE) break;
        }
    } else {
        for (int part = at.member; part < parts; part += TEAM)
            seen.take(statistics + part * 2 * slices + at.slice, slices);
    }
    seen.put_together(at);
    if (!WRITES) {
        if (at.member == 0 && at.end > 0)
#pragma unroll
            for (int s = 0; s < SLICES; ++s) {
                Accumulator* to = statistics + at.part * 2 * slices + at.slice + s;
                to[0] = seen.largest[s], to[slices] = seen.sum[s];
            }
        return;
    }
    Accumulator last[SLICES];
#pragma unroll
    for (int s = 0; s < SLICES; ++s) last[s] = LOG ? logarithm(seen.sum[s]) : 1 / seen.sum[s];
    place = 0;
#pragma unroll 1
    for (Index p = at.begin; p < at.end; p += TEAM * UNITS) {
        if (CACHED) from_cache(units, place++);
        else if (!WHOLE) load(units, x, at, p, missing);
#pragma unroll
        for (int k = 0; k < UNITS; ++k)
#pragma unroll
            for (int v = 0; v < UNIT; ++v) {
                const Accumulator below = Accumulator(widen(units[k].value[v])) - seen.largest[slice_of(v)];
                units[k].value[v] =
                    narrow<Element>(LOG ? below - last[slice_of(v)] : power(below) * last[slice_of(v)]);
            }
        store(units, y, at, p);
        if (WHOLE) break;
    }
}

// ---- backward: dx = y (dy - sum of dy·y), or dy - exp(y) · sum of dy

// `statistics` is [parts][slices].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
softmax_backward(const Element* dy, const Element* y, Element* dx, Accumulator* statistics, Index slices, Index length,
                 Index inner, int parts, Index units_each) {
    const Place at(slices, length, inner, parts, units_each);
    const Element missing = narrow<Element>(0);
    Unit gradients[UNITS], outputs[UNITS];
    Accumulator sum[SLICES] = {};
    int place = 0;
    if (READS) {
#pragma unroll 1
        for (Index p = at.begin; p < at.end; p += TEAM * UNITS) {
            load(gradients, dy, at, p, missing);
            if (WHOLE || CACHED || !LOG) load(outputs, y, at, p, missing);
            if (CACHED) to_cache(gradients, place++), to_cache(outputs, place++);
#pragma unroll
            for (int k = 0; k < UNITS; ++k)
#pragma unroll
                for (int v = 0; v < UNIT; ++v) {
                    const Accumulator gradient = widen(gradients[k].value[v]);
                    sum[slice_of(v)] += LOG ? gradient : gradient * Accumulator(widen(outputs[k].value[v]));
                }
            if (WHOLE) break;
        }
    } else {
        for (int part = at.member; part < parts; part += TEAM)
#pragma unroll
            for (int s = 0; s < SLICES; ++s) sum[s] += statistics[part * slices + at.slice + s];
    }
    reduce<false>(sum, at);
    if (!WRITES) {
        if (at.member == 0 && at.end > 0)
#pragma unroll
            for (int s = 0; s < SLICES; ++s) statistics[at.part * slices + at.slice + s] = sum[s];
        return;
    }
    place = 0;
#pragma unroll 1
    for (Index p = at.begin; p < at.end; p += TEAM * UNITS) {
        if (CACHED) from_cache(gradients, place++), from_cache(outputs, place++);
        else if (!WHOLE) load(gradients, dy, at, p, missing), load(outputs, y, at, p, missing);
#pragma unroll
        for (int k = 0; k < UNITS; ++k)
#pragma unroll
            for (int v = 0; v < UNIT; ++v) {
                const Accumulator gradient = widen(gradients[k].value[v]), output = widen(outputs[k].value[v]);
                const Accumulator all = sum[slice_of(v)];
                gradients[k].value[v] =
                    narrow<Element>(LOG ? gradient - power(output) * all : output * (gradient - all));
            }
        store(gradients, dx, at, p);
        if (WHOLE) break;
    }
}
