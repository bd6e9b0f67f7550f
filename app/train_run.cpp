#include "app/train_run.h"

#include <algorithm>
#include <cmath>
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

bool all_finite(const std::vector<NamedParameter>& parameters) {
  for (const NamedParameter& parameter : parameters) {
    for (double value : parameter.value.to_vector<double>()) {
      if (!std::isfinite(value)) return false;
    }
  }
  return true;
}

/// Ends the sampling of a grid.
struct Interrupted {};

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
      progress_("step", trainer.step_count(), end_, options.log_interval),
      first_step_(trainer.step_count()) {}

int TrainRun::run() {
  catch_interrupts();
  const auto begin = Clock::now();
  try {
    train();
  } catch (...) {
    save_after_error();
    throw;
  }
  const bool stopped = interrupted();
  const bool sampling = !stopped && options_.sample_interval > 0;
  if (sampling && last_sampled_ != trainer_.step_count()) sample();
  progress_.clear();
  return finish(stopped, seconds_since(begin));
}

void TrainRun::train() {
  while ((end_ == 0 || trainer_.step_count() < end_) && !interrupted()) step();
  settle();
  log_.write_row();
  if (last_saved_ != trainer_.step_count()) save();
}

void TrainRun::step() {
  const auto begin = Clock::now();
  const Batch batch = loader_.next();
  trainer_.start_step(batch.x, batch.y);
  unnoted_seconds_ += seconds_since(begin);
  note_steps();
  const auto due = [&](int64_t interval) {
    return interval > 0 && trainer_.step_count() % interval == 0;
  };
  if (due(options_.save_interval)) save();
  if (due(options_.sample_interval)) sample();
}

/// Into the log, and onto the screen, what is known of steps: on a GPU, all but the last.
void TrainRun::note_steps() {
  const std::vector<StepReport> reports = trainer_.take_reports();
  for (const StepReport& report : reports) {
    log_.add(report, trainer_.settings().batch_size, std::exchange(unnoted_seconds_, 0));
    if (report.skipped) {  // each step is noted by itself then, so that the scale is this one's
      progress_.message(
          fmt::format("step {} skipped: its loss or gradient is not finite; "
                      "lg_loss_scale is {:.3f} now",
                      report.step, *trainer_.lg_loss_scale()));
    }
    if (std::isfinite(report.loss))
      recent_loss_ = recent_loss_ == 0 ? report.loss : 0.9 * recent_loss_ + 0.1 * report.loss;
    progress_.update(report.step, fmt::format("loss {:.4f}  {:.1f} images/s", recent_loss_,
                                              log_.images_per_second()));
    if (report.step % options_.log_interval == 0) log_.write_row();
  }
}

void TrainRun::settle() {
  const auto begin = Clock::now();
  trainer_.settle();
  unnoted_seconds_ += seconds_since(begin);
  note_steps();
}

void TrainRun::save() {
  settle();
  const int64_t step = trainer_.step_count();
  const Saving saving;
  save_checkpoint(numbered_file(out_, "checkpoint", step, "safetensors"), trainer_);
  last_saved_ = step;
  prune_checkpoints(out_, options_.keep, step);
  draw_loss();
}

/// A picture is not worth a run: what goes wrong with one is a warning.
void TrainRun::draw_loss() {
  try {
    log_.draw(out_ / "loss.png");
  } catch (const std::exception& error) {
    progress_.message(fmt::format("warning: no plot of the loss: {}", error.what()));
  }
}

/// A step that failed left the weights as they were, so they are worth keeping (unless the step
/// before it broke them, or the device is lost with all that is on it); the older checkpoints stay
/// too, for a loss that went wrong some steps ago.
void TrainRun::save_after_error() noexcept {
  const Saving saving;
  const auto attempt = [](const auto& action) {
    try {
      action();
    } catch (...) {  // the first error is the one to report
    }
  };
  attempt([&] { settle(); });
  attempt([&] { progress_.clear(); });
  attempt([&] { log_.write_row(); });
  attempt([&] {
    const int64_t step = trainer_.step_count();
    const bool trained = step != first_step_ && step != last_saved_;
    if (trained) {
      try {
        if (!all_finite(trainer_.optimizer().parameters()))
          fail<Error>("its weights are not finite");
        save_checkpoint(numbered_file(out_, "checkpoint", step, "safetensors"), trainer_);
        draw_loss();
      } catch (const std::exception& error) {
        note(fmt::format("what was trained to step {} could not be saved: {}\n", step,
                         error.what()));
      }
    }
    const auto found = checkpoints_in(out_);
    if (!found.empty()) {
      const auto& [last, path] = *found.rbegin();
      note(fmt::format("the last checkpoint is of step {}; to go on: mutilde train --resume {}\n",
                       last, path.string()));
    } else if (trained) {
      note("there is no checkpoint\n");
    }
  });
}

/// The first images of the data set, made small: super-resolution starts from them.
Tensor TrainRun::low_res_for_samples() const {
  const int64_t size = dataset_.image_size(), N = options_.num_samples;
  const Tensor pixels = Tensor::empty({N, size, size, dataset_.channels()}, DType::kUInt8);
  for (int64_t i = 0; i < N; ++i)
    dataset_.get(i % dataset_.size(), pixels.slice(i, i + 1).values<uint8_t>());
  return downsampled(trainer_.settings(), from_uint8(pixels));
}

/// A grid of samples(), unless an interrupt comes. As with the plot, what goes wrong is a warning.
void TrainRun::sample() {
  settle();
  last_sampled_ = trainer_.step_count();
  try {
    write_png(numbered_file(out_, "samples", last_sampled_, "png"), image_grid(samples()));
  } catch (const Interrupted&) {
  } catch (const std::exception& error) {
    progress_.message(
        fmt::format("warning: no samples after step {}: {}", last_sampled_, error.what()));
  }
}

/// From the averaged weights, by a few DDIM steps, always from the same noise.
Tensor TrainRun::samples() const {
  const NoGrad no_grad;
  const Settings& settings = trainer_.settings();
  const SwappedParameters swapped(trainer_.optimizer().parameters(),
                                  trainer_.sampling_parameters());
  SampleRequest request;
  request.count = options_.num_samples;
  request.seed = settings.seed;
  request.use_ddim = true;
  request.options.on_step = [](const SamplingStep&) {
    if (interrupted()) throw Interrupted{};
  };
  request.device = trainer_.device();
  if (settings.class_cond) request.y = cycling_classes(0, request.count, settings.num_classes);
  if (settings.small_size > 0) request.low_res = low_res_for_samples();
  const int64_t steps = std::min(options_.sample_steps, settings.diffusion_steps);
  return sample_images(trainer_.unet(), settings, make_diffusion(settings, std::to_string(steps)),
                       request);
}

int TrainRun::finish(bool stopped, double seconds) {
  const int64_t step = trainer_.step_count();
  const std::string checkpoint = numbered_file(out_, "checkpoint", step, "safetensors").string();
  if (stopped) {
    note(fmt::format("stopped after step {}; to go on: mutilde train --resume {}\n", step,
                     checkpoint));
    return kInterrupted;
  }
  fmt::print("trained to step {} in {}; loss {:.4g}\n  {}\n", step, duration_text(seconds),
             recent_loss_, checkpoint);
  const auto samples = numbered_file(out_, "samples", step, "png");
  if (last_sampled_ == step && std::filesystem::is_regular_file(samples))
    fmt::print("  {}\n", samples.string());
  fmt::print("  {}\nto make images: mutilde sample {}\n", (out_ / "loss.png").string(), checkpoint);
  return 0;
}

}  // namespace mutilde::app
