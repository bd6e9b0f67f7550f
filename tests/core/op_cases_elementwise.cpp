#include <algorithm>
#include <cmath>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

using Binary = double (*)(double, double);
using Unary = double (*)(double);

Shape broadcast_shape(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  std::vector<int64_t> sizes;
  for (int i = rank; i >= 1; --i) {
    const int64_t size_a = i <= a.rank() ? a[-i] : 1, size_b = i <= b.rank() ? b[-i] : 1;
    sizes.push_back(size_a == 1 ? size_b : size_a);
  }
  return Shape(std::span<const int64_t>(sizes));
}

auto each(Unary f) {
  return [f](const Arrays& in) {
    Array out(in[0].shape);
    for (int64_t i = 0; i < out.numel(); ++i) out[i] = f(in[0][i]);
    return out;
  };
}

auto each_pair(Binary f) {
  return [f](const Arrays& in) {
    Array out(broadcast_shape(in[0].shape, in[1].shape));
    for (int64_t i = 0; i < out.numel(); ++i) {
      out[i] = f(broadcast_at(in[0], out.shape, i), broadcast_at(in[1], out.shape, i));
    }
    return out;
  };
}

OpCase unary(const std::string& name, Tensor (*op)(const Tensor&), Unary f, const Tensor& x) {
  return {.name = name,
          .inputs = {x},
          .op = [op](const Tensors& in) { return op(in[0]); },
          .reference = each(f),
          .batched = {0}};
}

OpCase binary(const std::string& name, Tensor (*op)(const Tensor&, const Tensor&), Binary f,
              const Tensor& a, const Tensor& b) {
  return {.name = name,
          .inputs = {a, b},
          .op = [op](const Tensors& in) { return op(in[0], in[1]); },
          .reference = each_pair(f),
          // The sums of a broadcast's backward, and quotients up to 2 / 0.5^2.
          .terms = 32};
}

OpCase scalar_form(const std::string& name, std::function<Tensor(const Tensor&)> op, Unary f) {
  return {.name = name,
          .inputs = {uniform_off({0}, {3, 5}, 0.3, 2)},
          .op = [op](const Tensors& in) { return op(in[0]); },
          .reference = each(f),
          .terms = 8,
          .batched = {0}};
}

// Zeros and ones; about half of each.
Tensor mask(const Shape& shape, uint64_t seed) {
  return less(uniform(shape, -1, 1, seed), Tensor::zeros({}, DType::kFloat64));
}

// 0, 1 or 2, so that ties occur.
Tensor small_integers(const Shape& shape, uint64_t seed) {
  return cast(cast(uniform(shape, 0, 3, seed), DType::kInt32), DType::kFloat64);
}

double plus(double a, double b) { return a + b; }
double minus(double a, double b) { return a - b; }
double times(double a, double b) { return a * b; }
double over(double a, double b) { return a / b; }

std::vector<OpCase> binary_cases() {
  const Tensor a = uniform({3, 4, 5}, -2, 2, 1), b = uniform({3, 4, 5}, -2, 2, 2);
  const Tensor row = uniform({5}, 0.5, 2, 3), column = uniform({4, 1}, 0.5, 2, 4);
  const Tensor images = uniform({2, 1, 3, 5}, 0.5, 2, 5),
               channels = uniform({2, 3, 1, 1}, 0.5, 2, 6);
  const Tensor one = uniform({}, 0.5, 2, 7);
  std::vector<OpCase> rows = {
      binary("Add", add, plus, a, b),
      binary("AddRow", add, plus, a, row),
      binary("AddBothBroadcast", add, plus, images, channels),
      binary("AddScalarTensor", add, plus, one, a),
      binary("Sub", sub, minus, a, b),
      binary("SubColumnFromRow", sub, minus, row, column),
      binary("SubRow", sub, minus, a, row),
      binary("Mul", mul, times, a, b),
      binary("MulColumn", mul, times, a, column),
      binary("MulBothBroadcast", mul, times, images, channels),
      binary("Div", div, over, a, uniform({3, 4, 5}, 0.5, 2, 8)),
      binary("DivRowByColumn", div, over, row, column),
      binary("DivBothBroadcast", div, over, images, channels),
      binary("DivByScalarTensor", div, over, a, one),
      binary("DivOneElement", div, over, one, uniform({1, 1}, 0.5, 2, 9)),
      binary(
          "Less", less, [](double x, double y) { return x < y ? 1.0 : 0.0; },
          small_integers({4, 9}, 1), small_integers({4, 9}, 2)),
      binary(
          "GreaterEqual", greater_equal, [](double x, double y) { return x >= y ? 1.0 : 0.0; },
          small_integers({4, 9}, 1), small_integers({9}, 2))};
  for (OpCase& row_case : rows) {
    const Shape &shape_a = row_case.inputs[0].shape(), &shape_b = row_case.inputs[1].shape();
    if (shape_a.rank() > 0 && shape_a.rank() >= shape_b.rank()) row_case.batched.push_back(0);
    const bool same_batch =
        shape_a.rank() > 0 && shape_a.rank() == shape_b.rank() && shape_a[0] == shape_b[0];
    if (same_batch) row_case.batched.push_back(1);
    row_case.differentiable = row_case.name != "Less" && row_case.name != "GreaterEqual";
  }
  return rows;
}

