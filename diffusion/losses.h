// What is minimised (eq. 14, 16) and what is reported (eq. 4-7, in bits per dimension).
//
// All of it is composed of differentiable ops, so gradients reach the model's output by themselves.
// Images are [N, H, W, C]; t is int64, [N].
#pragma once

#include "core/tensor.h"
#include "diffusion/gaussian_diffusion.h"

namespace mutilde {

/// KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))) in nats, element by
/// element; all four broadcast.
Tensor normal_kl(const Tensor& mean_1, const Tensor& log_variance_1, const Tensor& mean_2,
                 const Tensor& log_variance_2);

/// The standard normal's distribution function, by a tanh that is within 4e-4 of it.
Tensor approx_standard_normal_cdf(const Tensor& x);

/// Log of the probability, in nats, that a normal variable falls into the bin of x, where x is on
/// the 8-bit grid: bins are 2/255 wide, the outermost reach to infinity. mean: x's shape; log_scale
/// (of the standard deviation) broadcasts. -> x's shape.
Tensor discretized_gaussian_log_likelihood(const Tensor& x, const Tensor& mean,
                                           const Tensor& log_scale);

/// Eq. 5 and 6: a term of the bound, L_0 where t is 0 and L_t elsewhere, in bits per dimension,
/// [N]. x_t: q_sample of x_0. Unclipped predictions where gradients are wanted.
Tensor vlb_terms(const GaussianDiffusion& diffusion, const Tensor& x_0, const Tensor& x_t,
                 const Tensor& t, const Prediction& prediction);

/// Eq. 7: L_T, how far the last step's distribution still is from pure noise, in bits per
/// dimension, [N].
Tensor prior_bpd(const GaussianDiffusion& diffusion, const Tensor& x_0);

/// Eq. 4, term by term. In the columns t falls from T - 1 to 0.
struct BitsPerDim {
  Tensor total;    // [N]
  Tensor prior;    // [N], L_T
  Tensor vlb;      // [N, T]
  Tensor x_0_mse;  // [N, T], of x_0_hat
  Tensor eps_mse;  // [N, T], of the noise that x_0_hat implies
};
/// The whole bound, T calls of the model, one draw of noise each. Without gradients.
BitsPerDim bits_per_dim(const GaussianDiffusion& diffusion, const Model& model, const Tensor& x_0,
                        const Noise& noise, bool clip = true);

/// One loss an image, [N]; the mean of `loss` is what to minimise (weighted,
/// with importance sampling).
struct TrainingLosses {
  Tensor loss;
  Tensor mse;  // undefined for Loss::kKl and kRescaledKl
  Tensor vb;   // undefined unless the variance is learned beside the MSE
};
/// Eq. 14, and eq. 16 where the variance is learned; or the bound alone.
/// eps: the noise added to x_0.
TrainingLosses training_losses(const GaussianDiffusion& diffusion, const Model& model,
                               const Tensor& x_0, const Tensor& t, const Tensor& eps);

}  // namespace mutilde
