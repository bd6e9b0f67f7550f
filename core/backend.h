// A backend: one pure virtual function a kernel, so that a kernel which a backend forgot is a
// compile error and not a surprise at run time.
//
// Kernels take raw views (pointer, dtype, shape) of dense row-major data on their own device. They know
// nothing of autograd, and trust their callers: the op has checked shapes and dtypes. Every floating-point
// kernel takes float32 and float64, some of some backends a short type (has_kernels_for); within a call all
// floating views share a dtype unless a comment says otherwise. No result depends on the number of threads.
//
// In a kernel the gradient of `x` is `dx` and the incoming one is `dout`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/dtype.h"
#include "core/shape.h"

namespace mutilde {

/// Read-only data of a tensor. `data` is null where an optional input is absent.
struct ConstView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;
  const void* short_copy =
      nullptr;  // the same numbers, where the caller has them in a short type too
  DType short_type = DType::kBFloat16;

  int64_t numel() const { return shape.numel(); }
  explicit operator bool() const { return data != nullptr; }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

/// Data that a kernel writes.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;

  int64_t numel() const { return shape.numel(); }
  explicit operator bool() const { return data != nullptr; }
  operator ConstView() const { return {data, dtype, shape, nullptr, {}}; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

enum class UnaryOp {
  kNeg,
  kExp,
  kLog,
  kSqrt,
  kSquare,
  kReciprocal,
  kTanh,
  kSigmoid,
  kSilu,
  kSin,
  kCos,
  kAbs
};
enum class BinaryOp { kAdd, kSub, kMul, kDiv, kLess, kGreaterEqual };  // the last two give uint8
enum class ReduceOp { kSum, kMax };

struct Conv2dGeometry {
  int64_t stride = 1;
  int64_t padding = 0;  // zeros on each side, both axes
};

/// Group norm over x: [N, P, C] (P positions), then optionally * (1 + scale) + shift, then
/// optionally SiLU. scale and shift are the halves of one scale_shift: [N, 2C], which is read as
/// the layer that projects the timestep wrote it (no split needed).
struct GroupNormOptions {
  int64_t groups = 32;
  double norm_eps = 1e-5;
  bool silu = false;
};

struct AdamWStep {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, weight_decay = 0.0;
  int64_t step = 1;  // counts from 1: the bias corrections are 1 - beta^step
  /// The gradients are multiplied by it as they are read.
  double grad_scale = 1;
  /// One float64 on the device. Unless it is finite the step changes nothing, and nobody had to wait
  /// to find out. Absent: the step is taken.
  ConstView only_if_finite = {};
};

/// One parameter's buffers, all of one shape and dtype. `ema` holds one average a rate. Without a
/// gradient (null data) only the averages move.
struct AdamWBuffers {
  View param, first_moment, second_moment;
  ConstView grad;
  std::span<const View> ema;
  View short_copy = {};  // of param, in a short type, to be one again after the step; or absent
};

/// Where random numbers come from: element i of a draw depends on (seed, stream, offset + i) alone.
struct RandomPosition {
  uint64_t seed = 0, stream = 0, offset = 0;  // offset is a multiple of 4
};

struct MemoryStats {
  int64_t live_bytes = 0;    // in tensors now
  int64_t peak_bytes = 0;    // the most that was ever live since reset_peak_memory()
  int64_t cached_bytes = 0;  // freed, kept for reuse
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // Memory. allocate() returns memory aligned to 64 bytes at least; its content is undefined.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* data, size_t bytes) = 0;
  virtual MemoryStats memory_stats() const = 0;
  virtual void reset_peak_memory() = 0;
  virtual void copy(const void* from, void* to, size_t bytes) = 0;  // within the device
  virtual void copy_from_host(const void* host, void* device, size_t bytes) = 0;
  virtual void copy_to_host(const void* device, void* host, size_t bytes) = 0;
  /// The same without waiting: the data is there when what is returned was called, once.
  virtual std::function<void()> start_copy_to_host(const void* device, void* host,
                                                   size_t bytes) = 0;
  virtual void synchronize() = 0;  // waits until all that was asked for is done
  /// Calls work(). A device may collect what work starts on it, and start all of it at once when work
  /// returns: so work may not wait for the device.
  virtual void launch_together(const std::function<void()>& work) { work(); }

  /// Do the kernels of what lies between a network's layers take a short type too? These are the elementwise
  /// ones, sums, layout, linear, conv2d, group_norm, attention, upsample_nearest and sum_pool, and the gradients
  /// of all. Then x, out, dout and dx are of that type; weights, biases, scale_shift, statistics, sums and
  /// their gradients are float32, as is all arithmetic.
  virtual bool has_kernels_for(DType short_type) const = 0;

  // Elementwise.
  virtual void fill(double value, View out) = 0;  // any dtype
  virtual void cast(ConstView x, View out) = 0;   // any dtype to any
  virtual void unary(UnaryOp op, ConstView x, View out) = 0;
  /// dx = op'(x) * dout. The op saved exactly one of x and y = op(x), whichever its derivative is
  /// written in (`Saves` in core/ops/elementwise.cpp), and kNeg neither: the others are absent.
  /// Throws Error if the one that is needed is.
  virtual void unary_backward(UnaryOp op, ConstView x, ConstView y, ConstView dout, View dx) = 0;
  virtual void affine(ConstView x, double scale, double shift, View out) = 0;  // x * scale + shift
  virtual void clamp(ConstView x, double low, double high, View out) = 0;
  /// dx = dout where low <= x <= high, else 0.
  virtual void clamp_backward(ConstView x, double low, double high, ConstView dout, View dx) = 0;
  /// a and b broadcast to out's shape (aligned at the last axis).
  virtual void binary(BinaryOp op, ConstView a, ConstView b, View out) = 0;
  /// condition (uint8), a, b broadcast to out's shape.
  virtual void where(ConstView condition, ConstView a, ConstView b, View out) = 0;
  virtual void accumulate(ConstView x, View into) = 0;  // into += x, same shape
  /// out = x / (1 - p) where kept, else 0. The mask is a function of the position: the backward
  /// pass is the same call on the gradient.
  virtual void dropout(ConstView x, double p, RandomPosition position, View out) = 0;

  // Reductions.
  /// x's shape and out's shape have the same rank; the axes where out has size 1 are reduced.
  virtual void reduce(ReduceOp op, ConstView x, View out) = 0;
  /// y = max(x) as from reduce; the gradient is shared evenly by the
  /// elements that attain the maximum.
  virtual void max_backward(ConstView x, ConstView y, ConstView dout, View dx) = 0;

  // Layout.
  virtual void permute(ConstView x, std::span<const int> axes, View out) = 0;  // any dtype
  /// Copies `count` entries of an axis, from x at x_begin to out at out_begin;
  /// other axes agree. Any dtype.
  virtual void copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                          int64_t out_begin) = 0;

  // Matrix products.
  /// out[i] = a[i] b[i]; a: [B or 1, M, K] ([.., K, M] if transpose_a),
  /// b: [B or 1, K, N] ([.., N, K] if transpose_b), out: [B, M, N].
  virtual void matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) = 0;
  /// out = x weight^T + bias + residual; x: [M, K], weight: [N, K], bias: [N] or absent, out: [M, N], residual
  /// like out or absent. It is added to what out would be without it, after rounding.
  virtual void linear(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                      View out) = 0;

