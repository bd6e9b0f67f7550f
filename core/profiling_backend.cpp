#include "core/profiling_backend.h"

#include <algorithm>
#include <chrono>
#include <initializer_list>

#include <fmt/format.h>

namespace mutilde {

namespace {

double size_of_view(const ConstView& view) {
  return view ? static_cast<double>(view.numel()) * static_cast<double>(size_of(view.dtype)) : 0;
}

double bytes_of(std::initializer_list<ConstView> views) {
  double sum = 0;
  for (const ConstView& view : views) sum += size_of_view(view);
  return sum;
}

double numel(const ConstView& view) { return static_cast<double>(view.numel()); }

/// "16x32x32x64".
std::string text(const Shape& shape) {
  std::string result;
  for (int axis = 0; axis < shape.rank(); ++axis)
    result += fmt::format("{}{}", axis == 0 ? "" : "x", shape[axis]);
  return result;
}

/// Of a convolution between images and a weight [C_out, kH, kW, C].
double conv_operations(const ConstView& out, const Shape& weight) {
  return 2 * numel(out) * static_cast<double>(weight[1] * weight[2] * weight[3]);
}

/// Of one of attention's products: every query with every key.
double attention_product(const ConstView& qkv) {
  const auto N = static_cast<double>(qkv.shape[0]), T = static_cast<double>(qkv.shape[1]),
             C = static_cast<double>(qkv.shape[2] / 3);
  return 2 * N * T * T * C;
}

/// One a type of device, never destroyed: tensors that it allocated may outlive main.
template <DeviceType type>
ProfilingBackend& profiler(int index = 0) {
  static auto& instance = *new ProfilingBackend(backend({type, index}));
  return instance;
}

template <DeviceType type>
Backend& profiled_backend(int index) {
  return profiler<type>(index);
}

}  // namespace

Profiling::Profiling(Device device)
    : profiler_(device.type == DeviceType::kCpu ? profiler<DeviceType::kCpu>()
                                                : profiler<DeviceType::kCuda>(device.index)),
      type_(device.type),
      // Only now: the profiler asks for the backend that was registered before.
      before_(register_backend(type_, type_ == DeviceType::kCpu
                                          ? profiled_backend<DeviceType::kCpu>
                                          : profiled_backend<DeviceType::kCuda>)) {
  profiler_.clear();
}
Profiling::~Profiling() { register_backend(type_, before_); }

double ProfilingBackend::product_operations() const {
  double sum = 0;
  for (const auto& [key, did] : profiles_) {
    for (const char* product : {"conv2d", "linear", "matmul", "attention"}) {
      if (key.first.starts_with(product)) sum += did.operations;
    }
  }
  return sum;
}

KernelProfile& KernelProfile::operator+=(const KernelProfile& other) {
  calls += other.calls;
  seconds += other.seconds;
  operations += other.operations;
  bytes += other.bytes;
  return *this;
}

template <class Kernel>
void ProfilingBackend::note(const char* kernel, std::string shapes, double operations, double bytes,
                            const Kernel& run) {
  inner_.synchronize();
  const auto begin = std::chrono::steady_clock::now();
  run();
  inner_.synchronize();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  profiles_[{kernel, std::move(shapes)}] += {1, took.count(), operations, bytes};
}

void ProfilingBackend::copy(const void* from, void* to, size_t bytes) {
  note("copy", fmt::format("{} bytes", bytes), 0, 2 * static_cast<double>(bytes),
       [&] { inner_.copy(from, to, bytes); });
}
void ProfilingBackend::copy_from_host(const void* host, void* device, size_t bytes) {
  note("copy_from_host", fmt::format("{} bytes", bytes), 0, 2 * static_cast<double>(bytes),
       [&] { inner_.copy_from_host(host, device, bytes); });
}
void ProfilingBackend::copy_to_host(const void* device, void* host, size_t bytes) {
  note("copy_to_host", fmt::format("{} bytes", bytes), 0, 2 * static_cast<double>(bytes),
       [&] { inner_.copy_to_host(device, host, bytes); });
}
std::function<void()> ProfilingBackend::start_copy_to_host(const void* device, void* host,
                                                           size_t bytes) {
  std::function<void()> wait;
  note("copy_to_host", fmt::format("{} bytes", bytes), 0, 2 * static_cast<double>(bytes),
       [&] { wait = inner_.start_copy_to_host(device, host, bytes); });
  return wait;
}

void ProfilingBackend::fill(double value, View out) {
  note("fill", text(out.shape), 0, bytes_of({out}), [&] { inner_.fill(value, out); });
}
void ProfilingBackend::cast(ConstView x, View out) {
  note("cast", text(x.shape), 0, bytes_of({x, out}), [&] { inner_.cast(x, out); });
}
void ProfilingBackend::unary(UnaryOp op, ConstView x, View out) {
  note("unary", text(x.shape), numel(out), bytes_of({x, out}), [&] { inner_.unary(op, x, out); });
}
void ProfilingBackend::unary_backward(UnaryOp op, ConstView x, ConstView y, ConstView dout,
                                      View dx) {
  note("unary_backward", text(dx.shape), 2 * numel(dx), bytes_of({x, y, dout, dx}),
       [&] { inner_.unary_backward(op, x, y, dout, dx); });
}
void ProfilingBackend::affine(ConstView x, double scale, double shift, View out) {
  note("affine", text(x.shape), 2 * numel(out), bytes_of({x, out}),
       [&] { inner_.affine(x, scale, shift, out); });
}
void ProfilingBackend::clamp(ConstView x, double low, double high, View out) {
  note("clamp", text(x.shape), 2 * numel(out), bytes_of({x, out}),
       [&] { inner_.clamp(x, low, high, out); });
}
void ProfilingBackend::clamp_backward(ConstView x, double low, double high, ConstView dout,
                                      View dx) {
  note("clamp_backward", text(x.shape), 2 * numel(dx), bytes_of({x, dout, dx}),
       [&] { inner_.clamp_backward(x, low, high, dout, dx); });
}
void ProfilingBackend::binary(BinaryOp op, ConstView a, ConstView b, View out) {
  note("binary", fmt::format("{}, {}", text(a.shape), text(b.shape)), numel(out),
       bytes_of({a, b, out}), [&] { inner_.binary(op, a, b, out); });
}
void ProfilingBackend::where(ConstView condition, ConstView a, ConstView b, View out) {
  note("where", text(out.shape), numel(out), bytes_of({condition, a, b, out}),
       [&] { inner_.where(condition, a, b, out); });
}
void ProfilingBackend::accumulate(ConstView x, View into) {
  note("accumulate", text(x.shape), numel(x), bytes_of({x, into, into}),
       [&] { inner_.accumulate(x, into); });
}
void ProfilingBackend::dropout(ConstView x, double p, RandomPosition position, View out) {
  note("dropout", text(x.shape), numel(out), bytes_of({x, out}),
       [&] { inner_.dropout(x, p, position, out); });
}

void ProfilingBackend::reduce(ReduceOp op, ConstView x, View out) {
  note("reduce", fmt::format("{} to {}", text(x.shape), text(out.shape)), numel(x),
       bytes_of({x, out}), [&] { inner_.reduce(op, x, out); });
}
void ProfilingBackend::max_backward(ConstView x, ConstView y, ConstView dout, View dx) {
  note("max_backward", text(x.shape), 2 * numel(x), bytes_of({x, y, dout, dx}),
       [&] { inner_.max_backward(x, y, dout, dx); });
}

void ProfilingBackend::permute(ConstView x, std::span<const int> axes, View out) {
  note("permute", text(x.shape), 0, bytes_of({x, out}), [&] { inner_.permute(x, axes, out); });
}
void ProfilingBackend::copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                                  int64_t out_begin) {
  const double share =
      static_cast<double>(count) / static_cast<double>(std::max<int64_t>(x.shape[axis], 1));
  note("copy_slice", fmt::format("{} of {}", count, text(x.shape)), 0, 2 * share * size_of_view(x),
       [&] { inner_.copy_slice(x, axis, x_begin, count, out, out_begin); });
}

