// Rung 5 of matrix products and of the convolution, for GPUs of compute capability 9.0 (H100, H200):
// factors of a short type E, __nv_bfloat16 or __half, and float32 sums.
//
// Arrays begin at multiples of 16 bytes, and so do their rows: the copy engine needs that. No size is 0.
// Each function throws Error for what the one before it, _takes(), does not take, and on another GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/conv_plain.h"

namespace mutilde::cuda {

/// Does the current GPU have the instructions?
bool is_hopper();
/// How many multiprocessors it has.
int multiprocessors();

/// out = a b as in matmul_ladder.h.
inline bool matmul_wgmma_takes(int64_t M, int64_t N, int64_t K) {
  return M > 0 && N > 0 && K > 0 && N % 8 == 0 && K % 8 == 0;
}
template <class E>
void matmul_wgmma(const E* a, const E* b, float* out, int M, int N, int K, cudaStream_t stream);

/// out = conv2d(x, weight) + bias as in conv_plain.h, of N images, and then + residual, like out or null; bias is
/// float32, and Out float or E, here and below.
inline bool conv2d_wgmma_takes(const ConvSizes& s, bool short_out) {
  return s.C > 0 && s.C_out > 0 && s.C % 8 == 0 && s.C_out % (short_out ? 8 : 2) == 0 &&
         s.stride <= 2;
}
template <class E, class Out>
void conv2d_wgmma(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                  const Out* residual, Out* out, cudaStream_t stream);

/// Both gradients.
inline bool conv2d_backward_wgmma_takes(const ConvSizes& s) {
  return s.C > 0 && s.C_out > 0 && s.C % 8 == 0 && s.C_out % 8 == 0 && s.stride <= 2;
}
template <class E, class Out>
void conv2d_backward_input_wgmma(const ConvSizes& s, int N, const E* dout, const E* weight, Out* dx,
                                 cudaStream_t stream);

/// partial: [chunks, C_out, kH, kW, C], parts that add up to the gradient of the weight.
int conv2d_backward_weight_chunks(const ConvSizes& s, int N);
template <class E>
void conv2d_backward_weight_wgmma(const ConvSizes& s, int N, const E* x, const E* dout,
                                  float* partial, cudaStream_t stream);

}  // namespace mutilde::cuda
