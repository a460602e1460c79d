// Windows along one axis: the elements that a window sees, the windows that see an element, what a mean is divided by.
//
// Macros: ELEMENT, ADAPTIVE (0: windows of `kernel` taps, `dilation` apart, one every `stride` elements; 1: the axis is cut into
// `count` windows), INDEX (int, or long long where size · count or an offset within an image needs it).
#pragma once
#include "_device.cuh"

typedef INDEX Index;

namespace tilesmith {

typedef Numbers<ELEMENT>::Accumulator Count;  // what a mean is divided by: the caller's number may have any sign and size

// `count` numbers: first, first + step, ...
struct Run {
    int first, count, step;
};

// Where part i of an axis of `size` elements in `parts` parts begins and ends: i · size / parts rounded down, and up.
__device__ inline int part_begin(int i, int size, int parts, unsigned long long by_parts) {
    return sizeof(Index) == 4 ? Divisor(by_parts)(i * size) : int((long long)i * size / parts);
}
__device__ inline int part_end(int i, int size, int parts, unsigned long long by_parts) {
    return sizeof(Index) == 4 ? Divisor(by_parts)((i + 1) * size + parts - 1)
                              : int(((i + 1LL) * size + parts - 1) / parts);
}

struct Axis {
    int size, count, kernel, stride, dilation, padding;
    int margin;            // how far beyond the input elements count for a mean
    int counts;      // a mean's divisor: counts · their number + constant
    Count constant;
    unsigned long long by_window, by_element;  // divisors: adaptive `count` and `size`, else 1 and `stride`

    // The elements of window p that are inside, and the number of the first one's tap.
    __device__ Run elements(int p, int& tap) const {
#if ADAPTIVE
        const int begin = part_begin(p, size, count, by_window);
        tap = 0;
        return {begin, part_end(p, size, count, by_window) - begin, 1};
#else
        const int start = p * stride - padding;
        tap = start < 0 ? (dilation - 1 - start) / dilation : 0;
        return {start + tap * dilation, max(min(kernel, (size - start + dilation - 1) / dilation) - tap, 0), dilation};
#endif
    }

    // Where the elements of windows p and later begin, and those of windows up to p end; both inside.
    __device__ int begin(int p) const { return min(max(element(p, 0), 0), size); }
    __device__ int end(int p) const {
#if ADAPTIVE
        return part_end(p, size, count, by_window);
#else
        return min(max(element(p, kernel - 1) + 1, 0), size);
#endif
    }

    // The windows that see element h; with dilation also some between its taps.
    __device__ Run windows(int h) const {
#if ADAPTIVE
        const int begin = part_begin(h, count, size, by_element);
        return {begin, part_end(h, count, size, by_element) - begin, 1};
#else
        const int place = h + padding, beyond = place - (kernel - 1) * dilation;
        const int first = beyond > 0 ? Divisor(by_element)(beyond + stride - 1) : 0;
        return {first, max(min(count - 1, Divisor(by_element)(place)) - first + 1, 0), 1};
#endif
    }

    // The first element after h that other windows see than `here`, those that see h.
    __device__ int next_change(int h, const Run& here) const {
        const int after = here.first + here.count;
        const int gained = after < count ? begin(after) : size, lost = here.count > 0 ? end(here.first) : size;
        return max(min(gained, lost), h + 1);
    }

    // The element that tap r of window p sees, inside or not.
    __device__ int element(int p, int r) const {
#if ADAPTIVE
        return part_begin(p, size, count, by_window) + r;
#else
        return p * stride - padding + r * dilation;
#endif
    }

    // This axis' factor of what the sum of window p is divided by; not 0, also of windows that are not there.
    __device__ Count counted(int p) const {
#if ADAPTIVE
        int tap;
        const int count_of_elements = elements(p, tap).count;
#else
        const int start = p * stride - padding;
        const int count_of_elements = max(min(start + kernel, size + margin) - max(start, -margin), 1);
#endif
        return Count(counts * count_of_elements) + constant;
    }
};

}  // namespace tilesmith

// An axis as a kernel's parameters.
#define AXIS(a)                                                                                                    \
    int a##_size, int a##_count, int a##_kernel, int a##_stride, int a##_dilation, int a##_padding, int a##_margin, \
        int a##_counts, Count a##_constant, unsigned long long a##_by_window, unsigned long long a##_by_element
#define AXIS_OF(a) \
    { a##_size, a##_count, a##_kernel, a##_stride, a##_dilation, a##_padding, a##_margin, a##_counts, a##_constant, \
      a##_by_window, a##_by_element }
