#include "diffusion/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <nlohmann/json.hpp>

#include "diffusion/schedule.h"

namespace mutilde {

namespace {

using Json = nlohmann::ordered_json;

template <class T>
void read_json(const char* name, const Json& value, T& into) {
  const auto refuse = [&](const char* wanted) {
    fail<Error>("settings: '{}' is {}, {} expected", name, value.dump(), wanted);
  };
  if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean()) refuse("true or false");
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string()) refuse("a text");
  } else if constexpr (std::is_same_v<T, int64_t>) {
    if (!value.is_number_integer()) refuse("a whole number");
  } else {
    if (!value.is_number()) refuse("a number");
  }
  into = value.get<T>();
}

void check_field(const Settings& settings, const SettingField& field) {
  const auto check_range = [&](double value) {
    if (field.low == 0 && field.high == 0) return;
    if (!(value >= field.low && value <= field.high)) {
      fail<Error>("{} is {}, a number from {:.15g} to {:.15g} expected", field.name,
                  setting_text(settings, field), field.low, field.high);
    }
  };
  if (const auto* whole = std::get_if<int64_t Settings::*>(&field.member)) {
    check_range(static_cast<double>(settings.**whole));
  } else if (const auto* real = std::get_if<double Settings::*>(&field.member)) {
    check_range(settings.**real);
  } else if (const auto* text = std::get_if<std::string Settings::*>(&field.member)) {
    const auto& choices = field.choices;
    if (!choices.empty() &&
        std::find(choices.begin(), choices.end(), settings.**text) == choices.end()) {
      fail<Error>("{} is '{}', one of {} expected", field.name, settings.**text,
                  fmt::join(choices, ", "));
    }
  }
}

std::vector<int64_t> channel_multipliers(const Settings& settings) {
  if (!settings.channel_mult.empty()) return parse_sizes("channel_mult", settings.channel_mult);
  switch (settings.image_size) {
    case 256:
      return {1, 1, 2, 2, 4, 4};
    case 64:
      return {1, 2, 3, 4};
    case 32:
      return {1, 2, 2, 2};
    default:
      fail<Error>(
          "image_size {} has no channel_mult of its own (32, 64 and 256 have): give one, as in "
          "1,2,2",
          settings.image_size);
  }
}

void check_levels(const Settings& settings) {
  const std::vector<int64_t> mult = channel_multipliers(settings);
  if (mult.size() > 12)
    fail<Error>("channel_mult '{}' has {} levels, at most 12 expected", settings.channel_mult,
                mult.size());
  if (mult.front() != 1) {
    fail<Error>("channel_mult '{}' starts with {}, 1 expected (the first level has num_channels)",
                settings.channel_mult, mult.front());
  }
  for (int64_t m : mult) {
    if (m < 1 || m > 64)
      fail<Error>("channel_mult '{}': {} given, a number from 1 to 64 expected",
                  settings.channel_mult, m);
  }
  const int64_t factor = int64_t{1} << (mult.size() - 1);
  if (settings.image_size % factor != 0) {
    fail<Error>(
        "image_size {} does not halve evenly {} times, as the {} levels of channel_mult ask",
        settings.image_size, mult.size() - 1, mult.size());
  }
}

/// The heads must divide the channels wherever there is attention: at some levels, and in the
/// middle.
void check_heads(const Settings& settings) {
  const std::vector<int64_t> mult = channel_multipliers(settings);
  const auto check = [](const char* name, int64_t heads, int64_t channels) {
    if (channels % heads != 0) {
      fail<Error>("{} is {}: {} channels do not divide into {} heads", name, heads, channels,
                  heads);
    }
  };
  check("num_heads", settings.num_heads, settings.num_channels * mult.back());
  for (int64_t resolution : parse_sizes("attention_resolutions", settings.attention_resolutions)) {
    for (size_t level = 0; level < mult.size(); ++level) {
      if (resolution < 1 || settings.image_size % resolution != 0 ||
          settings.image_size / resolution != int64_t{1} << level)
        continue;
      const int64_t channels = settings.num_channels * mult[level];
      check("num_heads", settings.num_heads, channels);
      if (settings.num_heads_upsample > 0)
        check("num_heads_upsample", settings.num_heads_upsample, channels);
    }
  }
}

