// Rung 4 of the ladder of matrix products (matmul_ladder.cu has 1 to 3): Hopper's copy engine and
// wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied: a's rows run
// along k, b's along the columns, as the matrices lie in memory.
#include "cuda/hopper/wgmma.h"

namespace mutilde::cuda {
namespace {

using namespace hopper;

__global__ void __launch_bounds__(kThreads)
    matmul(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
           float* __restrict__ out, int M, int N, int K) {
  Shared& shared = shared_memory();
  const int first_row = blockIdx.y * kRows, first_column = blockIdx.x * kColumns;
  const int steps = ceil_div(K, kDepth), group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce(shared, steps, [&](int step, Stage& stage, uint64_t* full) {
      copy_tile(a, first_row, step * kDepth, stage.a, full);
      copy_tile(b, step * kDepth, first_column, stage.b, full);
      copy_tile(b, step * kDepth, first_column + 64, stage.b + kHalfTile, full);
    });
  }
  float sum[64] = {};
  consume<Layout::kAlongK, Layout::kAlongOuter>(shared, group, steps, sum);
  store_sums(group, sum, [&](int tile_row, int tile_column, float2 pair) {
    const int row = first_row + tile_row, column = first_column + tile_column;
    if (row >= M || column >= N) return;
    *reinterpret_cast<float2*>(out + size_t(row) * N + column) = pair;
  });
}

/// Of a matrix whose tiles have `box_rows` rows.
CUtensorMap matrix_map(const __nv_bfloat16* matrix, int rows, int columns, int box_rows) {
  return tensor_map<2>(matrix, {cuuint64_t(columns), cuuint64_t(rows)}, {64, cuuint32_t(box_rows)},
                       {1, 1});
}

}  // namespace

bool is_hopper() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  return major == 9;
}

void matmul_wgmma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out, int M, int N, int K,
                  cudaStream_t stream) {
  require("matmul_wgmma", matmul_wgmma_takes(M, N, K));
  launch<matmul>({.grid = {unsigned(ceil_div(N, kColumns)), unsigned(ceil_div(M, kRows))},
                  .block = kThreads,
                  .shared_bytes = kSharedBytes,
                  .stream = stream},
                 matrix_map(a, M, K, kRows), matrix_map(b, K, N, kDepth), out, M, N, K);
}

}  // namespace mutilde::cuda
