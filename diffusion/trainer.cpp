#include "diffusion/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

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

/// [1], float64.
Tensor weighted_mean(const Tensor& losses, const Tensor& weights) {
  if (!losses.defined()) return Tensor::full({1}, kNone, DType::kFloat64, weights.device());
  return mean(losses * weights).reshape({1}).to(DType::kFloat64);
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
  start(batch);
  settle();
  const StepReport result = reports_.back();
  reports_.pop_back();
  return result;
}

void Trainer::start_step(const Tensor& x_0, const Tensor& y) { start(draw(x_0, y)); }

void Trainer::scale_losses(double lg) {
  settle();  // a step that is under way has the scale that it began with
  lg_loss_scale_ = lg;
}

std::vector<StepReport> Trainer::take_reports() { return std::exchange(reports_, {}); }

void Trainer::start(const TrainingBatch& batch) {
  Started started;
  started.report.step = step_count() + 1;
  started.report.lr = learning_rate(settings_, step_count());
  started.N = batch.size();
  started.numbers =
      Tensor::empty({4 + 3 * started.N}, DType::kFloat64);  // what can fail fails here
  Tensor numbers;
  backend(device_).launch_together([&] {
    const StepScope scope(*unet_, optimizer_);
    numbers = update(started, batch, backward(batch));
  });
  images_seen_ += started.N;
  started.wait =
      backend(numbers).start_copy_to_host(numbers.raw(), started.numbers.raw(), numbers.bytes());
  started_.push_back(std::move(started));
  const bool wait =
      device_ == Device::cpu() || sampler_->wants_losses() || lg_loss_scale_.has_value();
  settle_all_but(wait ? 0 : 1);
}

TrainingLosses Trainer::backward(const TrainingBatch& batch) {
  const int64_t N = batch.size();
  const int64_t at_once = settings_.microbatch > 0 ? settings_.microbatch : N;
  std::vector<Tensor> losses, mse, vb;
  // Dropout goes on from one microbatch to the next within the step's stream.
  unet_->set_dropout_random(
      random_for(settings_, RandomPurpose::kDropout, step_count()).position());
  for (int64_t begin = 0; begin < N; begin += at_once) {
    const TrainingBatch part = batch.rows(begin, std::min(N, begin + at_once));
    const TrainingLosses part_losses =
        accumulate_gradients(*unet_, diffusion_, part, loss_scale() / static_cast<double>(N));
    losses.push_back(part_losses.loss);
    mse.push_back(part_losses.mse);
    vb.push_back(part_losses.vb);
  }
  return {joined(losses), joined(mse), joined(vb)};
}

/// Whether its loss and gradient are finite, so that the parameters may be updated, the device finds
/// out by itself, and the host hears of it later: a step that is void voids those that were started
/// after it.
Tensor Trainer::update(Started& started, const TrainingBatch& batch, const TrainingLosses& losses) {
  const NoGrad no_grad;
  const Tensor loss = weighted_mean(losses.loss, batch.weights);
  const Tensor squared_norm = optimizer_.squared_gradient_norm().reshape({1});
  started.finite = squared_norm + 0.0 * loss;
  if (!started_.empty()) started.finite = started.finite + 0.0 * started_.back().finite;
  const Tensor numbers = concat({loss, weighted_mean(losses.mse, batch.weights),
                                 weighted_mean(losses.vb, batch.weights), squared_norm,
                                 (losses.loss * batch.weights).to(DType::kFloat64),
                                 losses.loss.to(DType::kFloat64), batch.t.to(DType::kFloat64)});
  optimizer_.step(started.report.lr, started.finite, 1 / loss_scale());
  return numbers;
}

void Trainer::settle_all_but(size_t last) {
  while (started_.size() > last) {
    const Started& oldest = started_.front();
    oldest.wait();
    settle(oldest);
    started_.pop_front();
  }
}

void Trainer::settle(const Started& started) {
  constexpr double kGrowth = 0.001;  // of lg, as in the original
  const int64_t N = started.N;
  StepReport result = report(started);
  const bool finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (!finite && lg_loss_scale_ && *lg_loss_scale_ >= 1) {
    *lg_loss_scale_ -= 1;
    set_step_count(result.step, skipped_steps_ + 1);
    result.skipped = true;
  } else if (!finite) {
    set_step_count(result.step - 1, skipped_steps_);
    for (const Started& dropped : started_) images_seen_ -= dropped.N;
    started_.clear();
    fail<Error>("train: the loss of step {} is {}, its gradient's norm {}; a lower lr may help",
                result.step, result.loss, result.grad_norm);
  } else if (lg_loss_scale_) {
    *lg_loss_scale_ += kGrowth;
  }
  const Tensor& numbers = started.numbers;
  if (std::isfinite(result.loss)) {
    sampler_->update_with_losses(numbers.slice(4 + 2 * N, 4 + 3 * N),
                                 numbers.slice(4 + N, 4 + 2 * N));
  }
  reports_.push_back(result);
}

void Trainer::set_step_count(int64_t count, int64_t skipped) {
  optimizer_.set_step_count(count - skipped);
  skipped_steps_ = skipped;
}

StepReport Trainer::report(const Started& started) const {
  const std::span<const double> numbers = started.numbers.values<double>();
  StepReport result = started.report;
  result.loss = numbers[0];
  result.mse = numbers[1];
  result.vb = numbers[2];
  result.grad_norm = std::sqrt(numbers[3]) / loss_scale();

  const auto N = static_cast<size_t>(started.N);
  const auto weighted = numbers.subspan(4, N), t = numbers.subspan(4 + 2 * N, N);
  std::array<double, 4> total{}, count{};
  for (size_t i = 0; i < N; ++i) {
    const auto quartile = static_cast<size_t>(4 * static_cast<int64_t>(t[i]) / diffusion_.T());
    total[quartile] += weighted[i];
    ++count[quartile];
  }
  for (size_t q = 0; q < 4; ++q)
    result.loss_quartile[q] = count[q] > 0 ? total[q] / count[q] : kNone;
  return result;
}

}  // namespace mutilde
