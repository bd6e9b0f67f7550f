// A ladder of matrix products: read the kernels from the top.
//
// All compute out[M,N] = a[M,K] b[K,N], 2 M N K operations on (M K + K N + M N) numbers: for large
// matrices there is far more to compute than to read, if only each number is read once. How often
// each is read, and from where, is what the rungs differ in.
#include <mma.h>

#include "cuda/matmul_ladder.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

// ---- 1. Plain -----------------------------------------------------------------------------------
// One thread, one element. Each of the 2 K numbers that it needs is a load from global memory (or
// from a cache, if a neighbour has just had it), for K multiply-adds: two loads an operation, so
// the arithmetic units wait for memory nearly all the time.
//
// threadIdx.x runs along the columns: a warp reads 32 neighbours of b's row in one go, and one
// number of a, which all its lanes share.
template <class T>
__global__ void plain(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, int M,
                      int N, int K) {
  const int row = blockIdx.y * blockDim.y + threadIdx.y;
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= M || column >= N) return;
  T sum = 0;
  for (int k = 0; k < K; ++k) sum += a[size_t(row) * K + k] * b[size_t(k) * N + column];
  out[size_t(row) * N + column] = sum;
}

// ---- 2. Tiled -----------------------------------------------------------------------------------
// A block computes a 64 x 64 tile of out. It walks along K in steps of 16: all threads together
// copy a 64 x 16 tile of a and a 16 x 64 tile of b to shared memory, then everybody multiplies from
// there. A number that was read from global memory serves 64 outputs: 64 times less to read.
//
// Then shared memory is what one waits for, at two loads an operation. So a thread computes not one
// output but 4 x 4, in registers: for each k it loads 4 + 4 numbers for 16 multiply-adds, four
// times less.
//
// A thread's 4 rows and 4 columns are 16 apart, not neighbours: lanes next to each other then read
// words next to each other, which lie in different banks of shared memory (there are 32, a word
// each). Of a's tile, with k first too, a warp reads two words at a time however they lie; it writes
// down columns: two to spare put a warp's words, 16 k of two rows, into all banks, and not into two.
//
// The inner loops have constant bounds: the compiler unrolls them, and only so can the small arrays
// be registers, which have no index. With 64 registers a thread, as the 4 in __launch_bounds__
// allows, four blocks share a multiprocessor, and while one waits at its barrier the others
// multiply. (Without the 4, nvcc 13 tries for five on an H100, and spills.)
constexpr int kTile = 64, kStep = 16, kThreads = 16;  // kThreads x kThreads threads

template <class T>
__global__ void __launch_bounds__(kThreads* kThreads, 4)
    tiled(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, int M, int N,
          int K) {
  __shared__ T tile_a[kStep][kTile + 2];  // [k][row]
  __shared__ T tile_b[kStep][kTile];      // [k][column]
  const int thread = threadIdx.y * kThreads + threadIdx.x;
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  constexpr int kPiece = kTile / kThreads;
  T sum[kPiece][kPiece] = {};

  for (int first_k = 0; first_k < K; first_k += kStep) {
    // 1024 numbers each, four a thread; zeros beyond the edges add nothing.
    for (int i = thread; i < kTile * kStep; i += kThreads * kThreads) {
      const int row = i / kStep, k = i % kStep;
      const bool inside = first_row + row < M && first_k + k < K;
      tile_a[k][row] = inside ? a[size_t(first_row + row) * K + first_k + k] : T{0};
    }
    for (int i = thread; i < kTile * kStep; i += kThreads * kThreads) {
      const int k = i / kTile, column = i % kTile;
      const bool inside = first_k + k < K && first_column + column < N;
      tile_b[k][column] = inside ? b[size_t(first_k + k) * N + first_column + column] : T{0};
    }
    __syncthreads();  // nobody multiplies before all is there
    for (int k = 0; k < kStep; ++k) {
      T piece_a[kPiece], piece_b[kPiece];
      for (int i = 0; i < kPiece; ++i) piece_a[i] = tile_a[k][threadIdx.y + i * kThreads];
      for (int j = 0; j < kPiece; ++j) piece_b[j] = tile_b[k][threadIdx.x + j * kThreads];
      for (int i = 0; i < kPiece; ++i) {
        for (int j = 0; j < kPiece; ++j) sum[i][j] += piece_a[i] * piece_b[j];
      }
    }
    __syncthreads();  // nobody overwrites what another still reads
  }

  for (int i = 0; i < kPiece; ++i) {
    for (int j = 0; j < kPiece; ++j) {
      const int row = first_row + threadIdx.y + i * kThreads;
      const int column = first_column + threadIdx.x + j * kThreads;
      if (row < M && column < N) out[size_t(row) * N + column] = sum[i][j];
    }
  }
}

// ---- 3. Tensor cores ----------------------------------------------------------------------------
// One instruction of a tensor core multiplies small matrices that a warp holds together, at many
// times the rate of ordinary multiply-adds; a short type halves what is read besides. wmma is CUDA's
// portable way to them: fragments of 16 x 16, loaded from shared memory, multiplied with
// mma_sync, stored.
//
// Blocking: a block of 4 warps computes 64 x 64 of out, each warp a quarter of 32 x 32 as 2 x 2
// fragments, so that every fragment that it loads is used twice. K goes in steps of 32.
//
// The rows of the tiles are 8 (float: 4) elements longer than their data. A fragment's rows then
// begin in different banks, and stay multiples of 16 bytes, which wmma needs.
//
// A fragment cannot be stored over an edge, so the result goes through shared memory, which by
// then is free: the union below.
//
// What it leaves to a next rung: a lane loads two bytes at a time, and while a tile is copied
// nothing is multiplied.
namespace wmma = nvcuda::wmma;

