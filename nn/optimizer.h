// AdamW (Loshchilov and Hutter 2019) with any number of exponential moving averages of the
// parameters, all in one pass over memory.
#pragma once

#include <vector>

#include "nn/module.h"

namespace mutilde {

struct AdamWOptions {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, weight_decay = 0.0;
  std::vector<double> ema_rates;  // ema = rate * ema + (1 - rate) * parameter, after each step
  /// Average faster at first: a step uses min(rate, (1 + step) / (10 + step)).
  bool ema_warmup = false;
};

class AdamW {
 public:
  /// The averages start as copies of the parameters.
  /// Throws Error for a rate or beta outside [0, 1).
  AdamW(std::vector<NamedParameter> parameters, AdamWOptions options);

  /// One step at learning rate `lr` with the gradients that backward() left, times `grad_scale`;
  /// parameters without a gradient keep still, but for their averages. The gradients stay:
  /// zero_grad() drops them. `only_if_finite`: a float64 on the parameters' device; unless it is
  /// finite nothing moves, though the step counts.
  void step(double lr, const Tensor& only_if_finite = {}, double grad_scale = 1);
  void zero_grad();
  /// The square of the norm of all gradients: [], float64, on the parameters' device.
  Tensor squared_gradient_norm() const;

  int64_t step_count() const { return step_count_; }
  void set_step_count(int64_t count) { step_count_ = count; }
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  /// The same names and layouts as parameters().
  const std::vector<NamedParameter>& first_moments() const { return first_moments_; }
  const std::vector<NamedParameter>& second_moments() const { return second_moments_; }
  const std::vector<NamedParameter>& ema(size_t rate_index) const { return emas_.at(rate_index); }

 private:
  AdamWOptions options_;
  std::vector<NamedParameter> parameters_, first_moments_, second_moments_;
  std::vector<std::vector<NamedParameter>> emas_;  // by rate
  int64_t step_count_ = 0;
};

/// Exchanges the parameters' values with another set (an average) while it lives. Throws
/// ShapeError, with nothing exchanged, if the sets do not fit.
class SwappedParameters {
 public:
  SwappedParameters(const std::vector<NamedParameter>& parameters,
                    const std::vector<NamedParameter>& others);
  ~SwappedParameters();
  SwappedParameters(const SwappedParameters&) = delete;
  SwappedParameters& operator=(const SwappedParameters&) = delete;

 private:
  void put_back();

  std::vector<NamedParameter> parameters_;
  std::vector<Tensor> saved_;
};

}  // namespace mutilde
