// The loop of `mutilde train`: steps, and now and then a row, a picture, a checkpoint.
#pragma once

#include <chrono>
#include <filesystem>

#include "app/progress.h"
#include "app/run_folder.h"
#include "data/dataset.h"
#include "data/loader.h"
#include "diffusion/trainer.h"

namespace mutilde::app {

struct RunOptions {
  int64_t log_interval = 10, save_interval = 1000, keep = 3;
  int64_t sample_interval = 500, num_samples = 16, sample_steps = 25;
};

class TrainRun {
 public:
  /// Writes into the folder `out`, which is there.
  /// The dataset and the trainer must outlive the run.
  TrainRun(const RunOptions& options, std::filesystem::path out, const Dataset& dataset,
           Trainer& trainer);

  /// Trains to the last step of the settings, or until interrupted; returns the exit code. An
  /// exception leaves only after what was trained before it is saved.
  int run();

 private:
  using Clock = std::chrono::steady_clock;

  void train();
  void step();
  void note_steps();
  void settle();
  void save();
  void save_after_error() noexcept;
  void draw_loss();
  void sample();
  Tensor samples() const;
  Tensor low_res_for_samples() const;
  int finish(bool stopped, double seconds);

  RunOptions options_;
  std::filesystem::path out_;
  const Dataset& dataset_;
  Trainer& trainer_;
  BatchLoader loader_;
  int64_t end_;  // 0: none
  ProgressLog log_;
  Progress progress_;
  double recent_loss_ = 0;
  double unnoted_seconds_ = 0;  // of steps that are not in the log yet
  int64_t first_step_;          // done before this run
  int64_t last_saved_ = -1, last_sampled_ = -1;
};

}  // namespace mutilde::app
