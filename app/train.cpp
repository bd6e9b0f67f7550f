// mutilde train: what the flags mean, and every check before anything is written.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "app/command_line.h"
#include "app/commands.h"
#include "app/device.h"
#include "app/loading.h"
#include "app/progress.h"
#include "app/run_folder.h"
#include "app/train_run.h"
#include "core/precision.h"
#include "diffusion/checkpoint.h"

namespace fs = std::filesystem;

namespace mutilde::app {

namespace {

struct TrainFlags {
  Settings settings;  // those on the command line; the others are defaults
  std::string preset, out, resume, device = "auto", precision = "fp32";
  bool overwrite = false;
  RunOptions run;
};

CommandLine train_command_line(TrainFlags& flags) {
  CommandLine line(
      "train", "Trains a diffusion model on images.",
      "mutilde train --data DATA --out FOLDER [flags]\n"
      "       mutilde train --resume CHECKPOINT [flags]",
      "  mutilde train --data fashion-mnist --preset small --steps 1000 --lr 1e-3 --out run\n"
      "  mutilde train --data photos/ --image_size 64 --learn_sigma --out run\n"
      "  mutilde train --resume run --steps 5000\n");
  line.group("Run");
  line.add("--data,--data_dir", flags.settings.data,
           "what to train on: a folder of images, a folder with CIFAR-10's or with IDX files, or "
           "the name of a data set that is installed (fashion-mnist)",
           "DATA");
  line.add("--out", flags.out, "folder for checkpoints, samples, progress.csv and loss.png",
           "FOLDER");
  const auto names = preset_names();
  line.add("--preset", flags.preset, "a model to start from; any flag overrides its part", "",
           {names.begin(), names.end()});
  line.add("--resume,--resume_checkpoint", flags.resume,
           "go on from a checkpoint, or from the newest in a folder, with its settings; in its "
           "folder, or from an earlier checkpoint in a new one that --out names",
           "CHECKPOINT");
  line.add("--device", flags.device, kDeviceHelp, "DEVICE");
  line.add("--precision", flags.precision,
           std::string(kPrecisionHelp) + "; --resume goes on in the checkpoint's", "", kPrecisions);
  line.add("--overwrite", flags.overwrite, "remove an earlier run from the folder");
  line.add("--save_interval", flags.run.save_interval,
           "steps between checkpoints; 0: only at the end");
  line.add("--keep", flags.run.keep, "checkpoints to keep, newest first; 0: all");
  line.add("--sample_interval", flags.run.sample_interval,
           "steps between grids of samples; 0: never");
  line.add("--num_samples", flags.run.num_samples, "images in such a grid");
  line.add("--sample_steps", flags.run.sample_steps, "DDIM steps for such a grid");
  line.add("--log_interval", flags.run.log_interval,
           "steps between rows of progress.csv, and between lines without a terminal");
  line.group("Training");
  line.add_settings(flags.settings, SettingGroup::kTraining, {"data"});
  line.group("Model");
  line.add_settings(flags.settings, SettingGroup::kModel);
  line.group("Diffusion");
  line.add_settings(flags.settings, SettingGroup::kDiffusion);
  return line;
}

void check_flags(const TrainFlags& flags) {
  const auto at_least = [](const char* name, int64_t value, int64_t least) {
    if (value < least) fail<UsageError>("{} is {}, at least {} expected", name, value, least);
  };
  constexpr int64_t kMostSamples = 10'000;  // in one picture
  if (flags.run.num_samples > kMostSamples) {
    fail<UsageError>("--num_samples is {}, at most {} expected", flags.run.num_samples,
                     kMostSamples);
  }
  at_least("--log_interval", flags.run.log_interval, 1);
  at_least("--save_interval", flags.run.save_interval, 0);
  at_least("--keep", flags.run.keep, 0);
  at_least("--sample_interval", flags.run.sample_interval, 0);
  at_least("--num_samples", flags.run.num_samples, 1);
  at_least("--sample_steps", flags.run.sample_steps, 1);
}

Settings settings_of_new_run(const CommandLine& line, const TrainFlags& flags) {
  Settings settings;
  if (!flags.preset.empty()) apply_preset(settings, flags.preset);
  for (const SettingField* field : line.given_settings())
    copy_setting(flags.settings, settings, *field);
  validate(settings);
  if (settings.data.empty()) {
    fail<UsageError>(
        "--data is missing: a folder of images, or fashion-mnist (see 'mutilde train --help')");
  }
  if (flags.out.empty()) fail<UsageError>("--out is missing: the folder to write to");
  return settings;
}

Settings settings_of_resumed_run(const CommandLine& line, const TrainFlags& flags,
                                 const Checkpoint& checkpoint) {
  const std::string path = checkpoint.path().string();
  if (!checkpoint.settings()) fail<Error>("{}: has no settings (mutilde did not write it)", path);
  if (flags.overwrite) fail<UsageError>("--resume and --overwrite contradict each other");
  if (!flags.preset.empty())
    fail<UsageError>("--resume and --preset contradict each other: {} has its model", path);
  Settings settings = *checkpoint.settings();
  for (const SettingField* field : line.given_settings()) {
    const std::string now = setting_text(settings, *field),
                      wanted = setting_text(flags.settings, *field);
    if (!field->changeable && now != wanted) {
      fail<UsageError>("--{} {} contradicts {}, which was trained with '{}'", field->name, wanted,
                       path, now);
    }
    copy_setting(flags.settings, settings, *field);
  }
  validate(settings);
  const int64_t end = settings.steps > 0 ? settings.steps : settings.lr_anneal_steps;
  if (end > 0 && checkpoint.step() >= end) {
    fail<UsageError>("{} is at step {} of {}: give --steps a larger number to go on", path,
                     checkpoint.step(), end);
  }
  return settings;
}

/// Going on in the same folder from an earlier step would mix two histories there.
void refuse_later_checkpoints(const fs::path& folder, const Checkpoint& checkpoint) {
  const auto found = checkpoints_in(folder);
  std::vector<std::string> later;
  for (auto at = found.upper_bound(checkpoint.step()); at != found.end(); ++at)
    later.push_back(at->second.filename().string());
  if (later.empty()) return;
  if (later.size() > 6) {  // the first and the last say it
    later[1] = fmt::format(".. ({} more) ..", later.size() - 2);
    later[2] = later.back();
    later.resize(3);
  }
  fail<FileError>(
      "{}: its folder has later checkpoints, {}; name a new folder with --out to go on from step "
      "{}, or remove those first",
      checkpoint.path().string(), fmt::join(later, ", "), checkpoint.step());
}

void refuse_files_of_others(const TrainFlags& flags, const fs::path& out) {
  if (!fs::exists(out) || fs::is_empty(out)) return;
  if (!flags.resume.empty()) {
    fail<FileError>(
        "--out {}: the folder is not empty; name another one, or leave --out away to go on in the "
        "checkpoint's own folder",
        flags.out);
  }
  const bool has_run = !checkpoints_in(out).empty();
  fail<FileError>(
      "--out {}: the folder is not empty; {}", flags.out,
      has_run ? fmt::format("--resume {} goes on with the run in it, --overwrite removes that run",
                            flags.out)
              : "name another one, or give --overwrite (which removes an earlier run's files, and "
                "no others)");
}

/// Where the run writes; nothing is made or removed yet.
fs::path checked_out_folder(const TrainFlags& flags, const std::optional<Checkpoint>& checkpoint) {
  const fs::path out = flags.out;
  if (fs::exists(out) && !fs::is_directory(out))
    fail<FileError>("--out {}: this is not a folder", flags.out);
  if (checkpoint) {
    const fs::path& path = checkpoint->path();
    const fs::path own = path.has_parent_path() ? path.parent_path() : fs::path(".");
    if (out.empty() || (fs::exists(out) && fs::equivalent(out, own))) {
      refuse_later_checkpoints(own, *checkpoint);
      return out.empty() ? own : out;
    }
  }
  if (!flags.overwrite) refuse_files_of_others(flags, out);
  return out;
}

void announce(const Trainer& trainer, const Dataset& dataset, const fs::path& out) {
  const Settings& settings = trainer.settings();
  note(fmt::format("{} {} images of {}x{}, {} parameters, batches of {}, on {}; writing to {}\n",
                   trainer.step_count() > 0
                       ? fmt::format("going on after step {}:", trainer.step_count())
                       : "training on",
                   grouped(dataset.size()), settings.image_size, settings.image_size,
                   grouped(trainer.unet().parameter_count()), settings.batch_size,
                   trainer.device().to_string(), out.string()));
  if (!settings.class_cond) return;
  // The order in which `mutilde sample --class` counts them.
  constexpr size_t kShown = 20;
  const std::vector<std::string>& names = dataset.class_names();
  std::string text = "classes:";
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += fmt::format("{} {} {}", i == 0 ? "" : ",", i, names[i]);
  note(text + (names.size() > kShown ? ", ...\n" : "\n"));
}

}  // namespace

int train_command(const std::vector<std::string>& arguments) {
  TrainFlags flags;
  CommandLine line = train_command_line(flags);
  if (!line.parse(arguments)) return 0;
  check_flags(flags);
  const Device device = find_device(flags.device);

  std::optional<Checkpoint> checkpoint;
  if (!flags.resume.empty()) checkpoint.emplace(find_checkpoint(flags.resume));
  const bool goes_on = checkpoint && !line.given("--precision");
  use_precision(goes_on ? checkpoint->precision() : flags.precision, device);
  Settings settings = checkpoint ? settings_of_resumed_run(line, flags, *checkpoint)
                                 : settings_of_new_run(line, flags);
  const fs::path out = checked_out_folder(flags, checkpoint);
  const std::unique_ptr<Dataset> dataset = open_data(settings);
  Trainer trainer(settings, device);
  if (checkpoint) checkpoint->restore(trainer);
  // A checkpoint of such a run brings its own scale.
  if (product_precision() == Precision::kFloat16 && !trainer.lg_loss_scale())
    trainer.scale_losses();

  fs::create_directories(out);
  if (flags.overwrite) remove_run(out);
  announce(trainer, *dataset, out);
  return TrainRun(flags.run, out, *dataset, trainer).run();
}

}  // namespace mutilde::app
