// Every setting that a checkpoint must hold, so that no flag is ever repeated.
// Names and defaults are those of improved-diffusion, but for `batch_size` (1 there)
// and what that program does not have.
//
// setting_fields() describes each setting once; JSON, the command line and
// `mutilde info` read that table.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "diffusion/respace.h"
#include "nn/unet.h"

namespace mutilde {

struct Settings {
  // Model: what the weights are shaped by.
  int64_t image_size = 64;  // the larger one for super-resolution
  int64_t image_channels = 3;
  int64_t num_channels = 128;
  std::string channel_mult;  // "1,2,2,2"; empty: by image size
  int64_t num_res_blocks = 2;
  std::string attention_resolutions = "16,8";
  int64_t num_heads = 4;
  int64_t num_heads_upsample = -1;  // -1: num_heads
  bool use_scale_shift_norm = true;
  bool conv_resample = true;
  bool learn_sigma = false;
  bool class_cond = false;
  int64_t num_classes = 0;  // 0 with class_cond: as many as the data has
  int64_t small_size = 0;   // over 0: super-resolution from this size
  double dropout = 0.0;
  bool use_checkpoint = false;

  // Diffusion.
  int64_t diffusion_steps = 1000;
  std::string noise_schedule = "linear";
  std::string timestep_respacing;  // empty: all steps
  bool use_kl = false;
  bool predict_xstart = false;
  bool sigma_small = false;
  bool rescale_timesteps = true;
  bool rescale_learned_sigmas = true;

  // Training.
  std::string data;
  int64_t steps = 0;  // 0: until lr_anneal_steps or an interrupt
  int64_t batch_size = 32;
  int64_t microbatch = -1;  // -1: the whole batch
  double lr = 1e-4;
  int64_t lr_anneal_steps = 0;
  double weight_decay = 0.0;
  std::string ema_rate = "0.9999";
  bool ema_warmup = true;
  std::string schedule_sampler = "uniform";
  bool random_flip = false;
  int64_t seed = 0;

  bool operator==(const Settings&) const = default;
};

enum class SettingGroup { kModel, kDiffusion, kTraining };
const char* name_of(SettingGroup group);  // "model"

using SettingMember = std::variant<int64_t Settings::*, double Settings::*, bool Settings::*,
                                   std::string Settings::*>;

struct SettingField {
  const char* name;
  SettingGroup group;
  SettingMember member;
  bool changeable;  // by a run that resumes: the weights and averages so far keep their meaning
  const char* help;
  double low = 0, high = 0;               // of a number; no limit where both are 0
  std::vector<std::string> choices = {};  // of a text; any where empty
};

/// All settings, in the order of the struct.
const std::vector<SettingField>& setting_fields();
/// The value as text: "128", "0.0001", "True", "cosine".
std::string setting_text(const Settings& settings, const SettingField& field);

/// Overwrites one setting of `to`.
void copy_setting(const Settings& from, Settings& to, const SettingField& field);

/// JSON: {"model": {"image_size": 32, ...}, "diffusion": {...}, "training": {...}}.
std::string to_json(const Settings& settings);
/// What the text leaves out keeps its default. Throws Error, one line, for text that is no JSON, an
/// unknown key, a value of the wrong type, and whatever validate() refuses.
Settings settings_from_json(std::string_view text);

/// Throws Error that names the setting for a value out of range and for settings
/// that contradict each other.
void validate(const Settings& settings);

/// "small", "medium", "cifar".
std::span<const char* const> preset_names();
/// Overwrites the model's settings with a preset's. Throws Error for an unknown name.
void apply_preset(Settings& settings, std::string_view name);

/// "0.9999,0.99" as numbers, "1,2,2" as whole numbers. Throw Error that names the setting.
std::vector<double> parse_rates(const char* setting, std::string_view text);
std::vector<int64_t> parse_sizes(const char* setting, std::string_view text);

UNetConfig unet_config(const Settings& settings);
/// A network with fresh weights. Needs num_classes where class_cond is set.
std::unique_ptr<UNet> make_unet(const Settings& settings, Generator& random);
/// The process, with all its steps or those that `respacing` selects ("250", "ddim50", "10,15,20";
/// empty: the settings' own respacing).
SpacedDiffusion make_diffusion(const Settings& settings, const std::string& respacing = "");

}  // namespace mutilde
