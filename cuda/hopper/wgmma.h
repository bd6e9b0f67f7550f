// What the kernels of this folder share: the half of a kernel that multiplies, made of Hopper's own
// instructions (instructions.h), in steps of 64 k.
//
// What is gained over wmma, by what:
//
//   The copy engine (TMA) moves whole tiles. One thread names a tile by its corner in an array, and
//   the engine computes addresses, fills with zeros beyond the edges, and swizzles: no thread spends
//   an instruction or a register on a number of a tile.
//
//   Copying and multiplying overlap. One warp, the producer, asks for copies several tiles ahead, while two
//   groups of four warps, the consumers, multiply. They meet at barriers in shared memory: `full`, which
//   completes when the bytes have come, and `empty`, when all consumers have done with a tile. A
//   barrier completes phase after phase, and one waits for a phase by its parity.
//
//   wgmma reads its factors from shared memory itself. A warpgroup's instruction multiplies 64 x 16
//   by 16 x 128, asynchronously, into 64 registers a thread; wmma had to load each fragment into
//   registers first.
//
// How large a block's tile is decides how much must come from the L2 cache. A step of 64 k of 128 x 128
// sums takes 512 cycles of a multiprocessor's tensor cores and 32 KB, 64 bytes a cycle, from a cache that 132
// of them share. 128 x 256 or 256 x 128 take 48 KB in 1,024 cycles. But where a product is small, larger tiles
// leave multiprocessors without one (Blocking).
//
// The outers of a factor are the rows of a, or the columns of b: what is not k.
//
// How tiles lie: a row is 64 short numbers = 128 bytes, all 32 banks once. Read by columns, rows would
// collide; so the engine exchanges the 16-byte pieces of a row, piece p of row r going to p xor r % 8,
// and wgmma undoes it. That is the "128-byte swizzle", a pattern of 8 rows, 1024 bytes. A descriptor
// tells wgmma where a tile begins and how far apart its patterns are.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/hopper/hopper.h"
#include "cuda/hopper/instructions.h"
#include "cuda/parallel.h"
#include "cuda/store_sums.h"

namespace mutilde::cuda::hopper {

constexpr int kDepth = 64;                // k of a step
constexpr int kGroup = 128, kGroups = 2;  // threads of a warpgroup; consumers
constexpr int kThreads = kGroups * kGroup + 32;
constexpr int kInstructionDepth = 16;                // k of one wgmma
constexpr int kPattern = 8 * 64 * sizeof(uint16_t);  // bytes, of 8 swizzled rows
constexpr int kBlockTile = 64 * 64;                  // elements: 64 k of 64 outers

/// How a factor's tile lies, with an outer index that counts rows of the product in a and columns in b:
/// rows of 64 k, one an outer; or for each 64 outers 64 rows, one a k.
enum class Layout { kAlongK, kAlongOuter };

/// A block's tile, of factors E: each of its two consumers has `m` times 64 rows of `n` times 128 columns. Two of
/// the small blocks fit on a multiprocessor, where one multiplies while the other stores; alone there, a block can
/// have twice as many stages on their way (`deep`).
template <class E, int m, int n, bool deep = m* n != 1>
struct Blocking {
  using Element = E;
  static constexpr int kM = m, kN = n, kRows = kGroups * m * 64, kColumns = n * 128;
  static constexpr int kStages = m * n == 1 ? (deep ? 6 : 3) : 4, kBlocks = deep ? 1 : 2;

  struct Stage {
    E a[kRows * kDepth], b[kColumns * kDepth];
  };
  struct Shared {
    Stage stages[kStages];
    uint64_t full[kStages], empty[kStages];
  };
  static constexpr int kSharedBytes = sizeof(Shared) + kPattern;
  using Sums = float[m][n][64];

