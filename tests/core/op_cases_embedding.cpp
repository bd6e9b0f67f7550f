#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

std::vector<OpCase> embedding_cases() {
  const auto rows_of = [](const Arrays& in) {
    const int64_t E = in[0].size(1);
    std::vector<int64_t> sizes(in[1].shape.begin(), in[1].shape.end());
    sizes.push_back(E);
    Array out{Shape(std::span<const int64_t>(sizes))};
    for (int64_t i = 0; i < out.numel(); ++i) {
      out[i] = in[0](static_cast<int64_t>(in[1][i / E]), i % E);
    }
    return out;
  };
  const auto embed = [](const Tensors& in) { return embedding(in[0], in[1]); };
  return {{.name = "Embedding",
           .inputs = {uniform({5, 3}), Tensor::from<int64_t>({4}, {4, 0, 4, 2})},
           .op = embed,
           .reference = rows_of,
           .terms = 4,
           .batched = {1}},
          {.name = "EmbeddingOfAGrid",
           .inputs = {uniform({3, 5}), Tensor::from<int64_t>({2, 3}, {1, 1, 2, 0, 1, 1})},
           .op = embed,
           .reference = rows_of,
           .terms = 6,
           .batched = {1}},
          {.name = "EmbeddingOfOneIndex",
           .inputs = {uniform({3, 5}), Tensor::from<int64_t>({}, {2})},
           .op = embed,
           .reference = rows_of},
          {.name = "GatherTimesteps",
           .inputs = {uniform({7}), Tensor::from<int64_t>({3}, {6, 0, 2})},
           .op =
               [](const Tensors& in) {
                 return gather_timesteps(in[0].to(DType::kFloat64), in[1], 4, in[0].dtype());
               },
           .reference =
               [](const Arrays& in) {
                 Array out({in[1].size(0), 1, 1, 1});
                 for (int64_t n = 0; n < out.numel(); ++n)
                   out[n] = in[0][static_cast<int64_t>(in[1][n])];
                 return out;
               },
           .batched = {1},
           .differentiable = false}};
}

}  // namespace mutilde
