// Group norm with everything that follows it in a residual block, and softmax.
//
// All of it is bound by memory. Channels are last, so a group at one position is C / groups
// neighbours, and a warp that reads positions of one group reads short runs.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

// With g the group of channel c:
//   z = (x - mean_g) * rstd_g
//   v = z * weight_c + bias_c
//   u = v * (1 + scale_c) + shift_c
//   out = silu(u)
template <class T>
struct Norm {
  int64_t P, C, groups, group_channels;
  bool silu;
  const T *x, *weight, *bias;
  const T* scale_shift;  // or null
  const T *mean, *rstd;

  __device__ T scale(int64_t n, int64_t c) const {
    return scale_shift == nullptr ? T{1} : T{1} + scale_shift[n * 2 * C + c];
  }
  __device__ T shift(int64_t n, int64_t c) const {
    return scale_shift == nullptr ? T{0} : scale_shift[n * 2 * C + C + c];
  }
  __device__ T u(T z, int64_t n, int64_t c) const {
    return (z * weight[c] + bias[c]) * scale(n, c) + shift(n, c);
  }
  __device__ T z(T x_element, int64_t n, int64_t c) const {
    const int64_t group = n * groups + c / group_channels;
    return (x_element - mean[group]) * rstd[group];
  }
  /// The gradient of u, from that of out.
  __device__ T du(T z, T dout, int64_t n, int64_t c) const {
    if (!silu) return dout;
    const T value = u(z, n, c), sigmoid = T{1} / (T{1} + std::exp(-value));
    return dout * sigmoid * (T{1} + value * (T{1} - sigmoid));
  }
};

/// A block an image and group, which is read three times: for its mean, for its squared deviations
/// from that, and to be written; the second and third time mostly from cache.
template <class T>
__global__ void group_norm_forward(Norm<T> s, T norm_eps, T* out, T* mean, T* rstd) {
  const int64_t n = blockIdx.x / s.groups, first_channel = blockIdx.x % s.groups * s.group_channels;
  const int64_t count = s.P * s.group_channels;
  const auto channel = [&](int64_t i) { return first_channel + i % s.group_channels; };
  const auto at = [&](int64_t i) { return (n * s.P + i / s.group_channels) * s.C + channel(i); };

  T sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += s.x[at(i)];
  const T mu = block_sum(sum) / static_cast<T>(count);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const T deviation = s.x[at(i)] - mu;
    squares += deviation * deviation;
  }
  const T r = T{1} / std::sqrt(block_sum(squares) / static_cast<T>(count) + norm_eps);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const T u = s.u((s.x[at(i)] - mu) * r, n, channel(i));
    out[at(i)] = s.silu ? u / (T{1} + std::exp(-u)) : u;
  }
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = mu;
    rstd[blockIdx.x] = r;
  }
}

// Backward. All gradients follow from two sums over the positions of each image and channel,
//   A = sum of du,  B = sum of du * z:
//   dshift = A                         dscale = sum of du * v = weight * B + bias * A
//   dbias = sum over n of (1 + scale) * A          dweight = sum over n of (1 + scale) * B
//   dx = rstd * (dz - mean over the group of dz - z * mean over the group of dz * z)
// with dz = du * (1 + scale) * weight, whose sums over a group are those of A and B over its
// channels, times (1 + scale) * weight.

constexpr int kChannels = 32, kRows = 8;  // of a block

/// A and B, [N, C] each: a block for 32 neighbouring channels of an image; each of its 8 rows of
/// threads takes every eighth position, and the rows are added up in shared memory.
template <class T>
__global__ void channel_sums(Norm<T> s, const T* dout, T* A, T* B) {
  __shared__ T sums[2][kRows][kChannels];
  const int64_t n = blockIdx.x, c = int64_t{blockIdx.y} * kChannels + threadIdx.x;
  T a = 0, b = 0;
  if (c < s.C) {
    for (int64_t p = threadIdx.y; p < s.P; p += kRows) {
      const int64_t i = (n * s.P + p) * s.C + c;
      const T z = s.z(s.x[i], n, c), du = s.du(z, dout[i], n, c);
      a += du;
      b += du * z;
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = a;
  sums[1][threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  if (threadIdx.y != 0 || c >= s.C) return;
  for (int row = 1; row < kRows; ++row) {
    a += sums[0][row][threadIdx.x];
    b += sums[1][row][threadIdx.x];
  }
  A[n * s.C + c] = a;
  B[n * s.C + c] = b;
}

/// The means over a group of dz and of dz * z; i counts images and groups.
template <class T>
struct GroupMeans {
  Norm<T> s;
  const T *A, *B;
  T *dz_mean, *dz_z_mean;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.groups, first = i % s.groups * s.group_channels;
    T dz = 0, dz_z = 0;
    for (int64_t c = first; c < first + s.group_channels; ++c) {
      const T factor = s.scale(n, c) * s.weight[c];
      dz += factor * A[n * s.C + c];
      dz_z += factor * B[n * s.C + c];
    }
    const T count = static_cast<T>(s.P * s.group_channels);
    dz_mean[i] = dz / count;
    dz_z_mean[i] = dz_z / count;
  }
};

template <class T>
struct InputGradient {
  Norm<T> s;
  const T *dout, *dz_mean, *dz_z_mean;
  T* dx;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.C / s.P, c = i % s.C, group = n * s.groups + c / s.group_channels;
    const T z = s.z(s.x[i], n, c), dz = s.du(z, dout[i], n, c) * s.scale(n, c) * s.weight[c];
    dx[i] = s.rstd[group] * (dz - dz_mean[group] - z * dz_z_mean[group]);
  }
};

/// i counts channels.
template <class T>
struct WeightGradients {
  Norm<T> s;
  const T *A, *B;
  int64_t N;
  T *dweight, *dbias;
  __device__ void operator()(int64_t c) const {
    T weight = 0, bias = 0;
    for (int64_t n = 0; n < N; ++n) {
      weight += s.scale(n, c) * B[n * s.C + c];
      bias += s.scale(n, c) * A[n * s.C + c];
    }
    dweight[c] = weight;
    dbias[c] = bias;
  }
};

/// i counts images and channels.
template <class T>
struct ScaleShiftGradients {
  Norm<T> s;
  const T *A, *B;
  T* dscale_shift;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.C, c = i % s.C;
    dscale_shift[n * 2 * s.C + c] = s.weight[c] * B[i] + s.bias[c] * A[i];
    dscale_shift[n * 2 * s.C + s.C + c] = A[i];
  }
};

