#include "app/train_run.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "app/commands.h"
#include "app/interrupt.h"
#include "app/sampling.h"
#include "data/image_io.h"
#include "diffusion/checkpoint.h"

namespace mutilde::app {

namespace {

LoaderOptions loader_options(const Trainer& trainer) {
  LoaderOptions options;
  options.batch_size = trainer.settings().batch_size;
  options.seed = static_cast<uint64_t>(trainer.settings().seed);
  options.random_flip = trainer.settings().random_flip;
  options.start_step = trainer.step_count();
  return options;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

TrainRun::TrainRun(const RunOptions& options, std::filesystem::path out, const Dataset& dataset,
                   Trainer& trainer)
    : options_(options),
      out_(std::move(out)),
      dataset_(dataset),
      trainer_(trainer),
      loader_(dataset, loader_options(trainer)),
      end_(trainer.settings().steps > 0 ? trainer.settings().steps
                                        : trainer.settings().lr_anneal_steps),
      log_(out_ / "progress.csv", trainer.step_count()),
      progress_("step", trainer.step_count(), end_, options.log_interval) {}

int TrainRun::run() {
  catch_interrupts();
  const auto begin = Clock::now();
  while ((end_ == 0 || trainer_.step_count() < end_) && !interrupted()) step();
  const bool stopped = interrupted();
  log_.write_row();
  if (last_saved_ != trainer_.step_count()) save();
  const bool sampling = !stopped && options_.sample_interval > 0;
  if (sampling && last_sampled_ != trainer_.step_count()) sample();
  progress_.clear();
  return finish(stopped, seconds_since(begin));
}

void TrainRun::step() {
  const auto begin = Clock::now();
  const Batch batch = loader_.next();
  const StepReport report = trainer_.step(batch.x, batch.y);
  log_.add(report, batch.x.size(0), seconds_since(begin));
  recent_loss_ = recent_loss_ == 0 ? report.loss : 0.9 * recent_loss_ + 0.1 * report.loss;
  progress_.update(report.step, fmt::format("loss {:.4f}  {:.1f} images/s", recent_loss_,
                                            log_.images_per_second()));
  const auto due = [&](int64_t interval) { return interval > 0 && report.step % interval == 0; };
  if (due(options_.log_interval)) log_.write_row();
  if (due(options_.save_interval)) save();
  if (due(options_.sample_interval)) sample();
}

void TrainRun::save() {
  last_saved_ = trainer_.step_count();
  save_checkpoint(numbered_file(out_, "checkpoint", last_saved_, "safetensors"), trainer_);
  prune_checkpoints(out_, options_.keep);
  log_.draw(out_ / "loss.png");
}

/// The first images of the data set, made small: super-resolution starts from them.
Tensor TrainRun::low_res_for_samples() const {
  const int64_t size = dataset_.image_size(), N = options_.num_samples;
  const Tensor pixels = Tensor::empty({N, size, size, dataset_.channels()}, DType::kUInt8);
  for (int64_t i = 0; i < N; ++i)
    dataset_.get(i % dataset_.size(), pixels.slice(i, i + 1).values<uint8_t>());
  return downsampled(trainer_.settings(), from_uint8(pixels));
}

/// A grid from the averaged weights, by a few DDIM steps, always from the same noise.
void TrainRun::sample() {
  last_sampled_ = trainer_.step_count();
  const NoGrad no_grad;
  const Settings& settings = trainer_.settings();
  const SwappedParameters swapped(trainer_.optimizer().parameters(),
                                  trainer_.sampling_parameters());
  SampleRequest request;
  request.count = options_.num_samples;
  request.seed = settings.seed;
  request.use_ddim = true;
  if (settings.class_cond) request.y = cycling_classes(0, request.count, settings.num_classes);
  if (settings.small_size > 0) request.low_res = low_res_for_samples();
  const int64_t steps = std::min(options_.sample_steps, settings.diffusion_steps);
  const Tensor x = sample_images(trainer_.unet(), settings,
                                 make_diffusion(settings, std::to_string(steps)), request);
  write_png(numbered_file(out_, "samples", last_sampled_, "png"), image_grid(x));
}

int TrainRun::finish(bool stopped, double seconds) {
  const int64_t step = trainer_.step_count();
  const std::string checkpoint = numbered_file(out_, "checkpoint", step, "safetensors").string();
  if (stopped) {
    fmt::print(stderr, "stopped after step {}; to go on: mutilde train --resume {}\n", step,
               checkpoint);
    return kInterrupted;
  }
  fmt::print("trained to step {} in {}; loss {:.4g}\n  {}\n", step, duration_text(seconds),
             recent_loss_, checkpoint);
  if (last_sampled_ == step)
    fmt::print("  {}\n", numbered_file(out_, "samples", step, "png").string());
  fmt::print("  {}\nto make images: mutilde sample {}\n", (out_ / "loss.png").string(), checkpoint);
  return 0;
}

}  // namespace mutilde::app
