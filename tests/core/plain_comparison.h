// What the tests that hold a fast CPU kernel to its plain one (core/cpu/plain.h) share: arrays of numbers as
// views, and comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "core/backend.h"
#include "core/kernel_testing.h"
#include "core/precision.h"
#include "core/precision_scope.h"

namespace mutilde::testing_kernels {

template <class T>
using Data = std::vector<T>;

template <class T>
Data<T> random_normal(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Data<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

/// Whole numbers from -3 to 3. Every partial sum of their products stays far below 2^24, so sums
/// are exact in any order, and the fast kernels must give exactly what the plain ones give.
template <class T>
Data<T> random_whole(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::uniform_int_distribution<int> whole(-3, 3);
  Data<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(whole(generator));
  return values;
}

/// Results start as this, so that an element which a kernel never writes shows.
template <class T>
Data<T> unwritten(int64_t count) {
  return Data<T>(static_cast<size_t>(count), static_cast<T>(1e30));
}

template <class T>
ConstView view(const Data<T>& data, Shape shape) {
  EXPECT_EQ(shape.numel(), static_cast<int64_t>(data.size()));
  // An empty vector's data may be null, which would read as "absent".
  static const T something = 0;
  return {data.empty() ? &something : data.data(), dtype_of<T>(), shape};
}
template <class T>
View view(Data<T>& data, Shape shape) {
  EXPECT_EQ(shape.numel(), static_cast<int64_t>(data.size()));
  return {data.data(), dtype_of<T>(), shape};
}

template <class T>
::testing::AssertionResult within(const Data<T>& fast, const Data<T>& plain, double tolerance) {
  for (size_t i = 0; i < fast.size(); ++i) {
    const double difference =
        std::abs(static_cast<double>(fast[i]) - static_cast<double>(plain[i]));
    if (!(difference <= tolerance * (1 + std::abs(static_cast<double>(plain[i]))))) {
      return ::testing::AssertionFailure() << "element " << i << " of " << fast.size() << ": fast "
                                           << fast[i] << ", plain " << plain[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// Runs `kernel` on 1, 2 and 3 threads and demands the same bits.
template <class T>
void expect_same_bits(const std::function<Data<T>()>& kernel) {
  const Data<T> one = on_threads(1, kernel);
  for (const int threads : {2, 3}) {
    EXPECT_EQ(on_threads(threads, kernel), one) << threads << " threads";
  }
}

/// Runs `check` with products in float32 and, if that is T, in bfloat16.
template <class T>
void in_each_precision(const std::function<void()>& check) {
  check();
  if (!std::is_same_v<T, float>) return;
  SCOPED_TRACE("in bfloat16");
  const PrecisionScope precision(Precision::kBfloat16);
  check();
}

/// x rounded to 8 bits of mantissa, to even at a tie.
inline float rounded_to_bf16(float x) {
  int exponent;
  const double mantissa = std::frexp(static_cast<double>(x), &exponent);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8));
}

using Floats = ::testing::Types<float, double>;
class FloatNames {
 public:
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, float> ? "float" : "double";
  }
};

}  // namespace mutilde::testing_kernels