template <class T>
Norm<T> norm_of(const ConstView& x, const ConstView& weight, const ConstView& bias,
                const ConstView& scale_shift, const ConstView& mean, const ConstView& rstd,
                const GroupNormOptions& options) {
  const int64_t C = x.shape[2];
  return {x.shape[1],          C,
          options.groups,      C / options.groups,
          options.silu,        x.as<T>(),
          weight.as<T>(),      bias.as<T>(),
          scale_shift.as<T>(), mean.as<T>(),
          rstd.as<T>()};
}

// Softmax: a warp a row, which its lanes read twice and write once, neighbours by neighbours.

constexpr int kWarps = 8;  // of a block: rows

template <class T>
__global__ void softmax_forward(int64_t rows, int64_t columns, const T* x, T* out) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (row >= rows) return;  // the whole warp
  x += row * columns;
  out += row * columns;
  T highest = -INFINITY, sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += 32) highest = max(highest, x[j]);
  highest = warp_max(highest);
  for (int64_t j = threadIdx.x; j < columns; j += 32) sum += std::exp(x[j] - highest);
  sum = warp_sum(sum);
  for (int64_t j = threadIdx.x; j < columns; j += 32) out[j] = std::exp(x[j] - highest) / sum;
}

/// dx = y * (dout - sum over the row of y * dout)
template <class T>
__global__ void softmax_gradient(int64_t rows, int64_t columns, const T* y, const T* dout, T* dx) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (row >= rows) return;
  const int64_t first = row * columns + threadIdx.x, end = (row + 1) * columns;
  T sum = 0;
  for (int64_t i = first; i < end; i += 32) sum += y[i] * dout[i];
  sum = warp_sum(sum);
  for (int64_t i = first; i < end; i += 32) dx[i] = y[i] * (dout[i] - sum);
}

/// Rows and columns of the last axis.
struct LastAxis {
  int64_t rows, columns;
  explicit LastAxis(const Shape& shape)
      : rows(shape.product(0, shape.rank() - 1)), columns(shape[-1]) {}
  LaunchConfig config() const {
    return {.grid = static_cast<unsigned>(ceil_div<int64_t>(rows, kWarps)), .block = {32, kWarps}};
  }
};

}  // namespace

void CudaBackend::group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                             GroupNormOptions options, View out, View mean, View rstd) {
  if (x.numel() == 0) return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Norm<T> s = norm_of<T>(x, weight, bias, scale_shift, mean, rstd, options);
    launch<group_norm_forward<T>>(
        {.grid = static_cast<unsigned>(mean.numel()), .block = threads_for(s.P * s.group_channels)},
        s, static_cast<T>(options.norm_eps), out.as<T>(), mean.as<T>(), rstd.as<T>());
  });
}

void CudaBackend::group_norm_backward(ConstView x, ConstView weight, ConstView bias,
                                      ConstView scale_shift, ConstView mean, ConstView rstd,
                                      GroupNormOptions options, ConstView dout, View dx,
                                      View dweight, View dbias, View dscale_shift) {
  const int64_t N = x.shape[0], C = x.shape[2];
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Norm<T> s = norm_of<T>(x, weight, bias, scale_shift, mean, rstd, options);
    const Buffer<T> A(*this, N * C), B(*this, N * C);
    if (N * C > 0) {
      launch<channel_sums<T>>({.grid = {static_cast<unsigned>(N),
                                        static_cast<unsigned>(ceil_div<int64_t>(C, kChannels))},
                               .block = {kChannels, kRows}},
                              s, dout.as<T>(), A.data(), B.data());
    }
    const Buffer<T> dz_mean(*this, mean.numel()), dz_z_mean(*this, mean.numel());
    launch_for_each(mean.numel(),
                    GroupMeans<T>{s, A.data(), B.data(), dz_mean.data(), dz_z_mean.data()});
    launch_for_each(
        x.numel(), InputGradient<T>{s, dout.as<T>(), dz_mean.data(), dz_z_mean.data(), dx.as<T>()});
    launch_for_each(C,
                    WeightGradients<T>{s, A.data(), B.data(), N, dweight.as<T>(), dbias.as<T>()});
    if (dscale_shift) {
      launch_for_each(N * C, ScaleShiftGradients<T>{s, A.data(), B.data(), dscale_shift.as<T>()});
    }
  });
}

void CudaBackend::softmax(ConstView x, View out) {
  if (x.numel() == 0) return;
  const LastAxis s(x.shape);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<softmax_forward<T>>(s.config(), s.rows, s.columns, x.as<T>(), out.as<T>());
  });
}

void CudaBackend::softmax_backward(ConstView y, ConstView dout, View dx) {
  if (y.numel() == 0) return;
  const LastAxis s(y.shape);
  for_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<softmax_gradient<T>>(s.config(), s.rows, s.columns, y.as<T>(), dout.as<T>(), dx.as<T>());
  });
}

}  // namespace mutilde::cuda
