// Rung 4 of the convolution and of dense layers, which are convolutions by 1 x 1: by product_mma.h, on every GPU from
// compute capability 8.0 on. The same functions as hopper/hopper.h has for its rung, of the same arguments, and what
// those take these take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/conv_plain.h"

namespace mutilde::cuda {

template <class E, class Out>
void conv2d_mma(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                const Out* residual, Out* out, cudaStream_t stream);

template <class E, class Out>
void conv2d_backward_input_mma(const ConvSizes& s, int N, const E* dout, const E* weight, Out* dx,
                               cudaStream_t stream);

/// partial: [chunks, C_out, kH, kW, C], parts that add up to the gradient of the weight.
int conv2d_backward_weight_mma_chunks(const ConvSizes& s, int N);
template <class E>
void conv2d_backward_weight_mma(const ConvSizes& s, int N, const E* x, const E* dout,
                                float* partial, cudaStream_t stream);

}  // namespace mutilde::cuda
