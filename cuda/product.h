// The matrix product that dense layers and convolutions share, with operands that are functions.
//
// out[i, j] = sum over k of a(i, k) b(j, k). An operand says what its element (outer, k) is, and
// along which of the two neighbours lie in memory. A matrix looks it up, transposed or not; a
// convolution's finds the pixel and the channel, and is zero in the padding: so no array of patches
// is ever written. Where an element is takes divisions, so it is found in two halves, outer() and
// inner(), each once for several elements, and at() puts them together.
//
// How it is computed is the ladder's matter: a rung a file, all with the same operands. In each the
// row tiles of a product lie along the grid's x, one product (of a batch, or of a chunk of K) behind
// the other, and the column tiles along y.
#pragma once

#include "cuda/product_plain.h"
#include "cuda/product_tiled.h"
#include "cuda/product_wmma.h"
#include "cuda/rung.h"

namespace mutilde::cuda {

/// An operand in memory. Along k: [batch, outer, K], else [batch, K, outer].
template <class T, bool along_k>
struct Matrix {
  static constexpr bool kAlongK = along_k;
  const T* data;
  int64_t row;         // the length of a row in memory: K, or the outer size
  int64_t batch_size;  // elements from one matrix to the next; 0: all products share this one

  using Outer = int64_t;
  __device__ int64_t outer(int batch, int i) const {
    return batch * batch_size + (along_k ? i * row : i);
  }
  __device__ int64_t inner(int k) const { return along_k ? k : k * row; }
  __device__ Computed<T> at(int64_t outer, int64_t inner) const {
    return number(data[outer + inner]);
  }
};

/// out: [product, M, N], plus a bias for each column where there is one.
template <class T>
struct Store {
  T* out;
  int64_t M, N;
  const Computed<T>* bias;
  __device__ void operator()(int product, int row, int column, Computed<T> sum) const {
    out[(product * M + row) * N + column] = stored<T>(bias == nullptr ? sum : sum + bias[column]);
  }
};

/// Rows of `padded` numbers in bfloat16 from rows of C, and from `rows` on rows of zeros. i counts out's.
template <class T>
struct Shorten {
  const T* x;
  __nv_bfloat16* out;
  int64_t C, padded, rows;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / padded, c = i % padded;
    out[i] = c < C && row < rows ? __float2bfloat16_rn(static_cast<float>(number(x[row * C + c])))
                                 : __float2bfloat16_rn(0.0F);
  }
};

/// A tensor in bfloat16, which is what Hopper's copy engine brings: itself, the copy that it has, or one that
/// is made (of one that begins at no multiple of 16 bytes too), with as many rows of as many numbers as are asked
/// for. What is more than there is is zeros.
class Shortened {
 public:
  Shortened(Backend& backend, const ConstView& x)
      : Shortened(backend, x, x.numel() == 0 ? 0 : x.numel() / x.shape[-1], x.shape[-1]) {}
  Shortened(Backend& backend, const ConstView& x, int64_t rows, int64_t channels)
      : is_there_(rows * channels == x.numel() && is_aligned(there(x), 16) && there(x) != nullptr),
        copy_(backend, is_there_ ? 0 : rows * channels) {
    if (is_there_) {
      data_ = there(x);
      return;
    }
    data_ = copy_.data();
    const int64_t C = x.shape[-1];
    if (rows * channels == x.numel()) {
      backend.cast(x, {copy_.data(), DType::kBFloat16, x.shape});
      return;
    }
    for_stored(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      launch_for_each(rows * channels,
                      Shorten<T>{x.as<T>(), copy_.data(), C, channels, x.numel() / C});
    });
  }
  const __nv_bfloat16* data() const { return data_; }

 private:
  static const __nv_bfloat16* there(const ConstView& x) {
    return static_cast<const __nv_bfloat16*>(x.dtype == DType::kBFloat16 ? x.data : x.in_bfloat16);
  }

  bool is_there_;
  Buffer<__nv_bfloat16> copy_;
  const __nv_bfloat16* data_;
};

inline int int_size(const char* op, int64_t size) {
  if (size > INT32_MAX)
    fail<ShapeError>("{}: a size of {} is over what the GPU's kernel counts", op, size);
  return static_cast<int>(size);
}

