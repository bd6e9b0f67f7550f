#include "diffusion/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mutilde {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::unique_ptr<UNet> fresh_unet(const Settings& settings, Device device) {
  Generator random = random_for(settings, RandomPurpose::kWeights, 0);
  std::unique_ptr<UNet> unet = make_unet(settings, random);
  unet->to(device);
  return unet;
}

AdamWOptions optimizer_options(const Settings& settings) {
  AdamWOptions options;
  options.lr = settings.lr;
  options.weight_decay = settings.weight_decay;
  options.ema_rates = parse_rates("ema_rate", settings.ema_rate);
  options.ema_warmup = settings.ema_warmup;
  return options;
}

Tensor joined(const std::vector<Tensor>& parts) {
  return parts.front().defined() ? concat(parts) : Tensor();
}

double weighted_mean(const Tensor& losses, const Tensor& weights) {
  return losses.defined() ? mean(losses * weights).item() : kNone;
}

/// A step's own state, while it lives: the network in training mode, gradients from zero. Nothing
/// of it stays behind, whatever is thrown.
class StepScope {
 public:
  StepScope(UNet& unet, AdamW& optimizer) : unet_(unet), optimizer_(optimizer) {
    unet_.train();
    optimizer_.zero_grad();
  }
  ~StepScope() {
    unet_.train(false);
    optimizer_.zero_grad();
  }
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

 private:
  UNet& unet_;
  AdamW& optimizer_;
};

}  // namespace

Generator random_for(const Settings& settings, RandomPurpose purpose, int64_t index) {
  return Generator(static_cast<uint64_t>(settings.seed),
                   (static_cast<uint64_t>(purpose) << 56) | static_cast<uint64_t>(index));
}

TrainingBatch TrainingBatch::rows(int64_t begin, int64_t end) const {
  const auto part = [&](const Tensor& x) { return x.defined() ? x.slice(begin, end) : Tensor(); };
  return {part(x_0), part(t), part(eps), part(weights), part(y), part(low_res)};
}

TrainingLosses accumulate_gradients(const UNet& unet, const GaussianDiffusion& diffusion,
                                    const TrainingBatch& batch, double scale) {
  const Model model = [&](const Tensor& x_t, const Tensor& t) {
    return unet.forward(x_t, t, batch.y, batch.low_res);
  };
  const TrainingLosses losses = training_losses(diffusion, model, batch.x_0, batch.t, batch.eps);
  (sum(losses.loss * batch.weights) * scale).backward();
  const auto value = [](const Tensor& x) { return x.defined() ? x.detach() : Tensor(); };
  return {value(losses.loss), value(losses.mse), value(losses.vb)};
}

double learning_rate(const Settings& settings, int64_t step) {
  if (settings.lr_anneal_steps == 0) return settings.lr;
  const double done = static_cast<double>(step) / static_cast<double>(settings.lr_anneal_steps);
  return settings.lr * std::max(0.0, 1 - done);
}

Tensor downsampled(const Settings& settings, const Tensor& x_0) {
  return avg_pool2d(x_0, settings.image_size / settings.small_size);
}

Trainer::Trainer(const Settings& settings, Device device)
    : settings_(settings),
      device_(device),
      unet_(fresh_unet(settings, device)),
      diffusion_(make_diffusion(settings)),
      sampler_(make_timestep_sampler(settings.schedule_sampler, diffusion_.T())),
      optimizer_(unet_->named_parameters(), optimizer_options(settings)) {}

const std::vector<NamedParameter>& Trainer::sampling_parameters() const {
  return settings_.ema_rate.empty() ? optimizer_.parameters() : optimizer_.ema(0);
}

TrainingBatch Trainer::draw(const Tensor& x_0, const Tensor& y) const {
  const int64_t step = step_count();
  Generator timesteps = random_for(settings_, RandomPurpose::kTimesteps, step);
  Generator noise = random_for(settings_, RandomPurpose::kNoise, step);
  const TimestepSample sample = sampler_->sample(x_0.size(0), timesteps, device_);
  TrainingBatch batch;
  batch.x_0 = x_0.to(device_);
  batch.t = sample.t;
  batch.weights = sample.weights;
  batch.eps = noise.normal(x_0.shape(), DType::kFloat32, device_);
  if (settings_.class_cond) batch.y = y.to(device_);
  if (settings_.small_size > 0) batch.low_res = downsampled(settings_, batch.x_0);
  return batch;
}

StepReport Trainer::step(const Tensor& x_0, const Tensor& y) { return step_on(draw(x_0, y)); }

StepReport Trainer::step_on(const TrainingBatch& batch) {
  const int64_t N = batch.size();
  const int64_t at_once = settings_.microbatch > 0 ? settings_.microbatch : N;
  const StepScope scope(*unet_, optimizer_);
  std::vector<Tensor> losses, mse, vb;
  // Dropout goes on from one microbatch to the next within the step's stream.
  unet_->set_dropout_random(
      random_for(settings_, RandomPurpose::kDropout, step_count()).position());
  for (int64_t begin = 0; begin < N; begin += at_once) {
    const TrainingBatch part = batch.rows(begin, std::min(N, begin + at_once));
    const TrainingLosses part_losses =
        accumulate_gradients(*unet_, diffusion_, part, 1 / static_cast<double>(N));
    losses.push_back(part_losses.loss);
    mse.push_back(part_losses.mse);
    vb.push_back(part_losses.vb);
  }

  const NoGrad no_grad;
  const TrainingLosses all{joined(losses), joined(mse), joined(vb)};
  StepReport result = report(batch, all);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    fail<Error>("train: the loss of step {} is {}, its gradient's norm {}; a lower lr may help",
                result.step, result.loss, result.grad_norm);
  }
  sampler_->update_with_losses(batch.t, all.loss);
  optimizer_.step(result.lr);
  images_seen_ += N;
  return result;
}

StepReport Trainer::report(const TrainingBatch& batch, const TrainingLosses& losses) const {
  StepReport result;
  result.step = step_count() + 1;
  result.loss = weighted_mean(losses.loss, batch.weights);
  result.mse = weighted_mean(losses.mse, batch.weights);
  result.vb = weighted_mean(losses.vb, batch.weights);
  result.grad_norm = optimizer_.gradient_norm();
  result.lr = learning_rate(settings_, step_count());

  const std::vector<double> weighted = (losses.loss * batch.weights).to_vector<double>();
  const std::vector<int64_t> t = batch.t.to_vector<int64_t>();
  std::array<double, 4> total{}, count{};
  for (size_t i = 0; i < t.size(); ++i) {
    const auto quartile = static_cast<size_t>(4 * t[i] / diffusion_.T());
    total[quartile] += weighted[i];
    ++count[quartile];
  }
  for (size_t q = 0; q < 4; ++q)
    result.loss_quartile[q] = count[q] > 0 ? total[q] / count[q] : kNone;
  return result;
}

}  // namespace mutilde
