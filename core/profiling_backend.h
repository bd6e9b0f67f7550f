// A backend that hands every kernel on to another one, and notes how long it took and what it had to
// do at least. `mutilde bench --profile` prints what it noted.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/backend.h"

namespace mutilde {

/// What the calls of one kernel on one set of shapes did, together.
struct KernelProfile {
  int64_t calls = 0;
  double seconds = 0;
  double operations = 0;  // floating-point; a multiply-add counts as two. Convolutions count direct
  double bytes = 0;       // every operand read or written once
  KernelProfile& operator+=(const KernelProfile& other);
};

/// Each kernel is waited for, on a GPU too, where that adds the time that a launch takes. Not for several
/// threads at once.
class ProfilingBackend final : public Backend {
 public:
  explicit ProfilingBackend(Backend& inner) : inner_(inner) {}

  /// By kernel and shapes: {"conv2d", "16x32x32x64 * 64x3x3x64"}.
  const std::map<std::pair<std::string, std::string>, KernelProfile>& profiles() const {
    return profiles_;
  }
  /// Of the matrix products: linear, matmul, attention and convolutions, with what begins as they do.
  double product_operations() const;
  void clear() { profiles_.clear(); }

  void* allocate(size_t bytes) override { return inner_.allocate(bytes); }
  void release(void* data, size_t bytes) override { inner_.release(data, bytes); }
  MemoryStats memory_stats() const override { return inner_.memory_stats(); }
  void reset_peak_memory() override { inner_.reset_peak_memory(); }
  void synchronize() override { inner_.synchronize(); }
  bool has_kernels_for(DType short_type) const override {
    return inner_.has_kernels_for(short_type);
  }
  void copy(const void* from, void* to, size_t bytes) override;
  void copy_from_host(const void* host, void* device, size_t bytes) override;
  void copy_to_host(const void* device, void* host, size_t bytes) override;
  std::function<void()> start_copy_to_host(const void* device, void* host, size_t bytes) override;

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
  void dropout(ConstView x, double p, RandomPosition position, View out) override;
  void reduce(ReduceOp op, ConstView x, View out) override;
  void max_backward(ConstView x, ConstView y, ConstView dout, View dx) override;
  void permute(ConstView x, std::span<const int> axes, View out) override;
  void copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                  int64_t out_begin) override;
  void matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) override;
  void linear(ConstView x, ConstView weight, ConstView bias, ConstView residual, View out) override;
  void conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
              Conv2dGeometry geometry, View out) override;
  void conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                             View dx) override;
  void conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                              View dweight) override;
  void group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                  GroupNormOptions options, View out, View mean, View rstd) override;
  void group_norm_backward(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                           ConstView mean, ConstView rstd, GroupNormOptions options, ConstView dout,
                           View dx, View dweight, View dbias, View dscale_shift) override;
  void softmax(ConstView x, View out) override;
  void softmax_backward(ConstView y, ConstView dout, View dx) override;
  void attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) override;
  void attention_backward(ConstView qkv, int64_t heads, ConstView out, ConstView log_sum_exp,
                          ConstView dout, View dqkv) override;
  void upsample_nearest(ConstView x, int64_t factor, double scale, View out) override;
  void sum_pool(ConstView x, int64_t factor, double scale, View out) override;
  void resize_bilinear(ConstView x, View out) override;
  void resize_bilinear_backward(ConstView dout, View dx) override;
  void embedding(ConstView weight, ConstView index, View out) override;
  void embedding_backward(ConstView dout, ConstView index, View dweight) override;
  void fill_uniform(RandomPosition position, View out) override;
  void fill_normal(RandomPosition position, View out) override;
  void sum_of_squares(std::span<const ConstView> tensors, View out) override;
  void adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
             std::span<const double> ema_rates) override;

 private:
  template <class Kernel>
  void note(const char* kernel, std::string shapes, double operations, double bytes,
            const Kernel& run);

  Backend& inner_;
  std::map<std::pair<std::string, std::string>, KernelProfile> profiles_;
};

/// Puts a profiler in the place of a device's backend for as long as it lives. One at a time.
class Profiling {
 public:
  explicit Profiling(Device device);
  ~Profiling();
  Profiling(const Profiling&) = delete;
  Profiling& operator=(const Profiling&) = delete;

  const ProfilingBackend& noted() const { return profiler_; }

 private:
  ProfilingBackend& profiler_;
  DeviceType type_;
  MakeBackend before_;
};

}  // namespace mutilde
