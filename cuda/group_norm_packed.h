// Group norm's fast kernels. It is bound by memory, and channels are last: a group at one position is C / groups
// neighbours, 8 bytes of 128 channels in 32 groups in bfloat16, and the plain kernels, a block a group, read no more than that
// at a time. These give a thread 16 bytes, 8 channels of whatever groups, and a block whole rows of all channels;
// so groups are put together from the sums of channels:
//
//   kernel          reads      writes
//   chunk_moments   x          for each chunk of positions of an image and each group: mean and squares
//   normalise       x          out; every block adds up the chunks of its image first
//   chunk_sums      x, dout    for each chunk and channel: A and B (group_norm_plain.h)
//   input_gradient  x, dout    dx; the same
//
// Blocks: x the image, y the chunk. Threads: x the pack of neighbouring channels, y a row; each row takes every
// rows-th position of the chunk.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "cuda/group_norm_plain.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {

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
    slope[i] = of_group[g].at[1] * s.weight[c] * s.one_plus_scale(n, c);
    offset[i] = s.bias[c] * s.one_plus_scale(n, c) + s.shift(n, c);
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
      slope[i] = s.weight[c] * s.one_plus_scale(n, c);
      offset[i] = s.bias[c] * s.one_plus_scale(n, c) + s.shift(n, c);
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
      sum += s.one_plus_scale(n, c) * s.weight[c] * total[i / groups * C + c];
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
/// multiprocessor, which the launch bounds make room for; more would only
/// repeat what each does before its own chunk, adding up the chunks of its image. And normalise has the moments of all chunks in shared memory, of which three
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

/// C must be whole packs, a row of which fits a block, a chunk's moments fit its memory, and an image's numbers an int.
template <class X>
bool takes_packs(const Norm<X>& s, std::initializer_list<const void*> arrays) {
  return are_aligned(arrays) && s.C % kWidth<X> == 0 && s.C / kWidth<X> <= kBlockThreads &&
         Cut<X>::most_chunks(s) >= 1 && s.P * s.C <= INT32_MAX;
}

}  // namespace mutilde::cuda
