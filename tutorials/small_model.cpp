#include "tutorials/small_model.h"

#include "nn/optimizer.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {

Settings small_settings() {
  Settings settings;
  settings.image_size = kSmallSize;
  settings.image_channels = 1;
  settings.num_channels = 32;
  settings.channel_mult = "1,1";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "7";
  settings.noise_schedule = "cosine";
  settings.batch_size = 16;
  settings.lr = 2e-3;
  return settings;
}

std::unique_ptr<UNet> small_unet(const Settings& settings, Generator& random) {
  std::unique_ptr<UNet> unet = make_unet(settings, random);
  unet->to(DType::kFloat64);
  return unet;
}

Model model_of(const UNet& unet) {
  return [&unet](const Tensor& x_t, const Tensor& t) { return unet.forward(x_t, t); };
}

Tensor random_images(const Tensor& images, int64_t n, Generator& random) {
  const Tensor rows = images.reshape({images.size(0), images.numel() / images.size(0)});
  const Tensor chosen = embedding(rows, random.integers({n}, images.size(0)));
  return chosen.reshape({n, images.size(1), images.size(2), images.size(3)});
}

void train_small(const UNet& unet, const LossFunction& losses, int64_t T, int64_t steps) {
  const Tensor train = images(4096, kSmallSize, /*test=*/false);
  const Settings settings = small_settings();
  Generator random(1);
  AdamW optimizer(unet.named_parameters(), {.ema_rates = {0.98}});
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor x_0 = random_images(train, settings.batch_size, random);
    const Tensor t = random.integers({x_0.size(0)}, T), eps = normal_like(x_0, random);
    mean(losses(x_0, t, eps)).backward();
    optimizer.step(settings.lr);
    optimizer.zero_grad();
  }
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    optimizer.parameters()[i].value.copy_(optimizer.ema(0)[i].value);
  }
}

VNetwork::VNetwork(const Settings& settings, Generator& random)
    : schedule_(make_diffusion(settings).schedule()), unet_(small_unet(settings, random)) {}

Tensor VNetwork::x_0_hat(const Tensor& x_t, const Tensor& t) const {
  return at_timestep(schedule_.sqrt_alpha_bar, t, x_t) * x_t -
         at_timestep(schedule_.sqrt_one_minus_alpha_bar, t, x_t) * unet_->forward(x_t, t);
}

Model VNetwork::model() const {
  return [this](const Tensor& x_t, const Tensor& t) { return x_0_hat(x_t, t); };
}

void VNetwork::train(int64_t steps) const {
  const auto losses = [this](const Tensor& x_0, const Tensor& t, const Tensor& eps) {
    const Tensor v = at_timestep(schedule_.sqrt_alpha_bar, t, x_0) * eps -
                     at_timestep(schedule_.sqrt_one_minus_alpha_bar, t, x_0) * x_0;
    return mean_flat(square(v - unet_->forward(q_sample(schedule_, x_0, t, eps), t)));
  };
  train_small(*unet_, losses, schedule_.T, steps);
}

}  // namespace mutilde::tutorial
