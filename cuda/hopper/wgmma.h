// What the kernels of this folder share: Hopper's own instructions, and the half of a kernel that
// multiplies. They compute 128 x 128 sums of products a block, in steps of 64 k.
//
// What is gained over wmma, by what:
//
//   The copy engine (TMA) moves whole tiles. One thread names a tile by its corner in an array, and
//   the engine computes addresses, fills with zeros beyond the edges, and swizzles: no thread spends
//   an instruction or a register on a number of a tile.
//
//   Nobody waits in turn. Four tiles deep, a warp asks for copies (the producer) while two groups of
//   four warps multiply (the consumers). They meet at barriers in shared memory: `full`, which
//   completes when the bytes have come, and `empty`, when all consumers have done with a tile. A
//   barrier completes phase after phase, and one waits for a phase by its parity.
//
//   wgmma reads its factors from shared memory itself. A warpgroup's instruction multiplies 64 x 16
//   by 16 x 128, asynchronously, into 64 registers a thread; wmma had to load each fragment into
//   registers first.
//
// How tiles lie: a row is 64 bfloat16 = 128 bytes, all 32 banks once. Read by columns, rows would
// collide; so the engine exchanges the 16-byte pieces of a row, piece p of row r going to p xor r % 8,
// and wgmma undoes it. That is the "128-byte swizzle", a pattern of 8 rows, 1024 bytes. A descriptor
// tells wgmma where a tile begins and how far apart its patterns are.
#pragma once

#include <cstdint>

#include <cudaTypedefs.h>
#include <cuda_bf16.h>

#include "cuda/hopper/hopper.h"
#include "cuda/parallel.h"

namespace mutilde::cuda::hopper {

constexpr int kRows = 128, kColumns = 128, kDepth = 64;  // of a tile
constexpr int kStages = 4;
constexpr int kGroup = 128, kGroups = 2;  // threads of a warpgroup; consumers
constexpr int kThreads = kGroups * kGroup + 32;
constexpr int kInstructionDepth = 16;                     // k of one wgmma
constexpr int kPattern = 8 * 64 * sizeof(__nv_bfloat16);  // bytes, of 8 swizzled rows

/// How a factor's tile lies, with an outer index that counts rows of the product in a and columns in b:
/// 128 rows of 64 k, one an outer; or 64 rows of 64 outers, one a k, for each half of the outers.
enum class Layout { kAlongK, kAlongOuter };

struct Stage {
  __nv_bfloat16 a[kRows * kDepth], b[kColumns * kDepth];
};
constexpr int kHalfTile = 64 * 64;  // elements
struct Shared {
  Stage stages[kStages];
  uint64_t full[kStages], empty[kStages];
};
constexpr int kSharedBytes = sizeof(Shared) + kPattern;

/// The block's, where patterns begin at multiples of their size.
__device__ inline Shared& shared_memory() {
  const auto bytes = reinterpret_cast<uintptr_t>(dynamic_shared<unsigned char>());
  return *reinterpret_cast<Shared*>(ceil_div<uintptr_t>(bytes, kPattern) * kPattern);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers.

__device__ inline void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// Arrives, and lets the phase wait for so many bytes of the copy engine too.
__device__ inline void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Until the phase of this parity is over. Phases count from 0; the one before them, of parity 1, is.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
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
__device__ inline void copy_tile(const CUtensorMap& matrix, int row, int column, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(tile)),
      "l"(&matrix), "r"(column), "r"(row), "r"(shared_address(full))
      : "memory");
}

/// The same of filters [C_out, taps, C].
__device__ inline void copy_tile(const CUtensorMap& filters, int c_out, int tap, int c, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(tile)),
      "l"(&filters), "r"(c), "r"(tap), "r"(c_out), "r"(shared_address(full))
      : "memory");
}

/// The same of images [N, H, W, C].
__device__ inline void copy_tile(const CUtensorMap& images, int n, int h, int w, int c, void* tile,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(tile)),
      "l"(&images), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_address(full))
      : "memory");
}

// wgmma.

/// Of the k from `k` on, and of the outers of a half, or from it on. The two distances are those from half to
/// half (not read where a row is along k) and from pattern to pattern.
template <Layout layout>
__device__ uint64_t descriptor(const __nv_bfloat16* tile, int half, int k) {
  constexpr uint64_t kSwizzle128 = 1, kHalfBytes = kHalfTile * sizeof(__nv_bfloat16);
  const __nv_bfloat16* begin = tile + half * kHalfTile + (layout == Layout::kAlongK ? k : k * 64);
  return (shared_address(begin) & 0x3ffff) >> 4 | kHalfBytes >> 4 << 16 |
         uint64_t{kPattern >> 4} << 32 | kSwizzle128 << 62;
}

