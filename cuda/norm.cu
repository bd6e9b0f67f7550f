// Group norm with everything that follows it in a residual block, and softmax.
//
// All of it is bound by memory. Channels are last, so a group at one position is C / groups neighbours, 8
// bytes of 128 channels in bfloat16. The plain kernels, a block a group, read no more than that at a time.
// The fast ones give a thread 16 bytes, 8 channels of whatever groups, and a block whole rows of all
// channels; so groups are put together from the sums of channels:
//
//   kernel          reads      writes
//   chunk_moments   x          for each chunk of positions of an image and each group: mean and squares
//   normalise       x          out; every block adds up the chunks of its image first
//   chunk_sums      x, dout    for each chunk and channel: A and B (below)
//   input_gradient  x, dout    dx; the same
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

// With g the group of channel c:
//   z = (x - mean_g) * rstd_g
//   v = z * weight_c + bias_c
//   u = v * (1 + scale_c) + shift_c
//   out = silu(u)
template <class X>
struct Norm {
  using T = Computed<X>;
  int64_t P, C, groups, group_channels;
  bool silu;
  const X* x;
  const T *weight, *bias;
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

/// A block an image and group, which is read three times: for its mean, for its squared deviations
/// from that, and to be written; the second and third time mostly from cache.
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
      const T factor = s.scale(n, c) * s.weight[c];
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
    const T dz = s.du(z, number(dout[i]), n, c) * s.scale(n, c) * s.weight[c];
    dx[i] = stored<X>(s.rstd[group] * (dz - dz_mean[group] - z * dz_z_mean[group]));
  }
};

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

