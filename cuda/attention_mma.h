// Attention of tensors of a short type by tensor cores (attention.cu has the plain kernels and says which is run).
#pragma once

#include "core/backend.h"

namespace mutilde::cuda {

/// Heads of D numbers, whose rows lie at multiples of 16 bytes.
inline bool attention_mma_takes(const ConstView& qkv, int64_t D) {
  return is_short(qkv.dtype) && D % 8 == 0 && D <= 128;
}

/// As Backend::attention and attention_backward, of E, the type of qkv. delta: [N, heads, T], is written.
template <class E>
void attention_mma(const ConstView& qkv, int64_t heads, E* out, float* log_sum_exp);
template <class E>
void attention_backward_mma(const ConstView& qkv, int64_t heads, const E* out,
                            const float* log_sum_exp, const E* dout, float* delta, E* dqkv);

}  // namespace mutilde::cuda
