// Kernels that ask for the runtime API get the device side of it, which is all in cuda_host.h.
#pragma once
#include "cuda_host.h"
