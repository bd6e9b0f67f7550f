// The UNet of Improved DDPM (Nichol and Dhariwal 2021, section 2 and appendix A),
// with every option of the original program. Parameter names are those of its state dict,
// so that weights go both ways.
#pragma once

#include <memory>
#include <vector>

#include "nn/layers.h"

namespace mutilde {

struct UNetConfig {
  int64_t in_channels = 3;   // of the noisy image
  int64_t out_channels = 3;  // twice as many with a learned variance
  int64_t model_channels = 128;
  std::vector<int64_t> channel_mult = {1, 2, 2, 2};
  int64_t num_res_blocks = 3;
  /// Attention where the image is this much smaller.
  std::vector<int64_t> attention_downsampling = {2, 4};
  int64_t num_heads = 4;
  int64_t num_heads_upsample = -1;  // -1: num_heads
  bool use_scale_shift_norm = true;
  bool conv_resample = true;  // learned down- and upsampling; else pooling and nearest neighbours
  double dropout = 0.0;
  int64_t num_classes = 0;  // 0: unconditional
  bool use_checkpoint = false;
  bool super_resolution = false;  // a second, smaller image is enlarged and joined to the first
};

/// What every block of one forward pass shares.
struct BlockContext {
  Tensor embedding;  // [N, 4 * model_channels], of the timestep and the class, after its SiLU
  Generator* random = nullptr;  // for dropout; set in training mode only
  bool use_checkpoint = false;
};

/// x -> x' of the same or another number of channels: norm, SiLU, convolution, twice, with the
/// embedding in between, plus a skip connection. The last convolution starts at zero, so that the
/// block starts as its skip.
class ResBlock : public Module {
 public:
  ResBlock(int64_t in_channels, int64_t out_channels, int64_t embedding_channels,
           const UNetConfig& config, Generator& random);
  Tensor forward(const Tensor& x, const BlockContext& context) const;

 private:
  Tensor compute(const Tensor& x, const Tensor& embedding, double dropout_p,
                 RandomPosition position) const;

  bool scale_shift_;
  double dropout_;
  GroupNorm32 in_norm_;
  Conv2d in_conv_;
  Linear embedding_linear_;
  GroupNorm32 out_norm_;
  Conv2d out_conv_;
  std::unique_ptr<Conv2d> skip_;  // 1x1, where the channels change
};

/// x + projection of multi-head self-attention over all positions.
class AttentionBlock : public Module {
 public:
  /// Throws ShapeError if the heads do not divide the channels.
  AttentionBlock(int64_t channels, int64_t heads, Generator& random);
  Tensor forward(const Tensor& x, const BlockContext& context) const;

 private:
  Tensor compute(const Tensor& x) const;

  int64_t heads_;
  GroupNorm32 norm_;
  Linear qkv_, proj_out_;
};

/// Halves height and width: a convolution of stride 2, or average pooling.
class Downsample : public Module {
 public:
  Downsample(int64_t channels, bool learned, Generator& random);
  Tensor forward(const Tensor& x) const;

 private:
  std::unique_ptr<Conv2d> op_;
};

/// Doubles height and width: nearest neighbours, then a convolution if learned.
class Upsample : public Module {
 public:
  Upsample(int64_t channels, bool learned, Generator& random);
  Tensor forward(const Tensor& x) const;

 private:
  std::unique_ptr<Conv2d> conv_;
};

/// One entry of the original's input_blocks, middle_block or output_blocks: a short list of layers.
class BlockSequence : public Module {
 public:
  void add(std::shared_ptr<ResBlock> block);
  void add(std::shared_ptr<AttentionBlock> block);
  void add(std::shared_ptr<Downsample> layer);
  void add(std::shared_ptr<Upsample> layer);
  void add(std::shared_ptr<Conv2d> layer);
  Tensor forward(Tensor x, const BlockContext& context) const;

 private:
  using Layer = std::function<Tensor(const Tensor& x, const BlockContext& context)>;
  void add_layer(std::shared_ptr<Module> module, Layer layer);

  std::vector<std::shared_ptr<Module>> modules_;
  std::vector<Layer> layers_;
};

class UNet : public Module {
 public:
  /// Throws Error for a configuration that makes no network (no levels,
  /// channels that 32 does not divide).
  UNet(const UNetConfig& config, Generator& random);

  /// x: [N, H, W, in_channels]; t: [N], int64 or floating, as the network should see it; y: [N]
  /// int64 class labels, exactly where num_classes > 0; low_res: [N, h, w, in_channels], exactly
  /// for super-resolution. Returns [N, H, W, out_channels]. Throws ShapeError if H or W does not
  /// halve evenly at every level.
  Tensor forward(const Tensor& x, const Tensor& t, const Tensor& y = {},
                 const Tensor& low_res = {}) const;

  const UNetConfig& config() const { return config_; }
  /// Where dropout draws from in training mode; a trainer sets it anew each step.
  void set_dropout_random(RandomPosition position) { dropout_random_ = Generator(position); }

 private:
  Tensor embed(const Tensor& t, const Tensor& y, DType dtype) const;

  UNetConfig config_;
  Linear time_embed_0_, time_embed_2_;
  std::unique_ptr<Embedding> label_embedding_;
  std::vector<std::unique_ptr<BlockSequence>> input_blocks_;
  BlockSequence middle_block_;
  std::vector<std::unique_ptr<BlockSequence>> output_blocks_;
  std::unique_ptr<GroupNorm32> out_norm_;
  std::unique_ptr<Conv2d> out_conv_;
  mutable Generator dropout_random_;
};

}  // namespace mutilde
