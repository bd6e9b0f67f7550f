// mutilde info: what is in a checkpoint, or in anybody's safetensors file.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "app/command_line.h"
#include "app/commands.h"
#include "app/progress.h"
#include "app/run_folder.h"
#include "diffusion/checkpoint.h"

namespace mutilde::app {

namespace {

struct Count {
  int64_t tensors = 0, elements = 0;
};

bool is_parameter(const std::string& name) {
  return !name.starts_with("ema_") && !name.starts_with("opt.") && !name.starts_with("sampler.");
}

/// "input_blocks" of "input_blocks.3.0.in_layers.2.weight".
std::string part_of(const std::string& name) { return name.substr(0, name.find('.')); }

void print_counts(const char* heading, const std::map<std::string, Count>& counts) {
  fmt::print("\n{}\n", heading);
  Count total;
  for (const auto& [name, count] : counts) {
    fmt::print("  {:<24}{:>14}  in {} tensors\n", name, grouped(count.elements), count.tensors);
    total.tensors += count.tensors;
    total.elements += count.elements;
  }
  if (counts.size() > 1)
    fmt::print("  {:<24}{:>14}  in {} tensors\n", "together", grouped(total.elements),
               total.tensors);
}

void print_settings(const Settings& settings) {
  for (const SettingGroup group :
       {SettingGroup::kModel, SettingGroup::kDiffusion, SettingGroup::kTraining}) {
    fmt::print("\n{} settings\n", name_of(group));
    for (const SettingField& field : setting_fields()) {
      if (field.group != group) continue;
      const std::string value = setting_text(settings, field);
      fmt::print("  {:<24}{}\n", field.name, value.empty() ? "(empty)" : value);
    }
  }
}

}  // namespace

int info_command(const std::vector<std::string>& arguments) {
  std::string given;
  CommandLine line("info",
                   "Shows what is in a checkpoint: settings, parameters by part, step, size.",
                   "mutilde info CHECKPOINT", "  mutilde info run/checkpoint_001000.safetensors\n");
  line.group("Arguments");
  line.add_positional("CHECKPOINT", given,
                      "a checkpoint, the folder of a run, or any safetensors file");
  if (!line.parse(arguments)) return 0;
  if (given.empty()) fail<UsageError>("a checkpoint is missing: mutilde info CHECKPOINT");

  const std::filesystem::path path = find_checkpoint(given);
  const Checkpoint checkpoint(path);
  const SafetensorsFile& file = checkpoint.file();
  std::map<std::string, Count> parts, beside;
  for (const std::string& name : file.names()) {
    std::string part = part_of(name);
    // ema_0.9999.input_blocks.. and opt.first_moment.input_blocks..
    if (name.starts_with("ema_") || name.starts_with("opt."))
      part = name.substr(0, name.find('.', name.find('.') + 1));
    Count& count = (is_parameter(name) ? parts : beside)[part];
    ++count.tensors;
    count.elements += file.shape(name).numel();
  }
  fmt::print("{}\n  {}", path.string(),
             bytes_text(static_cast<double>(std::filesystem::file_size(path))));
  if (checkpoint.settings()) {
    fmt::print(", step {}, {} images seen, products in {}\n", grouped(checkpoint.step()),
               grouped(checkpoint.images_seen()), checkpoint.precision());
  } else {
    fmt::print(", not written by mutilde: no settings\n");
  }
  print_counts("parameters", parts);
  if (!beside.empty()) print_counts("averages, optimiser and sampler", beside);
  if (checkpoint.settings()) print_settings(*checkpoint.settings());
  for (const auto& [key, value] : file.metadata()) {
    if (!checkpoint.settings()) fmt::print("\nmetadata {}: {}\n", key, value);
  }
  return 0;
}

}  // namespace mutilde::app
