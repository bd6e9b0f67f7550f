// What AdamW multiplies with in a step, the same on each backend.
#pragma once

#include <cmath>

#include "core/backend.h"

namespace mutilde {

/// The constants of a step, rounded once from float64.
template <class T>
struct AdamWCoefficients {
  T beta1, one_minus_beta1, beta2, one_minus_beta2;
  T decay;       // 1 - lr * weight_decay
  T step_size;   // lr / (1 - beta1^t)
  T root_scale;  // sqrt(1 - beta2^t)
  T adam_eps;
  T grad_scale;

  explicit AdamWCoefficients(const AdamWStep& s)
      : beta1(static_cast<T>(s.beta1)),
        one_minus_beta1(static_cast<T>(1 - s.beta1)),
        beta2(static_cast<T>(s.beta2)),
        one_minus_beta2(static_cast<T>(1 - s.beta2)),
        decay(static_cast<T>(1 - s.lr * s.weight_decay)),
        step_size(static_cast<T>(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))),
        root_scale(static_cast<T>(std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        adam_eps(static_cast<T>(s.adam_eps)),
        grad_scale(static_cast<T>(s.grad_scale)) {}
};

}  // namespace mutilde