void ProfilingBackend::matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b,
                              View out) {
  const double K = static_cast<double>(a.shape[transpose_a ? 1 : 2]);
  note("matmul", fmt::format("{} * {}", text(a.shape), text(b.shape)), 2 * K * numel(out),
       bytes_of({a, b, out}), [&] { inner_.matmul(a, transpose_a, b, transpose_b, out); });
}
void ProfilingBackend::linear(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                              View out) {
  note("linear", fmt::format("{} * {}", text(x.shape), text(weight.shape)),
       2 * numel(out) * static_cast<double>(x.shape[1]), bytes_of({x, weight, bias, residual, out}),
       [&] { inner_.linear(x, weight, bias, residual, out); });
}

void ProfilingBackend::conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                              Conv2dGeometry geometry, View out) {
  note("conv2d", fmt::format("{} * {}", text(x.shape), text(weight.shape)),
       conv_operations(out, weight.shape), bytes_of({x, weight, bias, residual, out}),
       [&] { inner_.conv2d(x, weight, bias, residual, geometry, out); });
}
void ProfilingBackend::conv2d_backward_input(ConstView dout, ConstView weight,
                                             Conv2dGeometry geometry, View dx) {
  note("conv2d_backward_input", fmt::format("{} * {}", text(dout.shape), text(weight.shape)),
       conv_operations(dout, weight.shape), bytes_of({dout, weight, dx}),
       [&] { inner_.conv2d_backward_input(dout, weight, geometry, dx); });
}
void ProfilingBackend::conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                              View dweight) {
  note("conv2d_backward_weight", fmt::format("{} * {}", text(x.shape), text(dweight.shape)),
       conv_operations(dout, dweight.shape), bytes_of({x, dout, dweight}),
       [&] { inner_.conv2d_backward_weight(x, dout, geometry, dweight); });
}

