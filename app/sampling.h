// Images from a network: what `sample` does, and `train` now and then; and the noise for that.
#pragma once

#include <functional>

#include "diffusion/gaussian_diffusion.h"
#include "diffusion/settings.h"

namespace mutilde::app {

struct SampleRequest {
  int64_t first = 0;  // the first sample's number: a sample's noise depends on the seed and this
  int64_t count = 16;
  int64_t seed = 0;
  Tensor y;        // [count] int64, for a network with classes
  Tensor low_res;  // [count, h, w, C], for super-resolution
  bool use_ddim = false;
  Device device = {};  // the network's
  SamplingOptions options;
};

/// Noise with a stream an image, `first` and on, so that neither the batch size nor the other images
/// matter.
Noise noise_by_image(int64_t seed, int64_t first, int64_t count);

/// [count, H, W, C] on the CPU, about in [-1, 1].
Tensor sample_images(const UNet& unet, const Settings& settings, const GaussianDiffusion& diffusion,
                     const SampleRequest& request);

/// 0, 1, .., classes - 1, 0, 1, ..: the classes of samples `first` and on, int64.
Tensor cycling_classes(int64_t first, int64_t count, int64_t classes);

}  // namespace mutilde::app
