// The forward process and its posterior: eq. 2 and 8-13, each a small pure function.
//
// Why does code compute eq. 11, the mean of the true posterior, where the paper says eq. 13?
//
// The network predicts noise, eps_theta(x_t, t), and eq. 13 turns it into the mean of x_{t-1}:
//   mu_theta = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(alpha_t)
// Code goes a longer way. It solves eq. 9 for the image,
//   x_0_hat = sqrt(1 / alpha_bar_t) x_t - sqrt(1 / alpha_bar_t - 1) eps_theta
// (alpha_bar_t, not alpha_t: this undoes all steps up to t at once. It is easily taken for eq. 13,
// which undoes one step and has alpha_t under its root), and puts that into eq. 11:
//   mu_theta = mu_tilde(x_t, x_0_hat)
//            = sqrt(alpha_bar_prev_t) beta_t / (1 - alpha_bar_t) x_0_hat
//            + sqrt(alpha_t) (1 - alpha_bar_prev_t) / (1 - alpha_bar_t) x_t
// What comes out is eq. 13 again. With alpha_bar_t = alpha_t alpha_bar_prev_t, the factor
//   of eps_theta is  -sqrt(alpha_bar_prev_t / alpha_bar_t) beta_t / sqrt(1 - alpha_bar_t)
//                  = -beta_t / (sqrt(alpha_t) sqrt(1 - alpha_bar_t)),
//   of x_t is        (beta_t + alpha_t - alpha_bar_t) / (sqrt(alpha_t) (1 - alpha_bar_t))
//                  = 1 / sqrt(alpha_t), because beta_t + alpha_t = 1,
// for every t, x_t and eps_theta. Two routes, one function: predicting x_0 first is no other model.
//
// The longer way has a point: between its two steps x_0_hat can be clipped to [-1, 1], the range of
// pixels. The paper does not mention it. (SamplingOptions::denoise may change x_0_hat there as
// well; nothing else parts the routes.) The unclipped mean minus the clipped one is
//   sqrt(alpha_bar_prev_t) beta_t / (1 - alpha_bar_t) (x_0_hat - clamp(x_0_hat, -1, 1)),
// eq. 11's coefficient of x_0 times what was cut off. How much is that? Let eps_theta be off by 1,
// in one pixel. Without clipping, with T = 1000, t from 0:
//
//   schedule    t   x_0_hat is off by         coefficient   the mean is off by
//                   sqrt(1/alpha_bar_t - 1)   of x_0        their product
//   linear    999      157                    0.00013        0.020
//   linear    500        3.4                  0.0031         0.011
//   linear      0        0.010                1              0.010
//   cosine    999   20,291                    0.0016        31.6
//   cosine    998      642                    0.0023         1.5
//   cosine    500        1.0                  0.0044         0.0044
//   cosine      0        0.0064               1              0.0064
//
// So at large t, the first sampling steps, a small error in eps_theta throws x_0_hat far outside
// the range. On the linear schedule the coefficient makes up for it in one step (over many they add
// up: docs/clipping.md); at the end of the cosine schedule it does not, and clipping is what keeps
// the mean bounded. At t = 0, the last sampling
// step, the coefficient of x_0 is 1 and that of x_t is 0: the sample *is* x_0_hat, and clipping
// keeps it within [-1, 1]. (Training clips nothing: losses.h.) On the way x_0_hat is also what DDIM needs and what a picture of the
// model's present guess shows.
//
// Images are [N, H, W, C], float32 or float64 (any rank will do: only the batch is told apart);
// t is int64, [N]. Results have the images' dtype and device.
#pragma once

#include "core/tensor.h"
#include "diffusion/schedule.h"

namespace mutilde {

/// A normal distribution, independent for each element. The variances have the mean's shape or
/// [N, 1, 1, 1], one for all elements of an image.
struct Gaussian {
  Tensor mean;
  Tensor variance;
  Tensor log_variance;
};

/// Entry t of a table for each image, [N, 1, 1, 1], with the dtype and device of `like`.
Tensor at_timestep(const Tensor& table, const Tensor& t, const Tensor& like);

// Forward: from the image to noise.

/// Eq. 2: one step of noise, x_t given x_{t-1}.
Tensor q_step(const Schedule& schedule, const Tensor& x_prev, const Tensor& t, const Tensor& eps);
/// Eq. 8: the distribution of x_t given x_0, all steps in one.
Gaussian q_mean_variance(const Schedule& schedule, const Tensor& x_0, const Tensor& t);
/// Eq. 9: a sample of it, made with the noise eps.
Tensor q_sample(const Schedule& schedule, const Tensor& x_0, const Tensor& t, const Tensor& eps);

// What one of x_0, eps and x_{t-1} says about another, given x_t.

/// Eq. 9 solved for x_0.
Tensor predict_x0_from_eps(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                           const Tensor& eps);
/// Eq. 9 solved for eps.
Tensor predict_eps_from_x0(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                           const Tensor& x_0);
/// Eq. 11 solved for x_0, where x_prev is the mean of x_{t-1}.
Tensor predict_x0_from_x_prev(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                              const Tensor& x_prev);

// The posterior: x_{t-1} given x_t and x_0.

/// Eq. 10: beta_tilde_t, [N, 1, 1, 1]; 0 at t = 0.
Tensor posterior_variance(const Schedule& schedule, const Tensor& t, const Tensor& like);
/// Eq. 11: mu_tilde.
Tensor q_posterior_mean(const Schedule& schedule, const Tensor& x_0, const Tensor& x_t,
                        const Tensor& t);
/// Eq. 12. The log variance at t = 0, where the variance is 0, is that of t = 1.
Gaussian q_posterior(const Schedule& schedule, const Tensor& x_0, const Tensor& x_t,
                     const Tensor& t);

// The two routes from eps_theta to the mean of x_{t-1}, side by side for reading and for the tests.
// The sampler takes the second one in GaussianDiffusion::p_mean_variance (gaussian_diffusion.h),
// in its two halves: it hands x_0_hat on as well, and a network may predict x_0 or the mean itself.

/// Eq. 13: mu_theta, directly.
Tensor mean_from_eps(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                     const Tensor& eps_theta);
/// Through x_0: eq. 9 solved, then eq. 11; in between x_0_hat is clipped to [-1, 1] if `clip`.
Tensor mean_through_x0(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                       const Tensor& eps_theta, bool clip);

}  // namespace mutilde
