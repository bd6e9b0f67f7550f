// What the kernels of this folder share: the half of a kernel that multiplies, made of Hopper's own
// instructions (instructions.h). They compute 128 x 128 sums of products a block, in steps of 64 k.
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

#include "cuda/hopper/hopper.h"
#include "cuda/hopper/instructions.h"
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

/// Of the k from `k` on, and of the outers of a half, or from it on. The two distances are those from half to
/// half (not read where a row is along k) and from pattern to pattern.
template <Layout layout>
__device__ uint64_t descriptor(const __nv_bfloat16* tile, int half, int k) {
  constexpr uint64_t kSwizzle128 = 1, kHalfBytes = kHalfTile * sizeof(__nv_bfloat16);
  const __nv_bfloat16* begin = tile + half * kHalfTile + (layout == Layout::kAlongK ? k : k * 64);
  return (shared_address(begin) & 0x3ffff) >> 4 | kHalfBytes >> 4 << 16 |
         uint64_t{kPattern >> 4} << 32 | kSwizzle128 << 62;
}

/// One thread, before all others go on.
__device__ inline void init_barriers(Shared& shared) {
  for (int s = 0; s < kStages; ++s) {
    init_barrier(&shared.full[s], 1);
    init_barrier(&shared.empty[s], kGroups * kGroup / 32);  // each warp of the consumers
  }
  publish_barriers();
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
    fence_registers();
    for (int k = 0; k < kDepth; k += kInstructionDepth) {
      multiply<layout_a == Layout::kAlongOuter, layout_b == Layout::kAlongOuter>(
          sum, descriptor<layout_a>(stage.a, group, k), descriptor<layout_b>(stage.b, 0, k));
    }
    commit_products();
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

inline void require(const char* what, bool takes_sizes) {
  if (!is_hopper()) fail<Error>("{}: the GPU is not of compute capability 9.0", what);
  if (!takes_sizes) fail<Error>("{}: the copy engine cannot copy rows of such sizes", what);
}

}  // namespace mutilde::cuda::hopper
