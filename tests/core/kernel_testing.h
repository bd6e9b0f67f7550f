// What the tests of the CPU kernels share: random inputs, naive indexing, and run(), which also
// checks that a kernel gives the same bits on any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "core/cpu/parallel.h"
#include "core/tensor.h"

namespace mutilde::testing_kernels {

inline Backend& cpu() { return backend(Device::cpu()); }

template <class F>
auto on_threads([[maybe_unused]] int threads, const F& f) {
#ifdef _OPENMP
  struct Restore {
    int before = omp_get_max_threads();
    ~Restore() { omp_set_num_threads(before); }
  } const restore;
  omp_set_num_threads(threads);
  return f();
#else
  return f();
#endif
}

/// Runs a kernel on 1, 2 and 3 threads, expects the same bits, returns the result.
template <class Kernel>
Tensor run(const Shape& shape, DType dtype, const Kernel& kernel) {
  const auto once = [&] {
    const Tensor out = Tensor::empty(shape, dtype);
    std::fill_n(static_cast<uint8_t*>(out.raw()), out.bytes(), uint8_t{0xa5});
    kernel(out);
    return out;
  };
  const Tensor result = on_threads(1, once);
  const auto bytes = [](const Tensor& x) {
    const uint8_t* data = static_cast<const uint8_t*>(x.raw());
    return std::vector<uint8_t>(data, data + x.bytes());
  };
  for (int threads : {2, 3}) {
    EXPECT_EQ(bytes(on_threads(threads, once)), bytes(result)) << threads << " threads";
  }
  return result;
}

/// Values in [low, high), all different with near certainty.
template <class T>
Tensor random(const Shape& shape, double low = -2, double high = 2) {
  static std::mt19937_64 engine(1);
  std::uniform_real_distribution<double> distribution(low, high);
  std::vector<T> values(static_cast<size_t>(shape.numel()));
  for (T& value : values) value = static_cast<T>(distribution(engine));
  return Tensor::from(shape, values);
}

using Index = std::vector<int64_t>;

inline Index index_of(int64_t element, const Shape& shape) {
  Index index(static_cast<size_t>(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; element /= shape[axis--]) {
    index[static_cast<size_t>(axis)] = element % shape[axis];
  }
  return index;
}

/// Where an index of a larger shape falls in one that broadcasts to it.
inline int64_t element_at(const Index& index, const Shape& shape) {
  int64_t element = 0;
  const int extra = static_cast<int>(index.size()) - shape.rank();
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int64_t i = shape[axis] == 1 ? 0 : index[static_cast<size_t>(axis + extra)];
    element = element * shape[axis] + i;
  }
  return element;
}

/// |x - expected| within `ulps` rounding errors of the type, relative to max(1, |expected|).
template <class T>
void expect_close(const Tensor& x, const std::vector<double>& expected, double ulps) {
  const auto values = x.to_vector<double>();
  ASSERT_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const double scale = std::max(1.0, std::abs(expected[i]));
    ASSERT_NEAR(values[i], expected[i], ulps * scale * std::numeric_limits<T>::epsilon()) << i;
  }
}

template <class T>
class FloatKernels : public ::testing::Test {
 protected:
  static constexpr DType kType = dtype_of<T>();
};
using FloatTypes = ::testing::Types<float, double>;

// Sizes around a vector, a grain of work, and a stretch of the reductions.
inline const std::vector<int64_t> kSizes = {0, 1, 7, 64, 1000, 40'961};

}  // namespace mutilde::testing_kernels
