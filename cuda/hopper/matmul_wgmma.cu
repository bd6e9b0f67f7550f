// Rung 4 of the ladder of matrix products (matmul_ladder.cu has 1 to 3): Hopper's own instructions.
//
// What is gained over wmma, by what:
//
//   The copy engine (TMA) moves whole tiles. One thread names a tile by its corner in the matrix, and
//   the engine computes addresses, fills with zeros beyond the edges, and swizzles: no thread spends
//   an instruction or a register on a number of a tile.
//
//   Nobody waits in turn. Four tiles deep, a warp asks for copies (the producer) while two groups of
//   four warps multiply (the consumers). They meet at barriers in shared memory: `full`, which
//   completes when the bytes have come, and `empty`, when all consumers have done with a tile. A
//   barrier completes phase after phase, and one waits for a phase by its parity.
//
//   wgmma reads its factors from shared memory itself. A warpgroup's instruction multiplies 64 x 16
//   by 16 x 128, asynchronously; wmma had to load each fragment into registers first.
//
// A block computes 128 x 128 of out, a warpgroup 64 x 128 in 64 registers a thread, in steps of 64 k.
//
// How tiles lie: a row is 64 bfloat16 = 128 bytes, all 32 banks once. Read by columns, rows would
// collide; so the engine exchanges the 16-byte pieces of a row, piece p of row r going to p xor r % 8,
// and wgmma undoes it. That is the "128-byte swizzle", a pattern of 8 rows, 1024 bytes. A descriptor
// tells wgmma where a tile begins and how far apart its patterns are. a's rows run along k. b's run
// along the columns, so b comes as two slabs of 64 columns, and wgmma is told to transpose.
#include <cstdint>

#include <cudaTypedefs.h>

#include "cuda/hopper/matmul_wgmma.h"
#include "cuda/launch.h"

namespace mutilde::cuda {
namespace {

constexpr int kRows = 128, kColumns = 128, kDepth = 64;  // of a tile
constexpr int kStages = 4;
constexpr int kGroup = 128, kGroups = 2;  // threads of a warpgroup; consumers
constexpr int kThreads = kGroups * kGroup + 32;
constexpr int kSlab = 64;                                 // columns of b in a row of 128 bytes
constexpr int kInstructionDepth = 16;                     // k of one wgmma
constexpr int kPattern = 8 * 64 * sizeof(__nv_bfloat16);  // bytes, of 8 swizzled rows

struct Stage {
  __nv_bfloat16 a[kRows][kDepth];
  __nv_bfloat16 b[kColumns / kSlab][kDepth][kSlab];
};
struct Shared {
  Stage stages[kStages];
  uint64_t full[kStages], empty[kStages];
};

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers.

__device__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}

__device__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// Arrives, and lets the phase wait for so many bytes of the copy engine too.
__device__ void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Until the phase of this parity is over. Phases count from 0; the one before them, of parity 1, is.
__device__ void wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p;"
        "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        "  selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

/// Starts the copy of a tile, whose first element is (row, column) of the matrix.
__device__ void copy_tile(const CUtensorMap& matrix, int row, int column, void* tile,
                          uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(tile)),
      "l"(&matrix), "r"(column), "r"(row), "r"(shared_address(full))
      : "memory");
}

// wgmma.

/// `leading`, `stride`: bytes from slab to slab, and from pattern to pattern.
__device__ uint64_t descriptor(const void* tile, int leading, int stride) {
  constexpr uint64_t kSwizzle128 = 1;
  return (shared_address(tile) & 0x3ffff) >> 4 | uint64_t(leading >> 4) << 16 |
         uint64_t(stride >> 4) << 32 | kSwizzle128 << 62;
}

/// d += a b by a warpgroup: 64 x 16 by 16 x 128. The last two immediates: b is transposed, a not.
__device__ void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      " %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, "
      " %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, "
      " %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, "
      " %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, 1, 1, 1, 0, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b));
}

