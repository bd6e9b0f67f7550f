// Gradient checks: is the backward of a function the derivative of its forward?
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

/// The difference is of fourth order, (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12h, and is wrong
/// by h^4 f''''' / 30 from the series and by about 1.5 eps_machine |f| / h from round-off. They
/// meet near h = eps_machine^(1/5) = 7e-4, where both are about 1e-12 for a function and
/// derivatives of size 1; with h = 1e-3 a fifth derivative of 1e3 still costs only 3e-11. (The
/// plain central difference is at best good to eps_machine^(2/3) = 4e-11 there.) Keep inputs more
/// than 2h away from kinks.
struct GradcheckOptions {
  double step = 1e-3;          // h
  double rtol = 1e-7;          // |analytic - numeric| <= atol + rtol * max|numeric|
  double atol = 1e-10;         // covers the difference's own error
  int64_t max_elements = 400;  // an input with more is checked along `directions` random directions
  int directions = 24;
  uint64_t seed = 1;  // of the random cotangent and directions
};

struct GradcheckReport {
  bool passed = false;
  // The worst element of all inputs, measured by what is allowed, with both values; or why not.
  std::string message;
  double worst_error = 0;       // of that element's input, max|analytic - numeric| / max|numeric|
  double largest_gradient = 0;  // max|numeric| over all inputs
};

/// Compares backward() with central differences, in float64, of the contraction of function(inputs)
/// with a random cotangent (never of a plain sum: softmax's and group norm's gradient of a sum is
/// zero, so that a missing backward would pass). Every input that requires a gradient is checked.
/// Fails also where the numeric gradient of an input is zero to within atol everywhere, since a
/// backward that returns nothing would pass. Throws DTypeError if such an input or the result is
/// not float64, Error if no input requires a gradient.
GradcheckReport gradcheck(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options = {});

}  // namespace mutilde