  // Convolution. x: [N, H, W, C], weight: [C_out, kH, kW, C], bias: [C_out] or absent,
  // out: [N, H_out, W_out, C_out], residual as in linear.
  virtual void conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                      Conv2dGeometry geometry, View out) = 0;
  virtual void conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                     View dx) = 0;
  virtual void conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                      View dweight) = 0;

  // Normalisation. x, out: [N, P, C]; weight, bias: [C]; scale_shift: [N, 2C] (scale, then shift)
  // or absent; mean, rstd: [N, groups].
  virtual void group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                          GroupNormOptions options, View out, View mean, View rstd) = 0;
  /// dscale_shift is absent where scale_shift is.
  virtual void group_norm_backward(ConstView x, ConstView weight, ConstView bias,
                                   ConstView scale_shift, ConstView mean, ConstView rstd,
                                   GroupNormOptions options, ConstView dout, View dx, View dweight,
                                   View dbias, View dscale_shift) = 0;
  virtual void softmax(ConstView x, View out) = 0;  // over the last axis
  virtual void softmax_backward(ConstView y, ConstView dout, View dx) = 0;

  // Attention. qkv: [N, T, heads * 3 * D], for each head its q, then k, then v;
  // out: [N, T, heads * D];
  // log_sum_exp: [N, heads, T], all that the backward pass needs besides qkv and out.
  virtual void attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) = 0;
  virtual void attention_backward(ConstView qkv, int64_t heads, ConstView out,
                                  ConstView log_sum_exp, ConstView dout, View dqkv) = 0;

  // Resampling, [N, H, W, C].
  /// out[n, h, w] = scale * x[n, h / factor, w / factor].
  virtual void upsample_nearest(ConstView x, int64_t factor, double scale, View out) = 0;
  /// out[n, h, w] = scale * sum of x over the factor x factor block at (h, w) * factor.
  virtual void sum_pool(ConstView x, int64_t factor, double scale, View out) = 0;
  /// Bilinear with half-pixel centres, edges clamped; sizes from the shapes.
  virtual void resize_bilinear(ConstView x, View out) = 0;
  virtual void resize_bilinear_backward(ConstView dout, View dx) = 0;

  // Tables. Indices are int64. Those of a CPU tensor were checked by the op. A device's were not,
  // since the host would have to wait for them: a device's kernel reads and writes nothing outside
  // of the table, and gives NaN for the row of an index that is.
  /// weight: [V, E], index: [n], out: [n, E].
  virtual void embedding(ConstView weight, ConstView index, View out) = 0;
  virtual void embedding_backward(ConstView dout, ConstView index, View dweight) = 0;

  // Random numbers (core/random.h says how a position becomes a number).
  virtual void fill_uniform(RandomPosition position, View out) = 0;  // [0, 1)
  virtual void fill_normal(RandomPosition position, View out) = 0;   // N(0, 1)

  // Optimisation, of all parameters at once, which share a dtype.
  /// out: [], float64: the sum of the squares of all elements of all tensors.
  virtual void sum_of_squares(std::span<const ConstView> tensors, View out) = 0;
  /// AdamW (decoupled weight decay) and all moving averages in one pass;
  /// ema[i] = rates[i] * ema[i] + (1 - rates[i]) * param, as ema[i] += (1 - rates[i]) * (param -
  /// ema[i]).
  virtual void adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
                     std::span<const double> ema_rates) = 0;
};

/// The backend of a device. Throws Error if this build or this machine has none for it.
Backend& backend(Device device);
/// Gives the backend of a device index.
using MakeBackend = Backend& (*)(int index);
/// Called once by a backend library for its device type. Returns what was registered before, or
/// null.
MakeBackend register_backend(DeviceType type, MakeBackend make);

}  // namespace mutilde
