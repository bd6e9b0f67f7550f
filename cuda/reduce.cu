// Sum and max over any axes.
//
// One kernel does all shapes. The outputs run along x of a block and the terms of each along y; the
// launch chooses how many threads go along x and along y, so that a warp reads neighbours:
//   - where the innermost axis is kept ([N, H, W, C] -> [C]), 32 neighbouring outputs along x, and
//     each of 8 rows of threads takes every eighth term;
//   - where it is reduced ([N, H, W, C] -> [N]), one output and 256 neighbouring terms.
// Each thread adds up its terms, then the block adds up those of its rows in shared memory, half of
// them to the other half until one is left. x is read once, and that is all the traffic.
//
// Sums of the columns of a matrix have a kernel of their own, which reads 16 bytes at a time.
//
// Long sums are cut into at most 256 chunks of 64 terms a thread or more, blocks along y of the grid, whose
// sums a second launch adds. So the work spreads over the GPU, and round-off is that of adding some 64
// numbers as long as there are enough chunks. Where they begin depends on the shapes alone: the result is
// the same every time.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"
#include "cuda/strided.h"

namespace mutilde::cuda {
namespace {

template <class T>
struct Sum {
  __device__ static T identity() { return T{0}; }
  __device__ static T combine(T a, T b) { return a + b; }
};

template <class T>
struct Max {
  __device__ static T identity() { return -INFINITY; }
  __device__ static T combine(T a, T b) {
    return b > a || b != b ? b : a;
  }  // a NaN wins, and stays
};

/// One reduction: where the outputs' first terms are in x, and how to go on from there.
struct Terms {
  Strided first, next;
  int64_t outputs, terms, chunk;  // chunk: terms of one block
};

/// x -> out: [chunks, outputs].
template <class X, class T, class Op>
__global__ void reduce_terms(Terms s, const X* x, T* out) {
  T* partial = dynamic_shared<T>();  // [blockDim.y][blockDim.x]
  const int64_t output = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  T result = Op::identity();
  if (output < s.outputs) {
    const int64_t first = s.first(output);  // no address yet: x is null where there are no terms
    const int64_t begin = blockIdx.y * s.chunk, end = min(begin + s.chunk, s.terms);
    for (int64_t i = begin + threadIdx.y; i < end; i += blockDim.y) {
      result = Op::combine(result, number(x[first + s.next(i)]));
    }
  }
  T* mine = partial + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = result;
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) *mine = Op::combine(*mine, mine[half * blockDim.x]);
  }
  if (threadIdx.y == 0 && output < s.outputs) out[blockIdx.y * s.outputs + output] = *mine;
}

unsigned power_of_two(int64_t at_least, int64_t at_most) {
  return std::bit_ceil(static_cast<unsigned>(std::clamp<int64_t>(at_least, 1, at_most)));
}

template <class X, class T, class Op>
void launch_reduce(Backend& backend, Terms s, const X* x, T* out) {
  constexpr int64_t kTermsPerThread = 64, kMaxChunks = 256;
  unsigned rows = power_of_two(s.terms, kBlockThreads);
  if (s.next.stride[0] != 1) {  // the innermost axis is kept
    rows = std::min(rows, kBlockThreads / power_of_two(s.outputs, 32));
  }
  const unsigned columns = kBlockThreads / rows;
  const int64_t chunks =
      std::clamp<int64_t>(ceil_div(s.terms, rows * kTermsPerThread), 1, kMaxChunks);
  s.chunk = ceil_div(s.terms, chunks);
  const auto grid_x = static_cast<unsigned>(ceil_div<int64_t>(s.outputs, columns));
  const LaunchConfig config{.grid = {grid_x, static_cast<unsigned>(chunks)},
                            .block = {columns, rows},
                            .shared_bytes = kBlockThreads * sizeof(T)};
  if (chunks == 1) return launch<reduce_terms<X, T, Op>>(config, s, x, out);

  const Buffer<T> partial(backend, chunks * s.outputs);
  launch<reduce_terms<X, T, Op>>(config, s, x, partial.data());
  Terms second{{}, {}, s.outputs, chunks, 0};
  second.first.append(s.outputs, 1);
  second.next.append(chunks, s.outputs);
  launch_reduce<T, T, Op>(backend, second, partial.data(), out);
}

