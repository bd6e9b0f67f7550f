// The matrix product that dense layers and convolutions share: the tiled kernel of matmul_ladder.cu
// (read it first), with operands that are functions.
//
// out[i, j] = sum over k of a(i, k) b(j, k). An operand says what its element (outer, k) is, and
// along which of the two neighbours lie in memory. A matrix looks it up, transposed or not; a
// convolution's finds the pixel and the channel, and is zero in the padding: so no array of patches
// is ever written. Where an element is takes divisions, so it is found in two halves, outer() and
// inner(), each once for several elements, and at() puts them together.
//
// Grid: a block a tile of 64 x 64 outputs; the tiles of a column along x, one product (of a batch, or
// of a chunk of K) behind the other, and the columns of tiles along y. Each number that a block reads from memory serves 64 outputs.
#pragma once

#include "cuda/parallel.h"

namespace mutilde::cuda {

constexpr int kTile = 64, kStep = 16, kSide = 16;  // kSide x kSide threads, of 4 x 4 outputs each

struct ProductSizes {
  int M, N, K;
  int chunk;  // the k of one block: K, or less where blocks share the K of one product
  int chunks;
};

/// What a thread loads of each tile of an operand: along k, one k of four outers; else four k of one
/// outer. So neighbouring threads read neighbours.
template <class T, class Operand>
class Loader {
 public:
  __device__ Loader(const Operand& x, int batch, int first, int outer_size) : x_(x) {
    const int thread = threadIdx.y * kSide + threadIdx.x;
    column_ = Operand::kAlongK ? thread / kStep : thread % kTile;
    k_ = Operand::kAlongK ? thread % kStep : thread / kTile;
    for (int i = 0; i < kOuters; ++i) {
      const int outer = first + column_ + i * kSide;
      inside_[i] = outer < outer_size;
      outer_[i] = x.outer(batch, outer);
    }
  }

  /// tile[k][outer]; zeros beyond the edges add nothing.
  __device__ void load(int first_k, int end_k, T (&tile)[kStep][kTile + 1]) const {
    if constexpr (Operand::kAlongK) {
      const int k = first_k + k_;
      const auto inner = x_.inner(k);
      for (int i = 0; i < kPieces; ++i) {
        tile[k_][column_ + i * kSide] = k < end_k && inside_[i] ? x_.at(outer_[i], inner) : T{0};
      }
    } else {
      for (int i = 0; i < kPieces; ++i) {
        const int row = k_ + i * kStep / kPieces, k = first_k + row;
        tile[row][column_] = k < end_k && inside_[0] ? x_.at(outer_[0], x_.inner(k)) : T{0};
      }
    }
  }

 private:
  static constexpr int kPieces = kTile * kStep / (kSide * kSide);
  static constexpr int kOuters = Operand::kAlongK ? kPieces : 1;

  Operand x_;
  int column_, k_;
  bool inside_[kOuters];
  typename Operand::Outer outer_[kOuters];
};

template <class T, class A, class B, class Out>
__global__ void __launch_bounds__(kSide* kSide) tile_product(ProductSizes s, A a, B b, Out out) {
  __shared__ T tile_a[kStep][kTile + 1], tile_b[kStep][kTile + 1];
  constexpr int kPiece = kTile / kSide;
  const int row_tiles = ceil_div(s.M, kTile), product = blockIdx.x / row_tiles;
  const int first_row = blockIdx.x % row_tiles * kTile, first_column = blockIdx.y * kTile;
  const int batch = product / s.chunks, chunk = product % s.chunks;
  const int end_k = min(s.K, (chunk + 1) * s.chunk);
  const Loader<T, A> load_a(a, batch, first_row, s.M);
  const Loader<T, B> load_b(b, batch, first_column, s.N);
  T sum[kPiece][kPiece] = {};

  for (int first_k = chunk * s.chunk; first_k < end_k; first_k += kStep) {
    load_a.load(first_k, end_k, tile_a);
    load_b.load(first_k, end_k, tile_b);
    __syncthreads();  // nobody multiplies before all is there
    for (int k = 0; k < kStep; ++k) {
      T piece_a[kPiece], piece_b[kPiece];
      for (int i = 0; i < kPiece; ++i) piece_a[i] = tile_a[k][threadIdx.y + i * kSide];
      for (int j = 0; j < kPiece; ++j) piece_b[j] = tile_b[k][threadIdx.x + j * kSide];
      for (int i = 0; i < kPiece; ++i) {
        for (int j = 0; j < kPiece; ++j) sum[i][j] += piece_a[i] * piece_b[j];
      }
    }
    __syncthreads();  // nobody overwrites what another still reads
  }

  for (int i = 0; i < kPiece; ++i) {
    for (int j = 0; j < kPiece; ++j) {
      const int row = first_row + threadIdx.y + i * kSide;
      const int column = first_column + threadIdx.x + j * kSide;
      if (row < s.M && column < s.N) out(product, row, column, sum[i][j]);
    }
  }
}

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
  __device__ T at(int64_t outer, int64_t inner) const { return data[outer + inner]; }
};

