// What the playground computes. Its page calls this through WebAssembly (wasm.cpp), and native.cpp
// as a program of the machine; check.py compares their numbers.
#pragma once

#include <string>
#include <vector>

#include "diffusion/checkpoint.h"

namespace mutilde::playground {

/// How far an image is from the range of pixels, [-1, 1].
struct RangeNumbers {
  double mean_abs = 0, max_abs = 0;
  double share_outside = 0;  // of the elements, by more than half a grey level
};
RangeNumbers range_numbers(const Tensor& x);

// The forward process, and the two ways back.

struct ForwardControls {
  std::string schedule;  // "linear" or "cosine", of 1000 steps
  int t = 0;
  int seed = 0;
  double error = 0;  // the root mean square of what eps_theta is off by, or so: it is random
  bool clip = false;
};

struct ForwardResult {
  Tensor x_t;       // eq. 9
  Tensor x_0_hat;   // eq. 9 solved for x_0, from eps_theta, before it is clipped
  Tensor mu_tilde;  // eq. 11, from x_0_hat, clipped if that was asked
  Tensor mu_theta;  // eq. 13, from eps_theta
  RangeNumbers x_0_range;
  double alpha_bar_t = 0;
  double sqrt_recip_alpha_bar_minus_one_t = 0;  // how much x_0_hat is off for an error of 1
  double mu_tilde_x_0_t = 0;                    // eq. 11's coefficient of x_0
  double max_cut = 0;                           // max |x_0_hat - x_0_clipped|; 0 without clipping
  double max_difference = 0;                    // max |mu_tilde - mu_theta|
  // How far each is from eq. 11 with x_0 itself: the root of the mean square.
  double mu_tilde_error = 0, mu_theta_error = 0;
};

/// x_0: [1, H, W, C], float32. Throws Error for a schedule or a t that there is not.
ForwardResult run_forward(const Tensor& x_0, const ForwardControls& controls);

// Sampling, step by step.

struct SamplingControls {
  std::string schedule;
  int steps = 50;
  bool ddim = true;
  double eta = 0;  // DDIM's
  bool clip = true;
  int seed = 0;
  int count = 1;  // images
};

/// For each alpha_bar the timestep of `trained` that is nearest in noise: in log(alpha_bar / (1 -
/// alpha_bar)), the logarithm of signal over noise.
std::vector<int64_t> nearest_timesteps(const Schedule& trained,
                                       const std::vector<double>& alpha_bar);

/// Takes a network through one schedule that was trained on another. x_t of the same alpha_bar is
/// distributed the same in both (eq. 8), so at each step the network is shown the t of its own
/// schedule at which x_t has the nearest noise. On the schedule of its training that is t itself,
/// and the samples are those of `mutilde sample`.
class Sampling {
 public:
  /// `dtype`: what to compute in; the noise is drawn in float32 all the same. `model` must outlive
  /// this, its weights of that dtype. Throws Error for controls out of range.
  Sampling(const LoadedModel& model, const SamplingControls& controls,
           DType dtype = DType::kFloat32);

  /// One step. Throws Error if there is none left.
  void step();
  bool done() const { return t_ < 0; }
  int64_t T() const { return diffusion_.T(); }

  // [count, H, W, C].
  const Tensor& x_t() const { return x_t_; }          // before the first step: noise
  const Tensor& x_0_hat() const { return x_0_hat_; }  // of the last step, before it was clipped

  // Of the last step.
  int64_t schedule_t() const { return schedule_t_; }  // in the schedule's 1000 steps
  int64_t network_t() const { return network_t_; }    // in those of the training
  double alpha_bar_t() const { return alpha_bar_t_; }

 private:
  Tensor noise();

  const LoadedModel& model_;
  SamplingControls controls_;
  std::vector<int64_t> use_timesteps_;  // of the schedule's 1000 steps
  GaussianDiffusion diffusion_;
  std::vector<Generator> generators_;  // one an image
  int64_t t_;                          // the next step's, in diffusion_
  Tensor x_t_, x_0_hat_;
  int64_t schedule_t_ = 0, network_t_ = 0;
  double alpha_bar_t_ = 0;
};

}  // namespace mutilde::playground
