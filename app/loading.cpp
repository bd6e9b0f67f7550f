#include "app/loading.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include <unistd.h>

#include "app/device.h"
#include "app/progress.h"
#include "app/run_folder.h"

namespace fs = std::filesystem;

namespace mutilde::app {

void add_checkpoint(CommandLine& line, ModelFlags& flags) {
  line.group("Arguments");
  line.add_positional("CHECKPOINT", flags.checkpoint,
                      "a checkpoint, or the folder of a run (its newest is taken)");
}

void add_model_flags(CommandLine& line, ModelFlags& flags) {
  line.add("--timestep_respacing", flags.respacing,
           "fewer steps: 250, ddim50, 10,15,20; empty: as in training", "STEPS");
  line.add("--clip_denoised", flags.clip_denoised,
           "clip each predicted x_0 to the range of pixels");
  line.add("--device", flags.device, kDeviceHelp, "DEVICE");
  line.add("--precision", flags.precision, kPrecisionHelp, "", kPrecisions);
  line.add("--batch_size", flags.batch_size,
           "images at a time; changes the memory, not the result");
  line.add("--ema_rate", flags.ema_rate,
           "which average of the weights; 0: the first of the checkpoint");
  line.add("--use_raw", flags.use_raw, "the weights themselves instead of an average");
}

void add_foreign_model(CommandLine& line, ModelFlags& flags) {
  line.group("Model (only for weights that mutilde did not write)");
  line.add_settings(flags.settings, SettingGroup::kModel, {"dropout", "use_checkpoint"});
  line.group("Diffusion (likewise)");
  line.add_settings(flags.settings, SettingGroup::kDiffusion, {"timestep_respacing"});
}

void check_model_flags(const CommandLine& line, const ModelFlags& flags) {
  if (flags.checkpoint.empty())
    fail<UsageError>("a checkpoint is missing: mutilde {} CHECKPOINT", line.command());
  constexpr int64_t kMost = 10'000'000;
  if (flags.batch_size < 1)
    fail<UsageError>("--batch_size is {}, at least 1 expected", flags.batch_size);
  if (flags.batch_size > kMost)
    fail<UsageError>("--batch_size is {}, at most {} expected", flags.batch_size, kMost);
  if (flags.seed < 0) fail<UsageError>("--seed is {}, at least 0 expected", flags.seed);
  if (flags.use_raw && line.given("--ema_rate"))
    fail<UsageError>("--use_raw and --ema_rate contradict each other");
}

void check_output_file(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty() && !fs::is_directory(folder))
    fail<FileError>("{}: there is no folder {}", path, folder.string());
  if (fs::is_directory(path))
    fail<FileError>("{}: this is a folder, a file is to be written", path);
  // Now, and not when all is computed.
  if (!path.empty() && ::access(folder.empty() ? "." : folder.c_str(), W_OK) != 0)
    fail<FileError>("{}: no file may be made in its folder", path);
}

LoadedModel load(const CommandLine& line, const ModelFlags& flags, Device device) {
  const fs::path path = find_checkpoint(flags.checkpoint);
  LoadOptions options;
  options.use_raw = flags.use_raw;
  if (flags.ema_rate != 0) options.ema_rate = flags.ema_rate;
  const auto given = line.given_settings();
  // --ema_rate and the like are the command's own; what is left describes a model.
  const auto model_flag = std::find_if(given.begin(), given.end(), [](const SettingField* field) {
    return field->group != SettingGroup::kTraining &&
           std::string_view(field->name) != "timestep_respacing";
  });
  const bool has_settings = Checkpoint(path).settings().has_value();
  if (has_settings && model_flag != given.end()) {
    fail<UsageError>(
        "--{}: {} says itself what its model is; "
        "this flag is for weights that mutilde did not write",
        (*model_flag)->name, path.string());
  }
  if (!has_settings && model_flag == given.end()) {
    fail<UsageError>(
        "{}: mutilde did not write it, so give the flags of its model "
        "(--image_size, --num_channels, ..)",
        path.string());
  }
  if (!has_settings) options.settings = flags.settings;
  LoadedModel model = load_model(path, options);
  model.unet->to(device);
  return model;
}

std::unique_ptr<Dataset> open_data(Settings& settings, DatasetOptions options) {
  options.channels = static_cast<int>(settings.image_channels);
  Progress progress("reading images", 0, 0, 10'000);
  options.progress = [&](int64_t done, int64_t total) {
    progress.update(done, fmt::format("of {}", total));
  };
  auto dataset = open_dataset(settings.data, static_cast<int>(settings.image_size), options);
  if (dataset->channels() != settings.image_channels) {
    fail<Error>("image_channels is {}, but the images of {} have {}", settings.image_channels,
                settings.data, dataset->channels());
  }
  if (!settings.class_cond) return dataset;
  const auto classes = static_cast<int64_t>(dataset->class_names().size());
  if (classes == 0)
    fail<Error>(
        "class_cond is set, but {} has no classes (they stand in file names, before an underscore)",
        settings.data);
  if (settings.num_classes == 0) settings.num_classes = classes;
  if (settings.num_classes < classes) {
    fail<Error>("num_classes is {}, but {} has {} classes", settings.num_classes, settings.data,
                classes);
  }
  return dataset;
}

}  // namespace mutilde::app
