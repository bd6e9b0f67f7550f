#include "core/op_cases.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace mutilde {

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> kTable = [] {
    std::vector<OpCase> table;
    for (const auto& family :
         {elementwise_cases(), reduce_cases(), layout_cases(), matmul_cases(), conv_cases(),
          norm_cases(), attention_cases(), resample_cases(), embedding_cases()}) {
      table.insert(table.end(), family.begin(), family.end());
    }
    return table;
  }();
  return kTable;
}

Tensor uniform_off(const std::vector<double>& kinks, const Shape& shape, double low, double high,
                   uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<double> values;
  while (static_cast<int64_t>(values.size()) < shape.numel()) {
    const double unit = static_cast<double>(engine() >> 11) * 0x1p-53;
    const double value = low + (high - low) * unit;
    const auto is_near = [value](double kink) { return std::abs(value - kink) < 0.05; };
    if (std::none_of(kinks.begin(), kinks.end(), is_near)) values.push_back(value);
  }
  return Tensor::from(shape, values);
}

Tensor uniform(const Shape& shape, double low, double high, uint64_t seed) {
  return uniform_off({}, shape, low, high, seed);
}

Tensor all_different(const Shape& shape, uint64_t seed) {
  std::vector<double> values;
  for (int64_t i = 0; i < shape.numel(); ++i) values.push_back(0.1 * static_cast<double>(i) - 1);
  std::shuffle(values.begin(), values.end(), std::mt19937_64(seed));
  return Tensor::from(shape, values);
}

double broadcast_at(const Array& x, const Shape& shape, int64_t offset) {
  int64_t index = 0, stride = 1;
  for (int i = 1; i <= x.shape.rank(); ++i) {  // from the last axis
    const int64_t coordinate = offset % shape[-i];
    offset /= shape[-i];
    if (x.shape[-i] != 1) index += coordinate * stride;
    stride *= x.shape[-i];
  }
  return x[index];
}

}  // namespace mutilde
