// Numbers of another implementation, for tests to hold ours against: files of tests/data.
//
// The files hold images as [N, C, H, W]; everything here is channels-last, so images are read with
// read_images(). Nothing here uses an op: the tests of the ops need it too.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "core/tensor.h"

namespace mutilde::test {

inline std::string data_path(const std::string& name) {
  return std::string(MUTILDE_TEST_DATA) + "/" + name;
}

/// [.., C, H, W] -> [.., H, W, C]; also [C_out, C, kH, kW] -> [C_out, kH, kW, C].
/// float32 or float64.
inline Tensor nchw_to_nhwc(const Tensor& x) {
  const int rank = x.rank();
  const int64_t C = x.size(-3), H = x.size(-2), W = x.size(-1);
  std::vector<int64_t> sizes(x.shape().begin(), x.shape().begin() + rank - 3);
  sizes.insert(sizes.end(), {H, W, C});
  const auto from = x.to_vector<double>();
  std::vector<double> to(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const int64_t w = at % W, h = at / W % H, c = at / (W * H) % C, n = at / (W * H * C);
    to[static_cast<size_t>(((n * H + h) * W + w) * C + c)] = from[i];
  }
  const Shape shape{std::span<const int64_t>(sizes)};
  if (x.dtype() == DType::kFloat64) return Tensor::from<double>(shape, to);
  return Tensor::from<float>(shape, std::vector<float>(to.begin(), to.end()));
}

/// One file of tests/data: Reference("schedules").
class Reference {
 public:
  explicit Reference(const std::string& name) : file_(data_path(name + ".safetensors")) {}

  bool has(const std::string& name) const { return file_.has(name); }
  std::vector<std::string> names() const { return file_.names(); }
  Tensor read(const std::string& name) const { return file_.read(name); }
  Tensor read_images(const std::string& name) const { return nchw_to_nhwc(file_.read(name)); }
  std::string setting(const std::string& key) const { return file_.metadata().at(key); }

 private:
  SafetensorsFile file_;
};

/// Entry i of the leading axis: [K, N, ..] -> [N, ..].
inline Tensor entry(const Tensor& x, int64_t i) {
  const std::vector<int64_t> sizes(x.shape().begin() + 1, x.shape().end());
  return x.slice(i, i + 1).reshape(Shape{std::span<const int64_t>(sizes)});
}

/// "[1,0,2]": where element `i` of a tensor is.
inline std::string index_of(const Shape& shape, int64_t i) {
  std::string text;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    text = fmt::format("{}{}{}", i % shape[axis], text.empty() ? "" : ",", text);
    i /= shape[axis];
  }
  return "[" + text + "]";
}

/// |a - b| <= atol + rtol * max|b| for every element, where b is what is expected;
/// the maximum is over all of b. Elements that are equal (infinities too) pass, a NaN never does.
/// Names the worst element.
inline ::testing::AssertionResult close(const Tensor& a, const Tensor& b, double rtol,
                                        double atol = 0.0) {
  if (!(a.shape() == b.shape())) {
    return ::testing::AssertionFailure() << "shapes differ: got " << a.shape().to_string()
                                         << ", expected " << b.shape().to_string();
  }
  const auto got = a.to_vector<double>(), expected = b.to_vector<double>();
  double largest = 0;
  for (double value : expected) {
    if (std::isfinite(value)) largest = std::fmax(largest, std::fabs(value));
  }
  const double tolerance = atol + rtol * largest;
  size_t worst = 0, failures = 0;
  double worst_difference = -1;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const double difference = std::fabs(got[i] - expected[i]);
    if (!(difference <= tolerance)) ++failures;
    if (difference > worst_difference || std::isnan(difference)) {
      worst = i;
      worst_difference = std::isnan(difference) ? HUGE_VAL : difference;
    }
  }
  if (failures == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << failures << " of " << got.size() << " elements differ; worst at "
         << index_of(a.shape(), static_cast<int64_t>(worst)) << ": got "
         << fmt::format("{:.9g}, expected {:.9g}, tolerance {:.3g} (largest expected {:.3g})",
                        got[worst], expected[worst], tolerance, largest);
}

}  // namespace mutilde::test
