// Sums and maxima against the plainest loop that does the same, in float and double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/kernel_testing.h"

namespace mutilde {
namespace {

using namespace testing_kernels;

template <class T>
class ReduceKernels : public FloatKernels<T> {};
TYPED_TEST_SUITE(ReduceKernels, FloatTypes);

struct ReduceCase {
  Shape x, out;
};

const std::vector<ReduceCase> kReductions = {
    {{}, {}},
    {{5}, {1}},
    {{1, 1, 1}, {1, 1, 1}},
    {{3, 5, 7}, {3, 5, 7}},  // nothing is reduced
    {{200'003}, {1}},        // all, more than one task
    {{3, 5, 7, 33}, {1, 1, 1, 1}},
    {{3, 50, 70, 33}, {1, 1, 1, 33}},  // the gradient of a bias
    {{7, 31, 33, 128}, {1, 1, 1, 128}},
    {{4, 64, 64, 3}, {1, 1, 1, 3}},  // few columns, side by side
    {{3, 5, 7, 3}, {1, 1, 1, 3}},    // few columns that do not line up
    {{5, 3001}, {1, 3001}},          // more columns than a panel
    {{300, 1500}, {1, 1500}},
    {{3, 50, 70, 33}, {3, 1, 1, 1}},  // a number an image
    {{1, 9, 9, 5}, {1, 1, 1, 1}},
    {{3, 5, 7, 33}, {3, 1, 1, 33}},  // a row an image
    {{3, 5, 7, 33}, {1, 5, 7, 1}},   // the outside
    {{3, 5, 7, 9}, {1, 5, 1, 9}},    // alternating
    {{3, 5, 7, 9}, {3, 1, 7, 1}},
    {{2, 3, 4, 3, 2, 5}, {1, 3, 1, 3, 1, 5}},
    {{3, 1, 7}, {3, 1, 1}},
    {{0, 5}, {0, 1}},  // empty, nothing to write
};

TYPED_TEST(ReduceKernels, ReduceAndMaxBackward) {
  for (const auto& [shape, reduced] : kReductions) {
    SCOPED_TRACE(fmt::format("{} -> {}", shape, reduced));
    const Tensor x = random<TypeParam>(shape, -1, 2), dout = random<TypeParam>(reduced);
    std::vector<double> sum(static_cast<size_t>(reduced.numel())), absolute = sum;
    std::vector<double> maximum(sum.size(), -1e30);
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const double value = static_cast<double>(x.template data<TypeParam>()[i]);
      const size_t group = static_cast<size_t>(element_at(index_of(i, shape), reduced));
      sum[group] += value;
      absolute[group] += std::abs(value);
      maximum[group] = std::max(maximum[group], value);
    }
    const Tensor total =
        run(reduced, this->kType, [&](const Tensor& out) { cpu().reduce(ReduceOp::kSum, x, out); });
    for (size_t i = 0; i < sum.size(); ++i) {
      // Up to 64 additions in T; in double the naive loop above has as many roundings as elements,
      // which at random signs add up as the root of their number (below 450).
      const double roundings = sizeof(TypeParam) == 4 ? 64 : 450;
      EXPECT_NEAR(total.template to_vector<double>()[i], sum[i],
                  roundings * absolute[i] * std::numeric_limits<TypeParam>::epsilon());
    }
    const Tensor largest =
        run(reduced, this->kType, [&](const Tensor& out) { cpu().reduce(ReduceOp::kMax, x, out); });
    expect_close<TypeParam>(largest, maximum, 0);
    const Tensor dx = run(shape, this->kType,
                          [&](const Tensor& out) { cpu().max_backward(x, largest, dout, out); });
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const int64_t group = element_at(index_of(i, shape), reduced);
      const bool wins =
          x.template data<TypeParam>()[i] == largest.template data<TypeParam>()[group];
      ASSERT_EQ(dx.template data<TypeParam>()[i],
                wins ? dout.template data<TypeParam>()[group] : TypeParam{0});
    }
  }
}

TYPED_TEST(ReduceKernels, SumOfNothingIsZero) {
  const Tensor out = run({1, 4}, this->kType, [&](const Tensor& result) {
    cpu().reduce(ReduceOp::kSum, Tensor::zeros({0, 4}, this->kType), result);
  });
  EXPECT_EQ(out.template to_vector<double>(), std::vector<double>(4, 0.0));
}

TYPED_TEST(ReduceKernels, SumStaysAccurateOverAMillionElements) {
  // 0.1 is rounded, so a running sum drifts by some 1e-3 of itself in float32; 64 additions and one
  // final rounding cannot by more than 33 rounding errors.
  const int64_t n = 1 << 20;
  const Tensor x = Tensor::full({n}, 0.1, this->kType), out = Tensor::empty({1}, this->kType);
  cpu().reduce(ReduceOp::kSum, x, out);
  const double exact = static_cast<double>(static_cast<TypeParam>(0.1)) * static_cast<double>(n);
  EXPECT_NEAR(out.item(), exact, 33 * exact * std::numeric_limits<TypeParam>::epsilon());
}

TYPED_TEST(ReduceKernels, MaxSharesTiesAndPropagatesNaN) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const Tensor x = Tensor::from<TypeParam>({3, 4}, {1, 5, 5, 2, -1, -1, -1, -1, 0, nan, 7, nan});
  const Tensor y = Tensor::empty({3, 1}, this->kType), dx = empty_like(x);
  const Tensor dout = Tensor::from<TypeParam>({3, 1}, {6, 8, 10});
  cpu().reduce(ReduceOp::kMax, x, y);
  EXPECT_EQ(y.template data<TypeParam>()[0], 5);
  EXPECT_EQ(y.template data<TypeParam>()[1], -1);
  EXPECT_TRUE(std::isnan(y.template data<TypeParam>()[2]));
  cpu().max_backward(x, y, dout, dx);
  EXPECT_EQ(dx.template to_vector<TypeParam>(),
            (std::vector<TypeParam>{0, 3, 3, 0, 2, 2, 2, 2, 0, 5, 0, 5}));

  // A NaN anywhere in a long row, and in a column.
  for (int64_t place : {0, 63, 64, 70'000, 99'999}) {
    std::vector<TypeParam> values(100'000, 1);
    values[static_cast<size_t>(place)] = nan;
    for (const Shape& shape : {Shape{100'000, 1}, Shape{1000, 100}}) {
      const Tensor out = Tensor::empty({1, shape[1]}, this->kType);
      cpu().reduce(ReduceOp::kMax, Tensor::from(shape, values), out);
      EXPECT_TRUE(std::isnan(out.template data<TypeParam>()[place % shape[1]])) << place;
    }
  }
}

}  // namespace
}  // namespace mutilde
