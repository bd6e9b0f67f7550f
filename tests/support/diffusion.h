// What the tests of the diffusion folder share.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/ops.h"
#include "core/random.h"
#include "diffusion/gaussian_diffusion.h"

namespace mutilde::test {

/// The names that the reference files use.
inline const std::vector<std::pair<std::string, ModelMean>>& mean_kinds() {
  static const std::vector<std::pair<std::string, ModelMean>> kinds = {
      {"PREVIOUS_X", ModelMean::kPreviousX},
      {"START_X", ModelMean::kStartX},
      {"EPSILON", ModelMean::kEpsilon}};
  return kinds;
}

inline const std::vector<std::pair<std::string, ModelVariance>>& variance_kinds() {
  static const std::vector<std::pair<std::string, ModelVariance>> kinds = {
      {"LEARNED", ModelVariance::kLearned},
      {"FIXED_SMALL", ModelVariance::kFixedSmall},
      {"FIXED_LARGE", ModelVariance::kFixedLarge},
      {"LEARNED_RANGE", ModelVariance::kLearnedRange}};
  return kinds;
}

inline const std::vector<std::pair<std::string, Loss>>& loss_kinds() {
  static const std::vector<std::pair<std::string, Loss>> kinds = {
      {"MSE", Loss::kMse},
      {"RESCALED_MSE", Loss::kRescaledMse},
      {"KL", Loss::kKl},
      {"RESCALED_KL", Loss::kRescaledKl}};
  return kinds;
}

inline bool is_learned(ModelVariance kind) {
  return kind == ModelVariance::kLearned || kind == ModelVariance::kLearnedRange;
}

/// A model that returns the same whatever it is given.
inline Model constant_model(const Tensor& output) {
  return [output](const Tensor&, const Tensor&) { return output; };
}

/// The model of the reference's loops: a x + b sin(t / 100), and tanh(x) for a learned variance. It
/// keeps what timesteps it was shown.
struct LoopModel {
  Tensor operator()(const Tensor& x, const Tensor& t) const {
    seen->push_back(t.to_vector<double>());
    Tensor shift = sin(t.to(x.dtype()) / 100.0).reshape({t.size(0), 1, 1, 1});
    const Tensor mean = a * x + b * shift;
    return learned ? concat({mean, tanh(x)}) : mean;
  }

  double a, b;
  bool learned;
  std::shared_ptr<std::vector<std::vector<double>>> seen =
      std::make_shared<std::vector<std::vector<double>>>();
};

inline Tensor timesteps(const std::vector<int64_t>& t) {
  return Tensor::from<int64_t>({static_cast<int64_t>(t.size())}, t);
}

/// Normal float64 images, 2 x 3 with 2 channels.
inline Tensor normal_images(int64_t N, Generator& generator) {
  return generator.normal({N, 2, 3, 2}, DType::kFloat64);
}

/// alpha_bar_t as the paper writes it, the product of 1 - beta up to t (from 0), in long double.
inline double alpha_bar_at(const std::vector<double>& betas, int64_t t) {
  long double product = 1;
  for (int64_t s = 0; s <= t; ++s)
    product *= 1 - static_cast<long double>(betas[static_cast<size_t>(s)]);
  return static_cast<double>(product);
}

}  // namespace mutilde::test
