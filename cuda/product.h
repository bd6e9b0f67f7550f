// The matrix product that dense layers and convolutions share, with operands that are functions.
//
// out[i, j] = sum over k of a(i, k) b(j, k). An operand says what its element (outer, k) is, and
// along which of the two neighbours lie in memory. A matrix looks it up, transposed or not; a
// convolution's finds the pixel and the channel, and is zero in the padding: so no array of patches
// is ever written. Where an element is takes divisions, so it is found in two halves, outer() and
// inner(), each once for several elements, and at() puts them together.
//
// How it is computed is the ladder's matter: a rung a file, all with the same operands (product_mma.h by
// the functions of conv_short.h, as it takes short types alone). In each the row tiles of a product lie
// along the grid's x, one product (of a batch, or of a chunk of K) behind the other, and the column tiles
// along y.
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
  using Element = T;
  const T* data;
  int64_t row;         // the length of a row in memory: K, or the outer size
  int64_t batch_size;  // elements from one matrix to the next; 0: all products share this one

  using Outer = int64_t;
  __device__ int64_t outer(int batch, int i) const {
    return batch * batch_size + (along_k ? i * row : i);
  }
  __device__ int64_t inner(int k) const { return along_k ? k : k * row; }
  __device__ const T* base() const { return data; }
  __device__ const T* address(int64_t outer, int64_t inner) const { return data + outer + inner; }
  __device__ Computed<T> at(int64_t outer, int64_t inner) const {
    return number(*address(outer, inner));
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

/// Rows of `padded` numbers in a short type from rows of C, and from `rows` on rows of zeros. i counts out's.
template <class T, class E>
struct Shorten {
  const T* x;
  E* out;
  int64_t C, padded, rows;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / padded, c = i % padded;
    const bool exists = c < C && row < rows;
    out[i] = stored<E>(exists ? static_cast<float>(number(x[row * C + c])) : 0.0F);
  }
};

/// A tensor in a short type, which is what the rungs from the fourth on multiply: itself, the copy that it has, or one that
/// is made (of one that begins at no multiple of 16 bytes too), with as many rows of as many numbers as are asked
/// for. What is more than there is is zeros.
template <class E>
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
      backend.cast(x, {copy_.data(), short_dtype<E>(), x.shape});
      return;
    }
    const auto shorten = [&](auto zero) {
      using T = decltype(zero);
      launch_for_each(rows * channels,
                      Shorten<T, E>{x.as<T>(), copy_.data(), C, channels, x.numel() / C});
    };
    if (x.dtype == short_dtype<E>()) {
      shorten(E{});
    } else {
      for_float(x.dtype, shorten);
    }
  }
  const E* data() const { return data_; }

 private:
  /// Null where there is none.
  static const E* there(const ConstView& x) {
    if (x.dtype == short_dtype<E>()) return x.as<E>();
    return x.short_type == short_dtype<E>() ? static_cast<const E*>(x.short_copy) : nullptr;
  }

  bool is_there_;
  Buffer<E> copy_;
  const E* data_;
};

inline int int_size(const char* op, int64_t size) {
  if (size > INT32_MAX)
    fail<ShapeError>("{}: a size of {} is over what the GPU's kernel counts", op, size);
  return static_cast<int>(size);
}

/// What to multiply with: a rung that rung_for() gave, and what it may round factors to.
struct Way {
  Rung rung;
  DType factors;
};

inline Way way_for(DType dtype, Rung asked) {
  return {rung_for(dtype, asked), factor_dtype(dtype)};
}

/// Calls f(E{}) with the short type that factors are rounded to, of tensors stored as T: T, if that is one.
template <class T, class F>
void for_factors(const Way& way, const F& f) {
  if constexpr (kIsShort<T>) {
    f(T{});
  } else {
    for_short(way.factors, f);
  }
}

template <class T, class A, class B>
void launch_product(const Way& way, const ProductSizes& s, int products, const A& a, const B& b,
                    const Store<T>& out) {
  using Sum = Computed<T>;
  const auto grid = [&](int rows, int columns) {
    return dim3(static_cast<unsigned>(ceil_div(s.M, rows)) * static_cast<unsigned>(products),
                column_tiles(s.N, columns));
  };
  if (way.rung == Rung::kPlain) {
    return launch<plain_product<Sum, A, B, Store<T>>>(
        {.grid = grid(kPlainRows, kPlainColumns), .block = {kPlainColumns, kPlainRows}}, s, a, b,
        out);
  }
  const LaunchConfig config{.grid = grid(kTile, kTile), .block = {kSide, kSide}};
  if constexpr (std::is_same_v<Sum, float>) {
    if (way.rung == Rung::kWmma || multiplies_short(way.rung)) {
      const auto multiply = [&](auto factor) {
        launch<wmma_product<decltype(factor), A, B, Store<T>>>(config, s, a, b, out);
      };
      using Element = typename A::Element;
      if constexpr (!kIsShort<Element>) {
        if (!is_short(way.factors)) return multiply(Tf32{});
      }
      return for_factors<Element>(way, [&](auto zero) { multiply(Short<decltype(zero)>{}); });
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