std::vector<OpCase> unary_cases() {
  const Tensor any = uniform({3, 7}), positive = uniform({3, 7}, 0.3, 3);
  const Tensor far_out = Tensor::from<double>({2, 4}, {-40, -20, -10, -1, 1, 10, 20, 40});
  const auto sigmoid_of = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto silu_of = [](double x) { return x / (1 + std::exp(-x)); };
  return {unary(
              "Neg", [](const Tensor& x) { return -x; }, [](double x) { return -x; }, any),
          unary("Exp", exp, std::exp, any), unary("Log", log, std::log, positive),
          unary("Sqrt", sqrt, std::sqrt, positive),
          unary(
              "Square", square, [](double x) { return x * x; }, any),
          unary(
              "Reciprocal", reciprocal, [](double x) { return 1 / x; }, positive),
          unary("Abs", abs, std::abs, uniform_off({0}, {3, 7})),
          unary("Sin", sin, std::sin, uniform({3, 7}, -7, 7)),
          unary("Cos", cos, std::cos, uniform({3, 7}, -7, 7)), unary("Tanh", tanh, std::tanh, any),
          unary("TanhFarOut", tanh, std::tanh, far_out), unary("Sigmoid", sigmoid, sigmoid_of, any),
          unary("SigmoidFarOut", sigmoid, sigmoid_of, far_out), unary("Silu", silu, silu_of, any),
          unary("SiluFarOut", silu, silu_of, far_out),
          // Longer than any vector register and than a thread's smallest share.
          unary("SiluLong", silu, silu_of, uniform({13, 5001})),
          unary("ExpOfOneElement", exp, std::exp, uniform({1}))};
}

std::vector<OpCase> other_cases() {
  const RandomPosition position{7, 3, 8};
  return {scalar_form(
              "Affine", [](const Tensor& x) { return affine(x, -1.5, 0.25); },
              [](double x) { return -1.5 * x + 0.25; }),
          scalar_form(
              "AddScalar", [](const Tensor& x) { return 0.5 + (x + 2.0); },
              [](double x) { return x + 2.5; }),
          scalar_form(
              "SubScalar", [](const Tensor& x) { return x - 2.0; }, [](double x) { return x - 2; }),
          scalar_form(
              "ScalarSub", [](const Tensor& x) { return 2.0 - x; }, [](double x) { return 2 - x; }),
          scalar_form(
              "MulScalar", [](const Tensor& x) { return 3.0 * (x * 0.5); },
              [](double x) { return 1.5 * x; }),
          scalar_form(
              "DivScalar", [](const Tensor& x) { return x / 4.0; }, [](double x) { return x / 4; }),
          scalar_form(
              "ScalarDiv", [](const Tensor& x) { return 2.0 / x; }, [](double x) { return 2 / x; }),
          {.name = "Clamp",
           .inputs = {uniform_off({-0.5, 0.75}, {3, 9})},
           .op = [](const Tensors& in) { return clamp(in[0], -0.5, 0.75); },
           .reference = each([](double x) { return std::min(std::max(x, -0.5), 0.75); }),
           .batched = {0}},
          {.name = "Where",
           .inputs = {mask({3, 4}, 1), uniform({3, 4}, -2, 2, 2), uniform({3, 4}, -2, 2, 3)},
           .op = [](const Tensors& in) { return where(in[0], in[1], in[2]); },
           .reference =
               [](const Arrays& in) {
                 Array out(in[1].shape);
                 for (int64_t i = 0; i < out.numel(); ++i)
                   out[i] = in[0][i] != 0 ? in[1][i] : in[2][i];
                 return out;
               },
           .batched = {0, 1, 2}},
          {.name = "WhereAllBroadcast",
           .inputs = {mask({5}, 4), uniform({3, 1, 1}, -2, 2, 5), uniform({4, 1}, -2, 2, 6)},
           .op = [](const Tensors& in) { return where(in[0], in[1], in[2]); },
           .reference =
               [](const Arrays& in) {
                 Array out({in[1].size(0), 4, 5});
                 for (int64_t n = 0; n < out.size(0); ++n) {
                   for (int64_t i = 0; i < 4; ++i) {
                     for (int64_t j = 0; j < 5; ++j)
                       out(n, i, j) = in[0][j] != 0 ? in[1][n] : in[2][i];
                   }
                 }
                 return out;
               },
           .terms = 16,
           .batched = {1}},
          {.name = "Dropout",
           .inputs = {uniform_off({0}, {3, 67})},
           .op = [position](const Tensors& in) { return dropout(in[0], 0.3, position); },
           .reference =
               [position](const Arrays& in) {
                 // The uniform number at an element's position, from Philox itself: kept where it
                 // is >= p.
                 Array out(in[0].shape);
                 for (int64_t i = 0; i < out.numel(); ++i) {
                   const uint64_t at = position.offset + static_cast<uint64_t>(i);
                   const auto words = random_block(position.seed, position.stream, at / 4);
                   const double u = static_cast<double>(words[at % 4] >> 8) * 0x1p-24;
                   out[i] = u >= 0.3 ? in[0][i] / 0.7 : 0;
                 }
                 return out;
               },
           .batched = {0}}};
}

}  // namespace

std::vector<OpCase> elementwise_cases() {
  std::vector<OpCase> rows = binary_cases();
  for (const auto& more : {unary_cases(), other_cases()}) {
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

}  // namespace mutilde