/// The sums of columns of a matrix, as the gradient of a bias wants them: a thread has 16 bytes of a row, and
/// of the rows of its block's chunk every blockDim.y-th. x: [rows, packs of columns] -> out: [chunks, columns].
template <class X, int width>
__global__ void column_sums(int64_t rows, int64_t chunk, const Pack<X, width>* x,
                            Pack<Computed<X>, width>* out) {
  using T = Computed<X>;
  auto* of_row = dynamic_shared<Pack<T, width>>();  // [blockDim.y][blockDim.x]
  const int64_t end = min(rows, (blockIdx.x + 1) * chunk);
  Pack<T, width> sum{};
  for (int64_t row = blockIdx.x * chunk + threadIdx.y; row < end; row += blockDim.y) {
    const auto pack = x[row * blockDim.x + threadIdx.x];
    for (int i = 0; i < width; ++i) sum.at[i] += number(pack.at[i]);
  }
  of_row[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (unsigned row = 1; row < blockDim.y; ++row) {
    for (int i = 0; i < width; ++i) sum.at[i] += of_row[row * blockDim.x + threadIdx.x].at[i];
  }
  out[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] = sum;
}

/// The same of few rows, those of the chunks: a block for 32 columns, each of its 32 rows of threads for every
/// 32nd row.
template <class T>
__global__ void sum_chunks_of_columns(int chunks, int64_t columns, const T* x, T* out) {
  __shared__ T of_row[32][33];
  const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x;
  T sum = 0;
  if (column < columns) {
    for (int row = threadIdx.y; row < chunks; row += 32) sum += x[row * columns + column];
  }
  of_row[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int row = 1; row < 32; ++row) sum += of_row[row][threadIdx.x];
  out[column] = sum;
}

/// Returns false where x is no such matrix.
template <class X, class T>
bool sum_columns(Backend& backend, int64_t rows, int64_t columns, const X* x, T* out) {
  constexpr int64_t kRowsPerThread = 16, kMaxChunks = 512;
  const int64_t packs = columns / kWidth<X>;
  if (columns % kWidth<X> != 0 || packs == 0 || packs > kBlockThreads || !is_aligned(x, 16) ||
      !is_aligned(out, sizeof(T) * kWidth<X>))
    return false;
  const int64_t block_rows = kBlockThreads / packs;
  const int64_t chunk = std::max(block_rows * kRowsPerThread, ceil_div<int64_t>(rows, kMaxChunks));
  const int64_t chunks = ceil_div(rows, chunk);
  const auto sum = [&](T* to) {
    launch<column_sums<X, kWidth<X>>>(
        {.grid = static_cast<unsigned>(chunks),
         .block = {static_cast<unsigned>(packs), static_cast<unsigned>(block_rows)},
         .shared_bytes = static_cast<size_t>(block_rows * columns) * sizeof(T)},
        rows, chunk, reinterpret_cast<const Pack<X, kWidth<X>>*>(x),
        reinterpret_cast<Pack<T, kWidth<X>>*>(to));
  };
  if (chunks == 1) {
    sum(out);
    return true;
  }
  const Buffer<T> partial(backend, chunks * columns);
  sum(partial.data());
  const T* sums = partial.data();
  launch<sum_chunks_of_columns<T>>(
      {.grid = static_cast<unsigned>(ceil_div<int64_t>(columns, 32)), .block = {32, 32}},
      static_cast<int>(chunks), columns, sums, out);
  return true;
}

/// A thread an output, which walks twice over what was reduced to it: no network here takes the
/// gradient of a maximum of anything large.
template <class T>
struct MaxBackward {
  const T *x, *y, *dout;
  T* dx;
  Strided first, next;
  int64_t terms;

  __device__ bool attains(T element, T maximum) const {
    return element == maximum || (element != element && maximum != maximum);
  }
  __device__ void operator()(int64_t output) const {
    const int64_t begin = first(output);
    int64_t winners = 0;
    for (int64_t i = 0; i < terms; ++i) winners += attains(x[begin + next(i)], y[output]) ? 1 : 0;
    for (int64_t i = 0; i < terms; ++i) {
      const int64_t at = begin + next(i);
      dx[at] = attains(x[at], y[output]) ? dout[output] / static_cast<T>(winners) : T{0};
    }
  }
};

}  // namespace

void CudaBackend::reduce(ReduceOp op, ConstView x, View out) {
  if (out.numel() == 0) return;
  const Terms s{axes_of(x.shape, out.shape, Axes::kKept),
                axes_of(x.shape, out.shape, Axes::kReduced), out.numel(), x.numel() / out.numel(),
                0};
  for_stored(x.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Computed<X>;
    const bool is_matrix = s.first.rank == 1 && s.first.stride[0] == 1 && s.next.rank == 1 &&
                           s.next.stride[0] == s.outputs && s.terms > 1;
    if (op == ReduceOp::kSum && is_matrix &&
        sum_columns(*this, s.terms, s.outputs, x.as<X>(), out.as<T>()))
      return;
    if (op == ReduceOp::kSum) return launch_reduce<X, T, Sum<T>>(*this, s, x.as<X>(), out.as<T>());
    launch_reduce<X, T, Max<T>>(*this, s, x.as<X>(), out.as<T>());
  });
}

void CudaBackend::max_backward(ConstView x, ConstView y, ConstView dout, View dx) {
  if (x.numel() == 0) return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(y.numel(), MaxBackward<T>{x.as<T>(), y.as<T>(), dout.as<T>(), dx.as<T>(),
                                              axes_of(x.shape, y.shape, Axes::kKept),
                                              axes_of(x.shape, y.shape, Axes::kReduced),
                                              x.numel() / y.numel()});
  });
}

}  // namespace mutilde::cuda