void check_rates(const Settings& settings) {
  std::vector<double> rates = parse_rates("ema_rate", settings.ema_rate);
  for (double rate : rates) {
    if (!(rate >= 0 && rate < 1))
      fail<Error>("ema_rate '{}': {} given, a number from 0 to below 1 expected", settings.ema_rate,
                  rate);
  }
  std::sort(rates.begin(), rates.end());
  const auto twice = std::adjacent_find(rates.begin(), rates.end());
  if (twice != rates.end())
    fail<Error>("ema_rate '{}': {} is given twice", settings.ema_rate, *twice);
}

}  // namespace

std::string to_json(const Settings& settings) {
  Json json = Json::object();
  for (const SettingField& field : setting_fields()) {
    std::visit([&](auto member) { json[name_of(field.group)][field.name] = settings.*member; },
               field.member);
  }
  return json.dump();
}

Settings settings_from_json(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail<Error>("settings: not a JSON object");
  Settings settings;
  const auto& fields = setting_fields();
  for (const auto& [group, entries] : json.items()) {
    if (!entries.is_object()) fail<Error>("settings: '{}' is no group of settings", group);
    for (const auto& [name, value] : entries.items()) {
      const auto field = std::find_if(fields.begin(), fields.end(),
                                      [&, &g = group, &n = name](const SettingField& f) {
                                        return n == f.name && g == name_of(f.group);
                                      });
      if (field == fields.end()) fail<Error>("settings: unknown key '{}' in '{}'", name, group);
      std::visit([&, &v = value](auto member) { read_json(field->name, v, settings.*member); },
                 field->member);
    }
  }
  validate(settings);
  return settings;
}

void validate(const Settings& settings) {
  for (const SettingField& field : setting_fields()) check_field(settings, field);
  check_levels(settings);
  if (settings.image_channels == 2) fail<Error>("image_channels is 2, 1 or 3 expected");
  if (settings.num_channels % 32 != 0) {
    fail<Error>("num_channels is {}, a multiple of 32 expected (the norms have 32 groups)",
                settings.num_channels);
  }
  check_rates(settings);
  if (settings.num_heads_upsample == 0)
    fail<Error>("num_heads_upsample is 0, -1 or a number of heads expected");
  check_heads(settings);
  if (settings.noise_schedule == "linear" && settings.diffusion_steps < kFewestLinearSteps) {
    fail<Error>(
        "diffusion_steps is {}, at least {} expected with the linear schedule; the cosine "
        "one takes any number",
        settings.diffusion_steps, kFewestLinearSteps);
  }
  if (!settings.timestep_respacing.empty())
    space_timesteps(settings.diffusion_steps, settings.timestep_respacing);
  if (settings.microbatch == 0) fail<Error>("microbatch is 0, -1 or a number of images expected");
  if (settings.num_classes > 0 && !settings.class_cond) {
    fail<Error>("num_classes {} contradicts class_cond False", settings.num_classes);
  }
  if (settings.learn_sigma && settings.sigma_small) {
    fail<Error>(
        "learn_sigma and sigma_small contradict each other: a variance is learned or fixed");
  }
  if (settings.small_size > 0 && (settings.small_size >= settings.image_size ||
                                  settings.image_size % settings.small_size != 0)) {
    fail<Error>("small_size {} does not divide image_size {}, and super-resolution needs it to",
                settings.small_size, settings.image_size);
  }
  if (settings.lr_anneal_steps > 0 && settings.steps > settings.lr_anneal_steps) {
    fail<Error>("steps {} goes beyond lr_anneal_steps {}, where the learning rate is 0",
                settings.steps, settings.lr_anneal_steps);
  }
}

std::span<const char* const> preset_names() {
  static constexpr std::array<const char*, 3> kNames = {"small", "medium", "cifar"};
  return kNames;
}

