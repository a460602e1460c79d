// ReLU, sigmoid and tanh, elementwise over tensors that are dense in one order; a thread takes VECTORS vectors of EACH
// elements, THREADS vectors apart.
//
// Macros: ELEMENT, KIND (1 relu, 2 sigmoid, 3 tanh), EACH (elements a vector: 16 bytes where addresses allow), VECTORS,
// THREADS.
#include "_device.cuh"

using namespace tilesmith;

typedef ELEMENT Element;
typedef Numbers<Element>::Accumulator Accumulator;
typedef Pack<Element, EACH> Vector;

// The derivative of the activation, told from its output. torch's rule: past a NaN the gradient of ReLU goes on.
__device__ inline Accumulator slope_times(Accumulator dy, Accumulator y) {
    if (KIND == RELU) return y <= 0 ? Accumulator(0) : dy;
    if (KIND == SIGMOID) return dy * (y * (1 - y));
    return dy * (1 - y * y);
}

// The first element of this thread's vector number k.
__device__ inline long long first_of(int k) {
    return ((blockIdx.x * (long long)VECTORS + k) * THREADS + threadIdx.x) * EACH;
}

__device__ inline void load(Vector& vector, const Element* from, long long first, long long n) {
    if (first + EACH <= n) {
        vector = *reinterpret_cast<const Vector*>(from + first);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) vector.value[i] = first + i < n ? from[first + i] : narrow<Element>(0);
}

__device__ inline void store(const Vector& vector, Element* to, long long first, long long n) {
    if (first + EACH <= n) {
        *reinterpret_cast<Vector*>(to + first) = vector;
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (first + i < n) to[first + i] = vector.value[i];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
activation_forward(const Element* x, Element* y, long long n) {
    Vector vectors[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) load(vectors[k], x, first_of(k), n);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            vectors[k].value[i] = narrow<Element>(activate<KIND>(Accumulator(widen(vectors[k].value[i]))));
        store(vectors[k], y, first_of(k), n);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
activation_backward(const Element* dy, const Element* y, Element* dx, long long n) {
    Vector vectors[VECTORS], outputs[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        load(vectors[k], dy, first_of(k), n);
        load(outputs[k], y, first_of(k), n);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            vectors[k].value[i] = narrow<Element>(
                slope_times(Accumulator(widen(vectors[k].value[i])), Accumulator(widen(outputs[k].value[i]))));
        store(vectors[k], dx, first_of(k), n);
    }
}