  /// The block's, where patterns begin at multiples of their size.
  static __device__ Shared& shared_memory() {
    const auto bytes = reinterpret_cast<uintptr_t>(dynamic_shared<unsigned char>());
    return *reinterpret_cast<Shared*>(ceil_div<uintptr_t>(bytes, kPattern) * kPattern);
  }
};

/// Tells wgmma of the k from `k` on, and the outers from 64 * block on. In bits 0 to 13 the address, from 16 on the
/// distance from 64 outers to the next (not read where a row is along k), from 32 on that from pattern to
/// pattern, all in units of 16 bytes; in 62 and 63 the swizzle. Along k the address may lie within a row: which
/// pieces are exchanged follows from bits of the address, so a tile must begin at a multiple of a pattern, and its
/// parts need not.
template <Layout layout, class E>
__device__ uint64_t descriptor(const E* tile, int block, int k) {
  constexpr uint64_t kSwizzle128 = 1, kBlockBytes = kBlockTile * sizeof(E);
  const E* begin = tile + block * kBlockTile + (layout == Layout::kAlongK ? k : k * 64);
  return (shared_address(begin) & 0x3ffff) >> 4 | kBlockBytes >> 4 << 16 |
         uint64_t{kPattern >> 4} << 32 | kSwizzle128 << 62;
}

/// One thread, before all others go on.
template <class Shared>
__device__ void init_barriers(Shared& shared) {
  for (uint64_t& barrier : shared.full) init_barrier(&barrier, 1);
  for (uint64_t& barrier : shared.empty) {
    init_barrier(&barrier, kGroups * kGroup / 32);  // each warp of the consumers
  }
  publish_barriers();
}

/// One thread: copy(step, stage, full) starts the copies of a step's two tiles, whole or not.
template <class Blocking, class Copy>
__device__ void produce(typename Blocking::Shared& shared, int steps, const Copy& copy) {
  for (int step = 0; step < steps; ++step) {
    const int s = step % Blocking::kStages, round = step / Blocking::kStages;
    wait(&shared.empty[s], round % 2 ^ 1);  // a fresh barrier's passes at once
    // What is beyond an edge comes as zeros.
    arrive_and_expect(&shared.full[s], sizeof(typename Blocking::Stage));
    copy(step, shared.stages[s], &shared.full[s]);
  }
}

template <int m, int n>
__device__ void pin(float (&sums)[m][n][64]) {
  for (auto& row : sums) {
    for (auto& sum : row) pin(sum);
  }
}

/// A warpgroup: sums += its rows of a times b, of all steps. A step's products are asked for before those of
/// the step before are waited for, so that the tensor cores have always work; a tile is given back one step
/// late.
template <class Blocking, Layout layout_a, Layout layout_b>
__device__ void consume(typename Blocking::Shared& shared, int group, int steps,
                        typename Blocking::Sums& sums) {
  constexpr int kStages = Blocking::kStages, kM = Blocking::kM, kN = Blocking::kN;
  pin(sums);
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, round = step / kStages;
    const auto& stage = shared.stages[s];
    wait(&shared.full[s], round % 2);
    fence_registers();
#pragma unroll
    for (int k = 0; k < kDepth; k += kInstructionDepth) {
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          multiply<typename Blocking::Element, layout_a == Layout::kAlongOuter,
                   layout_b == Layout::kAlongOuter>(
              sums[i][j], descriptor<layout_a>(stage.a, group * kM + i, k),
              descriptor<layout_b>(stage.b, 2 * j, k));
        }
      }
    }
    commit_products();
    wait_for_products<1>();
    if (step > 0 && threadIdx.x % 32 == 0) arrive(&shared.empty[(step - 1) % kStages]);
  }
  wait_for_products<0>();
  pin(sums);
}

/// Stores what this thread of a consumer has of the block's tile; as store_sums(), with the rows and columns of it.
template <class Blocking, class Out, class At, class Bias>
__device__ void store_tile(int group, const typename Blocking::Sums& sums, Out* out,
                           const std::type_identity_t<Out>* residual, const At& at,
                           const Bias& bias) {
#pragma unroll
  for (int i = 0; i < Blocking::kM; ++i) {
    const int row = (group * Blocking::kM + i) * 64 + threadIdx.x / 32 % 4 * 16;
#pragma unroll
    for (int j = 0; j < Blocking::kN; ++j)
      store_sums(sums[i][j], row, j * 128, out, residual, at, bias);
  }
}

inline void require(const char* what, bool takes_sizes) {
  if (!is_hopper()) fail<Error>("{}: the GPU is not of compute capability 9.0", what);
  if (!takes_sizes) fail<Error>("{}: the copy engine cannot copy rows of such sizes", what);
}

}  // namespace mutilde::cuda::hopper
