#include "diffusion/checkpoint.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "core/precision.h"

namespace mutilde {

namespace {

constexpr const char* kPrecisions[] = {"fp32", "bf16", "fp16"};  // in the order of Precision
constexpr const char* kSettingsKey = "mutilde.settings";
constexpr const char* kStateKey = "mutilde.state";
constexpr const char* kFirstMoment = "opt.first_moment.";
constexpr const char* kSecondMoment = "opt.second_moment.";
constexpr const char* kSampler = "sampler.";

/// Runs f; an Error becomes a FileError that names the file.
template <class F>
auto naming_file(const std::filesystem::path& path, const F& f) {
  try {
    return f();
  } catch (const FileError&) {
    throw;  // names it already
  } catch (const Error& error) {
    fail<FileError>("{}: {}", path.string(), error.what());
  }
}

nlohmann::json parse_state(const std::string& text) {
  auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail<Error>("'{}' is no JSON object", kStateKey);
  return json;
}

int64_t count_in(const nlohmann::json& state, const char* key) {
  const auto found = state.find(key);
  if (found == state.end() || !found->is_number_integer() || *found < 0)
    fail<Error>("'{}' holds no {}", kStateKey, key);
  return found->get<int64_t>();
}

/// The names in the file that stand for parameters themselves.
std::vector<std::string> raw_names(const SafetensorsFile& file) {
  std::vector<std::string> names = file.names();
  std::erase_if(names, [](const std::string& name) {
    return name.starts_with("ema_") || name.starts_with("opt.") || name.starts_with(kSampler);
  });
  return names;
}

void load_named(const SafetensorsFile& file, const std::vector<NamedParameter>& parameters,
                const std::string& prefix) {
  load_state_dict(parameters, [&](const std::string& name) {
    const std::string full = prefix + name;
    if (!file.has(full)) return Tensor();
    if (!is_floating(file.dtype(full)))
      fail<Error>("parameter '{}' is {}", full, name_of(file.dtype(full)));
    return file.read(full);
  });
}

}  // namespace

std::string average_name(double rate) { return fmt::format("ema_{}", rate); }

void save_checkpoint(const std::filesystem::path& path, const Trainer& trainer) {
  if (!trainer.settled())
    fail<Error>("save_checkpoint: step {} is not settled yet; settle() it", trainer.step_count());
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& prefix, const std::vector<NamedParameter>& parameters) {
    for (auto& [name, value] : state_dict(parameters))
      tensors.emplace_back(prefix + name, std::move(value));
  };
  const AdamW& optimizer = trainer.optimizer();
  const std::vector<double> rates = parse_rates("ema_rate", trainer.settings().ema_rate);
  add("", optimizer.parameters());
  for (size_t i = 0; i < rates.size(); ++i) add(average_name(rates[i]) + ".", optimizer.ema(i));
  add(kFirstMoment, optimizer.first_moments());
  add(kSecondMoment, optimizer.second_moments());
  for (const auto& [name, value] : trainer.sampler().state())
    tensors.emplace_back(kSampler + name, value);
  nlohmann::json state = {{"step", trainer.step_count()},
                          {"images", trainer.images_seen()},
                          {"precision", kPrecisions[static_cast<size_t>(product_precision())]}};
  if (trainer.lg_loss_scale()) {
    state["lg_loss_scale"] = *trainer.lg_loss_scale();
    state["skipped"] = trainer.skipped_steps();
  }
  write_safetensors(path, tensors,
                    {{kSettingsKey, to_json(trainer.settings())}, {kStateKey, state.dump()}});
}

Checkpoint::Checkpoint(const std::filesystem::path& path) : path_(path), file_(path) {
  const auto& metadata = file_.metadata();
  naming_file(path, [&] {
    if (const auto found = metadata.find(kSettingsKey); found != metadata.end()) {
      settings_ = settings_from_json(found->second);
      refuse_larger_network(*settings_);
    }
    if (const auto found = metadata.find(kStateKey); found != metadata.end()) {
      const nlohmann::json state = parse_state(found->second);
      step_ = count_in(state, "step");
      if (state.contains("images")) {
        images_seen_ = count_in(state, "images");
      } else if (settings_ &&  // an older file: as if no resume had changed the batch size
                 __builtin_mul_overflow(step_, settings_->batch_size, &images_seen_)) {
        fail<Error>("'{}' holds a step of {}, which cannot be", kStateKey, step_);
      }
      if (const auto precision = state.find("precision"); precision != state.end()) {
        precision_ = precision->is_string() ? precision->get<std::string>() : "";
        if (std::find(std::begin(kPrecisions), std::end(kPrecisions), precision_) ==
            std::end(kPrecisions))
          fail<Error>("'{}' holds no precision that can be", kStateKey);
      }
      if (const auto scale = state.find("lg_loss_scale"); scale != state.end()) {
        skipped_ = count_in(state, "skipped");
        if (!scale->is_number() || skipped_ > step_)
          fail<Error>("'{}' holds no loss scale that can be", kStateKey);
        lg_loss_scale_ = scale->get<double>();
      }
    }
  });
}

