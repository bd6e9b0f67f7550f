// Elementwise kernels against the same formula in a loop.
#include <cmath>

#include <gtest/gtest.h>

#include "cuda/cuda_backend.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

template <class T>
ConstView view(const DeviceArray<T>& array, int64_t n) {
  return {array.data(), dtype_of<T>(), Shape{n}};
}
template <class T>
View writable(DeviceArray<T>& array, int64_t n) {
  return {array.data(), dtype_of<T>(), Shape{n}};
}

CudaBackend& gpu() {
  static CudaBackend backend(0);
  return backend;
}

using Formula = double (*)(double);

template <class T>
void check_unary(UnaryOp op, Formula formula, bool positive) {
  for (const int64_t n : {0, 1, 255, 256, 70001}) {
    std::vector<T> x = numbers<T>(n);
    for (T& value : x) value = positive ? std::abs(value) + T(0.1) : 4 * value;
    const DeviceArray<T> in(x);
    DeviceArray<T> out(n);
    gpu().unary(op, view(in, n), writable(out, n));
    const std::vector<T> host = out.to_host();
    // An ulp or two of the result for the function, one of |x| <= 4 for the argument.
    const double tolerance = 16 * std::numeric_limits<T>::epsilon();
    for (int64_t i = 0; i < n; ++i) {
      const double expected = formula(x[i]);
      ASSERT_NEAR(host[i], expected, tolerance * (1 + std::abs(expected))) << x[i];
    }
  }
}

void check_unary(UnaryOp op, Formula formula, bool positive = false) {
  check_unary<float>(op, formula, positive);
  check_unary<double>(op, formula, positive);
}

TEST(Elementwise, UnaryEqualsItsFormula) {
  check_unary(UnaryOp::kNeg, [](double x) { return -x; });
  check_unary(UnaryOp::kExp, [](double x) { return std::exp(x); });
  check_unary(
      UnaryOp::kLog, [](double x) { return std::log(x); }, true);
  check_unary(
      UnaryOp::kSqrt, [](double x) { return std::sqrt(x); }, true);
  check_unary(UnaryOp::kSquare, [](double x) { return x * x; });
  check_unary(
      UnaryOp::kReciprocal, [](double x) { return 1 / x; }, true);
  check_unary(UnaryOp::kTanh, [](double x) { return std::tanh(x); });
  check_unary(UnaryOp::kSigmoid, [](double x) { return 1 / (1 + std::exp(-x)); });
  check_unary(UnaryOp::kSilu, [](double x) { return x / (1 + std::exp(-x)); });
  check_unary(UnaryOp::kSin, [](double x) { return std::sin(x); });
  check_unary(UnaryOp::kCos, [](double x) { return std::cos(x); });
  check_unary(UnaryOp::kAbs, [](double x) { return std::abs(x); });
}

template <class T>
void check_the_rest() {
  const int64_t n = 1003;
  const std::vector<T> x = numbers<T>(n, 1), dout = numbers<T>(n, 2);
  const DeviceArray<T> in(x), in_dout(dout);
  DeviceArray<T> scaled(n), clamped(n), dx(n), sum(dout);
  gpu().affine(view(in, n), 2, 0.5, writable(scaled, n));
  gpu().clamp(view(in, n), -0.25, 0.5, writable(clamped, n));
  gpu().clamp_backward(view(in, n), -0.25, 0.5, view(in_dout, n), writable(dx, n));
  gpu().accumulate(view(in, n), writable(sum, n));
  const std::vector<T> host_scaled = scaled.to_host(), host_clamped = clamped.to_host(),
                       host_dx = dx.to_host(), host_sum = sum.to_host();
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(host_scaled[i], x[i] * 2 + T(0.5));  // exact up to one rounding, fused or not
    EXPECT_EQ(host_clamped[i], std::min(std::max(x[i], T(-0.25)), T(0.5)));
    EXPECT_EQ(host_dx[i], x[i] >= T(-0.25) && x[i] <= T(0.5) ? dout[i] : T(0));
    EXPECT_EQ(host_sum[i], x[i] + dout[i]);
  }
}

TEST(Elementwise, AffineClampAndAccumulateEqualTheirFormulas) {
  check_the_rest<float>();
  check_the_rest<double>();
}

TEST(Elementwise, WorksInPlace) {
  DeviceArray<float> x(std::vector<float>{1.0F, -2.0F, 3.0F});
  gpu().unary(UnaryOp::kNeg, view(x, 3), writable(x, 3));
  EXPECT_EQ(x.to_host(), (std::vector<float>{-1.0F, 2.0F, -3.0F}));
}

TEST(Elementwise, TakesFloatingTypesOnly) {
  DeviceArray<int32_t> x(4);
  EXPECT_THROW(gpu().unary(UnaryOp::kNeg, view(x, 4), writable(x, 4)), DTypeError);
}

}  // namespace
}  // namespace mutilde::cuda
