// Scaled dot-product attention.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

// Defined by: softmax((q D^-1/4) (k D^-1/4)^T) v for each head
Tensor attention(const Tensor& qkv, int64_t heads) {
  require_activation("attention", "qkv", qkv);
  require_rank("attention", "qkv", qkv, 3, "[N, T, heads * 3 * D]");
  if (heads < 1 || qkv.size(2) == 0 || qkv.size(2) % (3 * heads) != 0) {
    fail<ShapeError>("attention: {} channels do not divide into q, k, v of {} heads (qkv {})",
                     qkv.size(2), heads, qkv.shape());
  }
  const int64_t N = qkv.size(0), T = qkv.size(1);
  const Tensor out = Tensor::empty({N, T, qkv.size(2) / 3}, qkv.dtype(), qkv.device());
  const Tensor log_sum_exp = Tensor::empty({N, heads, T}, parameter_dtype(qkv), qkv.device());
  backend(qkv).attention(qkv, heads, out, log_sum_exp);
  // The T x T weights are computed again from qkv and log_sum_exp.
  return record("attention", out, {qkv},
                [heads, log_sum_exp, out,
                 saved_qkv = qkv.detach()](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dqkv = empty_like(saved_qkv);
                  backend(dqkv).attention_backward(saved_qkv, heads, out, log_sum_exp, cotangent,
                                                   dqkv);
                  return {dqkv};
                });
}

}  // namespace mutilde
