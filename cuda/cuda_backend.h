// The CUDA backend: the same kernels as the CPU's (core/cpu), each family in a file of the same name.
// Emulated (docs/cuda-without-a-gpu.md) it runs without a GPU.
//
// All work of a host thread on a device goes to the thread's default stream, in the order of the calls. A
// kernel is launched and not waited for; what waits is a copy to the host, and a copy from it that is larger
// than the pinned memory that there is for it. One host thread at a time may use a device: what another
// frees is handed out again in the order of the first one's stream.
#pragma once

#include <optional>

#include "core/backend.h"
#include "core/caching_allocator.h"
#include "cuda/graph.h"
#include "cuda/rung.h"
#include "cuda/staging.h"

namespace mutilde::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index, Rung rung = rung_from_environment());

  // memory.cu
  void* allocate(size_t bytes) override;
  void release(void* data, size_t bytes) override;
  MemoryStats memory_stats() const override;
  void reset_peak_memory() override;
  void copy(const void* from, void* to, size_t bytes) override;
  void copy_from_host(const void* host, void* device, size_t bytes) override;
  void copy_to_host(const void* device, void* host, size_t bytes) override;
  void synchronize() override;
  bool has_kernels_for(DType short_type) const override { return is_short(short_type); }
  std::function<void()> start_copy_to_host(const void* device, void* host, size_t bytes) override;
  void launch_together(const std::function<void()>& work) override;

  // elementwise.cu
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

  // reduce.cu
  void reduce(ReduceOp op, ConstView x, View out) override;
  void max_backward(ConstView x, ConstView y, ConstView dout, View dx) override;

  // layout.cu
  void permute(ConstView x, std::span<const int> axes, View out) override;
  void copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                  int64_t out_begin) override;

  // matmul.cu
  void matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) override;
  void linear(ConstView x, ConstView weight, ConstView bias, ConstView residual, View out) override;

  // conv.cu
  void conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
              Conv2dGeometry geometry, View out) override;
  void conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                             View dx) override;
  void conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                              View dweight) override;

  // norm.cu
  void group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                  GroupNormOptions options, View out, View mean, View rstd) override;
  void group_norm_backward(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                           ConstView mean, ConstView rstd, GroupNormOptions options, ConstView dout,
                           View dx, View dweight, View dbias, View dscale_shift) override;
  void softmax(ConstView x, View out) override;
  void softmax_backward(ConstView y, ConstView dout, View dx) override;

  // attention.cu
  void attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) override;
  void attention_backward(ConstView qkv, int64_t heads, ConstView out, ConstView log_sum_exp,
                          ConstView dout, View dqkv) override;

  // resample.cu
  void upsample_nearest(ConstView x, int64_t factor, double scale, View out) override;
  void sum_pool(ConstView x, int64_t factor, double scale, View out) override;
  void resize_bilinear(ConstView x, View out) override;
  void resize_bilinear_backward(ConstView dout, View dx) override;

  // embedding.cu
  void embedding(ConstView weight, ConstView index, View out) override;
  void embedding_backward(ConstView dout, ConstView index, View dweight) override;

  // random.cu
  void dropout(ConstView x, double p, RandomPosition position, View out) override;
  void fill_uniform(RandomPosition position, View out) override;
  void fill_normal(RandomPosition position, View out) override;

  // adamw.cu
  void sum_of_squares(std::span<const ConstView> tensors, View out) override;
  void adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
             std::span<const double> ema_rates) override;

 private:
  int index_;
  Rung rung_;
  CachingAllocator allocator_;
  Staging staging_;
  std::optional<Graph> graph_;
};

}  // namespace mutilde::cuda
