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
      weight += s.scale(n, c) * B[n * s.C + c];
      bias += s.scale(n, c) * A[n * s.C + c];
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

// The fast kernels. Blocks: x the image, y the chunk. Threads: x the pack of neighbouring channels, y a row;
// each row takes every rows-th position of the chunk.

template <class X>
using Packed = Pack<X, kWidth<X>>;

/// The packs of a thread's positions, by their numbers within the image.
template <class X>
struct Walk {
  const int packs, c, size;          // of a position; the first channel; positions of the chunk
  const int begin, step, end;        // of its own
  const int thread, threads, chunk;  // of the block
  const int64_t image;               // where that begins, in packs

  __device__ Walk(const Norm<X>& s, int chunk_size)
      : packs(static_cast<int>(s.C) / kWidth<X>),
        c(threadIdx.x * kWidth<X>),
        size(min(chunk_size, static_cast<int>(s.P) - static_cast<int>(blockIdx.y) * chunk_size)),
        begin((blockIdx.y * chunk_size + threadIdx.y) * packs + threadIdx.x),
        step(blockDim.y * packs),
        end((blockIdx.y * chunk_size + size) * packs),
        thread(threadIdx.y * blockDim.x + threadIdx.x),
        threads(blockDim.x * blockDim.y),
        chunk(blockIdx.y),
        image(blockIdx.x * s.P * packs) {}

  __device__ const Packed<X>* of(const X* array) const {
    return reinterpret_cast<const Packed<X>*>(array) + image;
  }
  __device__ Packed<X>* of(X* array) const { return reinterpret_cast<Packed<X>*>(array) + image; }

  /// use(pack, load(pack)) for each, where four packs are under way before the first is used.
  template <class Load, class Use>
  __device__ void for_packs(const Load& load, const Use& use) const {
    constexpr int kAhead = 4 * sizeof(Packed<X>) / sizeof(load(0));
    int pack = begin;
    for (; pack + (kAhead - 1) * step < end; pack += kAhead * step) {
      decltype(load(0)) loaded[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) loaded[i] = load(pack + i * step);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) use(pack + i * step, loaded[i]);
    }
    for (; pack < end; pack += step) use(pack, load(pack));
  }

  /// sums[c], in shared memory of C numbers a row: those of all rows of threads, of the thread's packs each.
  template <class T>
  __device__ void sum_rows(T* sums, const Pack<T, kWidth<X>>& own) const {
    const int C = packs * kWidth<X>;
    reinterpret_cast<Pack<T, kWidth<X>>*>(sums)[threadIdx.y * packs + threadIdx.x] = own;
    __syncthreads();
    for (int channel = thread; channel < C; channel += threads) {
      T sum = 0;
      for (int row = 0; row < static_cast<int>(blockDim.y); ++row) sum += sums[row * C + channel];
      sums[channel] = sum;  // nobody else looks at this column
    }
  }
};

/// 1 / (1 + exp(-u)). What is stored in a short type can do with the short instructions, off by some 2^-20.
template <class X>
__device__ Computed<X> sigmoid(Computed<X> u) {
  if constexpr (kIsShort<X>) {
    return __fdividef(1.0F, 1.0F + __expf(-u));
  } else {
    return Computed<X>{1} / (Computed<X>{1} + std::exp(-u));
  }
}

