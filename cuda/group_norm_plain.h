// Group norm with everything that follows it in a residual block: what it is, and its plain kernels. They read one
// element at a time; group_norm_packed.h has the fast ones.
#pragma once

#include <cmath>

#include "cuda/parallel.h"

namespace mutilde::cuda {

// With g the group of channel c:
//   z = (x - mean_g) * rstd_g
//   v = z * weight_c + bias_c
//   u = v * (1 + scale_c) + shift_c
//   out = silu(u)
template <class X>
struct Norm {
  using T = Computed<X>;
  int64_t P, C, groups, group_channels;  // positions of an image; channels; channels of a group
  bool silu;
  const X* x;
  const T *weight, *bias;
  const T* scale_shift;  // or null
  const T *mean, *rstd;

  __device__ T one_plus_scale(int64_t n, int64_t c) const {
    return scale_shift == nullptr ? T{1} : T{1} + scale_shift[n * 2 * C + c];
  }
  __device__ T shift(int64_t n, int64_t c) const {
    return scale_shift == nullptr ? T{0} : scale_shift[n * 2 * C + C + c];
  }
  __device__ T u(T z, int64_t n, int64_t c) const {
    return (z * weight[c] + bias[c]) * one_plus_scale(n, c) + shift(n, c);
  }
  __device__ T z(X element, int64_t n, int64_t c) const {
    const int64_t group = n * groups + c / group_channels;
    return (number(element) - mean[group]) * rstd[group];
  }
  /// The gradient of u, from that of out.
  __device__ T du(T z, T dout, int64_t n, int64_t c) const {
    if (!silu) return dout;
    const T value = u(z, n, c), sigmoid = T{1} / (T{1} + std::exp(-value));
    return dout * sigmoid * (T{1} + value * (T{1} - sigmoid));
  }
};

// Backward. All gradients follow from two sums over the positions of each image and channel,
//   A = sum of du,  B = sum of du * z:
//   dshift = A                         dscale = sum of du * v = weight * B + bias * A
//   dbias = sum over n of (1 + scale) * A          dweight = sum over n of (1 + scale) * B
//   dx = rstd * (dz - mean over the group of dz - z * mean over the group of dz * z)
// with dz = du * (1 + scale) * weight, whose sums over a group are those of A and B over its
// channels, times (1 + scale) * weight.

/// One block for each image and group. It reads its numbers three times: for their mean, for the squared
/// deviations from that, and to write; the second and third time mostly from cache.
template <class X>
__global__ void group_norm_plain(Norm<X> s, Computed<X> norm_eps, X* out, Computed<X>* mean,
                                 Computed<X>* rstd) {
  using T = Computed<X>;
  const int64_t n = blockIdx.x / s.groups, first_channel = blockIdx.x % s.groups * s.group_channels;
  const int64_t count = s.P * s.group_channels;
  const auto channel = [&](int64_t i) { return first_channel + i % s.group_channels; };
  const auto at = [&](int64_t i) { return (n * s.P + i / s.group_channels) * s.C + channel(i); };

  T sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += number(s.x[at(i)]);
  const T mu = block_sum(sum) / static_cast<T>(count);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const T deviation = number(s.x[at(i)]) - mu;
    squares += deviation * deviation;
  }
  const T r = T{1} / std::sqrt(block_sum(squares) / static_cast<T>(count) + norm_eps);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const T u = s.u((number(s.x[at(i)]) - mu) * r, n, channel(i));
    out[at(i)] = stored<X>(s.silu ? u / (T{1} + std::exp(-u)) : u);
  }
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = mu;
    rstd[blockIdx.x] = r;
  }
}

constexpr int kChannels = 32, kRows = 8;  // of a block

/// A and B, [N, C] each: a block for 32 neighbouring channels of an image; each of its 8 rows of
/// threads takes every eighth position, and the rows are added up in shared memory.
template <class X>
__global__ void channel_sums_plain(Norm<X> s, const X* dout, Computed<X>* A, Computed<X>* B) {
  using T = Computed<X>;
  __shared__ T sums[2][kRows][kChannels];
  const int64_t n = blockIdx.x, c = int64_t{blockIdx.y} * kChannels + threadIdx.x;
  T a = 0, b = 0;
  if (c < s.C) {
    for (int64_t p = threadIdx.y; p < s.P; p += kRows) {
      const int64_t i = (n * s.P + p) * s.C + c;
      const T z = s.z(s.x[i], n, c), du = s.du(z, number(dout[i]), n, c);
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
template <class X>
struct GroupMeans {
  using T = Computed<X>;
  Norm<X> s;
  const T *A, *B;
  T *dz_mean, *dz_z_mean;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.groups, first = i % s.groups * s.group_channels;
    T dz = 0, dz_z = 0;
    for (int64_t c = first; c < first + s.group_channels; ++c) {
      const T factor = s.one_plus_scale(n, c) * s.weight[c];
      dz += factor * A[n * s.C + c];
      dz_z += factor * B[n * s.C + c];
    }
    const T count = static_cast<T>(s.P * s.group_channels);
    dz_mean[i] = dz / count;
    dz_z_mean[i] = dz_z / count;
  }
};

template <class X>
struct InputGradient {
  using T = Computed<X>;
  Norm<X> s;
  const X* dout;
  const T *dz_mean, *dz_z_mean;
  X* dx;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / s.C / s.P, c = i % s.C, group = n * s.groups + c / s.group_channels;
    const T z = s.z(s.x[i], n, c);
    const T dz = s.du(z, number(dout[i]), n, c) * s.one_plus_scale(n, c) * s.weight[c];
    dx[i] = stored<X>(s.rstd[group] * (dz - dz_mean[group] - z * dz_z_mean[group]));
  }
};

}  // namespace mutilde::cuda