/// out: [product, M, N], plus a bias for each column where there is one.
template <class T>
struct Store {
  T* out;
  int64_t M, N;
  const T* bias;
  __device__ void operator()(int product, int row, int column, T sum) const {
    out[(product * M + row) * N + column] = bias == nullptr ? sum : sum + bias[column];
  }
};

inline int int_size(const char* op, int64_t size) {
  if (size > INT32_MAX)
    fail<ShapeError>("{}: a size of {} is over what the GPU's kernel counts", op, size);
  return static_cast<int>(size);
}

template <class T, class A, class B>
void launch_tile_product(const ProductSizes& s, int products, const A& a, const B& b,
                         const Store<T>& out) {
  launch<tile_product<T, A, B, Store<T>>>(
      {.grid = {static_cast<unsigned>(ceil_div(s.M, kTile)) * static_cast<unsigned>(products),
                static_cast<unsigned>(ceil_div(s.N, kTile))},
       .block = {kSide, kSide}},
      s, a, b, out);
}

/// Products of a batch: out[i] = a[i] b[i].
template <class T, class A, class B>
void batched_product(const char* op, int64_t batch, int64_t M, int64_t N, int64_t K, const A& a,
                     const B& b, const Store<T>& out) {
  if (batch == 0 || M == 0 || N == 0) return;
  const int k = int_size(op, K);
  launch_tile_product(ProductSizes{int_size(op, M), int_size(op, N), k, k, 1}, int_size(op, batch),
                      a, b, out);
}

template <class T>
struct SumChunks {
  const T* partial;  // [chunks, n]
  T* out;
  int chunks;
  int64_t n;
  __device__ void operator()(int64_t i) const {
    T sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * n + i];
    out[i] = sum;
  }
};

/// One product with a K so long, and so few outputs, that their tiles alone would leave most of a
/// GPU idle: K is cut into chunks, and a second kernel adds up their products, in order. Where the
/// cuts are depends on the sizes alone.
template <class T, class A, class B>
void long_product(Backend& backend, const char* op, int64_t M, int64_t N, int64_t K, const A& a,
                  const B& b, T* out) {
  if (M == 0 || N == 0) return;
  constexpr int64_t kBlocks = 512, kLeastChunk = 256;
  const int64_t tiles = ceil_div<int64_t>(M, kTile) * ceil_div<int64_t>(N, kTile);
  const int64_t chunks =
      std::clamp<int64_t>(std::min(kBlocks / tiles, K / kLeastChunk), 1, kBlocks);
  const int chunk = static_cast<int>(ceil_div(K, chunks));
  const ProductSizes s{int_size(op, M), int_size(op, N), int_size(op, K), chunk,
                       static_cast<int>(chunks)};
  if (chunks == 1) return launch_tile_product(s, 1, a, b, Store<T>{out, M, N, nullptr});
  const Buffer<T> partial(backend, chunks * M * N);
  launch_tile_product(s, s.chunks, a, b, Store<T>{partial.data(), M, N, nullptr});
  launch_for_each(M * N, SumChunks<T>{partial.data(), out, s.chunks, M * N});
}

}  // namespace mutilde::cuda
