// Rung 3 of matrix products: tensor cores.
//
// A warp's call multiplies a 16 x 8 by an 8 x 16 matrix that its lanes hold together, and adds to
// 16 x 16 sums in float32: four instructions of 512 multiply-adds, where the tiled rung's do 32. The
// factors are rounded once, on their way to shared memory: to tf32, a float32 with 11 significant bits,
// or to a type of half its size, of which a call takes twice the k in two instructions of 2,048: bfloat16,
// which has 8 and the range of a float32, or float16, which has 11 and less range. The product of two of any
// is exact in float32.
//
// Tiles and threads are the tiled rung's. The block's 8 warps share the 64 x 64 tile: each has 32
// rows and 16 columns, two fragments of sums. A tile lies in shared memory with k first: read as a
// matrix that is a's transpose (col_major), and b as it stands (row_major). wmma wants rows that begin
// a multiple of 16 bytes apart; 16 bytes to spare put the numbers of a column into different banks.
//
// What it leaves to the next rung (product_mma.h): while a tile is copied nothing is multiplied, a lane loads 4 bytes
// at a time, and a warp loads three fragments for two products.
#pragma once

#include <mma.h>

#include "cuda/product_tiled.h"

namespace mutilde::cuda {

namespace wmma = nvcuda::wmma;

struct Tf32 {
  using Element = float;                   // in shared memory
  using Fragment = wmma::precision::tf32;  // what wmma calls it
  static constexpr int kDepth = 8;         // the k of an instruction
  static __device__ float of(float x) { return wmma::__float_to_tf32(x); }
};

/// E: __nv_bfloat16 or __half.
template <class E>
struct Short {
  using Element = E;
  using Fragment = E;
  static constexpr int kDepth = 16;
  static __device__ E of(float x) { return stored<E>(x); }
};

template <class Factor, class A, class B, class Out>
__global__ void __launch_bounds__(kSide* kSide, 2) wmma_product(ProductSizes s, A a, B b, Out out) {
  using Element = typename Factor::Element;
  using Fragment = typename Factor::Fragment;
  constexpr int kPitch = kTile + 16 / sizeof(Element), kOutPitch = kTile + 4;
  constexpr int kRows = 16, kDepth = Factor::kDepth, kFragments = 2;
  union Tiles {  // a fragment of sums cannot be stored over an edge, so they go through here
    struct {
      Element a[kStep][kPitch], b[kStep][kPitch];
    } in;
    float out[kTile][kOutPitch];
  };
  __shared__ __align__(32) Tiles tiles;
  const int row_tiles = ceil_div(s.M, kTile), product = blockIdx.x / row_tiles;
  const int first_row = blockIdx.x % row_tiles * kTile, first_column = blockIdx.y * kTile;
  const int batch = product / s.chunks, chunk = product % s.chunks;
  const int end_k = min(s.K, (chunk + 1) * s.chunk);
  const Loader<Factor, A> load_a(a, batch, first_row, s.M);
  const Loader<Factor, B> load_b(b, batch, first_column, s.N);
  const int thread = threadIdx.y * kSide + threadIdx.x, warp = thread / 32;
  const int warp_row = warp / 4 * kFragments * kRows, warp_column = warp % 4 * kRows;

  wmma::fragment<wmma::accumulator, kRows, kRows, kDepth, float> sum[kFragments];
  for (auto& fragment : sum) wmma::fill_fragment(fragment, 0.0F);

  for (int first_k = chunk * s.chunk; first_k < end_k; first_k += kStep) {
    load_a.load(first_k, end_k, tiles.in.a);
    load_b.load(first_k, end_k, tiles.in.b);
    __syncthreads();
    for (int k = 0; k < kStep; k += kDepth) {
      wmma::fragment<wmma::matrix_b, kRows, kRows, kDepth, Fragment, wmma::row_major> fragment_b;
      wmma::load_matrix_sync(fragment_b, &tiles.in.b[k][warp_column], kPitch);
      for (int i = 0; i < kFragments; ++i) {
        wmma::fragment<wmma::matrix_a, kRows, kRows, kDepth, Fragment, wmma::col_major> fragment_a;
        wmma::load_matrix_sync(fragment_a, &tiles.in.a[k][warp_row + i * kRows], kPitch);
        wmma::mma_sync(sum[i], fragment_a, fragment_b, sum[i]);
      }
    }
    __syncthreads();
  }

  for (int i = 0; i < kFragments; ++i) {
    wmma::store_matrix_sync(&tiles.out[warp_row + i * kRows][warp_column], sum[i], kOutPitch,
                            wmma::mem_row_major);
  }
  __syncthreads();
  for (int i = thread; i < kTile * kTile; i += kSide * kSide) {
    const int row = first_row + i / kTile, column = first_column + i % kTile;
    if (row < s.M && column < s.N) out(product, row, column, tiles.out[i / kTile][i % kTile]);
  }
}

}  // namespace mutilde::cuda