/// moments: [N, chunks, groups], each the mean of its numbers and the sum of squared deviations from it. First
/// come deviations d from the chunk's first number of each channel, the pivot. It is one of the n numbers
/// itself, so (pivot - mean)^2 is at most n times their variance, and sum(d^2) - sum(d)^2 / n loses few digits.
/// Means and squares of channels, and of chunks in the next kernel, give those of the whole as in Chan, Golub &
/// LeVeque 1983.
template <class X>
__global__ void __launch_bounds__(kBlockThreads, 3)
    chunk_moments(Norm<X> s, int chunk, Pack<Computed<X>, 2>* moments) {
  using T = Computed<X>;
  T* means = dynamic_shared<T>();  // [rows][C], and squares behind it
  T* squares = means + blockDim.y * s.C;
  const Walk<X> walk(s, chunk);
  const Packed<X>* x = walk.of(s.x);
  const int first = walk.chunk * chunk * walk.packs;  // pack
  const Packed<X> pivot = x[first + threadIdx.x];
  Pack<T, kWidth<X>> sum{}, square{};
  walk.for_packs([&](int pack) { return x[pack]; },
                 [&](int, const Packed<X>& pack) {
                   for (int i = 0; i < kWidth<X>; ++i) {
                     const T deviation = number(pack.at[i]) - number(pivot.at[i]);
                     sum.at[i] += deviation;
                     square.at[i] += deviation * deviation;
                   }
                 });
  walk.sum_rows(means, sum);
  walk.sum_rows(squares, square);
  const T size = static_cast<T>(walk.size);
  for (int c = walk.thread; c < s.C; c += walk.threads) {  // those that this thread has summed
    const T mean = means[c] / size;
    squares[c] -= means[c] * mean;
    means[c] = number(x[first + c / kWidth<X>].at[c % kWidth<X>]) + mean;
  }
  __syncthreads();
  const int group_channels = static_cast<int>(s.group_channels),
            groups = static_cast<int>(s.groups);
  for (int g = walk.thread; g < groups; g += walk.threads) {
    T mean = 0, all = 0;
    for (int c = g * group_channels; c < (g + 1) * group_channels; ++c) mean += means[c];
    mean /= static_cast<T>(group_channels);
    for (int c = g * group_channels; c < (g + 1) * group_channels; ++c)
      all += squares[c] + size * (means[c] - mean) * (means[c] - mean);
    moments[(int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * groups + g] = {mean, all};
  }
}

template <class X>
__global__ void __launch_bounds__(kBlockThreads, 3)
    normalise(Norm<X> s, int chunk, Computed<X> norm_eps, const Pack<Computed<X>, 2>* moments,
              X* out, Computed<X>* mean, Computed<X>* rstd) {
  using T = Computed<X>;
  const int groups = static_cast<int>(s.groups), chunks = gridDim.y;
  auto* of_chunk =
      dynamic_shared<Pack<T, 2>>();  // [chunks][groups], and a row of mean and rstd behind it
  auto* of_group = of_chunk + chunks * groups;
  const Walk<X> walk(s, chunk);
  const int64_t n = blockIdx.x;
  for (int i = walk.thread; i < chunks * groups; i += walk.threads)
    of_chunk[i] = moments[n * chunks * groups + i];
  __syncthreads();
  for (int g = walk.thread; g < groups; g += walk.threads) {
    const auto size = [&](int i) {
      return static_cast<T>(min(chunk, static_cast<int>(s.P) - i * chunk));
    };
    const T positions = static_cast<T>(s.P), channels = static_cast<T>(s.group_channels);
    T mu = 0, squares = 0;
    for (int i = 0; i < chunks; ++i) mu += of_chunk[i * groups + g].at[0] * size(i);
    mu /= positions;
    for (int i = 0; i < chunks; ++i) {
      const T deviation = of_chunk[i * groups + g].at[0] - mu;
      squares += of_chunk[i * groups + g].at[1] + size(i) * channels * deviation * deviation;
    }
    of_group[g] = {mu, T{1} / std::sqrt(squares / (positions * channels) + norm_eps)};
    if (walk.chunk == 0) {
      mean[n * groups + g] = mu;
      rstd[n * groups + g] = of_group[g].at[1];
    }
  }
  __syncthreads();
  T centre[kWidth<X>], slope[kWidth<X>], offset[kWidth<X>];  // u = (x - centre) * slope + offset
  for (int i = 0; i < kWidth<X>; ++i) {
    const int c = walk.c + i, g = c / static_cast<int>(s.group_channels);
    centre[i] = of_group[g].at[0];
    slope[i] = of_group[g].at[1] * s.weight[c] * s.scale(n, c);
    offset[i] = s.bias[c] * s.scale(n, c) + s.shift(n, c);
  }
  const Packed<X>* x = walk.of(s.x);
  Packed<X>* y = walk.of(out);
  walk.for_packs([&](int pack) { return x[pack]; },
                 [&](int pack, Packed<X> numbers) {
                   for (int i = 0; i < kWidth<X>; ++i) {
                     const T u = (number(numbers.at[i]) - centre[i]) * slope[i] + offset[i];
                     numbers.at[i] = stored<X>(s.silu ? u * sigmoid<X>(u) : u);
                   }
                   y[pack] = numbers;
                 });
}

/// What the gradients need of a thread's channels: z = (x - centre) * rstd, u = z * slope + offset.
template <class X>
struct Channels {
  using T = Computed<X>;
  T centre[kWidth<X>], rstd[kWidth<X>], slope[kWidth<X>], offset[kWidth<X>];
  bool silu;

  __device__ Channels(const Norm<X>& s, int64_t n, int first) : silu(s.silu) {
    for (int i = 0; i < kWidth<X>; ++i) {
      const int c = first + i;
      const int64_t group = n * s.groups + c / static_cast<int>(s.group_channels);
      centre[i] = s.mean[group];
      rstd[i] = s.rstd[group];
      slope[i] = s.weight[c] * s.scale(n, c);
      offset[i] = s.bias[c] * s.scale(n, c) + s.shift(n, c);
    }
  }
  __device__ T z(X x, int i) const { return (number(x) - centre[i]) * rstd[i]; }
  __device__ T du(T z, X dout, int i) const {
    if (!silu) return number(dout);
    const T u = z * slope[i] + offset[i], s = sigmoid<X>(u);
    return number(dout) * s * (T{1} + u * (T{1} - s));
  }
};

template <class X>
struct Both {
  Packed<X> x, dout;
};

/// sums: [N, chunks, 2, C], A and B of the chunk.
template <class X>
__global__ void __launch_bounds__(kBlockThreads, 3)
    chunk_sums(Norm<X> s, int chunk, const X* dout, Computed<X>* sums) {
  using T = Computed<X>;
  T* of_row = dynamic_shared<T>();  // [rows][C], twice
  const Walk<X> walk(s, chunk);
  const Channels<X> channels(s, blockIdx.x, walk.c);
  const Packed<X>*x = walk.of(s.x), *d = walk.of(dout);
  Pack<T, kWidth<X>> A{}, B{};
  walk.for_packs(
      [&](int pack) {
        return Both<X>{x[pack], d[pack]};
      },
      [&](int, const Both<X>& both) {
        for (int i = 0; i < kWidth<X>; ++i) {
          const T z = channels.z(both.x.at[i], i);
          const T du = channels.du(z, both.dout.at[i], i);
          A.at[i] += du;
          B.at[i] += du * z;
        }
      });
  T* of_row_B = of_row + blockDim.y * s.C;
  walk.sum_rows(of_row, A);
  walk.sum_rows(of_row_B, B);
  sums += (int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * 2 * s.C;
  for (int c = walk.thread; c < s.C; c += walk.threads) {  // those that this thread has summed
    sums[c] = of_row[c];
    sums[s.C + c] = of_row_B[c];
  }
}

/// A, B: [N, C], of all chunks.
template <class X>
__global__ void __launch_bounds__(kBlockThreads, 3)
    input_gradient(Norm<X> s, int chunk, const X* dout, const Computed<X>* sums, X* dx,
                   Computed<X>* A, Computed<X>* B) {
  using T = Computed<X>;
  const int C = static_cast<int>(s.C), groups = static_cast<int>(s.groups), chunks = gridDim.y;
  T* total =
      dynamic_shared<T>();  // [2][C], and behind it the means of dz and of dz * z, [2][groups]
  T* means = total + 2 * C;
  const int64_t n = blockIdx.x;
  const Walk<X> walk(s, chunk);
  for (int i = walk.thread; i < 2 * C; i += walk.threads) {
    T sum = 0;
    for (int j = 0; j < chunks; ++j) sum += sums[(n * chunks + j) * 2 * C + i];
    total[i] = sum;
    if (walk.chunk == 0) (i < C ? A[n * C + i] : B[n * C + i - C]) = sum;
  }
  __syncthreads();
  for (int i = walk.thread; i < 2 * groups; i += walk.threads) {
    const int group_channels = static_cast<int>(s.group_channels);
    const int first = i % groups * group_channels;
    T sum = 0;
    for (int c = first; c < first + group_channels; ++c)
      sum += s.scale(n, c) * s.weight[c] * total[i / groups * C + c];
    means[i] = sum / static_cast<T>(s.P * s.group_channels);
  }
  __syncthreads();
  const Channels<X> channels(s, n, walk.c);
  T dz_mean[kWidth<X>], dz_z_mean[kWidth<X>];
  for (int i = 0; i < kWidth<X>; ++i) {
    const int g = (walk.c + i) / static_cast<int>(s.group_channels);
    dz_mean[i] = means[g];
    dz_z_mean[i] = means[groups + g];
  }
  const Packed<X>*x = walk.of(s.x), *d = walk.of(dout);
  Packed<X>* gradient = walk.of(dx);
  walk.for_packs(
      [&](int pack) {
        return Both<X>{x[pack], d[pack]};
      },
      [&](int pack, Both<X> both) {
        for (int i = 0; i < kWidth<X>; ++i) {
          const T z = channels.z(both.x.at[i], i);
          const T dz = channels.du(z, both.dout.at[i], i) * channels.slope[i];
          both.x.at[i] = stored<X>(channels.rstd[i] * (dz - dz_mean[i] - z * dz_z_mean[i]));
        }
        gradient[pack] = both.x;
      });
}

/// How an image is cut for the fast kernels. An H100 holds 396 of their blocks at once, three on each
/// multiprocessor, which the launch bounds make room for; more would do what each block does first, and has to
/// for its chunk, more often. And normalise has the moments of all chunks in shared memory, of which three
/// blocks get 32 KiB each on every GPU.
template <class X>
struct Cut {
  int packs, rows, chunks, chunk;
  Cut(const Norm<X>& s, int64_t N)
      : packs(static_cast<int>(s.C) / kWidth<X>),
        rows(static_cast<int>(std::clamp<int64_t>(kBlockThreads / packs, 1, s.P))),
        chunks(static_cast<int>(std::clamp<int64_t>(std::min(s.P / (rows * 4), most_chunks(s)), 1,
                                                    std::max<int64_t>(1, 396 / N)))),
        chunk(static_cast<int>(ceil_div<int64_t>(s.P, chunks))) {
    chunks = static_cast<int>(ceil_div<int64_t>(s.P, chunk));
  }
  /// With a row of means and deviations beside them.
  static int64_t most_chunks(const Norm<X>& s) {
    constexpr int64_t kBytes = 32 * 1024;
    return kBytes / (2 * static_cast<int64_t>(sizeof(Computed<X>)) * s.groups) - 1;
  }
  LaunchConfig config(int64_t N, int64_t shared_numbers) const {
    return {.grid = {static_cast<unsigned>(N), static_cast<unsigned>(chunks)},
            .block = {static_cast<unsigned>(packs), static_cast<unsigned>(rows)},
            .shared_bytes = static_cast<size_t>(shared_numbers) * sizeof(Computed<X>)};
  }
};

/// Packs must fit, a row of them a block, the moments of a chunk its memory, and an image what an int counts.
template <class X>
bool takes_packs(const Norm<X>& s, std::initializer_list<const void*> arrays) {
  return are_aligned(arrays) && s.C % kWidth<X> == 0 && s.C / kWidth<X> <= kBlockThreads &&
         Cut<X>::most_chunks(s) >= 1 && s.P * s.C <= INT32_MAX;
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