void Checkpoint::refuse_larger_network(const Settings& settings) const {
  // What the network needs at least: 16 bits a weight of each residual block's last convolution.
  double bytes = 0;
  const UNetConfig config = unet_config(settings);
  for (int64_t mult : config.channel_mult) {
    const auto channels = static_cast<double>(mult * config.model_channels);
    bytes += static_cast<double>(2 * config.num_res_blocks + 1) * 9 * channels * channels * 2;
  }
  if (bytes > static_cast<double>(std::filesystem::file_size(path_))) {
    fail<FileError>("{}: the network of its settings does not fit into a file of this size",
                    path_.string());
  }
}

void Checkpoint::load_weights(const UNet& unet, const std::string& average) const {
  naming_file(path_, [&] {
    const std::vector<NamedParameter> parameters = unet.named_parameters();
    std::set<std::string> known;
    for (const NamedParameter& parameter : parameters) known.insert(parameter.name);
    for (const std::string& name : raw_names(file_)) {
      if (!known.contains(name))
        fail<Error>("parameter '{}' has no place in the network of the settings", name);
    }
    load_named(file_, parameters, average.empty() ? "" : average + ".");
  });
}

void Checkpoint::restore(Trainer& trainer) const {
  if (!trainer.settled()) fail<Error>("Checkpoint::restore: a step of the trainer is under way");
  naming_file(path_, [&] {
    AdamW& optimizer = trainer.optimizer();
    load_weights(trainer.unet());
    const std::vector<double> rates = parse_rates("ema_rate", trainer.settings().ema_rate);
    for (size_t i = 0; i < rates.size(); ++i)
      load_named(file_, optimizer.ema(i), average_name(rates[i]) + ".");
    load_named(file_, optimizer.first_moments(), kFirstMoment);
    load_named(file_, optimizer.second_moments(), kSecondMoment);
    std::map<std::string, Tensor> sampler_state;
    for (const std::string& name : file_.names()) {
      if (name.starts_with(kSampler))
        sampler_state[name.substr(std::string(kSampler).size())] = file_.read(name);
    }
    trainer.sampler().restore(sampler_state);
    trainer.set_step_count(step_, skipped_);
    if (lg_loss_scale_) trainer.scale_losses(*lg_loss_scale_);
    trainer.set_images_seen(images_seen_);
  });
}

LoadedModel load_model(const std::filesystem::path& path, const LoadOptions& options) {
  const Checkpoint checkpoint(path);
  LoadedModel model;
  model.step = checkpoint.step();
  if (checkpoint.settings()) {
    if (options.settings)
      fail<Error>("{}: has settings of its own, none are to be given", path.string());
    model.settings = *checkpoint.settings();
  } else if (options.settings) {
    model.settings = *options.settings;
    const SafetensorsFile& file = checkpoint.file();
    if (model.settings.class_cond && model.settings.num_classes == 0 &&
        file.has("label_emb.weight")) {
      model.settings.num_classes = file.shape("label_emb.weight")[0];
    }
    naming_file(path, [&] { checkpoint.refuse_larger_network(model.settings); });
  } else {
    fail<Error>("{}: has no settings (mutilde did not write it)", path.string());
  }

  const std::vector<double> rates = parse_rates("ema_rate", model.settings.ema_rate);
  std::string average;
  if (options.ema_rate) {
    average = average_name(*options.ema_rate);
    if (!checkpoint.settings() ||
        std::find(rates.begin(), rates.end(), *options.ema_rate) == rates.end()) {
      fail<Error>("{}: has no average of rate {} (ema_rate is '{}')", path.string(),
                  *options.ema_rate, checkpoint.settings() ? model.settings.ema_rate : "");
    }
  } else if (checkpoint.settings() && !options.use_raw && !rates.empty()) {
    average = average_name(rates.front());
  }
  Generator random;
  model.unet = naming_file(path, [&] { return make_unet(model.settings, random); });
  checkpoint.load_weights(*model.unet, average);
  model.weights = average.empty() ? "raw" : average;
  return model;
}

}  // namespace mutilde
