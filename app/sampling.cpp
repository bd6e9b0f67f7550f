#include "app/sampling.h"

#include "core/autograd.h"
#include "diffusion/trainer.h"

namespace mutilde::app {

Noise noise_by_image(int64_t seed, int64_t first, int64_t count) {
  Settings seeded;
  seeded.seed = seed;
  std::vector<Generator> generators;
  for (int64_t i = 0; i < count; ++i) {
    generators.push_back(random_for(seeded, RandomPurpose::kSamples, first + i));
  }
  return [generators](const Tensor& like) mutable {
    Tensor noise = empty_like(like);
    const Shape one = like.shape().with(0, 1);
    for (size_t i = 0; i < generators.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      noise.slice(row, row + 1).copy_(generators[i].normal(one, like.dtype(), like.device()));
    }
    return noise;
  };
}

Tensor sample_images(const UNet& unet, const Settings& settings, const GaussianDiffusion& diffusion,
                     const SampleRequest& request) {
  const NoGrad no_grad;
  const auto there = [&](const Tensor& x) { return x.defined() ? x.to(request.device) : x; };
  const Model model = [&, y = there(request.y), low_res = there(request.low_res)](const Tensor& x_t,
                                                                                  const Tensor& t) {
    return unet.forward(x_t, t, y, low_res);
  };
  const Noise noise = noise_by_image(request.seed, request.first, request.count);
  const int64_t size = settings.image_size;
  const Shape shape{request.count, size, size, settings.image_channels};
  const Tensor x_T = noise(Tensor::empty(shape, DType::kFloat32, request.device));
  const Tensor x_0 = request.use_ddim
                         ? diffusion.ddim_sample_loop(model, x_T, noise, request.options)
                         : diffusion.p_sample_loop(model, x_T, noise, request.options);
  return x_0.to(Device::cpu());
}

Tensor cycling_classes(int64_t first, int64_t count, int64_t classes) {
  std::vector<int64_t> y;
  for (int64_t i = first; i < first + count; ++i) y.push_back(i % classes);
  return Tensor::from<int64_t>({count}, y);
}

}  // namespace mutilde::app
