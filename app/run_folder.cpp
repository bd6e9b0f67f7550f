#include "app/run_folder.h"

#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>

#include "app/plot.h"
#include "core/atomic_file.h"
#include "data/image_io.h"

namespace fs = std::filesystem;

namespace mutilde::app {

namespace {

constexpr const char* kColumns[] = {"loss",    "mse",     "vb",        "loss_q0", "loss_q1",
                                    "loss_q2", "loss_q3", "grad_norm", "lr",      "images_per_s"};

std::string header_line() { return fmt::format("step,{}\n", fmt::join(kColumns, ",")); }

/// The number in samples_000500.png, or -1.
int64_t number_in(const fs::path& path, const std::string& kind, const std::string& extension) {
  const std::string name = path.filename().string();
  const std::string start = kind + "_", end = "." + extension;
  if (!name.starts_with(start) || !name.ends_with(end) || name.size() <= start.size() + end.size())
    return -1;
  int64_t step = -1;
  const char* const last = name.data() + name.size() - end.size();
  const auto [next, error] = std::from_chars(name.data() + start.size(), last, step);
  return error == std::errc{} && next == last ? step : -1;
}

}  // namespace

ProgressLog::ProgressLog(fs::path path, int64_t step) : path_(std::move(path)) {
  std::string kept = header_line();
  std::ifstream in(path_);
  std::string line;
  std::getline(in, line);  // the header
  while (step > 0 && std::getline(in, line)) {
    std::istringstream cells(line);
    double row_step = 0, loss = 0;
    char comma = 0;
    if (!(cells >> row_step >> comma >> loss) || row_step > static_cast<double>(step)) break;
    kept += line + "\n";
    steps_.push_back(row_step);
    losses_.push_back(loss);
  }
  in.close();
  atomic_write(path_, [&](FileWriter& writer) { writer.write(kept); });
}

void ProgressLog::add(const StepReport& report, int64_t images, double seconds) {
  const auto note = [&](const char* column, double value) {
    if (!std::isfinite(value)) return;
    means_[column].sum += value;
    ++means_[column].count;
  };
  note("loss", report.loss);
  note("mse", report.mse);
  note("vb", report.vb);
  for (size_t q = 0; q < 4; ++q) note(kColumns[3 + q], report.loss_quartile[q]);
  note("grad_norm", report.grad_norm);
  last_ = report;
  images_ += static_cast<double>(images);
  seconds_ += seconds;
  rate_ = images_ / seconds_;
}

void ProgressLog::write_row() {
  if (means_.empty()) return;
  means_["lr"] = {last_.lr, 1};
  means_["images_per_s"] = {rate_, 1};
  std::string row = std::to_string(last_.step);
  for (const char* column : kColumns) {
    const Mean& mean = means_[column];
    row += mean.count > 0 ? fmt::format(",{:.6g}", mean.sum / mean.count) : ",";
  }
  std::ofstream out(path_, std::ios::app);
  out << row << "\n" << std::flush;
  if (!out) fail<FileError>("{}: cannot be written", path_.string());
  steps_.push_back(static_cast<double>(last_.step));
  losses_.push_back(means_["loss"].sum / means_["loss"].count);
  means_.clear();
  images_ = seconds_ = 0;
}

double ProgressLog::images_per_second() const { return rate_; }

void ProgressLog::draw(const fs::path& path) const {
  const Curve each{"", {176, 196, 232}, 1.2, steps_, losses_};
  const Curve mean{"smoothed", {28, 78, 178}, 2.5, steps_, smoothed(losses_, 0.08)};
  write_png(path, draw_plot("training loss", "step", {each, mean}));
}

fs::path numbered_file(const fs::path& folder, const std::string& kind, int64_t step,
                       const std::string& extension) {
  return folder / fmt::format("{}_{:06}.{}", kind, step, extension);
}

std::map<int64_t, fs::path> checkpoints_in(const fs::path& folder) {
  std::map<int64_t, fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const int64_t step = number_in(entry.path(), "checkpoint", "safetensors");
    if (step >= 0) found[step] = entry.path();
  }
  return found;
}

fs::path find_checkpoint(const fs::path& path) {
  if (!fs::exists(path))
    fail<FileError>("{}: there is neither a checkpoint nor a run folder of this name",
                    path.string());
  if (!fs::is_directory(path)) return path;
  const auto found = checkpoints_in(path);
  if (found.empty())
    fail<FileError>("{}: there is no checkpoint_*.safetensors in this folder", path.string());
  return found.rbegin()->second;
}

void prune_checkpoints(const fs::path& folder, int64_t keep, int64_t step) {
  if (keep <= 0) return;
  auto found = checkpoints_in(folder);
  found.erase(found.upper_bound(step), found.end());
  while (static_cast<int64_t>(found.size()) > keep) {
    fs::remove(found.begin()->second);
    found.erase(found.begin());
  }
}

void remove_run(const fs::path& folder) {
  std::vector<fs::path> ours;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const fs::path& path = entry.path();
    const std::string name = path.filename().string();
    const bool left_over = name.starts_with("checkpoint_") && name.find(".tmp-") != name.npos;
    const bool named = name == "progress.csv" || name == "loss.png" || left_over;
    if (named || number_in(path, "checkpoint", "safetensors") >= 0 ||
        number_in(path, "samples", "png") >= 0) {
      ours.push_back(path);
    }
  }
  for (const fs::path& path : ours) fs::remove(path);
}

}  // namespace mutilde::app
