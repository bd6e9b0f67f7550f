#include "diffusion/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mutilde {

std::vector<double> linear_beta_schedule(int64_t T) {
  if (T < kFewestLinearSteps) {
    fail<Error>(
        "linear_beta_schedule: {} steps given, at least {} expected: with fewer beta reaches 1; "
        "the cosine schedule takes any number",
        T, kFewestLinearSteps);
  }
  const double scale = 1000.0 / static_cast<double>(T);
  const double first = scale * 0.0001, last = scale * 0.02;
  const double step = (last - first) / static_cast<double>(T - 1);
  std::vector<double> betas(static_cast<size_t>(T));
  for (size_t t = 0; t < betas.size(); ++t) betas[t] = first + step * static_cast<double>(t);
  betas.back() = last;
  return betas;
}

// Eq. 17: alpha_bar_t = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2), s = 0.008.
// A beta is 1 - alpha_bar_t / alpha_bar_{t-1}, so f(0) cancels.
std::vector<double> cosine_beta_schedule(int64_t T) {
  if (T < 1) fail<Error>("cosine_beta_schedule: {} steps given, at least 1 expected", T);
  const auto f = [T](size_t t) {
    constexpr double s = 0.008;
    const double share = static_cast<double>(t) / static_cast<double>(T);
    const double cosine = std::cos((share + s) / (1 + s) * std::numbers::pi / 2);
    return cosine * cosine;
  };
  std::vector<double> betas(static_cast<size_t>(T));
  for (size_t t = 0; t < betas.size(); ++t) betas[t] = std::min(1 - f(t + 1) / f(t), 0.999);
  return betas;
}

std::vector<double> named_beta_schedule(const std::string& name, int64_t T) {
  if (name == "linear") return linear_beta_schedule(T);
  if (name == "cosine") return cosine_beta_schedule(T);
  fail<Error>("named_beta_schedule: there is no schedule \"{}\", only linear and cosine", name);
}

namespace {

int64_t checked_length(const std::vector<double>& betas) {
  if (betas.empty()) fail<Error>("Schedule: no betas given, at least one step expected");
  for (size_t t = 0; t < betas.size(); ++t) {
    if (!(betas[t] > 0 && betas[t] <= 1)) {
      fail<Error>("Schedule: beta is {} at t = {}, 0 < beta <= 1 expected", betas[t], t);
    }
  }
  return static_cast<int64_t>(betas.size());
}

}  // namespace

Schedule::Schedule(const std::vector<double>& betas) : T(checked_length(betas)) {
  for (Tensor* table : {&beta, &log_beta, &alpha, &alpha_bar, &alpha_bar_prev, &alpha_bar_next,
                        &one_minus_alpha_bar_prev, &one_minus_alpha_bar_next, &sqrt_alpha_bar,
                        &sqrt_one_minus_alpha_bar, &one_minus_alpha_bar, &log_one_minus_alpha_bar,
                        &sqrt_recip_alpha_bar, &sqrt_recip_alpha_bar_minus_one, &beta_tilde,
                        &log_beta_tilde_clipped, &mu_tilde_x_0, &mu_tilde_x_t}) {
    *table = Tensor::zeros({T}, DType::kFloat64);
  }
  double alpha_bar_prev_t = 1;
  for (int64_t t = 0; t < T; ++t) {
    const auto set = [t](const Tensor& table, double value) { table.data<double>()[t] = value; };
    const double beta_t = betas[static_cast<size_t>(t)];
    const double alpha_t = 1 - beta_t;
    const double alpha_bar_t = alpha_bar_prev_t * alpha_t;
    set(beta, beta_t);
    set(log_beta, std::log(beta_t));
    set(alpha, alpha_t);
    set(alpha_bar, alpha_bar_t);
    set(alpha_bar_prev, alpha_bar_prev_t);
    set(one_minus_alpha_bar_prev, 1 - alpha_bar_prev_t);
    set(one_minus_alpha_bar_next, 1);  // unless another step follows
    if (t > 0) {
      alpha_bar_next.data<double>()[t - 1] = alpha_bar_t;
      one_minus_alpha_bar_next.data<double>()[t - 1] = 1 - alpha_bar_t;
    }

    set(sqrt_alpha_bar, std::sqrt(alpha_bar_t));
    set(sqrt_one_minus_alpha_bar, std::sqrt(1 - alpha_bar_t));
    set(one_minus_alpha_bar, 1 - alpha_bar_t);
    set(log_one_minus_alpha_bar, std::log(1 - alpha_bar_t));
    set(sqrt_recip_alpha_bar, std::sqrt(1 / alpha_bar_t));
    set(sqrt_recip_alpha_bar_minus_one, std::sqrt(1 / alpha_bar_t - 1));

    const double beta_tilde_t = (1 - alpha_bar_prev_t) / (1 - alpha_bar_t) * beta_t;  // Eq. 10.
    set(beta_tilde, beta_tilde_t);
    set(log_beta_tilde_clipped, std::log(beta_tilde_t));
    set(mu_tilde_x_0, std::sqrt(alpha_bar_prev_t) * beta_t / (1 - alpha_bar_t));  // Eq. 11.
    set(mu_tilde_x_t, std::sqrt(alpha_t) * (1 - alpha_bar_prev_t) / (1 - alpha_bar_t));
    alpha_bar_prev_t = alpha_bar_t;
  }
  // A process of one step has no second one to take it from: beta is the only variance there is.
  double* log_clipped = log_beta_tilde_clipped.data<double>();
  log_clipped[0] = T > 1 ? log_clipped[1] : std::log(betas[0]);
}

}  // namespace mutilde
