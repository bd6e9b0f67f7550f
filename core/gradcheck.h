// Gradient checks: is the backward of a function the derivative of its forward?
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

struct GradcheckOptions {
  double step = 1e-5;        // of the central difference
  double rtol = 1e-7;        // |analytic - numeric| <= atol + rtol * max|numeric|
  double atol = 1e-8;        // covers the difference's own error: eps_machine / step plus step^2
  int64_t max_elements = 400;  // an input with more is checked along `directions` random directions
  int directions = 24;
  uint64_t seed = 1;         // of the random cotangent and directions
};

struct GradcheckReport {
  bool passed = false;
  std::string message;  // on failure: the worst element, with both values
  double worst_error = 0;
  double largest_gradient = 0;  // of the numeric gradient: zero would make the check empty
};

/// Compares backward() with central differences, in float64, of the contraction of function(inputs) with
/// a random cotangent (never of a plain sum: softmax's and group norm's gradient of a sum is zero, so
/// that a missing backward would pass). Every input that requires a gradient is checked; inputs must be
/// float64. Fails also where the whole numeric gradient of an input is zero.
GradcheckReport gradcheck(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options = {});

}  // namespace mutilde
