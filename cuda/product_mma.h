// Rung 4 of matrix products: tensor cores that are kept busy, for factors that lie in memory in a short type.
//
// What wmma leaves undone (product_wmma.h), and what is gained here:
//
//   Tiles are on their way while others are multiplied. cp.async copies 16 bytes from global to shared memory
//   without a register and without a wait; three stages take turns, so that two steps are being loaded while one is
//   multiplied, and one barrier a step is enough: behind it everyone's copies of the step have come, and everyone
//   has done with the step before, whose stage is filled next.
//
//   A thread asks for 8 numbers at a time, where wmma's loads one: an eighth of the address arithmetic, which
//   for a convolution is most of the instructions. So runs of 8 numbers must lie together: channels are a
//   multiple of 8.
//
//   A warp has 64 x 32 sums in registers. For 64 x 16 and 16 x 32 numbers, 6 loads from shared memory, it does 16
//   products; with 32 x 16 sums it did 2 for 3.
//
// How tiles lie: what is neighbours in memory stays neighbours, in pieces of 16 bytes. Read 8 rows at a time, as
// ldmatrix does, the same piece of 8 rows must lie in 8 different groups of banks: so the pieces of a row are
// exchanged, by an exclusive or of their number with that of the row.
//
// What it leaves to the next rung: each thread computes addresses still, and factors pass through registers.
#pragma once

#include "cuda/mma_instructions.h"
#include "cuda/product_plain.h"
#include "cuda/store_sums.h"

namespace mutilde::cuda {

namespace mma {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 128, kDepth = 32, kStages = 3;
constexpr int kWarpColumns = 32, kPiece = 8;  // numbers of 16 bytes

/// A tile of `outers` x kDepth numbers of a factor.
template <class E, bool along_k, int outers>
struct Tile {
  E numbers[outers * kDepth];

  /// Where the 8 numbers begin of which (outer, k) is the first.
  __device__ E* piece(int outer, int k) {
    if constexpr (along_k) {  // two rows are a line of all banks
      return numbers + outer * kDepth + (k / kPiece ^ outer / 2 % 4) * kPiece;
    } else {
      return numbers + k * outers + (outer / kPiece ^ k % 8) * kPiece;
    }
  }

