// Rung 5 of the ladder of matrix products (matmul_ladder.cu has 1 to 3, product_mma.h 4): Hopper's copy
// engine and wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied: a's rows run
// along k, b's along the columns, as the matrices lie in memory.
#include "cuda/hopper/wgmma.h"

namespace mutilde::cuda {
namespace {

using namespace hopper;
template <class E>
using TileOf = Blocking<E, 1, 2>;  // 128 x 256

template <class E>
__global__ void __launch_bounds__(kThreads)
    matmul(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
           float* __restrict__ out, int M, int N, int K) {
  using Tile = TileOf<E>;
  auto& shared = Tile::shared_memory();
  const int first_row = blockIdx.y * Tile::kRows, first_column = blockIdx.x * Tile::kColumns;
  const int steps = ceil_div(K, kDepth), group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce<Tile>(shared, steps, [&](int step, typename Tile::Stage& stage, uint64_t* full) {
      copy_tile(a, first_row, step * kDepth, stage.a, full);
      for (int half = 0; half < Tile::kColumns / 64; ++half) {
        copy_tile(b, step * kDepth, first_column + half * 64, stage.b + half * kBlockTile, full);
      }
    });
  }
  typename Tile::Sums sums = {};
  consume<Tile, Layout::kAlongK, Layout::kAlongOuter>(shared, group, steps, sums);
  const auto at = [&](int tile_row, int tile_column) -> int64_t {
    const int row = first_row + tile_row, column = first_column + tile_column;
    return row < M && column < N ? int64_t{row} * N + column : -1;
  };
  store_tile<Tile>(group, sums, out, nullptr, at, no_bias);
}

/// Of a matrix whose tiles have `box_rows` rows.
template <class E>
CUtensorMap matrix_map(const E* matrix, int rows, int columns, int box_rows) {
  return tensor_map<2>(matrix, {cuuint64_t(columns), cuuint64_t(rows)}, {64, cuuint32_t(box_rows)},
                       {1, 1});
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

bool is_hopper() { return attribute(cudaDevAttrComputeCapabilityMajor) == 9; }
int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

template <class E>
void matmul_wgmma(const E* a, const E* b, float* out, int M, int N, int K, cudaStream_t stream) {
  using Tile = TileOf<E>;
  require("matmul_wgmma", matmul_wgmma_takes(M, N, K));
  launch<matmul<E>>(
      {.grid = {unsigned(ceil_div(N, Tile::kColumns)), unsigned(ceil_div(M, Tile::kRows))},
       .block = kThreads,
       .shared_bytes = Tile::kSharedBytes,
       .stream = stream},
      matrix_map(a, M, K, Tile::kRows), matrix_map(b, K, N, kDepth), out, M, N, K);
}

template void matmul_wgmma(const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int,
                           cudaStream_t);
template void matmul_wgmma(const __half*, const __half*, float*, int, int, int, cudaStream_t);

}  // namespace mutilde::cuda