constexpr int kWmmaStep = 32, kWmmaWarps = 4, kFragment = 16;

template <class E>
union WmmaTiles {
  struct {
    E a[kTile][kWmmaStep + 8];
    E b[kWmmaStep][kTile + 8];
  } in;
  float out[kTile][kTile + 4];
};

template <class E>
__global__ void __launch_bounds__(kWmmaWarps * 32)
    tensor_cores(const E* __restrict__ a, const E* __restrict__ b, float* __restrict__ out, int M,
                 int N, int K) {
  WmmaTiles<E>& tiles = *dynamic_shared<WmmaTiles<E>>();
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int warp = threadIdx.x / warpSize;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;  // its quarter
  const E zero{};

  wmma::fragment<wmma::accumulator, kFragment, kFragment, kFragment, float> sum[2][2];
  for (auto& row : sum) {
    for (auto& fragment : row) wmma::fill_fragment(fragment, 0.0F);
  }

  for (int first_k = 0; first_k < K; first_k += kWmmaStep) {
    for (int i = threadIdx.x; i < kTile * kWmmaStep; i += blockDim.x) {
      const int row = i / kWmmaStep, k = i % kWmmaStep;
      const bool inside = first_row + row < M && first_k + k < K;
      tiles.in.a[row][k] = inside ? a[size_t(first_row + row) * K + first_k + k] : zero;
    }
    for (int i = threadIdx.x; i < kTile * kWmmaStep; i += blockDim.x) {
      const int k = i / kTile, column = i % kTile;
      const bool inside = first_k + k < K && first_column + column < N;
      tiles.in.b[k][column] = inside ? b[size_t(first_k + k) * N + first_column + column] : zero;
    }
    __syncthreads();
    for (int k = 0; k < kWmmaStep; k += kFragment) {
      wmma::fragment<wmma::matrix_a, kFragment, kFragment, kFragment, E, wmma::row_major>
          fragment_a[2];
      wmma::fragment<wmma::matrix_b, kFragment, kFragment, kFragment, E, wmma::row_major>
          fragment_b[2];
      for (int i = 0; i < 2; ++i) {
        wmma::load_matrix_sync(fragment_a[i], &tiles.in.a[warp_row + i * kFragment][k],
                               kWmmaStep + 8);
        wmma::load_matrix_sync(fragment_b[i], &tiles.in.b[k][warp_column + i * kFragment],
                               kTile + 8);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
          wmma::mma_sync(sum[i][j], fragment_a[i], fragment_b[j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }

  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      wmma::store_matrix_sync(&tiles.out[warp_row + i * kFragment][warp_column + j * kFragment],
                              sum[i][j], kTile + 4, wmma::mem_row_major);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += blockDim.x) {
    const int row = i / kTile, column = i % kTile;
    if (first_row + row < M && first_column + column < N) {
      out[size_t(first_row + row) * N + first_column + column] = tiles.out[row][column];
    }
  }
}

}  // namespace

template <class T>
void matmul_plain(const T* a, const T* b, T* out, int M, int N, int K, cudaStream_t stream) {
  if (M == 0 || N == 0) return;
  const dim3 block(32, 8);
  const dim3 grid(ceil_div<unsigned>(N, block.x), ceil_div<unsigned>(M, block.y));
  launch<plain<T>>({.grid = grid, .block = block, .stream = stream}, a, b, out, M, N, K);
}

template <class T>
void matmul_tiled(const T* a, const T* b, T* out, int M, int N, int K, cudaStream_t stream) {
  if (M == 0 || N == 0) return;
  const dim3 grid(ceil_div(N, kTile), ceil_div(M, kTile));
  launch<tiled<T>>({.grid = grid, .block = {kThreads, kThreads}, .stream = stream}, a, b, out, M, N,
                   K);
}

template <class E>
void matmul_wmma(const E* a, const E* b, float* out, int M, int N, int K, cudaStream_t stream) {
  if (M == 0 || N == 0) return;
  const dim3 grid(ceil_div(N, kTile), ceil_div(M, kTile));
  launch<tensor_cores<E>>({.grid = grid,
                           .block = kWmmaWarps * 32,
                           .shared_bytes = sizeof(WmmaTiles<E>),
                           .stream = stream},
                          a, b, out, M, N, K);
}

template void matmul_plain(const float*, const float*, float*, int, int, int, cudaStream_t);
template void matmul_plain(const double*, const double*, double*, int, int, int, cudaStream_t);
template void matmul_tiled(const float*, const float*, float*, int, int, int, cudaStream_t);
template void matmul_tiled(const double*, const double*, double*, int, int, int, cudaStream_t);
template void matmul_wmma(const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int,
                          cudaStream_t);
template void matmul_wmma(const __half*, const __half*, float*, int, int, int, cudaStream_t);

}  // namespace mutilde::cuda
