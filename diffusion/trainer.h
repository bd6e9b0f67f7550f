// Training: a step is a pure function of the settings, the state so far and the step's number. All
// random numbers are keyed by (seed, purpose, step), so a run that was stopped and resumed gives,
// bit for bit, what an uninterrupted one gives.
#pragma once

#include <array>
#include <memory>

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
};

class Trainer {
 public:
  /// Fresh weights, on the device on which all steps run. Throws Error for settings that validate()
  /// refuses.
  explicit Trainer(const Settings& settings, Device device = {});

  /// One step on a batch of images [N, H, W, C] in [-1, 1] and their classes [N]: draws timesteps
  /// and noise for them, and goes on as step_on() does. The images may be on the CPU.
  StepReport step(const Tensor& x_0, const Tensor& y);
  /// Microbatches bound the memory: the gradient stays that of the whole batch's mean loss (but for
  /// what dropout drops). (The original adds up the gradients of each microbatch's mean, so that
  /// the gradient grows with their number.) Throws Error if the loss is not finite, ShapeError for
  /// images that do not fit; whatever is thrown before the update, nothing is changed.
  StepReport step_on(const TrainingBatch& batch);

  const Settings& settings() const { return settings_; }
  Device device() const { return device_; }
  int64_t step_count() const { return optimizer_.step_count(); }
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
  TrainingBatch draw(const Tensor& x_0, const Tensor& y) const;
  StepReport report(const TrainingBatch& batch, const TrainingLosses& losses) const;

  Settings settings_;
  Device device_;
  std::unique_ptr<UNet> unet_;
  SpacedDiffusion diffusion_;
  std::unique_ptr<TimestepSampler> sampler_;
  AdamW optimizer_;
  int64_t images_seen_ = 0;
};

/// The smaller image that super-resolution starts from: each pixel the mean of a block.
Tensor downsampled(const Settings& settings, const Tensor& x_0);

}  // namespace mutilde
