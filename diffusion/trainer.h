// Training: a step is a pure function of the settings, the state so far and the step's number. All
// random numbers are keyed by (seed, purpose, step), so a run that was stopped and resumed gives,
// bit for bit, what an uninterrupted one gives.
#pragma once

#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "core/random.h"
#include "diffusion/losses.h"
#include "diffusion/settings.h"
#include "diffusion/timestep_sampler.h"
#include "nn/optimizer.h"

namespace mutilde {

/// What random numbers are for: each has streams of its own.
enum class RandomPurpose : uint64_t { kWeights = 1, kTimesteps, kNoise, kDropout, kSamples };
/// `index`: the step, or the sample; below 2^56.
Generator random_for(const Settings& settings, RandomPurpose purpose, int64_t index);

/// A batch with all that a step draws for it; a row an image.
struct TrainingBatch {
  Tensor x_0;      // [N, H, W, C]
  Tensor t;        // [N] int64
  Tensor eps;      // [N, H, W, C]
  Tensor weights;  // [N], of the losses
  Tensor y;        // [N] int64, with classes; else undefined
  Tensor low_res;  // [N, h, w, C], for super-resolution; else undefined

  int64_t size() const { return x_0.size(0); }
  TrainingBatch rows(int64_t begin, int64_t end) const;
};

/// Adds the gradient of scale * sum_i weights_i loss_i to the parameters' gradients; returns the
/// losses, without weights, outside the graph.
TrainingLosses accumulate_gradients(const UNet& unet, const GaussianDiffusion& diffusion,
                                    const TrainingBatch& batch, double scale);

/// The learning rate of the step that follows `step` others: lr, or falling straight to 0.
double learning_rate(const Settings& settings, int64_t step);

struct StepReport {
  int64_t step = 0;  // steps done, with this one
  // Weighted means over the batch. NaN: the loss has no such part, or no image fell into the
  // quartile of t.
  double loss = 0, mse = 0, vb = 0;
  std::array<double, 4> loss_quartile{};
  double grad_norm = 0;
  double lr = 0;
  bool skipped = false;  // its gradients overflowed; see Trainer::scale_losses()
};

class Trainer {
 public:
  /// Fresh weights, on the device on which all steps run. Throws Error for settings that validate()
  /// refuses.
  explicit Trainer(const Settings& settings, Device device = {});

  /// One step on a batch of images [N, H, W, C] in [-1, 1] and their classes [N]: draws timesteps
  /// and noise for them, and goes on as step_on() does. The images may be on the CPU.
  StepReport step(const Tensor& x_0, const Tensor& y);
  /// The same without waiting for a GPU, which has its next step to work on when the host reads the
  /// numbers of the last one: this settles all steps but the new one. On the CPU, or where the
  /// sampler learns from the losses, the new one too.
  void start_step(const Tensor& x_0, const Tensor& y);
  /// Waits for the numbers of all steps that were started. Throws Error if a loss or gradient is not
  /// finite; it is as if that step, and those after it, had not been started.
  void settle() { settle_all_but(0); }
  bool settled() const { return started_.empty(); }
  /// The reports of started steps that are settled, in order, each once.
  std::vector<StepReport> take_reports();
  /// Microbatches bound the memory: the gradient stays that of the whole batch's mean loss (but for
  /// what dropout drops). (The original adds up the gradients of each microbatch's mean, so that
  /// the gradient grows with their number.) Throws Error if the loss is not finite, ShapeError for
  /// images that do not fit; whatever is thrown before the update, nothing is changed.
  StepReport step_on(const TrainingBatch& batch);

  /// From now on losses are multiplied by 2^lg, for gradients that are computed in float16, where
  /// small ones would vanish; the reports and the optimiser have them divided by it again. A step
  /// whose gradients overflow is no error then: it is skipped (its averages too), and lg falls by 1;
  /// each other step raises it by 0.001. Throws Error where lg falls below 0. Each step waits for
  /// the one before.
  void scale_losses(double lg = 20);
  /// lg, where losses are scaled.
  const std::optional<double>& lg_loss_scale() const { return lg_loss_scale_; }

  const Settings& settings() const { return settings_; }
  Device device() const { return device_; }
  /// With the skipped ones, which the optimiser did not make.
  int64_t step_count() const { return optimizer_.step_count() + skipped_steps_; }
  int64_t skipped_steps() const { return skipped_steps_; }
  void set_step_count(int64_t count, int64_t skipped = 0);
  /// The images of all steps so far, repeated ones too.
  int64_t images_seen() const { return images_seen_; }
  void set_images_seen(int64_t count) { images_seen_ = count; }
  const UNet& unet() const { return *unet_; }
  const SpacedDiffusion& diffusion() const { return diffusion_; }
  AdamW& optimizer() { return optimizer_; }
  const AdamW& optimizer() const { return optimizer_; }
  TimestepSampler& sampler() { return *sampler_; }
  const TimestepSampler& sampler() const { return *sampler_; }
  /// The weights to sample with: the first average, or the parameters themselves if there is none.
  const std::vector<NamedParameter>& sampling_parameters() const;

 private:
  /// A step whose numbers are on their way from the device.
  struct Started {
    StepReport report;  // less the numbers
    int64_t N;
    Tensor finite;   // on the device: [1], float64, not finite if this step is void
    Tensor numbers;  // on the CPU, when wait() was called
    std::function<void()> wait;
  };

  TrainingBatch draw(const Tensor& x_0, const Tensor& y) const;
  void start(const TrainingBatch& batch);
  /// Leaves the gradients in the parameters.
  TrainingLosses backward(const TrainingBatch& batch);
  /// Returns the step's numbers, on the device.
  Tensor update(Started& started, const TrainingBatch& batch, const TrainingLosses& losses);
  void settle_all_but(size_t last);
  void settle(const Started& started);
  double loss_scale() const { return lg_loss_scale_ ? std::exp2(*lg_loss_scale_) : 1; }
  StepReport report(const Started& started) const;

  Settings settings_;
  Device device_;
  std::unique_ptr<UNet> unet_;
  SpacedDiffusion diffusion_;
  std::unique_ptr<TimestepSampler> sampler_;
  AdamW optimizer_;
  std::optional<double> lg_loss_scale_;
  int64_t images_seen_ = 0, skipped_steps_ = 0;
  std::deque<Started> started_;  // and not settled
  std::vector<StepReport> reports_;
};

/// The smaller image that super-resolution starts from: each pixel the mean of a block.
Tensor downsampled(const Settings& settings, const Tensor& x_0);

}  // namespace mutilde