  /// A left factor of 16 x 16, from (outer, k) on.
  __device__ void load_left(int outer, int k, uint32_t (&a)[4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (along_k) {
      load_matrices(a, piece(outer + lane % 16, k + lane / 16 * 8));
    } else {
      load_transposed(a, piece(outer + lane / 8 % 2 * 8, k + lane % 8 + lane / 16 * 8));
    }
  }
  /// Two right factors of 16 x 8: the first in b[0] and b[1].
  __device__ void load_right(int outer, int k, uint32_t (&b)[4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (along_k) {
      load_matrices(b, piece(outer + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    } else {
      load_transposed(b, piece(outer + lane / 16 * 8, k + lane % 16));
    }
  }
};

/// What a thread copies of each tile of an operand: a piece for every 64 outers, along k all at one k.
template <class Operand, int outers>
class Loader {
 public:
  using Element = typename Operand::Element;
  using Tile = mma::Tile<Element, Operand::kAlongK, outers>;

  __device__ Loader(const Operand& x, int batch, int first, int outer_size) : x_(x) {
    const int thread = threadIdx.x;
    constexpr int kInARow = (Operand::kAlongK ? kDepth : outers) / kPiece;
    outer_ = Operand::kAlongK ? thread / kInARow : thread % kInARow * kPiece;
    k_ = Operand::kAlongK ? thread % kInARow * kPiece : thread / kInARow;
    for (int i = 0; i < kOuters; ++i) {
      const int outer = first + outer_ + i * kApart;
      inside_[i] = outer < outer_size;
      of_outer_[i] = x.outer(batch, outer);
    }
  }

  /// Starts the copies of k from first_k on; beyond the edges come zeros, which add nothing.
  __device__ void start(int first_k, int end_k, Tile& tile) const {
    const auto start_one = [&](int i, int outer, int k, const auto& inner) {
      const Element* from = nullptr;
      if (first_k + k < end_k && inside_[i]) from = x_.address(of_outer_[i], inner);
      copy_async<16>(tile.piece(outer, k), from == nullptr ? x_.base() : from, from != nullptr);
    };
    if constexpr (Operand::kAlongK) {
      const auto inner = x_.inner(first_k + k_);
      for (int i = 0; i < kPieces; ++i) start_one(i, outer_ + i * kApart, k_, inner);
    } else {
      for (int i = 0; i < kPieces; ++i) {
        const int k = k_ + i * kApart;
        start_one(0, outer_, k, x_.inner(first_k + k));
      }
    }
  }

 private:
  static constexpr int kPieces = outers * kDepth / kPiece / kThreads;
  static constexpr int kOuters = Operand::kAlongK ? kPieces : 1;
  static constexpr int kApart = (Operand::kAlongK ? outers : kDepth) / kPieces;

  Operand x_;
  int outer_, k_;  // within the tile
  bool inside_[kOuters];
  typename Operand::Outer of_outer_[kOuters];
};

template <class A, class B, int columns>
struct Stage {
  typename Loader<A, kRows>::Tile a;
  typename Loader<B, columns>::Tile b;
};

/// Of `columns` columns a block, 64 or 128. out: [product, M, N], as product.h has it; bias and residual may be null.
template <class A, class B, int columns, class Out>
__global__ void __launch_bounds__(kThreads, 2)
    product(ProductSizes s, A a, B b, const float* __restrict__ bias,
            const Out* __restrict__ residual, Out* __restrict__ out) {
  using E = typename A::Element;
  auto* stages = dynamic_shared<Stage<A, B, columns>>();
  constexpr int kWarpsAcross = columns / kWarpColumns;
  constexpr int kWarpRows = kRows / (kWarps / kWarpsAcross);
  const int row_tiles = ceil_div(s.M, kRows), product = blockIdx.x / row_tiles;
  const int first_row = blockIdx.x % row_tiles * kRows, first_column = blockIdx.y * columns;
  const int batch = product / s.chunks, first_k = product % s.chunks * s.chunk;
  const int end_k = min(s.K, first_k + s.chunk), steps = ceil_div(end_k - first_k, kDepth);
  const Loader<A, kRows> load_a(a, batch, first_row, s.M);
  const Loader<B, columns> load_b(b, batch, first_column, s.N);
  const auto start = [&](int step) {
    if (step < steps) {
      load_a.start(first_k + step * kDepth, end_k, stages[step % kStages].a);
      load_b.start(first_k + step * kDepth, end_k, stages[step % kStages].b);
    }
    commit_copies();  // an empty group too, so that the last but one is always the step's
  };
  const int warp = threadIdx.x / 32;
  const int warp_row = warp / kWarpsAcross * kWarpRows;
  const int warp_column = warp % kWarpsAcross * kWarpColumns;

  float sums[kWarpRows / 16][kWarpColumns / 8 * 4] = {};
  for (int step = 0; step < kStages - 1; ++step) start(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    start(step + kStages - 1);
    auto& stage = stages[step % kStages];
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t right[kWarpColumns / 16][4];
#pragma unroll
      for (int j = 0; j < kWarpColumns / 16; ++j)
        stage.b.load_right(warp_column + j * 16, k, right[j]);
#pragma unroll
      for (int i = 0; i < kWarpRows / 16; ++i) {
        uint32_t left[4];
        stage.a.load_left(warp_row + i * 16, k, left);
#pragma unroll
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          auto& sum = reinterpret_cast<float(&)[4]>(sums[i][j * 4]);
          multiply<E>(sum, left, right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  const auto at = [&](int row, int column) -> int64_t {
    return row < s.M && column < s.N ? (int64_t{product} * s.M + row) * s.N + column : -1;
  };
  const auto bias_of = [&](int column) {
    if (bias == nullptr || column >= s.N) return make_float2(0, 0);
    return make_float2(bias[column], bias[column + 1]);
  };
#pragma unroll
  for (int i = 0; i < kWarpRows / 16; ++i) {
    store_sums(sums[i], first_row + warp_row + i * 16, first_column + warp_column, out, residual,
               at, bias_of);
  }
}

/// The narrow tile where it is wide enough.
template <class A, class B, class Out>
void launch_product(const ProductSizes& s, int products, const A& a, const B& b, const float* bias,
                    const Out* residual, Out* out, cudaStream_t stream) {
  const auto launch_with = [&]<int columns>() {
    launch<product<A, B, columns, Out>>(
        {.grid = {static_cast<unsigned>(ceil_div(s.M, kRows)) * static_cast<unsigned>(products),
                  column_tiles(s.N, columns)},
         .block = kThreads,
         .shared_bytes = kStages * sizeof(Stage<A, B, columns>),
         .stream = stream},
        s, a, b, bias, residual, out);
  };
  if (s.N <= 64) return launch_with.template operator()<64>();
  launch_with.template operator()<128>();
}

}  // namespace mma
}  // namespace mutilde::cuda
