// Rung 1 of matrix products, with operands that are functions (product.h).
//
// A thread computes one number of out, and asks the operands for 2 K numbers on the way: two loads
// from global memory, or from a cache, for each multiply-add. It waits for memory nearly all the
// time. It is here to be read, and to hold the faster rungs to.
#pragma once

#include "cuda/parallel.h"

namespace mutilde::cuda {

struct ProductSizes {
  int M, N, K;
  int chunk;  // the k of one block: K, or less where blocks share the K of one product
  int chunks;
};

/// Tiles of so many columns, which are y of a grid.
inline unsigned column_tiles(int columns, int of_tile) {
  constexpr int kMost = 65535;
  const int tiles = ceil_div(columns, of_tile);
  if (tiles > kMost)
    fail<ShapeError>("cuda: a product with {} columns is over what the GPU's kernel counts",
                     columns);
  return static_cast<unsigned>(tiles);
}

constexpr int kPlainRows = 8, kPlainColumns = 32;  // of a block; a warp writes 32 neighbours

template <class T, class A, class B, class Out>
__global__ void plain_product(ProductSizes s, A a, B b, Out out) {
  const int row_tiles = ceil_div(s.M, kPlainRows), product = blockIdx.x / row_tiles;
  const int row = blockIdx.x % row_tiles * kPlainRows + threadIdx.y;
  const int column = blockIdx.y * kPlainColumns + threadIdx.x;
  if (row >= s.M || column >= s.N) return;
  const int batch = product / s.chunks, chunk = product % s.chunks;
  const auto outer_a = a.outer(batch, row);
  const auto outer_b = b.outer(batch, column);
  T sum = 0;
  for (int k = chunk * s.chunk; k < min(s.K, (chunk + 1) * s.chunk); ++k) {
    sum += a.at(outer_a, a.inner(k)) * b.at(outer_b, b.inner(k));
  }
  out(product, row, column, sum);
}

}  // namespace mutilde::cuda
