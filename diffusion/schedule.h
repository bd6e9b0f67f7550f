// The beta schedule of the forward process, and every table over t that follows from it.
//
// Code counts t from 0, the paper from 1: entry t of a table is the paper's value at t + 1. So t =
// 0 is the step with the least noise, alpha_bar_prev is 1 there (nothing has happened yet) and
// beta_tilde is 0 (given x_0 and x_1, nothing about x_0 is left to guess).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

/// With fewer steps beta would reach 1.
constexpr int64_t kFewestLinearSteps = 21;
/// beta rises in a straight line from 0.0001 to 0.02, both times 1000 / T, so that any T ends in
/// about the same noise. Throws Error if T < kFewestLinearSteps.
std::vector<double> linear_beta_schedule(int64_t T);
/// alpha_bar falls along a squared cosine; beta is cut off at 0.999. Throws Error if T < 1.
std::vector<double> cosine_beta_schedule(int64_t T);
/// "linear" or "cosine". Throws Error for another name.
std::vector<double> named_beta_schedule(const std::string& name, int64_t T);

/// The tables: float64, [T], on the CPU. `at_timestep` (posterior.h) looks them up for a batch.
struct Schedule {
  /// betas: one a step, first step first. Throws Error if there is none, or one is outside (0, 1].
  /// (A beta of 1 leaves pure noise: x_0 can then be predicted, but not recovered from eps.)
  explicit Schedule(const std::vector<double>& betas);

  int64_t T;  // the number of steps

  Tensor beta;
  Tensor log_beta;
  Tensor alpha;           // 1 - beta
  Tensor alpha_bar;       // product of alpha up to t
  Tensor alpha_bar_prev;  // at t - 1; 1 at the first step
  Tensor alpha_bar_next;  // at t + 1; 0 at the last step
  // 1 minus these: as small as 1e-4, where a float32 alpha_bar has three digits of it left.
  Tensor one_minus_alpha_bar_prev;
  Tensor one_minus_alpha_bar_next;

  // Eq. 8 and 9, and eq. 9 solved for x_0.
  Tensor sqrt_alpha_bar;
  Tensor sqrt_one_minus_alpha_bar;
  Tensor one_minus_alpha_bar;
  Tensor log_one_minus_alpha_bar;
  Tensor sqrt_recip_alpha_bar;            // sqrt(1 / alpha_bar)
  Tensor sqrt_recip_alpha_bar_minus_one;  // sqrt(1 / alpha_bar - 1)

  // The posterior q(x_{t-1} | x_t, x_0).
  Tensor beta_tilde;              // eq. 10
  Tensor log_beta_tilde_clipped;  // the first entry, log 0, is that of the second step instead
  Tensor mu_tilde_x_0;            // eq. 11: the coefficient of x_0
  Tensor mu_tilde_x_t;            //         and that of x_t
};

}  // namespace mutilde
