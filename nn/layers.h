// The layers that a UNet is built from. Images are [N, H, W, C]. Weights start as PyTorch's
// defaults do: uniform in +-1/sqrt(fan_in) for convolutions and linear layers, normal for
// embeddings, or zero.
#pragma once

#include "nn/module.h"

namespace mutilde {

enum class Init { kDefault, kZero };

class Linear : public Module {
 public:
  /// `layout` kPointwise where the original has a one-dimensional convolution.
  Linear(int64_t in_features, int64_t out_features, Generator& random, Init init = Init::kDefault,
         CheckpointLayout layout = CheckpointLayout::kAsIs);
  /// [.., in_features] -> [.., out_features]; plus a residual of that shape.
  Tensor forward(const Tensor& x, const Tensor& residual = {}) const {
    return linear(x, weight_, bias_, residual);
  }

 private:
  Tensor weight_, bias_;  // [out, in], [out]
};

class Conv2d : public Module {
 public:
  Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, Generator& random,
         int64_t stride = 1, Init init = Init::kDefault);
  /// [N, H, W, C] -> [N, H / stride, W / stride, C_out] (padding kernel / 2); plus a residual of that shape.
  Tensor forward(const Tensor& x, const Tensor& residual = {}) const {
    return conv2d(x, weight_, bias_, stride_, padding_, residual);
  }
  int64_t out_channels() const { return bias_.size(0); }

 private:
  Tensor weight_, bias_;  // [C_out, k, k, C], [C_out]
  int64_t stride_, padding_;
};

/// Group norm of 32 groups, and the activation that always follows it where it is fused.
class GroupNorm32 : public Module {
 public:
  static constexpr int64_t kGroups = 32;

  /// Throws ShapeError if 32 does not divide the channels.
  explicit GroupNorm32(int64_t channels);
  Tensor forward(const Tensor& x) const { return group_norm(x, kGroups, weight_, bias_); }
  /// silu(norm(x) * (1 + scale) + shift); scale_shift: [N, 2C] or undefined.
  Tensor forward_silu(const Tensor& x, const Tensor& scale_shift = {}) const {
    return group_norm_silu(x, kGroups, weight_, bias_, scale_shift);
  }

 private:
  Tensor weight_, bias_;  // [C]
};

class Embedding : public Module {
 public:
  Embedding(int64_t entries, int64_t features, Generator& random);
  /// int64 [N] -> [N, features].
  Tensor forward(const Tensor& index) const { return embedding(weight_, index); }

 private:
  Tensor weight_;  // [entries, features]
};

/// Sinusoidal embedding of timesteps (Vaswani et al. 2017): cosines, then sines, of
/// t * 10000^(-i / half) for i < half = dim / 2; an odd dim ends with a zero.
/// t: [N], int64 or floating; returns [N, dim]. Frequencies and angles are float32 whatever the
/// dtype, as in the original: near t = 1000 a float64 angle gives sines that differ by 3e-5.
Tensor timestep_embedding(const Tensor& t, int64_t dim, DType dtype = DType::kFloat32);

}  // namespace mutilde