void apply_preset(Settings& settings, std::string_view name) {
  struct Preset {
    const char* name;
    int64_t num_channels;
    const char* channel_mult;
    int64_t num_res_blocks;
    bool learn_sigma;
  };
  static constexpr std::array<Preset, 3> kPresets = {{{"small", 32, "1,2,2", 1, false},
                                                      {"medium", 64, "1,2,2,2", 2, false},
                                                      {"cifar", 128, "1,2,2,2", 3, true}}};
  const auto preset = std::find_if(kPresets.begin(), kPresets.end(),
                                   [&](const Preset& p) { return name == p.name; });
  if (preset == kPresets.end()) {
    fail<Error>("unknown preset '{}', one of {} expected", name, fmt::join(preset_names(), ", "));
  }
  settings.image_size = 32;
  settings.num_channels = preset->num_channels;
  settings.channel_mult = preset->channel_mult;
  settings.num_res_blocks = preset->num_res_blocks;
  settings.attention_resolutions = "16,8";
  settings.num_heads = 4;
  settings.use_scale_shift_norm = true;
  settings.learn_sigma = preset->learn_sigma;
}

namespace {

template <class T>
std::vector<T> parse_list(const char* setting, std::string_view text, const char* wanted) {
  std::vector<T> values;
  if (text.empty()) return values;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    T value{};
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc{} || (next != end && *next != ',')) {
      fail<Error>("{} is '{}', {} expected", setting, text, wanted);
    }
    values.push_back(value);
    if (next == end) return values;
    at = next + 1;
  }
}

}  // namespace

std::vector<double> parse_rates(const char* setting, std::string_view text) {
  return parse_list<double>(setting, text, "numbers with commas between");
}

std::vector<int64_t> parse_sizes(const char* setting, std::string_view text) {
  return parse_list<int64_t>(setting, text, "whole numbers with commas between");
}

UNetConfig unet_config(const Settings& settings) {
  validate(settings);
  if (settings.class_cond && settings.num_classes == 0) {
    fail<Error>("class_cond is set but num_classes is not known");
  }
  UNetConfig config;
  config.in_channels = settings.image_channels;
  config.out_channels = settings.image_channels * (settings.learn_sigma ? 2 : 1);
  config.model_channels = settings.num_channels;
  config.channel_mult = channel_multipliers(settings);
  config.num_res_blocks = settings.num_res_blocks;
  config.attention_downsampling.clear();
  for (int64_t resolution : parse_sizes("attention_resolutions", settings.attention_resolutions)) {
    // A resolution that no level has gives no attention, as in the original.
    if (resolution > 0 && settings.image_size % resolution == 0) {
      config.attention_downsampling.push_back(settings.image_size / resolution);
    }
  }
  config.num_heads = settings.num_heads;
  config.num_heads_upsample = settings.num_heads_upsample;
  config.use_scale_shift_norm = settings.use_scale_shift_norm;
  config.conv_resample = settings.conv_resample;
  config.dropout = settings.dropout;
  config.num_classes = settings.num_classes;
  config.use_checkpoint = settings.use_checkpoint;
  config.super_resolution = settings.small_size > 0;
  return config;
}

std::unique_ptr<UNet> make_unet(const Settings& settings, Generator& random) {
  return std::make_unique<UNet>(unet_config(settings), random);
}

SpacedDiffusion make_diffusion(const Settings& settings, const std::string& respacing) {
  DiffusionConfig config;
  config.mean = settings.predict_xstart ? ModelMean::kStartX : ModelMean::kEpsilon;
  config.variance = settings.learn_sigma   ? ModelVariance::kLearnedRange
                    : settings.sigma_small ? ModelVariance::kFixedSmall
                                           : ModelVariance::kFixedLarge;
  config.loss = settings.use_kl                   ? Loss::kRescaledKl
                : settings.rescale_learned_sigmas ? Loss::kRescaledMse
                                                  : Loss::kMse;
  config.rescale_timesteps = settings.rescale_timesteps;
  const int64_t T = settings.diffusion_steps;
  std::string spec = respacing.empty() ? settings.timestep_respacing : respacing;
  if (spec.empty()) spec = std::to_string(T);
  return SpacedDiffusion(named_beta_schedule(settings.noise_schedule, T), space_timesteps(T, spec),
                         config);
}

}  // namespace mutilde
