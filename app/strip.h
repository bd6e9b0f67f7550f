// How samples come about, as a picture: for each, x_t above and the predicted
// x_0 below, from noise to image.
#pragma once

#include <cstdint>
#include <vector>

#include "data/image.h"
#include "diffusion/gaussian_diffusion.h"

namespace mutilde::app {

class Strip {
 public:
  static constexpr int64_t kColumns = 10;

  /// Of the first `samples` samples, over the T steps of a process.
  Strip(int64_t samples, int64_t T);

  /// Notes a step of a batch whose first sample has this number.
  void note(const SamplingStep& step, int64_t first_sample);
  Image picture() const;

 private:
  int64_t samples_;
  std::vector<int64_t> steps_;     // that are shown, a column each
  std::vector<Tensor> x_t_, x_0_;  // [samples * columns], uint8, row by row
};

}  // namespace mutilde::app
