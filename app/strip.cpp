#include "app/strip.h"

#include <algorithm>

#include "data/image_io.h"

namespace mutilde::app {

Strip::Strip(int64_t samples, int64_t T) : samples_(samples) {
  const int64_t columns = std::min(T, kColumns);
  for (int64_t i = 0; i < columns; ++i)
    steps_.push_back(columns > 1 ? i * (T - 1) / (columns - 1) : 0);
  x_t_.resize(static_cast<size_t>(samples * columns));
  x_0_.resize(x_t_.size());
}

void Strip::note(const SamplingStep& step, int64_t first_sample) {
  const auto column = std::find(steps_.begin(), steps_.end(), step.step);
  if (column == steps_.end()) return;
  const int64_t end = std::min(samples_, first_sample + step.x_t.size(0));
  for (int64_t sample = first_sample; sample < end; ++sample) {
    const int64_t row = sample - first_sample;
    const size_t at =
        static_cast<size_t>(sample) * steps_.size() + static_cast<size_t>(column - steps_.begin());
    x_t_[at] = to_uint8(step.x_t.slice(row, row + 1));
    x_0_[at] = to_uint8(step.sample.x_0_hat.slice(row, row + 1));
  }
}

Image Strip::picture() const {
  const auto columns = static_cast<int64_t>(steps_.size());
  const Tensor all =
      Tensor::empty(x_t_.front().shape().with(0, 2 * samples_ * columns), DType::kUInt8);
  for (int64_t sample = 0; sample < samples_; ++sample) {
    for (int64_t column = 0; column < columns; ++column) {
      const auto from = static_cast<size_t>(sample * columns + column);
      const int64_t to = 2 * sample * columns + column;
      all.slice(to, to + 1).copy_(x_t_[from]);
      all.slice(to + columns, to + columns + 1).copy_(x_0_[from]);
    }
  }
  return image_grid(all, columns);
}

}  // namespace mutilde::app
