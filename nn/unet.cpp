#include "nn/unet.h"

#include <algorithm>
#include <utility>

#include "core/precision.h"

namespace mutilde {

ResBlock::ResBlock(int64_t in_channels, int64_t out_channels, int64_t embedding_channels,
                   const UNetConfig& config, Generator& random)
    : scale_shift_(config.use_scale_shift_norm),
      dropout_(config.dropout),
      in_norm_(in_channels),
      in_conv_(in_channels, out_channels, 3, random),
      embedding_linear_(embedding_channels, (scale_shift_ ? 2 : 1) * out_channels, random),
      out_norm_(out_channels),
      out_conv_(out_channels, out_channels, 3, random, 1, Init::kZero) {
  // The numbers are places in the original's lists (norm, SiLU, dropout and convolution).
  add_module("in_layers.0", in_norm_);
  add_module("in_layers.2", in_conv_);
  add_module("emb_layers.1", embedding_linear_);
  add_module("out_layers.0", out_norm_);
  add_module("out_layers.3", out_conv_);
  if (in_channels != out_channels) {
    skip_ = std::make_unique<Conv2d>(in_channels, out_channels, 1, random);
    add_module("skip_connection", *skip_);
  }
}

Tensor ResBlock::forward(const Tensor& x, const BlockContext& context) const {
  RandomPosition position;
  const bool dropping = context.random != nullptr && dropout_ > 0;
  if (dropping) {
    position = context.random->take(x.numel() / x.size(-1) * out_conv_.out_channels());
  }
  const double p = dropping ? dropout_ : 0;
  if (!context.use_checkpoint) return compute(x, context.embedding, p, position);
  return checkpoint(
      [this, p, position](const std::vector<Tensor>& inputs) {
        return compute(inputs[0], inputs[1], p, position);
      },
      {x, context.embedding});
}

Tensor ResBlock::compute(const Tensor& x, const Tensor& embedding, double dropout_p,
                         RandomPosition position) const {
  Tensor h = in_conv_.forward(in_norm_.forward_silu(x));
  const Tensor projected = embedding_linear_.forward(embedding);
  if (scale_shift_) {
    h = out_norm_.forward_silu(h, projected);
  } else {
    const Tensor added = projected.reshape({x.size(0), 1, 1, h.size(-1)});
    h = out_norm_.forward_silu(h + cast(added, h.dtype()));
  }
  if (dropout_p > 0) h = dropout(h, dropout_p, position);
  return out_conv_.forward(h, skip_ ? skip_->forward(x) : x);
}

AttentionBlock::AttentionBlock(int64_t channels, int64_t heads, Generator& random)
    : heads_(heads),
      norm_(channels),
      qkv_(channels, 3 * channels, random, Init::kDefault, CheckpointLayout::kPointwise),
      proj_out_(channels, channels, random, Init::kZero, CheckpointLayout::kPointwise) {
  if (heads < 1 || channels % heads != 0) {
    fail<ShapeError>("AttentionBlock: {} channels do not divide into {} heads", channels, heads);
  }
  add_module("norm", norm_);
  add_module("qkv", qkv_);
  add_module("proj_out", proj_out_);
}

Tensor AttentionBlock::forward(const Tensor& x, const BlockContext& context) const {
  if (!context.use_checkpoint) return compute(x);
  return checkpoint([this](const std::vector<Tensor>& inputs) { return compute(inputs[0]); }, {x});
}

Tensor AttentionBlock::compute(const Tensor& x) const {
  const Shape rows{x.size(0), x.size(1) * x.size(2), x.size(3)};
  const Tensor attended = attention(qkv_.forward(norm_.forward(x).reshape(rows)), heads_);
  return proj_out_.forward(attended, x.reshape(rows)).reshape(x.shape());
}

Downsample::Downsample(int64_t channels, bool learned, Generator& random) {
  if (!learned) return;
  op_ = std::make_unique<Conv2d>(channels, channels, 3, random, 2);
  add_module("op", *op_);
}

Tensor Downsample::forward(const Tensor& x) const {
  return op_ ? op_->forward(x) : avg_pool2d(x, 2);
}

Upsample::Upsample(int64_t channels, bool learned, Generator& random) {
  if (!learned) return;
  conv_ = std::make_unique<Conv2d>(channels, channels, 3, random);
  add_module("conv", *conv_);
}

Tensor Upsample::forward(const Tensor& x) const {
  const Tensor larger = upsample_nearest(x, 2);
  return conv_ ? conv_->forward(larger) : larger;
}

void BlockSequence::add_layer(std::shared_ptr<Module> module, Layer layer) {
  add_module(std::to_string(modules_.size()), *module);
  modules_.push_back(std::move(module));
  layers_.push_back(std::move(layer));
}

void BlockSequence::add(std::shared_ptr<ResBlock> block) {
  add_layer(block,
            [b = block.get()](const Tensor& x, const BlockContext& c) { return b->forward(x, c); });
}
void BlockSequence::add(std::shared_ptr<AttentionBlock> block) {
  add_layer(block,
            [b = block.get()](const Tensor& x, const BlockContext& c) { return b->forward(x, c); });
}
void BlockSequence::add(std::shared_ptr<Downsample> layer) {
  add_layer(layer,
            [l = layer.get()](const Tensor& x, const BlockContext&) { return l->forward(x); });
}
void BlockSequence::add(std::shared_ptr<Upsample> layer) {
  add_layer(layer,
            [l = layer.get()](const Tensor& x, const BlockContext&) { return l->forward(x); });
}
void BlockSequence::add(std::shared_ptr<Conv2d> layer) {
  add_layer(layer,
            [l = layer.get()](const Tensor& x, const BlockContext&) { return l->forward(x); });
}

Tensor BlockSequence::forward(Tensor x, const BlockContext& context) const {
  for (const Layer& layer : layers_) x = layer(x, context);
  return x;
}

UNet::UNet(const UNetConfig& config, Generator& random)
    : config_(config),
      time_embed_0_(config.model_channels, 4 * config.model_channels, random),
      time_embed_2_(4 * config.model_channels, 4 * config.model_channels, random) {
  if (config.channel_mult.empty() || config.num_res_blocks < 1) {
    fail<Error>(
        "UNet: at least one level and one residual block a level are needed ({} levels, {} blocks)",
        config.channel_mult.size(), config.num_res_blocks);
  }
  const int64_t embedding_channels = 4 * config.model_channels;
  add_module("time_embed.0", time_embed_0_);
  add_module("time_embed.2", time_embed_2_);
  if (config.num_classes > 0) {
    label_embedding_ = std::make_unique<Embedding>(config.num_classes, embedding_channels, random);
    add_module("label_emb", *label_embedding_);
  }

  const auto attends = [&](int64_t downsampling) {
    const auto& all = config.attention_downsampling;
    return std::find(all.begin(), all.end(), downsampling) != all.end();
  };
  const auto append = [this](std::vector<std::unique_ptr<BlockSequence>>& blocks,
                             const char* list) -> BlockSequence& {
    blocks.push_back(std::make_unique<BlockSequence>());
    add_module(fmt::format("{}.{}", list, blocks.size() - 1), *blocks.back());
    return *blocks.back();
  };

  int64_t channels = config.model_channels;
  std::vector<int64_t> skip_channels{channels};
  int64_t downsampling = 1;
  const int64_t image_channels = config.in_channels * (config.super_resolution ? 2 : 1);
  append(input_blocks_, "input_blocks")
      .add(std::make_shared<Conv2d>(image_channels, channels, 3, random));
  const size_t levels = config.channel_mult.size();
  for (size_t level = 0; level < levels; ++level) {
    const int64_t level_channels = config.channel_mult[level] * config.model_channels;
    for (int64_t i = 0; i < config.num_res_blocks; ++i) {
      BlockSequence& block = append(input_blocks_, "input_blocks");
      block.add(
          std::make_shared<ResBlock>(channels, level_channels, embedding_channels, config, random));
      channels = level_channels;
      if (attends(downsampling)) {
        block.add(std::make_shared<AttentionBlock>(channels, config.num_heads, random));
      }
      skip_channels.push_back(channels);
    }
    if (level + 1 < levels) {
      append(input_blocks_, "input_blocks")
          .add(std::make_shared<Downsample>(channels, config.conv_resample, random));
      skip_channels.push_back(channels);
      downsampling *= 2;
    }
  }

  middle_block_.add(
      std::make_shared<ResBlock>(channels, channels, embedding_channels, config, random));
  middle_block_.add(std::make_shared<AttentionBlock>(channels, config.num_heads, random));
  middle_block_.add(
      std::make_shared<ResBlock>(channels, channels, embedding_channels, config, random));
  add_module("middle_block", middle_block_);

  const int64_t up_heads =
      config.num_heads_upsample == -1 ? config.num_heads : config.num_heads_upsample;
  for (size_t level = levels; level-- > 0;) {
    const int64_t level_channels = config.channel_mult[level] * config.model_channels;
    for (int64_t i = 0; i <= config.num_res_blocks; ++i) {
      BlockSequence& block = append(output_blocks_, "output_blocks");
      block.add(std::make_shared<ResBlock>(channels + skip_channels.back(), level_channels,
                                           embedding_channels, config, random));
      skip_channels.pop_back();
      channels = level_channels;
      if (attends(downsampling))
        block.add(std::make_shared<AttentionBlock>(channels, up_heads, random));
      if (level > 0 && i == config.num_res_blocks) {
        block.add(std::make_shared<Upsample>(channels, config.conv_resample, random));
        downsampling /= 2;
      }
    }
  }

  out_norm_ = std::make_unique<GroupNorm32>(channels);
  out_conv_ = std::make_unique<Conv2d>(channels, config.out_channels, 3, random, 1, Init::kZero);
  add_module("out.0", *out_norm_);
  add_module("out.2", *out_conv_);
}

Tensor UNet::embed(const Tensor& t, const Tensor& y, DType dtype) const {
  Tensor embedding = timestep_embedding(t, config_.model_channels, dtype);
  embedding = time_embed_2_.forward(silu(time_embed_0_.forward(embedding)));
  if (label_embedding_) embedding = embedding + label_embedding_->forward(y);
  return silu(embedding);
}

Tensor UNet::forward(const Tensor& x, const Tensor& t, const Tensor& y,
                     const Tensor& low_res) const {
  const int64_t factor = int64_t{1} << (config_.channel_mult.size() - 1);
  if (x.rank() != 4 || x.size(3) != config_.in_channels || x.size(1) % factor != 0 ||
      x.size(2) % factor != 0) {
    fail<ShapeError>("UNet: input {} given, [N, H, W, {}] with H and W multiples of {} expected",
                     x.shape(), config_.in_channels, factor);
  }
  if (t.rank() != 1 || t.size(0) != x.size(0)) {
    fail<ShapeError>("UNet: timesteps {} given, [{}] expected", t.shape(), x.size(0));
  }
  if (y.defined() != (config_.num_classes > 0)) {
    fail<Error>("UNet: {}", y.defined() ? "class labels given to an unconditional model"
                                        : "a class-conditional model needs class labels");
  }
  if (low_res.defined() != config_.super_resolution) {
    fail<Error>("UNet: {}", low_res.defined()
                                ? "a low-resolution image given to a plain model"
                                : "a super-resolution model needs a low-resolution image");
  }

  BlockContext context;
  context.embedding = embed(t, y, x.dtype());
  context.random = training() ? &dropout_random_ : nullptr;
  context.use_checkpoint = config_.use_checkpoint;

  Tensor h = x;
  if (low_res.defined()) h = concat({x, resize_bilinear(low_res, x.size(1), x.size(2))});
  // As the original's convert_to_fp16 has it: the blocks, which are nearly all of the work, in the short
  // type; the timestep's embedding, all parameters and the layers behind the blocks in the input's.
  if (const DType type = factor_dtype(x.dtype());
      is_short(type) && backend(x).has_kernels_for(type)) {
    h = cast(h, type);
  }
  std::vector<Tensor> skips;
  for (const auto& block : input_blocks_) {
    h = block->forward(h, context);
    skips.push_back(h);
  }
  h = middle_block_.forward(h, context);
  for (const auto& block : output_blocks_) {
    h = block->forward(concat({h, skips.back()}), context);
    skips.pop_back();
  }
  return out_conv_->forward(out_norm_->forward_silu(cast(h, x.dtype())));
}

}  // namespace mutilde
