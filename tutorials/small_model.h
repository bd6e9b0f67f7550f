// The small network that tutorials 9 to 11 train in a few seconds.
#pragma once

#include <functional>
#include <memory>

#include "diffusion/settings.h"

namespace mutilde::tutorial {

constexpr int kSmallSize = 14;  // its images' height and width: half of Fashion-MNIST's

/// Images [N, 14, 14, 1], 1000 steps of the cosine schedule, two levels of one block each.
Settings small_settings();

/// Fresh weights, in float64: training magnifies round-off, and float32's would be seen in the
/// digits that the tutorials quote, with another instruction set or compiler.
std::unique_ptr<UNet> small_unet(const Settings& settings, Generator& random);

/// The network as the functions of diffusion/ want it; it must outlive the result.
Model model_of(const UNet& unet);

/// n of the images, chosen at random.
Tensor random_images(const Tensor& images, int64_t n, Generator& random);

/// The losses [N] of images, at timesteps [N], with the noise to use.
using LossFunction = std::function<Tensor(const Tensor& x_0, const Tensor& t, const Tensor& eps)>;
/// Trains on Fashion-MNIST by the loop that tutorial 9 explains; the weights become their average.
void train_small(const UNet& unet, const LossFunction& losses, int64_t T, int64_t steps);

/// A network that names v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022).
class VNetwork {
 public:
  VNetwork(const Settings& settings, Generator& random);

  /// sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v. t: int64, of the process with all steps.
  Tensor x_0_hat(const Tensor& x_t, const Tensor& t) const;
  /// For a process whose ModelMean is kStartX.
  Model model() const;
  void train(int64_t steps) const;

 private:
  Schedule schedule_;
  std::unique_ptr<UNet> unet_;
};

}  // namespace mutilde::tutorial
