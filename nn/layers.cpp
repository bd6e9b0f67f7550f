#include "nn/layers.h"

#include <cmath>

namespace mutilde {

namespace {

// Uniform in +-1 / sqrt(fan_in): what PyTorch's kaiming_uniform with a = sqrt(5) comes to.
Tensor initial(const Shape& shape, int64_t fan_in, Generator& random, Init init) {
  if (init == Init::kZero) return Tensor::zeros(shape);
  const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
  return affine(random.uniform(shape), 2 * bound, -bound);
}

}  // namespace

Linear::Linear(int64_t in_features, int64_t out_features, Generator& random, Init init,
               CheckpointLayout layout) {
  add_parameter("weight", weight_, initial({out_features, in_features}, in_features, random, init),
                layout);
  add_parameter("bias", bias_, initial({out_features}, in_features, random, init));
}

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, Generator& random,
               int64_t stride, Init init)
    : stride_(stride), padding_(kernel / 2) {
  const int64_t fan_in = in_channels * kernel * kernel;
  add_parameter("weight", weight_,
                initial({out_channels, kernel, kernel, in_channels}, fan_in, random, init),
                CheckpointLayout::kConv2d);
  add_parameter("bias", bias_, initial({out_channels}, fan_in, random, init));
}

GroupNorm32::GroupNorm32(int64_t channels) {
  if (channels % kGroups != 0) {
    fail<ShapeError>("GroupNorm32: {} channels do not divide into {} groups", channels, kGroups);
  }
  add_parameter("weight", weight_, Tensor::full({channels}, 1.0));
  add_parameter("bias", bias_, Tensor::zeros({channels}));
}

Embedding::Embedding(int64_t entries, int64_t features, Generator& random) {
  add_parameter("weight", weight_, random.normal({entries, features}));
}

Tensor timestep_embedding(const Tensor& t, int64_t dim, DType dtype) {
  const int64_t half = dim / 2;
  std::vector<float> frequencies(static_cast<size_t>(half));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::exp(static_cast<float>(-std::log(10000.0)) * static_cast<float>(i) /
                              static_cast<float>(half));
  }
  const NoGrad no_grad;
  const Tensor table = Tensor::from<float>({1, half}, frequencies).to(t.device());
  const Tensor angle = (t.to(DType::kFloat32).reshape({t.numel(), 1}) * table).to(dtype);
  std::vector<Tensor> parts{cos(angle), sin(angle)};
  if (dim % 2 == 1) parts.push_back(Tensor::zeros({t.numel(), 1}, dtype, t.device()));
  return concat(parts);
}

}  // namespace mutilde
