// Checkpoints: one safetensors file that says everything.
//
//   <name>                    parameters, under improved-diffusion's names, axes in PyTorch's order
//   ema_<rate>.<name>         their averages, of each rate
//   opt.first_moment.<name>   AdamW's state
//   opt.second_moment.<name>
//   sampler.<name>            the timestep sampler's state, if it has any
//
// and in the metadata `mutilde.settings` (see settings.h) and `mutilde.state`, as
// {"step": 500, "images": 16000, "precision": "fp32"}, with "lg_loss_scale" and "skipped" where losses are scaled.
// Random numbers are functions of the seed and the step, so nothing else is needed to go on.
//
// A state dict of improved-diffusion that somebody saved as safetensors is a
// checkpoint without settings.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/safetensors.h"
#include "diffusion/settings.h"
#include "diffusion/trainer.h"

namespace mutilde {

/// Writes everything, atomically. Throws FileError, and Error unless the trainer's last step is
/// settled.
void save_checkpoint(const std::filesystem::path& path, const Trainer& trainer);

class Checkpoint {
 public:
  /// Opens the file and checks its header and settings; no tensor is read yet. Throws FileError,
  /// one line that names the file.
  explicit Checkpoint(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const SafetensorsFile& file() const { return file_; }
  /// Without a value: the file was not written by mutilde.
  const std::optional<Settings>& settings() const { return settings_; }
  int64_t step() const { return step_; }
  /// The images of all steps so far, repeated ones too.
  int64_t images_seen() const { return images_seen_; }
  /// That of the products it was trained with: "fp32", "bf16" or "fp16".
  const std::string& precision() const { return precision_; }

  /// The parameters, or with "ema_0.9999" that average, into a network made with the same settings.
  /// Throws FileError that names the file and the first parameter that is missing, of another shape
  /// or unknown to the network; nothing is overwritten then.
  void load_weights(const UNet& unet, const std::string& average = "") const;
  /// Everything, into a trainer made with the same settings (or others, where they may change).
  void restore(Trainer& trainer) const;
  /// Throws FileError if a network of these settings is larger than the file: its claims are then
  /// false, and it is not worth the memory to find out how.
  void refuse_larger_network(const Settings& settings) const;

 private:
  std::filesystem::path path_;
  SafetensorsFile file_;
  std::optional<Settings> settings_;
  int64_t step_ = 0;
  int64_t images_seen_ = 0;
  std::string precision_ = "fp32";  // files of before it was kept too
  std::optional<double> lg_loss_scale_;
  int64_t skipped_ = 0;
};

/// The prefix of an average's tensors, less the dot: "ema_0.9999".
std::string average_name(double rate);

struct LoadOptions {
  bool use_raw = false;              // the parameters themselves instead of an average
  std::optional<double> ema_rate;    // which average; without a value the first
  std::optional<Settings> settings;  // for a file without settings of its own
};

struct LoadedModel {
  Settings settings;
  std::unique_ptr<UNet> unet;
  int64_t step = 0;
  std::string weights;  // "ema_0.9999", or "raw"
};

/// A network to sample with. Throws FileError as Checkpoint does; Error if the settings are
/// missing, or given though the file has its own, or if there is no such average.
LoadedModel load_model(const std::filesystem::path& path, const LoadOptions& options = {});

}  // namespace mutilde
