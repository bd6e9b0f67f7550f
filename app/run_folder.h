// The folder of a training run: progress.csv, loss.png, samples_<step>.png,
// checkpoint_<step>.safetensors.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "diffusion/trainer.h"

namespace mutilde::app {

/// A row of progress.csv: the means over the steps since the row before.
class ProgressLog {
 public:
  /// Keeps the rows up to `step` of a file that is there, and appends to them. Throws FileError.
  ProgressLog(std::filesystem::path path, int64_t step);

  /// Notes a step, and how long it took.
  void add(const StepReport& report, int64_t images, double seconds);
  /// Writes the row of the steps noted since the last one, if any.
  void write_row();
  /// The rate over the steps noted since the last row, or in it.
  double images_per_second() const;
  /// Draws loss.png beside the file.
  void draw(const std::filesystem::path& path) const;

 private:
  struct Mean {
    double sum = 0, count = 0;
  };

  std::filesystem::path path_;
  std::vector<double> steps_, losses_;  // of the rows so far, for the plot
  std::map<std::string, Mean> means_;
  StepReport last_;
  double images_ = 0, seconds_ = 0, rate_ = 0;
};

/// "checkpoint_000500.safetensors" and the like.
std::filesystem::path numbered_file(const std::filesystem::path& folder, const std::string& kind,
                                    int64_t step, const std::string& extension);
/// A run's checkpoints by step.
std::map<int64_t, std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);
/// The file itself, or the newest checkpoint if `path` is a folder. Throws FileError if there is
/// none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
/// Removes all but the last `keep` checkpoints up to `step` (0: keeps all). Later ones are not this
/// run's, and stay.
void prune_checkpoints(const std::filesystem::path& folder, int64_t keep, int64_t step);
/// Removes what an earlier run left, and nothing else.
void remove_run(const std::filesystem::path& folder);

}  // namespace mutilde::app
