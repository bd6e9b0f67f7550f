// Elementwise kernels of the CUDA backend: the same names, arguments and order as in
// core/backend.h, and the stream on which they run. Pointers are the device's; x and out may be the
// same array. float32 and float64; anything else throws DTypeError.
#pragma once

#include <cuda_runtime.h>

#include "core/backend.h"

namespace mutilde::cuda {

void unary(UnaryOp op, ConstView x, View out, cudaStream_t stream);
void affine(ConstView x, double scale, double shift, View out,
            cudaStream_t stream);  // x * scale + shift
void clamp(ConstView x, double low, double high, View out, cudaStream_t stream);
/// dx = dout where low <= x <= high, else 0.
void clamp_backward(ConstView x, double low, double high, ConstView dout, View dx,
                    cudaStream_t stream);
void accumulate(ConstView x, View into, cudaStream_t stream);  // into += x

}  // namespace mutilde::cuda
