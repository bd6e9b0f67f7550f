// Which timesteps to train on: all alike, or more often those with a large loss (Improved DDPM,
// section 3.3). Weights keep the expected loss what it is under uniform sampling.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"

namespace mutilde {

/// A batch's timesteps and the weights for its losses.
struct TimestepSample {
  Tensor t;        // int64, [N]
  Tensor weights;  // float32, [N]: 1 / (T p_t)
};

class TimestepSampler {
 public:
  virtual ~TimestepSampler() = default;

  /// p_t, sums to 1.
  virtual std::vector<double> probabilities() const = 0;
  /// Tells the sampler what the losses were, [N] each (unweighted).
  /// Throws Error for one that is not finite.
  virtual void update_with_losses(const Tensor& t, const Tensor& losses);
  /// Whether it learns from them, so that the next sample must wait for the losses of this one.
  virtual bool wants_losses() const { return false; }

  /// What a checkpoint must hold for a resumed run to go on as if it had never stopped.
  virtual std::map<std::string, Tensor> state() const { return {}; }
  /// Throws Error if the state is not of this kind of sampler and of this T.
  virtual void restore(const std::map<std::string, Tensor>& state);

  /// Chosen on the CPU, then moved to the device.
  TimestepSample sample(int64_t n, Generator& generator, Device device = {}) const;
};

class UniformSampler : public TimestepSampler {
 public:
  /// Throws Error if T < 1.
  explicit UniformSampler(int64_t T);
  std::vector<double> probabilities() const override;

 private:
  int64_t T_;
};

/// Eq. 18: p_t grows with sqrt(E[L_t^2]), taken over the last losses of each t; uniform until there
/// are enough of them for every t. A small share of uniform sampling keeps every t alive.
class LossSecondMomentSampler : public TimestepSampler {
 public:
  explicit LossSecondMomentSampler(int64_t T, int64_t history = 10, double uniform_share = 0.001);
  std::vector<double> probabilities() const override;
  void update_with_losses(const Tensor& t, const Tensor& losses) override;
  bool wants_losses() const override { return true; }
  std::map<std::string, Tensor> state() const override;
  void restore(const std::map<std::string, Tensor>& state) override;
  /// True once every t has its full history.
  bool warm() const;

 private:
  int64_t T_;
  int64_t history_;
  double uniform_share_;
  std::vector<double> losses_;   // [T, history], oldest first
  std::vector<int64_t> counts_;  // [T]
};

/// "uniform" or "loss-second-moment". Throws Error for another name.
std::unique_ptr<TimestepSampler> make_timestep_sampler(const std::string& name, int64_t T);

}  // namespace mutilde
