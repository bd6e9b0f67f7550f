// Gaussian diffusion: what a network's output means, and how to sample with it, one step after the
// other, as in DDPM (Ho, Jain and Abbeel 2020) or DDIM (Song, Meng and Ermon 2020).
//
// The mathematics of a step is in posterior.h, the losses are in losses.h.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"
#include "diffusion/posterior.h"
#include "diffusion/schedule.h"

namespace mutilde {

// Each value of these three names the flag that selects it (make_diffusion in settings.cpp).

/// What the network predicts, from which the mean of x_{t-1} follows.
enum class ModelMean {
  kEpsilon,   // the noise. No flag
  kStartX,    // x_0. --predict_xstart
  kPreviousX  // the mean itself. Not from the command line
};
/// The variance of x_{t-1}. With a learned one the network returns twice the channels, the variance
/// in the second half.
enum class ModelVariance {
  kFixedLarge,    // beta_t, but at the first step beta_tilde's second value. No flag
  kFixedSmall,    // beta_tilde_t, eq. 10. --sigma_small
  kLearnedRange,  // between the two, eq. 15. --learn_sigma
  kLearned        // any: the network returns its log. Not from the command line
};
/// What is minimised for a t that is drawn (training_losses, losses.cpp).
enum class Loss {
  kRescaledMse,  // eq. 14; eq. 16 with a learned variance, lambda = 0.001. No flag
  kMse,          // the same with lambda = 1 / T. --rescale_learned_sigmas False
  kRescaledKl,   // the bound's term at t, times T: on average eq. 4. --use_kl
  kKl            // the bound's term at t. Not from the command line
};

struct DiffusionConfig {
  ModelMean mean = ModelMean::kEpsilon;
  ModelVariance variance = ModelVariance::kFixedLarge;
  Loss loss = Loss::kMse;
  bool rescale_timesteps = false;  // show the network t * 1000 / T
};

/// A network: x_t [N, H, W, C] and t [N] -> [N, H, W, C], or 2C with a learned variance. t is what
/// model_timesteps() gives. Conditions (a class, a smaller image) are captured by the closure.
using Model = std::function<Tensor(const Tensor& x_t, const Tensor& t)>;

/// Standard normal noise of the shape, dtype and device of `like`, new at each call.
using Noise = std::function<Tensor(const Tensor& like)>;
/// Noise drawn from a generator, which must outlive it.
Noise noise_from(Generator& generator);

/// A network's output, its two halves apart.
struct ModelOutput {
  Tensor mean;      // what ModelMean says
  Tensor variance;  // undefined if the variance is fixed
};

/// p_theta(x_{t-1} | x_t), eq. 3.
struct Prediction {
  Tensor mu_theta;
  Tensor variance;      // of mu_theta's shape, or [N, 1, 1, 1]
  Tensor log_variance;  // finite at the first step too, where beta_tilde is 0
  Tensor x_0_hat;       // what the model takes the image to be; after clipping, if that was asked
};

/// A step's result.
struct Sample {
  Tensor x;  // x_{t-1}; x_{t+1} of ddim_reverse_sample
  Tensor x_0_hat;
};

/// What on_step sees of a loop.
struct SamplingStep {
  int64_t step;  // 0 for the first step taken
  int64_t t;     // counted in this process, not in the one that it was respaced from
  Tensor x_t;    // before the step
  Sample sample;
};

struct SamplingOptions {
  /// x_0_hat to [-1, 1]. Where the network predicts the mean itself nothing is made of x_0_hat, but what is shown of it.
  bool clip = true;
  /// Changes x_0_hat, before it is clipped.
  std::function<Tensor(const Tensor& x_0_hat)> denoise = {};
  double eta = 0.0;  // DDIM's noise: 0 for none, 1 for as much as DDPM
  std::function<void(const SamplingStep& step)> on_step = {};  // in loops, after each step
};

class GaussianDiffusion {
 public:
  /// betas: one a step, first step first; see Schedule.
  explicit GaussianDiffusion(const std::vector<double>& betas, const DiffusionConfig& config = {});
  /// A process made of some steps of a longer one: step t was number timestep_map[t] of original_T,
  /// and that is what the network is shown. Throws Error if the sizes do not fit.
  GaussianDiffusion(const std::vector<double>& betas, const DiffusionConfig& config,
                    const std::vector<int64_t>& timestep_map, int64_t original_T);

