// Attention of tensors of a short type, by tensor cores and by the plain kernels, against its formulas in double
// on the same inputs, to what rounding allows each number. (The table of ops holds float32 and float64.)
#include <cmath>

#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "tests/cuda/short_types.h"
#ifndef __CUDACC__
#include "tests/cuda/emulation/fault_testing.h"
#endif

namespace mutilde::cuda {
namespace {

struct Case {
  int64_t N, positions, heads, D;
  double largest = 2;  // of the inputs

  Shape qkv() const { return {N, positions, heads * 3 * D}; }
  Shape out() const { return {N, positions, heads * D}; }
  Shape statistics() const { return {N, heads, positions}; }
};

std::string name_of(const Case& c) {
  return fmt::format("{} images, {} positions, {} heads of {}", c.N, c.positions, c.heads, c.D);
}

/// What should be, and how far from it rounding may lead.
struct Expected {
  std::vector<double> values, errors;
  ShortType type;
  Expected(const Shape& shape, const ShortType& stored)
      : values(static_cast<size_t>(shape.numel())), errors(values.size()), type(stored) {}
  void set(size_t i, double value, double error) {
    values[i] = value;
    errors[i] = error;
  }
  /// Of a result that is stored in the type, whose bits end where those of its size do.
  void set_rounded(size_t i, double value, double error) {
    const double largest = std::abs(value) + error;
    set(i, value,
        error + type.least + (largest > 0 ? std::ldexp(type.half_unit, std::ilogb(largest)) : 0));
  }
};

void expect_near(const Tensor& actual, const Expected& expected) {
  const auto values = actual.to_vector<double>();
  ASSERT_EQ(values.size(), expected.values.size());
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_NEAR(values[i], expected.values[i], expected.errors[i]) << i;
}

/// One head of one image, in double, by the formulas at the head of attention.cu.
class Head {
 public:
  Head(const Case& c, int64_t n, int64_t head) : c_(c), n_(n), head_(head) {}

  size_t in(int64_t position, int part, int64_t d) const {
    return static_cast<size_t>(((n_ * c_.positions + position) * c_.heads + head_) * 3 * c_.D +
                               part * c_.D + d);
  }
  size_t out(int64_t position, int64_t d) const {
    return static_cast<size_t>(((n_ * c_.positions + position) * c_.heads + head_) * c_.D + d);
  }
  size_t statistic(int64_t position) const {
    return static_cast<size_t>((n_ * c_.heads + head_) * c_.positions + position);
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(c_.D)); }

