// DDIM: the sampling steps of "Denoising Diffusion Implicit Models" (Song, Meng and Ermon 2020),
// whose equation numbers carry its name.
#include "core/ops/ops.h"
#include "diffusion/gaussian_diffusion.h"

namespace mutilde {

// Eq. DDIM 12: x_{t-1} = sqrt(alpha_bar_prev_t) x_0_hat
//                      + sqrt(1 - alpha_bar_prev_t - sigma_t^2) eps_theta + sigma_t eps,
// where sigma_t = eta sqrt(beta_tilde_t): DDIM's eq. 16 writes eq. 10 with alpha_bar alone. At the
// first step alpha_bar_prev_t is 1 and sigma_t 0: no noise is added there.
Sample GaussianDiffusion::ddim_sample(const Model& model, const Tensor& x_t, const Tensor& t,
                                      const Tensor& eps, const SamplingOptions& options) const {
  if (!(options.eta >= 0 && options.eta <= 1)) {
    fail<Error>("ddim_sample: eta is {}, 0 <= eta <= 1 expected", options.eta);
  }
  const NoGrad no_grad;
  const Tensor x_0_hat = p_mean_variance(model, x_t, t, options).x_0_hat;
  // The noise that belongs to x_0_hat. It is the model's own only if nothing was clipped.
  const Tensor eps_theta = predict_eps_from_x0(schedule_, x_t, t, x_0_hat);
  const Tensor alpha_bar_prev_t = at_timestep(schedule_.alpha_bar_prev, t, x_t);
  const Tensor one_minus_alpha_bar_prev_t = at_timestep(schedule_.one_minus_alpha_bar_prev, t, x_t);
  const Tensor sigma_t = options.eta * sqrt(at_timestep(schedule_.beta_tilde, t, x_t));
  // beta_tilde_t is at most 1 - alpha_bar_prev_t; below 0 is round-off.
  const Tensor direction_t = sqrt(clamp(one_minus_alpha_bar_prev_t - square(sigma_t), 0, 1));
  const Tensor mean = sqrt(alpha_bar_prev_t) * x_0_hat + direction_t * eps_theta;
  if (options.eta == 0) return {mean, x_0_hat};
  return {mean + sigma_t * eps, x_0_hat};
}

// Eq. DDIM 12 with sigma_t = 0, read in the other direction: alpha_bar_next_t takes
// alpha_bar_prev_t's place.
Sample GaussianDiffusion::ddim_reverse_sample(const Model& model, const Tensor& x_t,
                                              const Tensor& t,
                                              const SamplingOptions& options) const {
  if (options.eta != 0) {
    fail<Error>("ddim_reverse_sample: eta is {}, but only eta = 0 can be reversed", options.eta);
  }
  const NoGrad no_grad;
  const Tensor x_0_hat = p_mean_variance(model, x_t, t, options).x_0_hat;
  const Tensor eps_theta = predict_eps_from_x0(schedule_, x_t, t, x_0_hat);
  const Tensor alpha_bar_next_t = at_timestep(schedule_.alpha_bar_next, t, x_t);
  const Tensor one_minus_alpha_bar_next_t = at_timestep(schedule_.one_minus_alpha_bar_next, t, x_t);
  return {sqrt(alpha_bar_next_t) * x_0_hat + sqrt(one_minus_alpha_bar_next_t) * eps_theta, x_0_hat};
}

Tensor GaussianDiffusion::ddim_sample_loop(const Model& model, const Tensor& x_T,
                                           const Noise& noise,
                                           const SamplingOptions& options) const {
  Tensor x_t = x_T;
  for (int64_t t = T() - 1; t >= 0; --t) {
    const Sample sample = ddim_sample(model, x_t, full_timesteps(t, x_t), noise(x_t), options);
    if (options.on_step) options.on_step({T() - 1 - t, t, x_t, sample});
    x_t = sample.x;
  }
  return x_t;
}

Tensor GaussianDiffusion::ddim_reverse_sample_loop(const Model& model, const Tensor& x_0,
                                                   const SamplingOptions& options) const {
  Tensor x_t = x_0;
  for (int64_t t = 0; t < T(); ++t) {
    const Sample sample = ddim_reverse_sample(model, x_t, full_timesteps(t, x_t), options);
    if (options.on_step) options.on_step({t, t, x_t, sample});
    x_t = sample.x;
  }
  return x_t;
}

}  // namespace mutilde