  const Schedule& schedule() const { return schedule_; }
  const DiffusionConfig& config() const { return config_; }
  int64_t T() const { return schedule_.T; }
  /// The steps' numbers in the original process: 0 .. T - 1 unless respaced.
  const std::vector<int64_t>& timestep_map() const { return timestep_map_; }
  bool learns_variance() const;

  /// t as the network sees it: the original timestep, int64; with rescale_timesteps as float32,
  /// times 1000 / original T.
  Tensor model_timesteps(const Tensor& t) const;
  /// Calls the network and parts its output. Throws ShapeError if that has not the shape expected.
  ModelOutput call_model(const Model& model, const Tensor& x_t, const Tensor& t) const;

  /// Eq. 3, from a network, or from its output.
  Prediction p_mean_variance(const Model& model, const Tensor& x_t, const Tensor& t,
                             const SamplingOptions& options = {}) const;
  Prediction p_mean_variance(const ModelOutput& output, const Tensor& x_t, const Tensor& t,
                             const SamplingOptions& options = {}) const;

  // Single steps, without gradients. eps: noise of x_t's shape.

  /// x_{t-1} ~ p_theta(x_{t-1} | x_t). At t = 0 the mean itself.
  Sample p_sample(const Model& model, const Tensor& x_t, const Tensor& t, const Tensor& eps,
                  const SamplingOptions& options = {}) const;
  /// Eq. DDIM 12. eps is not needed (may be undefined) if eta is 0. Throws Error for eta outside
  /// [0, 1].
  Sample ddim_sample(const Model& model, const Tensor& x_t, const Tensor& t, const Tensor& eps,
                     const SamplingOptions& options = {}) const;
  /// DDIM backwards, from x_t to x_{t+1}: encodes an image as the noise that DDIM makes it from.
  /// Throws Error unless eta is 0.
  Sample ddim_reverse_sample(const Model& model, const Tensor& x_t, const Tensor& t,
                             const SamplingOptions& options = {}) const;

  // All steps. `noise` is called once a step, in order, with eta = 0 and at t = 0 too, so that the
  // positions in a random sequence do not depend on the options.

  /// x_T: standard normal -> x_0.
  Tensor p_sample_loop(const Model& model, const Tensor& x_T, const Noise& noise,
                       const SamplingOptions& options = {}) const;
  Tensor ddim_sample_loop(const Model& model, const Tensor& x_T, const Noise& noise,
                          const SamplingOptions& options = {}) const;
  /// x_0 -> x_T.
  Tensor ddim_reverse_sample_loop(const Model& model, const Tensor& x_0,
                                  const SamplingOptions& options = {}) const;

 private:
  Tensor learned_range_log_variance(const Tensor& output, const Tensor& t) const;
  void set_variance(Prediction& p, const ModelOutput& output, const Tensor& x_t,
                    const Tensor& t) const;
  Tensor x_0_hat_of(const ModelOutput& output, const Tensor& x_t, const Tensor& t,
                    const SamplingOptions& options) const;

  DiffusionConfig config_;
  Schedule schedule_;
  std::vector<int64_t> timestep_map_;
  Tensor model_timesteps_;  // float64, [T]
  Tensor large_variance_;   // kFixedLarge
  Tensor log_large_variance_;
  Tensor after_first_;  // 0 at the first step, 1 after it
};

/// The timestep t for each of N images.
Tensor full_timesteps(int64_t t, const Tensor& like);

}  // namespace mutilde
