// Which taps of a window meet which pixels, along one axis: forward all of them; for the input's gradient, by phases.
//
// The input's gradient at pixels h with h mod stride = phase is a correlation of dy with those taps r that meet the
// phase, (h + padding - r·dilation) mod stride = 0: every `step`-th one, each dilation / gcd(stride, dilation) rows of
// dy before the last. So nothing is multiplied by the zeros between the elements of dy.
#pragma once

namespace tilesmith {

// Tap number i is first + i · step; it reads the source at pace · pixel + start + i · spread.
struct Taps {
    int count, first, start;

    __device__ Taps(int phase, int kernel, int stride, int dilation, int padding, int step) {
#if BACKWARD
        first = 0;
        while (first < step && (phase + padding - first * dilation) % stride != 0) ++first;
        const bool none = first == step || first >= kernel;
        count = none ? 0 : (kernel - first + step - 1) / step;
        start = none ? 0 : (phase + padding - first * dilation) / stride;
#else
        first = 0, count = kernel, start = -padding;
#endif
    }
};

}  // namespace tilesmith
