// The elementwise kernels against the plainest loop that does the same, in float and double.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/kernel_testing.h"

namespace mutilde {
namespace {

using namespace testing_kernels;  // NOLINT: the tests are written in its terms

template <class T>
class ElementwiseKernels : public FloatKernels<T> {};
TYPED_TEST_SUITE(ElementwiseKernels, FloatTypes);

struct UnaryCase {
  UnaryOp op;
  double low, high;
  double (*f)(double);
  double (*derivative)(double);
};

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

const std::vector<UnaryCase> kUnaryCases = {
    {UnaryOp::kNeg, -2, 2, [](double x) { return -x; }, [](double) { return -1.0; }},
    {UnaryOp::kExp, -4, 4, [](double x) { return std::exp(x); },
     [](double x) { return std::exp(x); }},
    {UnaryOp::kLog, 0.5, 9, [](double x) { return std::log(x); }, [](double x) { return 1 / x; }},
    {UnaryOp::kSqrt, 0.5, 9, [](double x) { return std::sqrt(x); },
     [](double x) { return 0.5 / std::sqrt(x); }},
    {UnaryOp::kSquare, -3, 3, [](double x) { return x * x; }, [](double x) { return 2 * x; }},
    {UnaryOp::kReciprocal, 0.5, 3, [](double x) { return 1 / x; },
     [](double x) { return -1 / (x * x); }},
    {UnaryOp::kTanh, -4, 4, [](double x) { return std::tanh(x); },
     [](double x) { return 1 - std::tanh(x) * std::tanh(x); }},
    {UnaryOp::kSigmoid, -20, 20, logistic,
     [](double x) { return logistic(x) * (1 - logistic(x)); }},
    {UnaryOp::kSilu, -20, 20, [](double x) { return x * logistic(x); },
     [](double x) { return logistic(x) * (1 + x * (1 - logistic(x))); }},
    {UnaryOp::kSin, -4, 4, [](double x) { return std::sin(x); },
     [](double x) { return std::cos(x); }},
    {UnaryOp::kCos, -4, 4, [](double x) { return std::cos(x); },
     [](double x) { return -std::sin(x); }},
    {UnaryOp::kAbs, -2, 2, [](double x) { return std::abs(x); },
     [](double x) { return x > 0 ? 1.0 : -1.0; }},
};

TYPED_TEST(ElementwiseKernels, UnaryAndItsDerivative) {
  for (const UnaryCase& c : kUnaryCases) {
    for (int64_t n : kSizes) {
      SCOPED_TRACE(testing::Message() << "op " << static_cast<int>(c.op) << ", n " << n);
      const Tensor x = random<TypeParam>({n}, c.low, c.high), dout = random<TypeParam>({n});
      const Tensor y = run({n}, this->kType, [&](const Tensor& out) { cpu().unary(c.op, x, out); });
      const Tensor dx = run({n}, this->kType, [&](const Tensor& out) {
        cpu().unary_backward(c.op, x, y, dout, out);
      });
      std::vector<double> expected, expected_dx;
      for (int64_t i = 0; i < n; ++i) {
        const double v = static_cast<double>(x.template data<TypeParam>()[i]);
        expected.push_back(c.f(v));
        expected_dx.push_back(c.derivative(v) *
                              static_cast<double>(dout.template data<TypeParam>()[i]));
      }
      // The function's last bits, then one rounding an operation: at most four, on values of up to
      // 20 that cancel to order 1 in silu's derivative.
      expect_close<TypeParam>(y, expected, 4);
      expect_close<TypeParam>(dx, expected_dx, 40);
    }
  }
}

TYPED_TEST(ElementwiseKernels, SiluAndSigmoidHoldAtTheEnds) {
  const TypeParam far = 1000, inf = std::numeric_limits<TypeParam>::infinity();
  const Tensor x = Tensor::from<TypeParam>({3}, {-far, far, inf}), out = empty_like(x);
  cpu().unary(UnaryOp::kSigmoid, x, out);
  EXPECT_EQ(out.template to_vector<TypeParam>(), (std::vector<TypeParam>{0, 1, 1}));
  cpu().unary(UnaryOp::kSilu, x, out);
  EXPECT_EQ(out.template to_vector<TypeParam>(), (std::vector<TypeParam>{0, far, inf}));
  const Tensor near = Tensor::from<TypeParam>({2}, {-far, far}),
               ones = Tensor::full({2}, 1, this->kType);
  const Tensor dx = empty_like(near);
  cpu().unary_backward(UnaryOp::kSilu, near, near, ones, dx);
  EXPECT_EQ(dx.template to_vector<TypeParam>(), (std::vector<TypeParam>{0, 1}));
}

// A NaN may come with a payload (a computed one has the sign bit set, a loaded one anything): none
// may become a number, or a diverged network would look well.
TYPED_TEST(ElementwiseKernels, ExpSigmoidAndSiluKeepEveryNaNAndTheInfinities) {
  using Bits = std::conditional_t<sizeof(TypeParam) == 4, uint32_t, uint64_t>;
  constexpr int kMantissa = std::numeric_limits<TypeParam>::digits - 1;
  const Bits quiet = std::bit_cast<Bits>(std::numeric_limits<TypeParam>::quiet_NaN());
  const Bits sign = Bits{1} << (8 * sizeof(Bits) - 1);
  std::vector<TypeParam> nans;
  for (const Bits base : {quiet, static_cast<Bits>(quiet | sign)}) {
    for (int bit = 0; bit < kMantissa; ++bit)
      nans.push_back(std::bit_cast<TypeParam>(static_cast<Bits>(base | Bits{1} << bit)));
    nans.push_back(std::bit_cast<TypeParam>(
        static_cast<Bits>(base | ((Bits{1} << kMantissa) - 1))));  // all ones
  }
  const Tensor x = Tensor::from({static_cast<int64_t>(nans.size())}, nans), y = empty_like(x);
  for (const UnaryOp op : {UnaryOp::kExp, UnaryOp::kSigmoid, UnaryOp::kSilu}) {
    cpu().unary(op, x, y);
    for (size_t i = 0; i < nans.size(); ++i)
      EXPECT_TRUE(std::isnan(y.template data<TypeParam>()[i])) << static_cast<int>(op) << ", " << i;
  }

  const TypeParam inf = std::numeric_limits<TypeParam>::infinity();
  const Tensor ends = Tensor::from<TypeParam>({2}, {-inf, inf}), at_ends = empty_like(ends);
  cpu().unary(UnaryOp::kExp, ends, at_ends);
  EXPECT_EQ(at_ends.template to_vector<TypeParam>(), (std::vector<TypeParam>{0, inf}));
  cpu().unary(UnaryOp::kSigmoid, ends, at_ends);
  EXPECT_EQ(at_ends.template to_vector<TypeParam>(), (std::vector<TypeParam>{0, 1}));
  cpu().unary(UnaryOp::kSilu, ends, at_ends);
  EXPECT_TRUE(std::isnan(at_ends.template data<TypeParam>()[0]));  // -inf * 0, as x * sigmoid(x) is
  EXPECT_EQ(at_ends.template data<TypeParam>()[1], inf);
}

TYPED_TEST(ElementwiseKernels, AbsHasDerivativeZeroAtZero) {
  const Tensor x = Tensor::zeros({1}, this->kType), dx = empty_like(x);
  cpu().unary_backward(UnaryOp::kAbs, x, x, Tensor::full({1}, 1, this->kType), dx);
  EXPECT_EQ(dx.item(), 0.0);
}

TYPED_TEST(ElementwiseKernels, AffineClampAccumulate) {
  for (int64_t n : kSizes) {
    const Tensor x = random<TypeParam>({n}), dout = random<TypeParam>({n});
    const auto v = x.template to_vector<double>(), d = dout.template to_vector<double>();
    std::vector<double> affine, clamped, clamped_dx, sum;
    for (size_t i = 0; i < v.size(); ++i) {
      affine.push_back(v[i] * 1.5 - 0.25);
      clamped.push_back(std::clamp(v[i], -1.0, 0.5));
      clamped_dx.push_back(v[i] >= -1.0 && v[i] <= 0.5 ? d[i] : 0.0);
      sum.push_back(v[i] + d[i]);
    }
    const auto run_n = [&](const auto& kernel) { return run({n}, this->kType, kernel); };
    expect_close<TypeParam>(run_n([&](const Tensor& out) { cpu().affine(x, 1.5, -0.25, out); }),
                            affine, 2);
    expect_close<TypeParam>(run_n([&](const Tensor& out) { cpu().clamp(x, -1, 0.5, out); }),
                            clamped, 0);
    expect_close<TypeParam>(
        run_n([&](const Tensor& out) { cpu().clamp_backward(x, -1, 0.5, dout, out); }), clamped_dx,
        0);
    expect_close<TypeParam>(run_n([&](const Tensor& out) {
                              out.copy_(dout);
                              cpu().accumulate(x, out);
                            }),
                            sum, 1);
  }
}

TYPED_TEST(ElementwiseKernels, ClampPassesTheGradientOnItsBordersAndKeepsNaN) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const Tensor x = Tensor::from<TypeParam>({3}, {-1, 1, nan}), out = empty_like(x);
  const Tensor ones = Tensor::full({3}, 1, this->kType);
  cpu().clamp(x, -1, 1, out);
  EXPECT_TRUE(std::isnan(out.template data<TypeParam>()[2]));
  cpu().clamp_backward(x, -1, 1, ones, out);
  EXPECT_EQ(out.template data<TypeParam>()[0], 1);
  EXPECT_EQ(out.template data<TypeParam>()[1], 1);
}

struct BroadcastCase {
  Shape a, b;
};

const std::vector<BroadcastCase> kBroadcasts = {
    {{3, 5, 7}, {3, 5, 7}},          // same shape
    {{}, {}},                        // scalars
    {{3, 5, 7}, {}},                 // a scalar
    {{1, 1}, {4, 9}},                // a scalar of rank 2, first
    {{3, 5, 7, 33}, {33}},           // a row vector
    {{33}, {3, 5, 7, 33}},           // the other way round
    {{3, 5, 7, 33}, {3, 1, 1, 1}},   // a number an image
    {{3, 1, 1, 33}, {3, 5, 7, 33}},  // a row an image
    {{3, 5, 7, 9}, {5, 1, 9}},       // an axis in the middle
    {{3, 1, 7, 1}, {1, 5, 1, 9}},    // both, alternating
    {{17, 1}, {1, 19}},              // an outer product
    {{2, 1, 3, 1, 2, 1}, {4, 1, 5, 1, 3}},
    {{1, 5}, {1, 5}},  // batch 1
    {{0, 5}, {5}},     // empty
    {{3, 0, 2}, {3, 1, 1}},
    {{67, 40'961 / 67}, {67, 1}},  // rows that cross the borders of the threads' ranges
    {{40'961, 3}, {3}},
};

TYPED_TEST(ElementwiseKernels, BinaryBroadcasts) {
  struct Case {
    BinaryOp op;
    double (*f)(double, double);
  };
  const std::vector<Case> cases = {
      {BinaryOp::kAdd, [](double a, double b) { return a + b; }},
      {BinaryOp::kSub, [](double a, double b) { return a - b; }},
      {BinaryOp::kMul, [](double a, double b) { return a * b; }},
      {BinaryOp::kDiv, [](double a, double b) { return a / b; }},
      {BinaryOp::kLess, [](double a, double b) { return a < b ? 1.0 : 0.0; }},
      {BinaryOp::kGreaterEqual, [](double a, double b) { return a >= b ? 1.0 : 0.0; }},
  };
  for (const auto& [shape_a, shape_b] : kBroadcasts) {
    const Shape shape = broadcast_shapes("test", shape_a, shape_b);
    const Tensor a = random<TypeParam>(shape_a), b = random<TypeParam>(shape_b, 0.5, 2);
    const auto u = a.template to_vector<double>(), v = b.template to_vector<double>();
    for (const Case& c : cases) {
      SCOPED_TRACE(fmt::format("op {}, {} and {}", static_cast<int>(c.op), shape_a, shape_b));
      const bool compares = c.op == BinaryOp::kLess || c.op == BinaryOp::kGreaterEqual;
      const Tensor out = run(shape, compares ? DType::kUInt8 : this->kType,
                             [&](const Tensor& result) { cpu().binary(c.op, a, b, result); });
      std::vector<double> expected;
      for (int64_t i = 0; i < shape.numel(); ++i) {
        const Index index = index_of(i, shape);
        expected.push_back(c.f(u[static_cast<size_t>(element_at(index, shape_a))],
                               v[static_cast<size_t>(element_at(index, shape_b))]));
      }
      expect_close<TypeParam>(out, expected, 1);
    }
  }
}

TYPED_TEST(ElementwiseKernels, EqualElementsCompareAsGreaterEqual) {
  const Tensor x = random<TypeParam>({9}), out = Tensor::empty({9}, DType::kUInt8);
  cpu().binary(BinaryOp::kLess, x, x, out);
  EXPECT_EQ(out.to_vector<int32_t>(), std::vector<int>(9, 0));
  cpu().binary(BinaryOp::kGreaterEqual, x, x, out);
  EXPECT_EQ(out.to_vector<int32_t>(), std::vector<int>(9, 1));
}

TYPED_TEST(ElementwiseKernels, WhereBroadcastsAllThree) {
  for (const auto& [shape_a, shape_b] : kBroadcasts) {
    const Shape shape = broadcast_shapes("test", shape_a, shape_b);
    const Tensor a = random<TypeParam>(shape_a), b = random<TypeParam>(shape_b);
    // The condition takes a's shape, b's, the whole, one number, and one number an outer entry.
    Shape outer = shape;
    for (int axis = 1; axis < shape.rank(); ++axis) outer = outer.with(axis, 1);
    for (const Shape& shape_c : {shape_a, shape_b, shape, Shape{}, outer}) {
      SCOPED_TRACE(fmt::format("{} ? {} : {}", shape_c, shape_a, shape_b));
      std::vector<uint8_t> choices(static_cast<size_t>(shape_c.numel()));
      for (size_t i = 0; i < choices.size(); ++i) choices[i] = i * i % 3 == 1 ? 200 : 0;
      const Tensor condition = Tensor::from(shape_c, choices);
      const Tensor out = run(shape, this->kType,
                             [&](const Tensor& result) { cpu().where(condition, a, b, result); });
      for (int64_t i = 0; i < shape.numel(); ++i) {
        const Index index = index_of(i, shape);
        const bool first = choices[static_cast<size_t>(element_at(index, shape_c))] != 0;
        const Tensor& from = first ? a : b;
        ASSERT_EQ(out.template data<TypeParam>()[i],
                  from.template data<TypeParam>()[element_at(index, from.shape())]);
      }
    }
  }
}

}  // namespace
}  // namespace mutilde
