// Group norm, by the kernels of group_norm_packed.h where they take it and of group_norm_plain.h elsewhere, and
// softmax.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/group_norm_packed.h"
#include "cuda/group_norm_plain.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

template <class X>
Norm<X> norm_of(const ConstView& x, const ConstView& weight, const ConstView& bias,
                const ConstView& scale_shift, const ConstView& mean, const ConstView& rstd,
                const GroupNormOptions& options) {
  using T = Computed<X>;
  const int64_t C = x.shape[2];
  return {x.shape[1],          C,
          options.groups,      C / options.groups,
          options.silu,        x.as<X>(),
          weight.as<T>(),      bias.as<T>(),
          scale_shift.as<T>(), mean.as<T>(),
          rstd.as<T>()};
}

// From A and B all other gradients follow, whoever computed them.

/// i counts images and channels.
template <class X>
struct ScaleShiftGradients {
  using T = Computed<X>;
  Norm<X> s;
  const T *A, *B;
  T* dscale_shift;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.C, c = i % s.C;
    dscale_shift[n * 2 * s.C + c] = s.weight[c] * B[i] + s.bias[c] * A[i];
    dscale_shift[n * 2 * s.C + s.C + c] = A[i];
  }
};

constexpr int kImages = 32;  // that a block looks at at once

/// A block for 32 channels; each of its 32 rows of threads takes every 32nd image.
template <class X>
__global__ void weight_gradients(Norm<X> s, int64_t N, const Computed<X>* A, const Computed<X>* B,
                                 Computed<X>* dweight, Computed<X>* dbias) {
  using T = Computed<X>;
  __shared__ T sums[2][kImages][kChannels];
  const int64_t c = int64_t{blockIdx.x} * kChannels + threadIdx.x;
  T weight = 0, bias = 0;
  if (c < s.C) {
    for (int64_t n = threadIdx.y; n < N; n += kImages) {
      weight += s.one_plus_scale(n, c) * B[n * s.C + c];
      bias += s.one_plus_scale(n, c) * A[n * s.C + c];
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = weight;
  sums[1][threadIdx.y][threadIdx.x] = bias;
  __syncthreads();
  if (threadIdx.y != 0 || c >= s.C) return;
  for (int row = 1; row < kImages; ++row) {
    weight += sums[0][row][threadIdx.x];
    bias += sums[1][row][threadIdx.x];
  }
  dweight[c] = weight;
  dbias[c] = bias;
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
  for_stored(x.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Computed<X>;
    const Norm<X> s = norm_of<X>(x, weight, bias, scale_shift, mean, rstd, options);
    const T norm_eps = static_cast<T>(options.norm_eps);
    if (rung_ == Rung::kPlain || !takes_packs(s, {x.data, out.data})) {
      return launch<group_norm_plain<X>>({.grid = static_cast<unsigned>(mean.numel()),
                                          .block = threads_for(s.P * s.group_channels)},
                                         s, norm_eps, out.as<X>(), mean.as<T>(), rstd.as<T>());
    }
    const int64_t N = x.shape[0];
    const Cut<X> cut(s, N);
    const Buffer<Pack<T, 2>> moments(*this, N * cut.chunks * s.groups);
    launch<chunk_moments<X>>(cut.config(N, 2 * cut.rows * s.C), s, cut.chunk, moments.data());
    const Pack<T, 2>* all = moments.data();
    launch<normalise<X>>(cut.config(N, 2 * (cut.chunks + 1) * s.groups), s, cut.chunk, norm_eps,
                         all, out.as<X>(), mean.as<T>(), rstd.as<T>());
  });
}

void CudaBackend::group_norm_backward(ConstView x, ConstView weight, ConstView bias,
                                      ConstView scale_shift, ConstView mean, ConstView rstd,
                                      GroupNormOptions options, ConstView dout, View dx,
                                      View dweight, View dbias, View dscale_shift) {
  const int64_t N = x.shape[0], C = x.shape[2];
  for_stored(x.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Computed<X>;
    const Norm<X> s = norm_of<X>(x, weight, bias, scale_shift, mean, rstd, options);
    const Buffer<T> A(*this, N * C), B(*this, N * C);
    const T *all_A = A.data(), *all_B = B.data();
    if (x.numel() > 0 && rung_ != Rung::kPlain && takes_packs(s, {x.data, dout.data, dx.data})) {
      const Cut<X> cut(s, N);
      const Buffer<T> sums(*this, N * cut.chunks * 2 * C);
      const T* all_sums = sums.data();
      launch<chunk_sums<X>>(cut.config(N, 2 * cut.rows * C), s, cut.chunk, dout.as<X>(),
                            sums.data());
      launch<input_gradient<X>>(cut.config(N, 2 * C + 2 * s.groups), s, cut.chunk, dout.as<X>(),
                                all_sums, dx.as<X>(), A.data(), B.data());
    } else {
      if (N * C > 0) {
        launch<channel_sums_plain<X>>(
            {.grid = {static_cast<unsigned>(N),
                      static_cast<unsigned>(ceil_div<int64_t>(C, kChannels))},
             .block = {kChannels, kRows}},
            s, dout.as<X>(), A.data(), B.data());
      }
      const Buffer<T> dz_mean(*this, mean.numel()), dz_z_mean(*this, mean.numel());
      launch_for_each(mean.numel(),
                      GroupMeans<X>{s, all_A, all_B, dz_mean.data(), dz_z_mean.data()});
      launch_for_each(x.numel(), InputGradient<X>{s, dout.as<X>(), dz_mean.data(), dz_z_mean.data(),
                                                  dx.as<X>()});
    }
    if (C > 0) {
      launch<weight_gradients<X>>({.grid = static_cast<unsigned>(ceil_div<int64_t>(C, kChannels)),
                                   .block = {kChannels, kImages}},
                                  s, N, all_A, all_B, dweight.as<T>(), dbias.as<T>());
    }
    if (dscale_shift) {
      launch_for_each(N * C, ScaleShiftGradients<X>{s, all_A, all_B, dscale_shift.as<T>()});
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