/// What to multiply with: a rung that rung_for() gave, and whether factors are rounded to bfloat16.
struct Way {
  Rung rung;
  bool bfloat16;
};

inline Way way_for(DType dtype, Rung asked) {
  return {rung_for(dtype, asked), multiplies_bfloat16(dtype)};
}

template <class T, class A, class B>
void launch_product(const Way& way, const ProductSizes& s, int products, const A& a, const B& b,
                    const Store<T>& out) {
  using Sum = Computed<T>;
  const auto grid = [&](int rows, int columns) {
    return dim3(static_cast<unsigned>(ceil_div(s.M, rows)) * static_cast<unsigned>(products),
                static_cast<unsigned>(ceil_div(s.N, columns)));
  };
  if (way.rung == Rung::kPlain) {
    return launch<plain_product<Sum, A, B, Store<T>>>(
        {.grid = grid(kPlainRows, kPlainColumns), .block = {kPlainColumns, kPlainRows}}, s, a, b,
        out);
  }
  const LaunchConfig config{.grid = grid(kTile, kTile), .block = {kSide, kSide}};
  if constexpr (std::is_same_v<Sum, float>) {
    if (way.rung == Rung::kTensorCores || way.rung == Rung::kHopper) {
      if (way.bfloat16) return launch<wmma_product<Bfloat16, A, B, Store<T>>>(config, s, a, b, out);
      return launch<wmma_product<Tf32, A, B, Store<T>>>(config, s, a, b, out);
    }
  }
  launch<tiled_product<Sum, A, B, Store<T>>>(config, s, a, b, out);
}

/// Products of a batch: out[i] = a[i] b[i].
template <class T, class A, class B>
void batched_product(const Way& way, const char* op, int64_t batch, int64_t M, int64_t N, int64_t K,
                     const A& a, const B& b, const Store<T>& out) {
  if (batch == 0 || M == 0 || N == 0) return;
  const int k = int_size(op, K);
  launch_product(way, ProductSizes{int_size(op, M), int_size(op, N), k, k, 1}, int_size(op, batch),
                 a, b, out);
}

template <class T>
struct SumChunks {
  const Computed<T>* partial;  // [chunks, n]
  T* out;
  int chunks;
  int64_t n;
  __device__ void operator()(int64_t i) const {
    Computed<T> sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * n + i];
    out[i] = stored<T>(sum);
  }
};

/// The sum of chunks, each of n numbers, that compute(array) writes to an array that it is given.
template <class T, class Compute>
void sum_chunks(Backend& backend, int chunks, int64_t n, T* out, const Compute& compute) {
  if (chunks == 1) return compute(out);
  const Buffer<Computed<T>> partial(backend, chunks * n);
  compute(partial.data());
  launch_for_each(n, SumChunks<T>{partial.data(), out, chunks, n});
}

/// One product with a K so long, and so few outputs, that their tiles alone would leave most of a
/// GPU idle: K is cut into chunks, and a second kernel adds up their products, in order. Where the
/// cuts are depends on the sizes alone.
template <class T, class A, class B>
void long_product(Backend& backend, const Way& way, const char* op, int64_t M, int64_t N, int64_t K,
                  const A& a, const B& b, T* out) {
  if (M == 0 || N == 0) return;
  constexpr int64_t kBlocks = 512, kLeastChunk = 256;
  const int64_t tiles = ceil_div<int64_t>(M, kTile) * ceil_div<int64_t>(N, kTile);
  const int64_t chunks =
      std::clamp<int64_t>(std::min(kBlocks / tiles, K / kLeastChunk), 1, kBlocks);
  const int chunk = static_cast<int>(ceil_div(K, chunks));
  const ProductSizes s{int_size(op, M), int_size(op, N), int_size(op, K), chunk,
                       static_cast<int>(chunks)};
  sum_chunks(backend, s.chunks, M * N, out, [&]<class Sum>(Sum* partial) {
    launch_product(way, s, s.chunks, a, b, Store<Sum>{partial, M, N, nullptr});
  });
}

}  // namespace mutilde::cuda
