#include "diffusion/posterior.h"

#include "core/ops/ops.h"

namespace mutilde {

namespace {

void require_same_shape(const char* name, const Tensor& a, const Tensor& b) {
  if (a.shape() == b.shape()) return;
  fail<ShapeError>("{}: the shapes {} and {} differ", name, a.shape(), b.shape());
}

}  // namespace

Tensor at_timestep(const Tensor& table, const Tensor& t, const Tensor& like) {
  if (like.rank() < 1 || t.numel() != like.size(0)) {
    fail<ShapeError>("at_timestep: {} timesteps for a batch {}", t.numel(), like.shape());
  }
  return gather_timesteps(table.to(like.device()), t, like.rank(), like.dtype());
}

// Eq. 1 is a chain of these steps.
// Eq. 2: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps.
Tensor q_step(const Schedule& schedule, const Tensor& x_prev, const Tensor& t, const Tensor& eps) {
  require_same_shape("q_step", x_prev, eps);
  const Tensor beta_t = at_timestep(schedule.beta, t, x_prev);
  return sqrt(1.0 - beta_t) * x_prev + sqrt(beta_t) * eps;
}

// Eq. 8: N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).
Gaussian q_mean_variance(const Schedule& schedule, const Tensor& x_0, const Tensor& t) {
  return {at_timestep(schedule.sqrt_alpha_bar, t, x_0) * x_0,
          at_timestep(schedule.one_minus_alpha_bar, t, x_0),
          at_timestep(schedule.log_one_minus_alpha_bar, t, x_0)};
}

// Eq. 9: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
Tensor q_sample(const Schedule& schedule, const Tensor& x_0, const Tensor& t, const Tensor& eps) {
  require_same_shape("q_sample", x_0, eps);
  const Tensor sqrt_alpha_bar_t = at_timestep(schedule.sqrt_alpha_bar, t, x_0);
  const Tensor sqrt_one_minus_alpha_bar_t = at_timestep(schedule.sqrt_one_minus_alpha_bar, t, x_0);
  return sqrt_alpha_bar_t * x_0 + sqrt_one_minus_alpha_bar_t * eps;
}

// Eq. 9 solved for x_0: divide by sqrt(alpha_bar_t).
Tensor predict_x0_from_eps(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                           const Tensor& eps) {
  require_same_shape("predict_x0_from_eps", x_t, eps);
  const Tensor sqrt_recip_alpha_bar_t = at_timestep(schedule.sqrt_recip_alpha_bar, t, x_t);
  const Tensor sqrt_recip_alpha_bar_minus_one_t =
      at_timestep(schedule.sqrt_recip_alpha_bar_minus_one, t, x_t);
  return sqrt_recip_alpha_bar_t * x_t - sqrt_recip_alpha_bar_minus_one_t * eps;
}

// Eq. 9 solved for eps. It stays finite where alpha_bar_t is 0.
Tensor predict_eps_from_x0(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                           const Tensor& x_0) {
  require_same_shape("predict_eps_from_x0", x_t, x_0);
  const Tensor sqrt_alpha_bar_t = at_timestep(schedule.sqrt_alpha_bar, t, x_t);
  const Tensor sqrt_one_minus_alpha_bar_t = at_timestep(schedule.sqrt_one_minus_alpha_bar, t, x_t);
  return (x_t - sqrt_alpha_bar_t * x_0) / sqrt_one_minus_alpha_bar_t;
}

// Eq. 11 solved for x_0.
Tensor predict_x0_from_x_prev(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                              const Tensor& x_prev) {
  require_same_shape("predict_x0_from_x_prev", x_t, x_prev);
  const Tensor mu_tilde_x_0_t = at_timestep(schedule.mu_tilde_x_0, t, x_t);
  const Tensor mu_tilde_x_t_t = at_timestep(schedule.mu_tilde_x_t, t, x_t);
  return (x_prev - mu_tilde_x_t_t * x_t) / mu_tilde_x_0_t;
}

// Eq. 10: beta_tilde_t = (1 - alpha_bar_prev_t) / (1 - alpha_bar_t) beta_t, tabulated in
// schedule.cpp.
Tensor posterior_variance(const Schedule& schedule, const Tensor& t, const Tensor& like) {
  return at_timestep(schedule.beta_tilde, t, like);
}

// Eq. 11: mu_tilde = sqrt(alpha_bar_prev_t) beta_t / (1 - alpha_bar_t) x_0
//                  + sqrt(alpha_t) (1 - alpha_bar_prev_t) / (1 - alpha_bar_t) x_t.
Tensor q_posterior_mean(const Schedule& schedule, const Tensor& x_0, const Tensor& x_t,
                        const Tensor& t) {
  require_same_shape("q_posterior_mean", x_0, x_t);
  const Tensor mu_tilde_x_0_t = at_timestep(schedule.mu_tilde_x_0, t, x_t);
  const Tensor mu_tilde_x_t_t = at_timestep(schedule.mu_tilde_x_t, t, x_t);
  return mu_tilde_x_0_t * x_0 + mu_tilde_x_t_t * x_t;
}

// Eq. 12: N(mu_tilde(x_t, x_0), beta_tilde_t I).
Gaussian q_posterior(const Schedule& schedule, const Tensor& x_0, const Tensor& x_t,
                     const Tensor& t) {
  return {q_posterior_mean(schedule, x_0, x_t, t), posterior_variance(schedule, t, x_t),
          at_timestep(schedule.log_beta_tilde_clipped, t, x_t)};
}

// Eq. 13: mu_theta = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(alpha_t).
Tensor mean_from_eps(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                     const Tensor& eps_theta) {
  require_same_shape("mean_from_eps", x_t, eps_theta);
  const Tensor beta_t = at_timestep(schedule.beta, t, x_t);
  const Tensor alpha_t = at_timestep(schedule.alpha, t, x_t);
  const Tensor sqrt_one_minus_alpha_bar_t = at_timestep(schedule.sqrt_one_minus_alpha_bar, t, x_t);
  return (x_t - beta_t / sqrt_one_minus_alpha_bar_t * eps_theta) / sqrt(alpha_t);
}

// Eq. 9 solved for x_0, then eq. 11. Without clipping this is Eq. 13.
Tensor mean_through_x0(const Schedule& schedule, const Tensor& x_t, const Tensor& t,
                       const Tensor& eps_theta, bool clip) {
  const Tensor x_0_hat = predict_x0_from_eps(schedule, x_t, t, eps_theta);
  const Tensor x_0_clipped = clip ? clamp(x_0_hat, -1, 1) : x_0_hat;
  return q_posterior_mean(schedule, x_0_clipped, x_t, t);
}

}  // namespace mutilde
