// What commands start from: a trained model, with the flags that say which and how to call it; and
// a data set that fits the settings.
#pragma once

#include <memory>
#include <string>

#include "app/command_line.h"
#include "data/dataset.h"
#include "diffusion/checkpoint.h"

namespace mutilde::app {

struct ModelFlags {
  std::string checkpoint, respacing, device = "auto", precision = "fp32";
  int64_t batch_size = 16, seed = 0;
  bool clip_denoised = true, use_raw = false;
  double ema_rate = 0;
  Settings settings;  // for a file without
};

/// CHECKPOINT, under a heading of its own.
void add_checkpoint(CommandLine& line, ModelFlags& flags);
/// Under the heading at hand.
void add_model_flags(CommandLine& line, ModelFlags& flags);
/// The flags of a model that a file does not describe, under headings of their own.
void add_foreign_model(CommandLine& line, ModelFlags& flags);

/// Throws UsageError.
void check_model_flags(const CommandLine& line, const ModelFlags& flags);
/// Throws FileError unless a file can be made there, or the path is empty.
void check_output_file(const std::string& path);

/// The network is on the device. Throws UsageError for flags that do not fit the checkpoint.
LoadedModel load(const CommandLine& line, const ModelFlags& flags, Device device);

/// The data set that the settings name. Sets num_classes where it is 0 and classes are wanted; throws
/// Error if the images do not fit.
std::unique_ptr<Dataset> open_data(Settings& settings, DatasetOptions options = {});

}  // namespace mutilde::app
