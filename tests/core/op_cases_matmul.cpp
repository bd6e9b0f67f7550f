#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

// out[b, i, j] = sum_k a[b, i, k] b[b, k, j], each side transposed as asked; a matrix alone is
// shared.
Array product(const Array& a, bool transpose_a, const Array& b, bool transpose_b,
              const Shape& out_shape) {
  Array out(out_shape);
  const int64_t M = out_shape[-2], N = out_shape[-1], K = a.size(transpose_a ? -2 : -1);
  const int64_t batch = out_shape.product(0, out_shape.rank() - 2);
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t a_begin = a.shape.rank() == 2 ? 0 : n * M * K;
    const int64_t b_begin = b.shape.rank() == 2 ? 0 : n * K * N;
    for (int64_t i = 0; i < M; ++i) {
      for (int64_t j = 0; j < N; ++j) {
        for (int64_t k = 0; k < K; ++k) {
          out[(n * M + i) * N + j] += a[a_begin + (transpose_a ? k * M + i : i * K + k)] *
                                      b[b_begin + (transpose_b ? j * K + k : k * N + j)];
        }
      }
    }
  }
  return out;
}

struct Sides {
  std::string name;
  Shape a, b;
  bool transpose_a, transpose_b;
  Shape out;
  double terms;  // the longest of the sums over K, M and N (times the batch where a side is shared)
  std::vector<size_t> batched = {};
};

OpCase matmul_case(const Sides& sides) {
  return {.name = "Matmul" + sides.name,
          .inputs = {uniform(sides.a, -1, 1, 1), uniform(sides.b, -1, 1, 2)},
          .op =
              [sides](const Tensors& in) {
                return matmul(in[0], in[1], sides.transpose_a, sides.transpose_b);
              },
          .reference =
              [sides](const Arrays& in) {
                const bool is_empty = in[0].numel() == 0;
                return product(in[0], sides.transpose_a, in[1], sides.transpose_b,
                               is_empty ? sides.out.with(0, 0) : sides.out);
              },
          .terms = sides.terms,
          .batched = sides.batched};
}

OpCase linear_case(const std::string& name, const Shape& x, int64_t N, bool has_bias,
                   double terms) {
  const int64_t K = x[-1];
  OpCase row{
      .name = "Linear" + name,
      .inputs = {uniform(x, -1, 1, 1), uniform({N, K}, -1, 1, 2)},
      .op =
          [](const Tensors& in) { return linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}); },
      .reference =
          [N, K](const Arrays& in) {
            Array out(in[0].shape.with(-1, N));
            for (int64_t i = 0; i < out.numel(); ++i) {
              const int64_t m = i / N, n = i % N;
              if (in.size() > 2) out[i] = in[2][n];
              for (int64_t k = 0; k < K; ++k) out[i] += in[0][m * K + k] * in[1](n, k);
            }
            return out;
          },
      .composition =
          [](const Tensors& in) {
            const Tensor product = matmul(in[0], in[1], false, true);
            return in.size() > 2 ? product + in[2] : product;
          },
      .terms = terms};
  if (has_bias) row.inputs.push_back(uniform({N}, -1, 1, 3));
  if (x.rank() > 1) row.batched = {0};
  if (x.rank() == 1) row.composition = {};
  return row;
}

}  // namespace

std::vector<OpCase> matmul_cases() {
  return {
      matmul_case({"", {3, 5}, {5, 4}, false, false, {3, 4}, 5, {0}}),
      matmul_case({"TransposeA", {5, 3}, {5, 4}, true, false, {3, 4}, 5}),
      matmul_case({"TransposeB", {3, 5}, {4, 5}, false, true, {3, 4}, 5, {0}}),
      matmul_case({"TransposeBoth", {5, 3}, {4, 5}, true, true, {3, 4}, 5}),
      matmul_case({"OneRow", {1, 5}, {5, 4}, false, false, {1, 4}, 5}),
      matmul_case({"OneColumn", {3, 5}, {5, 1}, false, false, {3, 1}, 5}),
      matmul_case({"Outer", {3, 1}, {1, 4}, false, false, {3, 4}, 4}),
      matmul_case({"Batched", {2, 3, 5}, {2, 5, 4}, false, false, {2, 3, 4}, 5, {0, 1}}),
      matmul_case({"BatchedTransposeA", {2, 5, 3}, {2, 5, 4}, true, false, {2, 3, 4}, 5, {0, 1}}),
      matmul_case({"BatchedTransposeB", {2, 3, 5}, {2, 4, 5}, false, true, {2, 3, 4}, 5, {0, 1}}),
      matmul_case({"BatchedTransposeBoth", {2, 5, 3}, {2, 4, 5}, true, true, {2, 3, 4}, 5, {0, 1}}),
      matmul_case(
          {"TwoBatchAxes", {2, 3, 2, 3}, {2, 3, 3, 5}, false, false, {2, 3, 2, 5}, 5, {0, 1}}),
      matmul_case({"SharedA", {3, 5}, {2, 5, 4}, false, false, {2, 3, 4}, 8}),
      matmul_case({"SharedATransposed", {5, 3}, {2, 4, 5}, true, true, {2, 3, 4}, 8}),
      matmul_case({"SharedB", {2, 3, 5}, {5, 4}, false, false, {2, 3, 4}, 6, {0}}),
      matmul_case({"SharedBTransposed", {2, 3, 5}, {4, 5}, false, true, {2, 3, 4}, 6, {0}}),
      matmul_case({"SharedBTransposeA", {2, 5, 3}, {5, 4}, true, false, {2, 3, 4}, 6, {0}}),
      // Past the edges of the kernels' blocks in each direction, on all threads.
      matmul_case({"Wide", {37, 131}, {131, 101}, false, false, {37, 101}, 131}),
      matmul_case({"WideTransposed", {300, 35}, {67, 300}, true, true, {35, 67}, 300}),
      linear_case("", {3, 5}, 4, true, 5), linear_case("NoBias", {3, 5}, 4, false, 5),
      linear_case("OneVector", {5}, 4, true, 5), linear_case("Images", {2, 3, 2, 5}, 7, true, 12),
      linear_case("ToOneOutput", {3, 5}, 1, true, 5),
      linear_case("Wide", {45, 130}, 71, true, 130)};
}

}  // namespace mutilde
