// Rung 4 of the convolution, for GPUs of compute capability 9.0 (H100, H200). Compiled by nvcc, never
// run on a GPU yet; the emulation does not have it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/conv_plain.h"

namespace mutilde::cuda {

/// out = conv2d(x, weight) + bias as in conv_plain.h, of N images: bfloat16 factors, float32 sums, bias
/// and out. Strides up to 2; C is a multiple of 8 and C_out of 2, and the arrays begin at multiples of 16
/// bytes. Throws Error otherwise, and on another GPU.
void conv2d_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x, const __nv_bfloat16* weight,
                  const float* bias, float* out, cudaStream_t stream);

}  // namespace mutilde::cuda
