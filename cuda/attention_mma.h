// Attention of bfloat16 tensors by tensor cores (attention.cu has the plain kernels and says which is run).
#pragma once

#include <cuda_bf16.h>

#include "core/backend.h"

namespace mutilde::cuda {

/// Heads of D numbers, whose rows lie at multiples of 16 bytes.
inline bool attention_mma_takes(const ConstView& qkv, int64_t D) {
  return qkv.dtype == DType::kBFloat16 && D % 8 == 0 && D <= 128;
}

/// As Backend::attention and attention_backward. delta: [N, heads, T], is written.
void attention_mma(const ConstView& qkv, int64_t heads, __nv_bfloat16* out, float* log_sum_exp);
void attention_backward_mma(const ConstView& qkv, int64_t heads, const __nv_bfloat16* out,
                            const float* log_sum_exp, const __nv_bfloat16* dout, float* delta,
                            __nv_bfloat16* dqkv);

}  // namespace mutilde::cuda
