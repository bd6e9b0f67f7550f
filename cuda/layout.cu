// Kernels that only move data. They see elements as words of some size, never as numbers. A thread
// an element of the output: writes are neighbours. What a permutation reads is not; the caches then
// hold what the neighbours of a word are read for.
#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"
#include "cuda/strided.h"

namespace mutilde::cuda {
namespace {

template <class Word>
struct Gather {
  const Word* x;
  Word* out;
  Strided x_at;
  __device__ void operator()(int64_t i) const { out[i] = x[x_at(i)]; }
};

/// Element i of what is copied: row i / row, and the rest within it.
template <class Word>
struct CopyRows {
  const Word* x;
  Word* out;
  int64_t row, x_stride,
      out_stride;  // the words that are copied of a row; from one row to the next
  __device__ void operator()(int64_t i) const {
    out[i / row * out_stride + i % row] = x[i / row * x_stride + i % row];
  }
};

}  // namespace

void CudaBackend::permute(ConstView x, std::span<const int> axes, View out) {
  for_word(x.dtype, [&](auto zero) {
    using Word = decltype(zero);
    launch_for_each(x.numel(), Gather<Word>{x.as<Word>(), out.as<Word>(), permuted(x.shape, axes)});
  });
}

void CudaBackend::copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                             int64_t out_begin) {
  const int64_t inner = x.shape.product(axis + 1, x.shape.rank()), rows = x.shape.product(0, axis);
  const int64_t row = count * inner;
  if (rows * row == 0) return;
  for_word(x.dtype, [&](auto zero) {
    using Word = decltype(zero);
    launch_for_each(rows * row, CopyRows<Word>{x.as<Word>() + x_begin * inner,
                                               out.as<Word>() + out_begin * inner, row,
                                               x.shape[axis] * inner, out.shape[axis] * inner});
  });
}

}  // namespace mutilde::cuda
