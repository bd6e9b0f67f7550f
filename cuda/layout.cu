// Kernels that only move data. They see elements as words of some size, never as numbers. A thread
// an element of the output: writes are neighbours. What a permutation reads is not; the caches then
// hold what the neighbours of a word are read for.
#include <numeric>

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

/// Word i of what is copied: row i / row, and the rest within it.
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
  const auto size = static_cast<int64_t>(size_of(x.dtype));
  const int64_t inner = x.shape.product(axis + 1, x.shape.rank()) * size;  // in bytes, as all below
  const int64_t rows = x.shape.product(0, axis), row = count * inner;
  if (rows * row == 0) return;
  const auto* from = x.as<unsigned char>() + x_begin * inner;
  auto* to = out.as<unsigned char>() + out_begin * inner;
  const int64_t x_stride = x.shape[axis] * inner, out_stride = out.shape[axis] * inner;
  const auto copy_words = [&](auto zero) {
    using Word = decltype(zero);
    constexpr int64_t kBytes = sizeof(Word);
    launch_for_each(rows * row / kBytes,
                    CopyRows<Word>{reinterpret_cast<const Word*>(from), reinterpret_cast<Word*>(to),
                                   row / kBytes, x_stride / kBytes, out_stride / kBytes});
  };
  // The widest word that all rows are made of and begin at a multiple of.
  const int64_t common = std::gcd(std::gcd(row, x_stride), out_stride);
  const bool is_wide = common % 16 == 0 && are_aligned({from, to});
  if (is_wide) return copy_words(uint4{});
  for_word(x.dtype, copy_words);
}

}  // namespace mutilde::cuda
