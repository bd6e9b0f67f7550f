// The least that trains as a whole does, for tests of steps of training.
#pragma once

#include <vector>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "diffusion/trainer.h"

namespace mutilde {

/// As small as a network gets that has all its parts: two levels, attention, classes, a learned
/// variance, dropout.
inline Settings tiny_settings() {
  Settings settings;
  settings.image_size = 4;
  settings.image_channels = 1;
  settings.num_channels = 32;
  settings.channel_mult = "1,2";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "2";
  settings.num_heads = 2;
  settings.class_cond = true;
  settings.num_classes = 3;
  settings.learn_sigma = true;
  settings.dropout = 0.1;
  settings.diffusion_steps = 10;
  settings.noise_schedule = "cosine";
  settings.ema_rate = "0.9,0.99";
  settings.lr = 1e-3;
  settings.batch_size = 2;
  return settings;
}

/// Fills the layers that begin as zeros, so that every path carries a signal.
inline void randomise(const UNet& unet) {
  Generator random(5);
  for (const NamedParameter& parameter : unet.named_parameters()) {
    parameter.value.copy_(
        affine(random.normal(parameter.value.shape()), 0.1, 0).to(parameter.value.dtype()));
  }
}

struct Images {
  Tensor x_0, y;
};

inline Images images(uint64_t seed) {
  return {uniform({2, 4, 4, 1}, -1, 1, seed).to(DType::kFloat32),
          Tensor::from<int64_t>({2}, {1, 2})};
}

/// Everything that a step changes.
inline std::vector<std::vector<double>> state_of(const Trainer& trainer) {
  const AdamW& optimizer = trainer.optimizer();
  std::vector<std::vector<double>> state;
  for (const auto& set : {optimizer.parameters(), optimizer.first_moments(),
                          optimizer.second_moments(), optimizer.ema(0), optimizer.ema(1)})
    for (const NamedParameter& parameter : set)
      state.push_back(parameter.value.to_vector<double>());
  return state;
}

}  // namespace mutilde