 private:
  Case c_;
  int64_t n_, head_;
};

/// A sum of products and what its rounding may come to: each of its float additions 2^-23 of the terms'
/// sizes, for tensor cores cut off where others round.
struct Sum {
  double value = 0, size = 0, size_b = 0;
  int terms = 0;
  void add(double a, double b) {
    value += a * b;
    size += std::abs(a * b);
    size_b += std::abs(b);
    ++terms;
  }
  double error() const { return terms * size * 0x1p-23; }
};

/// What rounding costs a weight before it enters a product: a part of it, and any weight at most `least`.
struct Weights {
  double part = 0, least = 0;
};

void expect_forward(const Case& c, const ShortType& type, const Tensor& qkv, const Weights& weights,
                    const Tensor& out, const Tensor& log_sum_exp) {
  const auto x = qkv.to_vector<double>();
  Expected expected(c.out(), type), expected_statistics(c.statistics(), type);
  for (int64_t n = 0; n < c.N; ++n) {
    for (int64_t head = 0; head < c.heads; ++head) {
      const Head h(c, n, head);
      for (int64_t i = 0; i < c.positions; ++i) {
        std::vector<double> p(static_cast<size_t>(c.positions));
        double highest = -INFINITY, total = 0, logit_error = 0;
        for (int64_t j = 0; j < c.positions; ++j) {
          Sum logit;
          for (int64_t d = 0; d < c.D; ++d) logit.add(x[h.in(i, 0, d)], x[h.in(j, 1, d)]);
          p[j] = logit.value * h.scale();
          highest = std::max(highest, p[j]);
          // Scaled and less the highest, in a few roundings.
          logit_error =
              std::max(logit_error, (logit.error() + 4 * 0x1p-23 * logit.size) * h.scale());
        }
        for (double& weight : p) total += weight = std::exp(weight - highest);
        // A weight has the error of its logit, the highest's, and of the exponential; their sum too.
        const double error = 2 * (2 * logit_error + 0x1p-21);
        for (int64_t d = 0; d < c.D; ++d) {
          Sum sum;
          for (int64_t j = 0; j < c.positions; ++j) sum.add(p[j] / total, x[h.in(j, 2, d)]);
          expected.set_rounded(
              h.out(i, d), sum.value,
              (weights.part + error) * sum.size + weights.least * sum.size_b + 2 * sum.error());
        }
        expected_statistics.set(h.statistic(i), highest + std::log(total),
                                error + static_cast<double>(c.positions) * 0x1p-23);
      }
    }
  }
  expect_near(out, expected);
  expect_near(log_sum_exp, expected_statistics);
}

void expect_backward(const Case& c, const ShortType& type, const Tensor& qkv, const Tensor& out,
                     const Tensor& log_sum_exp, const Tensor& dout, const Weights& weights,
                     const Tensor& dqkv) {
  const auto x = qkv.to_vector<double>(), y = out.to_vector<double>();
  const auto statistics = log_sum_exp.to_vector<double>(), dy = dout.to_vector<double>();
  const auto T = static_cast<size_t>(c.positions);
  Expected expected(c.qkv(), type);
  for (int64_t n = 0; n < c.N; ++n) {
    for (int64_t head = 0; head < c.heads; ++head) {
      const Head h(c, n, head);
      // Each of [query, key], with errors.
      std::vector<double> p(T * T), p_error(T * T), ds(T * T), ds_error(T * T);
      for (int64_t i = 0; i < c.positions; ++i) {
        Sum delta;
        for (int64_t d = 0; d < c.D; ++d) delta.add(dy[h.out(i, d)], y[h.out(i, d)]);
        for (int64_t j = 0; j < c.positions; ++j) {
          Sum logit, dweight;
          for (int64_t d = 0; d < c.D; ++d) {
            logit.add(x[h.in(i, 0, d)], x[h.in(j, 1, d)]);
            dweight.add(dy[h.out(i, d)], x[h.in(j, 2, d)]);
          }
          const double shift = statistics[h.statistic(i)];
          const double error = (logit.error() + 4 * 0x1p-23 * logit.size) * h.scale() +
                               4 * 0x1p-23 * std::abs(shift) + 0x1p-21;
          const size_t ij = static_cast<size_t>(i) * T + static_cast<size_t>(j);
          p[ij] = std::exp(logit.value * h.scale() - shift);
          ds[ij] = p[ij] * (dweight.value - delta.value);
          p_error[ij] = (weights.part + error) * p[ij] + weights.least;
          ds_error[ij] = (weights.part + error) * std::abs(ds[ij]) + weights.least +
                         p[ij] * (dweight.error() + delta.error());
        }
      }
      // dx[r, d] = factor * sum over s of w(r, s) z(s, d)
      const auto expect_sums = [&](int part, double factor, const std::vector<double>& w,
                                   const std::vector<double>& w_error, bool transposed,
                                   const auto& z) {
        for (int64_t r = 0; r < c.positions; ++r) {
          for (int64_t d = 0; d < c.D; ++d) {
            Sum sum;
            double error = 0;
            for (int64_t s = 0; s < c.positions; ++s) {
              const auto rs =
                  static_cast<size_t>(transposed ? s * c.positions + r : r * c.positions + s);
              sum.add(w[rs], z(s, d));
              error += w_error[rs] * std::abs(z(s, d));
            }
            expected.set_rounded(h.in(r, part, d), factor * sum.value,
                                 factor * (error + sum.error()));
          }
        }
      };
      expect_sums(0, h.scale(), ds, ds_error, false,
                  [&](int64_t s, int64_t d) { return x[h.in(s, 1, d)]; });
      expect_sums(1, h.scale(), ds, ds_error, true,
                  [&](int64_t s, int64_t d) { return x[h.in(s, 0, d)]; });
      expect_sums(2, 1, p, p_error, true, [&](int64_t s, int64_t d) { return dy[h.out(s, d)]; });
    }
  }
  expect_near(dqkv, expected);
}

struct Result {
  Tensor out, log_sum_exp, dqkv;
};

Result attention(const Case& c, Rung rung, const Tensor& qkv, const Tensor& dout) {
  const Device gpu = Device::cuda();
  const DType type = qkv.dtype();
  CudaBackend backend(0, rung);
  const Tensor x = qkv.to(gpu);
  const Result result{Tensor::empty(c.out(), type, gpu),
                      Tensor::empty(c.statistics(), DType::kFloat32, gpu),
                      Tensor::empty(c.qkv(), type, gpu)};
  backend.attention(x, c.heads, result.out, result.log_sum_exp);
  backend.attention_backward(x, c.heads, result.out, result.log_sum_exp, dout.to(gpu), result.dqkv);
  return result;
}

class ShortAttention : public testing::TestWithParam<ShortType> {
 protected:
  void SetUp() override { use_cuda(); }
  Tensor numbers(const Shape& shape, double largest, uint64_t seed) const {
    return uniform(shape, -largest, largest, seed).to(GetParam().dtype);
  }
  void check(const Case& c, Rung rung, bool tensor_cores) const {
    SCOPED_TRACE(name_of(c));
    const ShortType& type = GetParam();
    const Tensor qkv = numbers(c.qkv(), c.largest, 1), dout = numbers(c.out(), 2, 2);
    const Result result = attention(c, rung, qkv, dout);
    // Tensor cores take short factors, and so round the weights to their bits.
    const Weights weights = tensor_cores ? Weights{type.half_unit, type.least} : Weights{};
    expect_forward(c, type, qkv, weights, result.out, result.log_sum_exp);
    expect_backward(c, type, qkv, result.out, result.log_sum_exp, dout, weights, result.dqkv);
  }
};
INSTANTIATE_TEST_SUITE_P(Types, ShortAttention, testing::ValuesIn(kShortTypes), kNameOfShortType);

// One position; a part of a tile, a whole one, and more; heads as wide as a kernel's tiles and narrower.
constexpr Case kCases[] = {{2, 1, 1, 16},  {2, 16, 4, 64},     {2, 65, 3, 16},  {1, 63, 2, 32},
                           {1, 64, 1, 64}, {1, 197, 1, 64},    {1, 70, 1, 128}, {2, 40, 2, 24},
                           {1, 67, 1, 8},  {1, 130, 1, 64, 16}};

TEST_P(ShortAttention, ByTensorCoresIsItsFormula) {
  for (const Case& c : kCases) check(c, Rung::kAutomatic, true);
}

TEST_P(ShortAttention, ByPlainKernelsIsItsFormula) {
  for (const Case& c : kCases) check(c, Rung::kPlain, false);
  check({2, 37, 2, 20}, Rung::kAutomatic, false);  // rows that no vector of 16 bytes fits
  check({1, 5, 1, 136}, Rung::kAutomatic, false);  // wider than the tensor cores' kernels
}

TEST_P(ShortAttention, TheRungSaysWhichKernelsRun) {
  const Case c{1, 40, 2, 32};
  const Tensor qkv = numbers(c.qkv(), 2, 1), dout = numbers(c.out(), 2, 2);
  const auto gradient = [&](Rung rung) {
    return attention(c, rung, qkv, dout).dqkv.to_vector<double>();
  };
  EXPECT_EQ(gradient(Rung::kWmma), gradient(Rung::kAutomatic));
  EXPECT_EQ(gradient(Rung::kHopper), gradient(Rung::kAutomatic));
  EXPECT_EQ(gradient(Rung::kTiled), gradient(Rung::kPlain));
  EXPECT_NE(gradient(Rung::kPlain), gradient(Rung::kAutomatic));
}

#ifndef __CUDACC__
// A result that the order of the threads changes would miss a barrier.
TEST_P(ShortAttention, IsTheSameInBothOrdersOfTheThreads) {
  const emulation::OptionsScope scope;
  const Case c{1, 150, 2, 16};
  const Tensor qkv = numbers(c.qkv(), 2, 1), dout = numbers(c.out(), 2, 2);
  const auto results = [&](emulation::Order order) {
    emulation::options().order = order;
    const Result result = attention(c, Rung::kAutomatic, qkv, dout);
    return std::pair(result.out.to_vector<double>(), result.dqkv.to_vector<double>());
  };
  EXPECT_EQ(results(emulation::Order::kForward), results(emulation::Order::kReverse));
}
#endif

TEST_P(ShortAttention, OfNothingIsNothing) {
  for (const Case& c : {Case{0, 5, 2, 16}, Case{2, 0, 2, 16}}) {
    const Result result =
        attention(c, Rung::kAutomatic, numbers(c.qkv(), 2, 1), numbers(c.out(), 2, 2));
    EXPECT_EQ(result.dqkv.numel(), 0);
  }
}

}  // namespace
}  // namespace mutilde::cuda
