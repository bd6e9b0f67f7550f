// Rung 2 of matrix products: the tiled kernel of matmul_ladder.cu (read it first), with operands that
// are functions (product.h).
//
// A block computes a tile of 64 x 64 of out. Each number that it reads from memory, through the
// operand's function, goes to shared memory and serves 64 outputs: 64 times fewer loads than the plain
// rung's. A thread computes 4 x 4 outputs in registers, for four times fewer loads from shared memory.
#pragma once

#include "cuda/product_plain.h"

namespace mutilde::cuda {

constexpr int kTile = 64, kStep = 16, kSide = 16;  // kSide x kSide threads

/// A factor as a tile holds it: here, as the operand gives it.
template <class T>
struct Exact {
  using Element = T;
  static __device__ T of(T x) { return x; }
};

/// What a thread loads of each tile of an operand. An outer is an index that is not k: a row of a, a column of b.
/// Where neighbours in memory lie along k, one k of four outers; else four k of one outer. So neighbouring threads
/// read neighbours.
template <class Factor, class Operand>
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

  /// tile[k][outer] = the element; zeros beyond the edges add nothing.
  template <int pitch>
  __device__ void load(int first_k, int end_k,
                       typename Factor::Element (&tile)[kStep][pitch]) const {
    if constexpr (Operand::kAlongK) {
      const int k = first_k + k_;
      const auto inner = x_.inner(k);
      for (int i = 0; i < kPieces; ++i) {
        const bool inside = k < end_k && inside_[i];
        tile[k_][column_ + i * kSide] = Factor::of(inside ? x_.at(outer_[i], inner) : 0);
      }
    } else {
      for (int i = 0; i < kPieces; ++i) {
        const int row = k_ + i * kStep / kPieces, k = first_k + row;
        const bool inside = k < end_k && inside_[0];
        tile[row][column_] = Factor::of(inside ? x_.at(outer_[0], x_.inner(k)) : 0);
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
__global__ void __launch_bounds__(kSide* kSide) tiled_product(ProductSizes s, A a, B b, Out out) {
  __shared__ T tile_a[kStep][kTile + 2], tile_b[kStep][kTile + 2];
  constexpr int kPiece = kTile / kSide;
  const int row_tiles = ceil_div(s.M, kTile), product = blockIdx.x / row_tiles;
  const int first_row = blockIdx.x % row_tiles * kTile, first_column = blockIdx.y * kTile;
  const int batch = product / s.chunks, chunk = product % s.chunks;
  const int end_k = min(s.K, (chunk + 1) * s.chunk);
  const Loader<Exact<T>, A> load_a(a, batch, first_row, s.M);
  const Loader<Exact<T>, B> load_b(b, batch, first_column, s.N);
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

}  // namespace mutilde::cuda