__device__ void produce(Shared& shared, const CUtensorMap& a, const CUtensorMap& b, int first_row,
                        int first_column, int steps) {
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, round = step / kStages;
    Stage& stage = shared.stages[s];
    wait(&shared.empty[s], round % 2 ^ 1);
    arrive_and_expect(&shared.full[s], sizeof(Stage));
    copy_tile(a, first_row, step * kDepth, stage.a, &shared.full[s]);
    for (int slab = 0; slab < kColumns / kSlab; ++slab) {
      copy_tile(b, step * kDepth, first_column + slab * kSlab, stage.b[slab], &shared.full[s]);
    }
  }
}

__device__ void consume(Shared& shared, int group, int steps, float (&sum)[64]) {
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, round = step / kStages;
    const Stage& stage = shared.stages[s];
    wait(&shared.full[s], round % 2);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < kDepth; k += kInstructionDepth) {
      multiply(sum, descriptor(&stage.a[group * 64][k], 16, kPattern),
               descriptor(stage.b[0][k], sizeof(stage.b[0]), kPattern));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    arrive(&shared.empty[s]);
  }
}

__global__ void __launch_bounds__(kThreads)
    wgmma_product(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                  float* __restrict__ out, int M, int N, int K) {
  // Patterns begin at multiples of their size.
  const auto bytes = reinterpret_cast<uintptr_t>(dynamic_shared<unsigned char>());
  Shared& shared = *reinterpret_cast<Shared*>((bytes + kPattern - 1) / kPattern * kPattern);
  const int first_row = blockIdx.y * kRows, first_column = blockIdx.x * kColumns;
  const int steps = (K + kDepth - 1) / kDepth, group = threadIdx.x / kGroup;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&shared.full[s], 1);
      init_barrier(&shared.empty[s], kGroups * kGroup);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the engine sees them too
  }
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x == kGroups * kGroup) produce(shared, a, b, first_row, first_column, steps);
    return;
  }
  float sum[64] = {};
  consume(shared, group, steps, sum);

  // Of each 8 columns a thread has two neighbours in each of two rows, 8 apart.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = first_row + group * 64 + warp * 16 + lane / 4;
  for (int i = 0; i < kColumns / 8; ++i) {
    const int column = first_column + i * 8 + lane % 4 * 2;
    if (column >= N) break;
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= M) continue;
      *reinterpret_cast<float2*>(out + size_t(row + half * 8) * N + column) =
          make_float2(sum[i * 4 + half * 2], sum[i * 4 + half * 2 + 1]);
    }
  }
}

// The host's side.

/// The driver's function, without linking the driver: a machine may have none.
PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
        "cudaGetDriverEntryPoint");
#endif
  if (found != cudaDriverEntryPointSuccess) fail<Error>("the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

/// What the copy engine must know of a matrix to copy tiles of box_rows x 64.
CUtensorMap tensor_map(const __nv_bfloat16* matrix, int rows, int columns, int box_rows) {
  static const auto encode = find_encode();
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)};  // the innermost first
  const cuuint64_t row_bytes[] = {columns * sizeof(__nv_bfloat16)};
  const cuuint32_t box[] = {64, cuuint32_t(box_rows)}, steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<__nv_bfloat16*>(matrix), sizes,
             row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail<Error>("matmul_wgmma: no map of a {} x {} matrix (error {} of the driver)", rows, columns,
                static_cast<int>(result));
  }
  return map;
}

bool is_hopper() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  return major == 9;
}

}  // namespace

void matmul_wgmma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out, int M, int N, int K,
                  cudaStream_t stream) {
  if (!is_hopper()) fail<Error>("matmul_wgmma: the GPU is not of compute capability 9.0");
  if (N % 8 != 0 || K % 8 != 0) {
    fail<Error>("matmul_wgmma: N is {} and K is {}, multiples of 8 expected", N, K);
  }
  if (M == 0 || N == 0) return;
  if (K == 0) {
    return check(cudaMemsetAsync(out, 0, size_t(M) * N * sizeof(float), stream), "cudaMemsetAsync");
  }
  launch<wgmma_product>(
      {.grid = {unsigned(N + kColumns - 1) / kColumns, unsigned(M + kRows - 1) / kRows},
       .block = kThreads,
       .shared_bytes = sizeof(Shared) + kPattern,
       .stream = stream},
      tensor_map(a, M, K, kRows), tensor_map(b, K, N, kDepth), out, M, N, K);
}

}  // namespace mutilde::cuda