void ProfilingBackend::group_norm(ConstView x, ConstView weight, ConstView bias,
                                  ConstView scale_shift, GroupNormOptions options, View out,
                                  View mean, View rstd) {
  note("group_norm", text(x.shape), 8 * numel(x), bytes_of({x, weight, bias, scale_shift, out}),
       [&] { inner_.group_norm(x, weight, bias, scale_shift, options, out, mean, rstd); });
}
void ProfilingBackend::group_norm_backward(ConstView x, ConstView weight, ConstView bias,
                                           ConstView scale_shift, ConstView mean, ConstView rstd,
                                           GroupNormOptions options, ConstView dout, View dx,
                                           View dweight, View dbias, View dscale_shift) {
  note("group_norm_backward", text(x.shape), 16 * numel(x), bytes_of({x, scale_shift, dout, dx}),
       [&] {
         inner_.group_norm_backward(x, weight, bias, scale_shift, mean, rstd, options, dout, dx,
                                    dweight, dbias, dscale_shift);
       });
}
void ProfilingBackend::softmax(ConstView x, View out) {
  note("softmax", text(x.shape), 4 * numel(x), bytes_of({x, out}), [&] { inner_.softmax(x, out); });
}
void ProfilingBackend::softmax_backward(ConstView y, ConstView dout, View dx) {
  note("softmax_backward", text(y.shape), 4 * numel(y), bytes_of({y, dout, dx}),
       [&] { inner_.softmax_backward(y, dout, dx); });
}

void ProfilingBackend::attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) {
  note("attention", fmt::format("{}, {} heads", text(qkv.shape), heads), 2 * attention_product(qkv),
       bytes_of({qkv, out, log_sum_exp}), [&] { inner_.attention(qkv, heads, out, log_sum_exp); });
}
void ProfilingBackend::attention_backward(ConstView qkv, int64_t heads, ConstView out,
                                          ConstView log_sum_exp, ConstView dout, View dqkv) {
  note("attention_backward", fmt::format("{}, {} heads", text(qkv.shape), heads),
       5 * attention_product(qkv), bytes_of({qkv, out, log_sum_exp, dout, dqkv}),
       [&] { inner_.attention_backward(qkv, heads, out, log_sum_exp, dout, dqkv); });
}

void ProfilingBackend::upsample_nearest(ConstView x, int64_t factor, double scale, View out) {
  note("upsample_nearest", text(x.shape), numel(out), bytes_of({x, out}),
       [&] { inner_.upsample_nearest(x, factor, scale, out); });
}
void ProfilingBackend::sum_pool(ConstView x, int64_t factor, double scale, View out) {
  note("sum_pool", text(x.shape), numel(x), bytes_of({x, out}),
       [&] { inner_.sum_pool(x, factor, scale, out); });
}
void ProfilingBackend::resize_bilinear(ConstView x, View out) {
  note("resize_bilinear", text(x.shape), 8 * numel(out), bytes_of({x, out}),
       [&] { inner_.resize_bilinear(x, out); });
}
void ProfilingBackend::resize_bilinear_backward(ConstView dout, View dx) {
  note("resize_bilinear_backward", text(dx.shape), 8 * numel(dout), bytes_of({dout, dx}),
       [&] { inner_.resize_bilinear_backward(dout, dx); });
}

void ProfilingBackend::embedding(ConstView weight, ConstView index, View out) {
  note("embedding", text(out.shape), 0, bytes_of({index, out, out}),
       [&] { inner_.embedding(weight, index, out); });
}
void ProfilingBackend::embedding_backward(ConstView dout, ConstView index, View dweight) {
  note("embedding_backward", text(dout.shape), numel(dout), bytes_of({dout, index, dweight}),
       [&] { inner_.embedding_backward(dout, index, dweight); });
}

void ProfilingBackend::fill_uniform(RandomPosition position, View out) {
  note("fill_uniform", text(out.shape), numel(out), bytes_of({out}),
       [&] { inner_.fill_uniform(position, out); });
}
void ProfilingBackend::fill_normal(RandomPosition position, View out) {
  note("fill_normal", text(out.shape), numel(out), bytes_of({out}),
       [&] { inner_.fill_normal(position, out); });
}

void ProfilingBackend::sum_of_squares(std::span<const ConstView> tensors, View out) {
  double elements = 0, bytes = 0;
  for (const ConstView& x : tensors) {
    elements += numel(x);
    bytes += size_of_view(x);
  }
  note("sum_of_squares", fmt::format("{} tensors", tensors.size()), 2 * elements, bytes,
       [&] { inner_.sum_of_squares(tensors, out); });
}
void ProfilingBackend::adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
                             std::span<const double> ema_rates) {
  const double averages = static_cast<double>(ema_rates.size());
  double elements = 0, bytes = 0;
  for (const AdamWBuffers& buffers : parameters) {
    elements += numel(buffers.param);
    bytes += size_of_view(buffers.param);
  }
  // Parameter, two moments and each average are read and written; the gradient is read.
  note("adamw", fmt::format("{} tensors", parameters.size()), (12 + 3 * averages) * elements,
       (7 + 2 * averages) * bytes, [&] { inner_.adamw(parameters, step, ema_rates); });
}

}  // namespace mutilde
