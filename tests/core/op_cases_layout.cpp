#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

OpCase moves(const std::string& name, const Tensors& inputs,
             std::function<Tensor(const Tensors&)> op,
             std::function<Array(const Arrays&)> reference) {
  OpCase row{
      .name = name, .inputs = inputs, .op = std::move(op), .reference = std::move(reference)};
  for (size_t i = 0; i < inputs.size(); ++i) row.batched.push_back(i);
  return row;
}

}  // namespace

std::vector<OpCase> layout_cases() {
  const Tensor a = uniform({3, 2, 5}, -2, 2, 1), b = uniform({3, 2, 1}, -2, 2, 2);
  const Tensor c = uniform({3, 2, 4}, -2, 2, 3);
  std::vector<OpCase> rows = {
      moves(
          "Reshape", {a},
          [](const Tensors& in) {
            return in[0].reshape({in[0].size(0) * 5, 2});
          },
          [](const Arrays& in) {
            Array out({in[0].size(0) * 5, 2});
            out.values = in[0].values;
            return out;
          }),
      moves(
          "Permute", {uniform({2, 3, 4, 5})},
          [](const Tensors& in) {
            return permute(in[0], {0, 3, 1, 2});
          },
          [](const Arrays& in) {
            Array out({in[0].size(0), 5, 3, 4});
            for (int64_t n = 0; n < out.size(0); ++n) {
              for (int64_t i = 0; i < 3; ++i) {
                for (int64_t j = 0; j < 4; ++j) {
                  for (int64_t k = 0; k < 5; ++k) out(n, k, i, j) = in[0](n, i, j, k);
                }
              }
            }
            return out;
          }),
      moves(
          "PermuteACycle", {uniform({2, 3, 4})},
          [](const Tensors& in) {
            return permute(in[0], {-1, 0, 1});
          },
          [](const Arrays& in) {
            Array out({4, in[0].size(0), 3});
            for (int64_t i = 0; i < in[0].size(0); ++i) {
              for (int64_t j = 0; j < 3; ++j) {
                for (int64_t k = 0; k < 4; ++k) out(k, i, j) = in[0](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "Concat", {a, b, c}, [](const Tensors& in) { return concat(in); },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 10});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 5; ++k) out(i, j, k) = in[0](i, j, k);
                out(i, j, 5) = in[1](i, j, 0);
                for (int64_t k = 0; k < 4; ++k) out(i, j, 6 + k) = in[2](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "SliceChannels", {a}, [](const Tensors& in) { return slice_channels(in[0], 1, 4); },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 3});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 3; ++k) out(i, j, k) = in[0](i, j, k + 1);
              }
            }
            return out;
          }),
      moves(
          "Split", {c},
          [](const Tensors& in) {
            const Tensors halves = split(in[0], 2);
            return halves[1] - 2.0 * halves[0];
          },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 2});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 2; ++k)
                  out(i, j, k) = in[0](i, j, k + 2) - 2 * in[0](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "BroadcastTo", {uniform({3, 1, 5})},
          [](const Tensors& in) {
            const int64_t rows_of_x = in[0].size(0);
            return broadcast_to(in[0], {2, rows_of_x, 4, 5});
          },
          [](const Arrays& in) {
            Array out({2, in[0].size(0), 4, 5});
            for (int64_t i = 0; i < out.numel(); ++i) out[i] = broadcast_at(in[0], out.shape, i);
            return out;
          })};
  rows.push_back({.name = "Slice",
                  .inputs = {uniform({5, 2, 3})},
                  .op = [](const Tensors& in) { return in[0].slice(1, 4); },
                  .reference =
                      [](const Arrays& in) {
                        Array out({3, 2, 3});
                        for (int64_t i = 0; i < 18; ++i) out[i] = in[0][6 + i];
                        return out;
                      }});
  return rows;
}

}  // namespace mutilde
