#include <cmath>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

// The definition, query by query, with all T weights in hand.
Array attend(const Array& qkv, int64_t heads) {
  const int64_t N = qkv.size(0), T = qkv.size(1), D = qkv.size(2) / (3 * heads);
  Array out({N, T, heads * D});
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t q = 3 * head * D, k = q + D, v = k + D;
      for (int64_t t = 0; t < T; ++t) {
        std::vector<double> weights;
        double total = 0;
        for (int64_t s = 0; s < T; ++s) {
          double score = 0;
          for (int64_t d = 0; d < D; ++d) score += qkv(n, t, q + d) * qkv(n, s, k + d);
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(D))));
          total += weights.back();
        }
        for (int64_t s = 0; s < T; ++s) {
          const double weight = weights[static_cast<size_t>(s)] / total;
          for (int64_t d = 0; d < D; ++d) out(n, t, head * D + d) += weight * qkv(n, s, v + d);
        }
      }
    }
  }
  return out;
}

Tensor plain_attention(const Tensor& qkv, int64_t heads) {
  const int64_t N = qkv.size(0), T = qkv.size(1), D = qkv.size(2) / (3 * heads);
  const Tensor by_head =
      permute(qkv.reshape({N, T, heads, 3 * D}), {0, 2, 1, 3});  // [N, heads, T, 3D]
  const Tensors parts = split(by_head, 3);
  const double scale = std::pow(static_cast<double>(D), -0.25);
  const Tensor weights = softmax(matmul(parts[0] * scale, parts[1] * scale, false, true));
  return permute(matmul(weights, parts[2]), {0, 2, 1, 3}).reshape({N, T, heads * D});
}

OpCase attention_case(const std::string& name, int64_t N, int64_t T, int64_t heads, int64_t D) {
  return {.name = "Attention" + name,
          .inputs = {uniform({N, T, heads * 3 * D})},
          .op = [heads](const Tensors& in) { return attention(in[0], heads); },
          .reference = [heads](const Arrays& in) { return attend(in[0], heads); },
          .composition = [heads](const Tensors& in) { return plain_attention(in[0], heads); },
          // A score sums D products of up to 2^2 and divides by sqrt(D); the output sums T weights.
          .terms = static_cast<double>(T + 4 * D),
          .batched = {0}};
}

}  // namespace

std::vector<OpCase> attention_cases() {
  return {attention_case("", 2, 5, 1, 4), attention_case("ManyHeads", 2, 5, 3, 4),
          attention_case("OddHeadSize", 1, 7, 2, 3), attention_case("OneToken", 2, 1, 2, 4),
          attention_case("HeadSizeOne", 2, 6, 2, 1), attention_case("BatchOfOne", 1, 9, 4, 8),
          // Past the edges of the kernels' blocks, on all threads.
          attention_case("Long", 2, 131, 2, 16), attention_case("WideHead", 1, 65, 1, 67)};
}

}  // namespace mutilde
