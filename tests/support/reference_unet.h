// The networks of the original program whose weights, outputs and gradients tests/data has.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "nn/unet.h"

namespace mutilde::test {

/// From the "config" of such a file's metadata.
inline UNetConfig reference_config(const SafetensorsFile& file) {
  const nlohmann::json c = nlohmann::json::parse(file.metadata().at("config"));
  UNetConfig config;
  config.in_channels = c["in_channels"];
  config.out_channels = c["out_channels"];
  config.model_channels = c["model_channels"];
  config.num_res_blocks = c["num_res_blocks"];
  config.channel_mult = c["channel_mult"].get<std::vector<int64_t>>();
  config.attention_downsampling = c["attention_resolutions"].get<std::vector<int64_t>>();
  config.num_heads = c.value("num_heads", 1);
  config.num_heads_upsample = c.value("num_heads_upsample", -1);
  config.use_scale_shift_norm = c.value("use_scale_shift_norm", false);
  config.conv_resample = c.value("conv_resample", true);
  config.num_classes = c.value("num_classes", 0);
  config.super_resolution = c["class"] == "SuperResModel";
  return config;
}

/// Fills the network with the file's weights.
inline void load_reference(const SafetensorsFile& file, const UNet& unet) {
  load_state_dict(unet.named_parameters(),
                  [&](const std::string& name) { return file.read("param." + name); });
}

}  // namespace mutilde::test