/// Between the fence and the wait, wgmma writes its sums while the program goes on. The compiler does not know
/// that: to it they are there when the instruction is. This, an empty instruction that reads and writes all of
/// them, is what it moves no use of a sum across.
__device__ inline void pin(float (&sum)[64]) {
  for (float& one : sum) asm volatile("" : "+f"(one)::"memory");
}

/// Until at most so many of the groups of instructions that were committed last are under way.
template <int pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/// d += a b by a warpgroup: 64 x 16 by 16 x 128. The last two immediates: is a, is b transposed?
template <Layout layout_a, Layout layout_b>
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
      "%64, %65, 1, 1, 1, %66, %67;"
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
      : "l"(a), "l"(b), "n"(int{layout_a == Layout::kAlongOuter}),
        "n"(int{layout_b == Layout::kAlongOuter}));
}

/// One thread, before all others go on.
__device__ inline void init_barriers(Shared& shared) {
  for (int s = 0; s < kStages; ++s) {
    init_barrier(&shared.full[s], 1);
    init_barrier(&shared.empty[s], kGroups * kGroup / 32);  // each warp of the consumers
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the engine sees them too
}

/// One thread: copy(step, stage, full) starts the copies of a step's two tiles, whole or not.
template <class Copy>
__device__ void produce(Shared& shared, int steps, const Copy& copy) {
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, round = step / kStages;
    wait(&shared.empty[s], round % 2 ^ 1);
    arrive_and_expect(&shared.full[s], sizeof(Stage));  // what is beyond an edge comes as zeros
    copy(step, shared.stages[s], &shared.full[s]);
  }
}

/// A warpgroup: sum += a's half `group` times b, of all steps. A step's products are asked for before
/// those of the step before are waited for, so that the tensor cores have always work; a tile is given back
/// one step late.
template <Layout layout_a, Layout layout_b>
__device__ void consume(Shared& shared, int group, int steps, float (&sum)[64]) {
  pin(sum);
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, round = step / kStages;
    const Stage& stage = shared.stages[s];
    wait(&shared.full[s], round % 2);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < kDepth; k += kInstructionDepth) {
      multiply<layout_a, layout_b>(sum, descriptor<layout_a>(stage.a, group, k),
                                   descriptor<layout_b>(stage.b, 0, k));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    wait_for_products<1>();
    if (step > 0 && threadIdx.x % 32 == 0) arrive(&shared.empty[(step - 1) % kStages]);
  }
  wait_for_products<0>();
  pin(sum);
}

/// store(row, column, two sums) for what this thread of a consumer has of the block's tile: of each
/// 8 columns two neighbours, in each of two rows, 8 apart.
template <class Store>
__device__ void store_sums(int group, const float (&sum)[64], const Store& store) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = group * 64 + warp * 16 + lane / 4;
  for (int i = 0; i < kColumns / 8; ++i) {
    const int column = i * 8 + lane % 4 * 2;
    store(row, column, make_float2(sum[i * 4], sum[i * 4 + 1]));
    store(row + 8, column, make_float2(sum[i * 4 + 2], sum[i * 4 + 3]));
  }
}

// The host's side.

/// The driver's function, without linking the driver: a machine may have none.
inline PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
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

/// What the copy engine must know to copy boxes from a dense array: sizes, of the array and of a box,
/// the innermost first. A box has 64 elements of the innermost axis. Along the others it takes every
/// steps[i]-th element: box[i] counts those in between too.
template <int rank>
CUtensorMap tensor_map(const __nv_bfloat16* array, const cuuint64_t (&sizes)[rank],
                       const cuuint32_t (&box)[rank], const cuuint32_t (&steps)[rank]) {
  static const auto encode = find_encode();
  cuuint64_t row_bytes[rank - 1];
  for (int i = 0; i + 1 < rank; ++i) {
    row_bytes[i] = sizes[i] * (i == 0 ? sizeof(__nv_bfloat16) : row_bytes[i - 1]);
  }
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<__nv_bfloat16*>(array), sizes,
             row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail<Error>("cuTensorMapEncodeTiled: error {}", static_cast<int>(result));
  }
  return map;
}

inline void require(const char* what, bool takes_sizes) {
  if (!is_hopper()) fail<Error>("{}: the GPU is not of compute capability 9.0", what);
  if (!takes_sizes) fail<Error>("{}: the copy engine cannot copy rows of such sizes", what);
}

}  // namespace mutilde::cuda::hopper
