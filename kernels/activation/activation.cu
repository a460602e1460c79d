// ReLU, sigmoid and tanh, elementwise over tensors that are dense in one order; a block takes THREADS · EACH elements.
//
// Macros: ELEMENT, KIND (1 relu, 2 sigmoid, 3 tanh), EACH (elements a thread: 16 bytes).
#include "_device.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;

// The derivative of the activation, told from its output.
__device__ Accumulator slope_times(Accumulator dy, Accumulator y) {
#if KIND == 1
    return y > 0 ? dy : Accumulator(0);
#elif KIND == 2
    return dy * (y * (1 - y));
#else
    return dy * (1 - y * y);
#endif
}

extern "C" __global__ void activation_forward(const Element* x, Element* y, long long n) {
    const long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * EACH;
    if (first + EACH <= n) {
        Pack<Element, EACH> values = *reinterpret_cast<const Pack<Element, EACH>*>(x + first);
        for (int i = 0; i < EACH; ++i)
            values.value[i] = narrow<Element>(activate<KIND>(Accumulator(widen(values.value[i]))));
        *reinterpret_cast<Pack<Element, EACH>*>(y + first) = values;
        return;
    }
    for (long long i = first; i < n; ++i) y[i] = narrow<Element>(activate<KIND>(Accumulator(widen(x[i]))));
}

extern "C" __global__ void activation_backward(const Element* dy, const Element* y, Element* dx, long long n) {
    const long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * EACH;
    if (first + EACH <= n) {
        const Pack<Element, EACH> outputs = *reinterpret_cast<const Pack<Element, EACH>*>(y + first);
        Pack<Element, EACH> values = *reinterpret_cast<const Pack<Element, EACH>*>(dy + first);
        for (int i = 0; i < EACH; ++i)
            values.value[i] = narrow<Element>(
                slope_times(Accumulator(widen(values.value[i])), Accumulator(widen(outputs.value[i]))));
        *reinterpret_cast<Pack<Element, EACH>*>(dx + first) = values;
        return;
    }
    for (long long i = first; i < n; ++i)
        dx[i] = narrow<Element>(slope_times(Accumulator(widen(dy[i])), Accumulator(widen(y[i]))));
}