/// A block for 32 channels; each of its 8 rows of threads takes every eighth image.
template <class X>
__global__ void weight_gradients(Norm<X> s, int64_t N, const Computed<X>* A, const Computed<X>* B,
                                 Computed<X>* dweight, Computed<X>* dbias) {
  using T = Computed<X>;
  __shared__ T sums[2][kRows][kChannels];
  const int64_t c = int64_t{blockIdx.x} * kChannels + threadIdx.x;
  T weight = 0, bias = 0;
  if (c < s.C) {
    for (int64_t n = threadIdx.y; n < N; n += kRows) {
      weight += s.scale(n, c) * B[n * s.C + c];
      bias += s.scale(n, c) * A[n * s.C + c];
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = weight;
  sums[1][threadIdx.y][threadIdx.x] = bias;
  __syncthreads();
  if (threadIdx.y != 0 || c >= s.C) return;
  for (int row = 1; row < kRows; ++row) {
    weight += sums[0][row][threadIdx.x];
    bias += sums[1][row][threadIdx.x];
  }
  dweight[c] = weight;
  dbias[c] = bias;
}

// The fast kernels. Blocks: x the image, y the chunk. Threads: x the pack of neighbouring channels, y a row;
// each row takes every rows-th position of the chunk.

template <class X>
constexpr int kWidth = 16 / sizeof(X);  // channels of a pack

/// The packs of a thread's positions, which it walks over.
template <class X>
struct Walk {
  int64_t c, begin, end, first,
      step;  // the first channel; positions; the first pack and the way to the next

  __device__ Walk(const Norm<X>& s, int64_t chunk) {
    const int64_t n = blockIdx.x, packs = s.C / kWidth<X>;
    c = int64_t{threadIdx.x} * kWidth<X>;
    begin = blockIdx.y * chunk + threadIdx.y;
    end = min(s.P, (blockIdx.y + 1) * chunk);
    first = (n * s.P + begin) * packs + threadIdx.x;
    step = int64_t{blockDim.y} * packs;
  }
};

template <class X>
__device__ Pack<X, kWidth<X>> load(const X* x, int64_t pack) {
  return reinterpret_cast<const Pack<X, kWidth<X>>*>(x)[pack];
}

__device__ inline unsigned thread_number() { return threadIdx.y * blockDim.x + threadIdx.x; }

/// moments: [N, chunks, groups], each the mean of its numbers and the sum of squared deviations from it. A
/// thread adds up deviations from the first number of each channel, which cannot cancel much in a few numbers;
/// means and squares of parts give those of the whole as in Chan, Golub & LeVeque 1983.
template <class X>
__global__ void chunk_moments(Norm<X> s, int64_t chunk, Pack<Computed<X>, 2>* moments) {
  using T = Computed<X>;
  T* means = dynamic_shared<T>();  // [rows][C], and squares behind it
  T* squares = means + blockDim.y * s.C;
  const Walk<X> walk(s, chunk);
  T pivot[kWidth<X>] = {}, sum[kWidth<X>] = {}, square[kWidth<X>] = {};
  T count = 0;
  int64_t pack = walk.first;
  for (int64_t p = walk.begin; p < walk.end; p += blockDim.y, pack += walk.step) {
    const auto x = load(s.x, pack);
    for (int i = 0; i < kWidth<X>; ++i) {
      if (count == 0) pivot[i] = number(x.at[i]);
      const T deviation = number(x.at[i]) - pivot[i];
      sum[i] += deviation;
      square[i] += deviation * deviation;
    }
    count += 1;
  }
  for (int i = 0; i < kWidth<X>; ++i) {
    const T mean = count > 0 ? sum[i] / count : T{0};
    means[threadIdx.y * s.C + walk.c + i] = pivot[i] + mean;
    squares[threadIdx.y * s.C + walk.c + i] = square[i] - sum[i] * mean;
  }
  __syncthreads();
  const int64_t first = blockIdx.y * chunk, size = min(chunk, s.P - first);
  for (int64_t g = thread_number(); g < s.groups; g += blockDim.x * blockDim.y) {
    const auto positions = [&](int64_t row) {  // that a row of threads has taken
      return static_cast<T>((size - row + blockDim.y - 1) / blockDim.y);
    };
    T mean = 0, all = 0;
    for (int64_t row = 0; row < min(size, int64_t{blockDim.y}); ++row) {
      for (int64_t c = g * s.group_channels; c < (g + 1) * s.group_channels; ++c)
        mean += positions(row) * means[row * s.C + c];
    }
    mean /= static_cast<T>(size * s.group_channels);
    for (int64_t row = 0; row < min(size, int64_t{blockDim.y}); ++row) {
      for (int64_t c = g * s.group_channels; c < (g + 1) * s.group_channels; ++c) {
        const T deviation = means[row * s.C + c] - mean;
        all += squares[row * s.C + c] + positions(row) * deviation * deviation;
      }
    }
    moments[(int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * s.groups + g] = {mean, all};
  }
}

template <class X>
__global__ void normalise(Norm<X> s, int64_t chunk, Computed<X> norm_eps,
                          const Pack<Computed<X>, 2>* moments, X* out, Computed<X>* mean,
                          Computed<X>* rstd) {
  using T = Computed<X>;
  T* group_mean = dynamic_shared<T>();  // [groups], and rstd behind it
  T* group_rstd = group_mean + s.groups;
  const int64_t n = blockIdx.x, chunks = gridDim.y;
  for (int64_t g = thread_number(); g < s.groups; g += blockDim.x * blockDim.y) {
    const auto moment = [&](int64_t i) { return moments[(n * chunks + i) * s.groups + g]; };
    const auto size = [&](int64_t i) {
      return static_cast<T>(min(chunk, s.P - i * chunk) * s.group_channels);
    };
    const T count = static_cast<T>(s.P * s.group_channels);
    T mu = 0, squares = 0;
    for (int64_t i = 0; i < chunks; ++i) mu += moment(i).at[0] * (size(i) / count);
    for (int64_t i = 0; i < chunks; ++i) {
      const T deviation = moment(i).at[0] - mu;
      squares += moment(i).at[1] + size(i) * deviation * deviation;
    }
    group_mean[g] = mu;
    group_rstd[g] = T{1} / std::sqrt(squares / count + norm_eps);
    if (blockIdx.y == 0) {
      mean[n * s.groups + g] = mu;
      rstd[n * s.groups + g] = group_rstd[g];
    }
  }
  __syncthreads();
  const Walk<X> walk(s, chunk);
  T centre[kWidth<X>], slope[kWidth<X>], offset[kWidth<X>];  // u = (x - centre) * slope + offset
  for (int i = 0; i < kWidth<X>; ++i) {
    const int64_t c = walk.c + i, g = c / s.group_channels;
    centre[i] = group_mean[g];
    slope[i] = group_rstd[g] * s.weight[c] * s.scale(n, c);
    offset[i] = s.bias[c] * s.scale(n, c) + s.shift(n, c);
  }
  int64_t pack = walk.first;
  for (int64_t p = walk.begin; p < walk.end; p += blockDim.y, pack += walk.step) {
    auto x = load(s.x, pack);
    for (int i = 0; i < kWidth<X>; ++i) {
      const T u = (number(x.at[i]) - centre[i]) * slope[i] + offset[i];
      x.at[i] = stored<X>(s.silu ? u / (T{1} + std::exp(-u)) : u);
    }
    reinterpret_cast<Pack<X, kWidth<X>>*>(out)[pack] = x;
  }
}

/// What the gradients need of a thread's channels: z = (x - centre) * rstd, u = z * slope + offset.
template <class X>
struct Channels {
  using T = Computed<X>;
  T centre[kWidth<X>], rstd[kWidth<X>], slope[kWidth<X>], offset[kWidth<X>];
  bool silu;

  __device__ Channels(const Norm<X>& s, int64_t n, int64_t first) : silu(s.silu) {
    for (int i = 0; i < kWidth<X>; ++i) {
      const int64_t c = first + i, group = n * s.groups + c / s.group_channels;
      centre[i] = s.mean[group];
      rstd[i] = s.rstd[group];
      slope[i] = s.weight[c] * s.scale(n, c);
      offset[i] = s.bias[c] * s.scale(n, c) + s.shift(n, c);
    }
  }
  __device__ T z(X x, int i) const { return (number(x) - centre[i]) * rstd[i]; }
  __device__ T du(T z, X dout, int i) const {
    if (!silu) return number(dout);
    const T u = z * slope[i] + offset[i], sigmoid = T{1} / (T{1} + std::exp(-u));
    return number(dout) * sigmoid * (T{1} + u * (T{1} - sigmoid));
  }
};

/// sums: [N, chunks, 2, C], A and B of the chunk.
template <class X>
__global__ void chunk_sums(Norm<X> s, int64_t chunk, const X* dout, Computed<X>* sums) {
  using T = Computed<X>;
  T* of_row = dynamic_shared<T>();  // [rows][2][C]
  const Walk<X> walk(s, chunk);
  const Channels<X> channels(s, blockIdx.x, walk.c);
  T A[kWidth<X>] = {}, B[kWidth<X>] = {};
  int64_t pack = walk.first;
  for (int64_t p = walk.begin; p < walk.end; p += blockDim.y, pack += walk.step) {
    const auto x = load(s.x, pack), d = load(dout, pack);
    for (int i = 0; i < kWidth<X>; ++i) {
      const T z = channels.z(x.at[i], i), du = channels.du(z, d.at[i], i);
      A[i] += du;
      B[i] += du * z;
    }
  }
  for (int i = 0; i < kWidth<X>; ++i) {
    of_row[(threadIdx.y * 2) * s.C + walk.c + i] = A[i];
    of_row[(threadIdx.y * 2 + 1) * s.C + walk.c + i] = B[i];
  }
  __syncthreads();
  for (int64_t i = thread_number(); i < 2 * s.C; i += blockDim.x * blockDim.y) {
    T sum = 0;
    for (int64_t row = 0; row < blockDim.y; ++row) sum += of_row[row * 2 * s.C + i];
    sums[(int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * 2 * s.C + i] = sum;
  }
}

/// A, B: [N, C], of all chunks.
template <class X>
__global__ void input_gradient(Norm<X> s, int64_t chunk, const X* dout, const Computed<X>* sums,
                               X* dx, Computed<X>* A, Computed<X>* B) {
  using T = Computed<X>;
  T* total =
      dynamic_shared<T>();  // [2][C], and behind it the means of dz and of dz * z, [2][groups]
  T* means = total + 2 * s.C;
  const int64_t n = blockIdx.x, chunks = gridDim.y;
  for (int64_t i = thread_number(); i < 2 * s.C; i += blockDim.x * blockDim.y) {
    T sum = 0;
    for (int64_t j = 0; j < chunks; ++j) sum += sums[(n * chunks + j) * 2 * s.C + i];
    total[i] = sum;
    if (blockIdx.y == 0) (i < s.C ? A : B - s.C)[n * s.C + i] = sum;
  }
  __syncthreads();
  for (int64_t i = thread_number(); i < 2 * s.groups; i += blockDim.x * blockDim.y) {
    const int64_t part = i / s.groups, first = i % s.groups * s.group_channels;
    T sum = 0;
    for (int64_t c = first; c < first + s.group_channels; ++c)
      sum += s.scale(n, c) * s.weight[c] * total[part * s.C + c];
    means[i] = sum / static_cast<T>(s.P * s.group_channels);
  }
  __syncthreads();
  const Walk<X> walk(s, chunk);
  const Channels<X> channels(s, n, walk.c);
  T dz_mean[kWidth<X>], dz_z_mean[kWidth<X>];
  for (int i = 0; i < kWidth<X>; ++i) {
    dz_mean[i] = means[(walk.c + i) / s.group_channels];
    dz_z_mean[i] = means[s.groups + (walk.c + i) / s.group_channels];
  }
  int64_t pack = walk.first;
  for (int64_t p = walk.begin; p < walk.end; p += blockDim.y, pack += walk.step) {
    auto x = load(s.x, pack);
    const auto d = load(dout, pack);
    for (int i = 0; i < kWidth<X>; ++i) {
      const T z = channels.z(x.at[i], i), dz = channels.du(z, d.at[i], i) * channels.slope[i];
      x.at[i] = stored<X>(channels.rstd[i] * (dz - dz_mean[i] - z * dz_z_mean[i]));
    }
    reinterpret_cast<Pack<X, kWidth<X>>*>(dx)[pack] = x;
  }
}

/// How an image is cut for the fast kernels: a thread has a few positions, and 2,048 blocks fill any GPU.
template <class X>
struct Cut {
  int64_t packs, rows, chunks, chunk;
  Cut(const Norm<X>& s, int64_t N)
      : packs(s.C / kWidth<X>),
        rows(std::max<int64_t>(1, std::min(kBlockThreads / std::max<int64_t>(packs, 1), s.P))),
        chunks(std::clamp<int64_t>(s.P / (rows * 4), 1, std::max<int64_t>(1, 2048 / N))),
        chunk(ceil_div(s.P, chunks)) {
    chunks = ceil_div(s.P, chunk);
  }
  LaunchConfig config(int64_t N, int64_t shared_numbers) const {
    return {.grid = {static_cast<unsigned>(N), static_cast<unsigned>(chunks)},
            .block = {static_cast<unsigned>(packs), static_cast<unsigned>(rows)},
            .shared_bytes = static_cast<size_t>(shared_numbers) * sizeof(Computed<X>)};
  }
};

/// Packs must fit, and a row of them a block.
template <class X>
bool takes_packs(const Norm<X>& s, std::initializer_list<const void*> arrays) {
  const bool aligned = std::all_of(arrays.begin(), arrays.end(),
                                   [](const void* array) { return is_aligned(array, 16); });
  return aligned && s.C % kWidth<X> == 0 && s.C / kWidth<X> <= kBlockThreads;
}

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
    launch<normalise<X>>(cut.config(N, 2 * s.groups), s, cut.chunk, norm_eps, all, out.as<X>(),
                         mean.as<T>(), rstd.as<T>());
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
                                   .block = {kChannels, kRows}},
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
