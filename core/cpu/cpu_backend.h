// The CPU backend: OpenMP threads over SIMD kernels. Each family of kernels has a file of its own.
#pragma once

#include "core/backend.h"
#include "core/caching_allocator.h"

namespace mutilde {

class CpuBackend final : public Backend {
 public:
  CpuBackend();

  // memory.cpp
  void* allocate(size_t bytes) override;
  void release(void* data, size_t bytes) override;
  MemoryStats memory_stats() const override;
  void reset_peak_memory() override;
  void copy(const void* from, void* to, size_t bytes) override;
  void copy_from_host(const void* host, void* device, size_t bytes) override;
  void copy_to_host(const void* device, void* host, size_t bytes) override;
  void synchronize() override {}  // a kernel returns when it is done
  bool has_kernels_for(DType) const override { return false; }
  std::function<void()> start_copy_to_host(const void* device, void* host, size_t bytes) override;

  // elementwise.cpp
  void fill(double value, View out) override;
  void cast(ConstView x, View out) override;
  void unary(UnaryOp op, ConstView x, View out) override;
  void unary_backward(UnaryOp op, ConstView x, ConstView y, ConstView dout, View dx) override;
  void affine(ConstView x, double scale, double shift, View out) override;
  void clamp(ConstView x, double low, double high, View out) override;
  void clamp_backward(ConstView x, double low, double high, ConstView dout, View dx) override;
  void binary(BinaryOp op, ConstView a, ConstView b, View out) override;
  void where(ConstView condition, ConstView a, ConstView b, View out) override;
  void accumulate(ConstView x, View into) override;

  // reduce.cpp
  void reduce(ReduceOp op, ConstView x, View out) override;
  void max_backward(ConstView x, ConstView y, ConstView dout, View dx) override;

  // layout.cpp
  void permute(ConstView x, std::span<const int> axes, View out) override;
  void copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                  int64_t out_begin) override;

  // matmul.cpp
  void matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) override;
  void linear(ConstView x, ConstView weight, ConstView bias, ConstView residual, View out) override;

  // conv.cpp
  void conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
              Conv2dGeometry geometry, View out) override;
  void conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                             View dx) override;
  void conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                              View dweight) override;

  // norm.cpp
  void group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                  GroupNormOptions options, View out, View mean, View rstd) override;
  void group_norm_backward(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                           ConstView mean, ConstView rstd, GroupNormOptions options, ConstView dout,
                           View dx, View dweight, View dbias, View dscale_shift) override;
  void softmax(ConstView x, View out) override;
  void softmax_backward(ConstView y, ConstView dout, View dx) override;

  // attention.cpp
  void attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) override;
  void attention_backward(ConstView qkv, int64_t heads, ConstView out, ConstView log_sum_exp,
                          ConstView dout, View dqkv) override;

  // resample.cpp
  void upsample_nearest(ConstView x, int64_t factor, double scale, View out) override;
  void sum_pool(ConstView x, int64_t factor, double scale, View out) override;
  void resize_bilinear(ConstView x, View out) override;
  void resize_bilinear_backward(ConstView dout, View dx) override;

  // embedding.cpp
  void embedding(ConstView weight, ConstView index, View out) override;
  void embedding_backward(ConstView dout, ConstView index, View dweight) override;

  // random.cpp
  void dropout(ConstView x, double p, RandomPosition position, View out) override;
  void fill_uniform(RandomPosition position, View out) override;
  void fill_normal(RandomPosition position, View out) override;

  // adamw.cpp
  void sum_of_squares(std::span<const ConstView> tensors, View out) override;
  void adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
             std::span<const double> ema_rates) override;

 private:
  CachingAllocator allocator_;
};

}  // namespace mutilde
