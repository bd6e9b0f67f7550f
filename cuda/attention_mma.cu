// Attention of tensors of a short type E, bfloat16 or float16, by tensor cores, in float32 between the products.
// (Weights are at most 1, and logits never leave float32: a forward pass in float16 overflows nowhere on the way.)
//
// The plan is that of attention.cu, with 16 rows a warp in place of one, so that its two steps become
// products of matrices (mma_instructions.h):
//   dots:      a warp's 16 rows of D numbers times some others give logits
//   add_rows:  16 rows of sums grow by others, each times its weight
//
//   kernel           a warp owns            the others   dots              add_rows
//   forward          16 queries             keys         q k^T             out += P v
//   query gradients  16 queries, their dout keys         q k^T, dout v^T   dq += dS k
//   key gradients    16 keys, their values  queries      k q^T, v dout^T   dk += dS^T q, dv += P^T dout
//
// A block is 4 warps, 64 rows of its own, and the others come by in tiles of 64 rows of two arrays, which
// all 4 warps read. While one pair of tiles is worked on the copy of the next is under way (cp.async).
// Between the two steps nothing leaves its registers: where the sums of dots lie is where mma.sync wants
// its left factor, once two neighbours are rounded into one register. In the third kernel that is why the
// warp owns keys: the weights come out transposed.
//
//   registers      of a thread: own rows D/4 an array, sums D/2 an array, logits 32, in the backward pass
//                  two arrays of 16 (of 8 where D is over 32). For D = 64 nvcc makes 127, 126 and 168 of it
//                  all: four blocks a multiprocessor, and three of the last kernel
//   shared memory  5 tiles of 64 rows of D + 8 numbers, 46 KiB for D = 64. The 8 to spare let 8 rows, which
//                  ldmatrix reads at once, begin in different banks
//
// The floor, on an H100 for 512 heads of T = 256 and D = 64: the forward pass moves 67 MB and the backward
// pass 201 MB, 20 and 60 us at 3.35 TB/s. Products are 4 T^2 D and 14 T^2 D operations a head, 14 and 50 us
// at 600 TFLOP/s (mma.sync has some 60% of the peak, the rest is wgmma's). Close above both lies shared
// memory: an ldmatrix takes four of its cycles and feeds two instructions of 16 x 8 x 16, 19 and 63 us.
// 32 rows a warp would halve that, and want registers that the third kernel does not have.
#include <cmath>

#include "cuda/attention_mma.h"
#include "cuda/mma_instructions.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

constexpr int kWarpRows = 16, kWarps = 4, kTileRows = kWarps * kWarpRows, kThreads = kWarps * 32;
/// How many columns of logits a warp makes at a time in the backward pass, and for how many blocks a
/// multiprocessor nvcc is to save registers: what goes without spilling.
template <int W>
constexpr int kLogits = W <= 32 ? 32 : 16;
[[maybe_unused]] constexpr int blocks_of(int W, int of_64) { return W <= 64 ? of_64 : 1; }
constexpr float kLog2E = 1.4426950408889634F, kLn2 = 0.6931471805599453F;

/// Rows of D numbers, `pitch` apart.
template <class T>
struct Rows {
  T* data;
  int pitch, count, D;
};

struct Heads {
  int positions, heads, D, qkv_pitch, out_pitch;
  float scale;  // of logits, D^-1/2

  __device__ int tiles() const { return ceil_div(positions, kTileRows); }
  /// Which of all heads is the block's, and where its own rows begin. The blocks of a head are neighbours:
  /// what one has read the others find in the cache.
  __device__ int head() const { return blockIdx.x / tiles(); }
  __device__ int first_own() const { return blockIdx.x % tiles() * kTileRows; }
  /// q (part 0), k (1) or v (2) of the head, in qkv or in an array like it.
  template <class T>
  __device__ Rows<T> rows(T* array, int part) const {
    const int64_t n = head() / heads, offset = (3 * (head() % heads) + part) * D;
    return {array + n * positions * qkv_pitch + offset, qkv_pitch, positions, D};
  }
  /// The same of an array like out.
  template <class T>
  __device__ Rows<T> out_rows(T* array) const {
    const int64_t n = head() / heads, offset = head() % heads * D;
    return {array + n * positions * out_pitch + offset, out_pitch, positions, D};
  }
  /// Of an array [N, heads, T].
  template <class T>
  __device__ T* statistics(T* array) const {
    return array + int64_t{head()} * positions;
  }
};

/// Rows of up to W numbers; what a row or the tile lacks is zeros.
template <class E, int W>
struct Tile {
  E rows[kTileRows][W + 8];
};

/// The block's.
template <class E, int W>
struct Shared {
  Tile<E, W> own, others[2][2];  // [stage][array]
  float log_sum_exp[2][kTileRows],
      delta[2][kTileRows];  // [stage]: of the others, if those are queries
};

template <int W>
using Factor = uint32_t[W / 16][4];  // a thread's part of 16 rows
template <int columns>
using Sums = float[columns / 8][4];  // a thread's part of 16 x columns
// (In lambdas nvcc 12 does not compile Sums<kColumns> of a local kColumns, so Logits stands for it below.)

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int first_row_of_warp() { return static_cast<int>(threadIdx.x) / 32 * kWarpRows; }

/// Starts the copy of rows first, first + 1, ..., by the whole block.
template <class E, int W>
__device__ void load_tile(const Rows<const E>& rows, int first, Tile<E, W>& tile) {
  constexpr int kPieces = W / 8, kRowsAtOnce = kThreads / kPieces;
  const int thread = threadIdx.x, row = thread / kPieces, d = thread % kPieces * 8;
  const E* from = rows.data + int64_t{first + row} * rows.pitch + d;
  for (int i = 0; i < kTileRows; i += kRowsAtOnce, from += kRowsAtOnce * rows.pitch) {
    const bool exists = first + row + i < rows.count && d < rows.D;
    copy_async<16>(&tile.rows[row + i][d], exists ? from : rows.data, exists);
  }
}

/// The same of one number a row.
__device__ inline void load_statistics(const float* of_head, int first, int count,
                                       float (&tile)[kTileRows]) {
  if (threadIdx.x >= kTileRows) return;
  const bool exists = first + static_cast<int>(threadIdx.x) < count;
  copy_async<4>(&tile[threadIdx.x], of_head + (exists ? first + threadIdx.x : 0), exists);
}

/// Until the copies of the own rows are there, which were started before; meanwhile those of the first tile begin.
template <class Load>
__device__ void wait_for_own(const Load& load) {
  commit_copies();
  load(0, 0);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
}

/// Calls work(first, stage) for each tile of `count` rows, whose copies load(first, stage) has started.
/// The copies before this are there before the first, and load(0, 0) is one of them.
template <class Load, class Work>
__device__ void for_tiles(int count, const Load& load, const Work& work) {
  for (int first = 0, stage = 0; first < count; first += kTileRows, stage ^= 1) {
    if (first + kTileRows < count) load(first + kTileRows, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();  // everyone's copies are there
    work(first, stage);
    __syncthreads();  // all have done with them
  }
}

/// Of the warp's own rows numbers d, ..., d + 15, as left factor.
template <class E, int W>
__device__ void load_own(const Tile<E, W>& tile, int d, uint32_t (&own)[4]) {
  load_matrices(own, &tile.rows[first_row_of_warp() + lane() % 16][d + lane() / 16 * 8]);
}
template <class E, int W>
__device__ void load_own(const Tile<E, W>& tile, Factor<W>& own) {
  for (int i = 0; i < W / 16; ++i) load_own(tile, i * 16, own[i]);
}

/// sums = own times rows first, first + 1, ... of the others.
template <int columns, class E, int W>
__device__ void dots(const Factor<W>& own, const Tile<E, W>& others, int first,
                     Sums<columns>& sums) {
  const int row = first + lane() % 8 + lane() / 16 * 8, d = lane() / 8 % 2 * 8;
  for (int j = 0; j < columns / 16; ++j) {
    for (int half = 0; half < 2; ++half) {
      for (float& sum : sums[j * 2 + half]) sum = 0;
    }
    for (int k = 0; k < W / 16; ++k) {
      uint32_t b[4];
      load_matrices(b, &others.rows[row + j * 16][k * 16 + d]);
      multiply<E>(sums[j * 2], own[k], b[0], b[1]);
      multiply<E>(sums[j * 2 + 1], own[k], b[2], b[3]);
    }
  }
}

/// sums += weights times rows first, first + 1, ... of the others.
template <int columns, class E, int W>
__device__ void add_rows(Sums<W>& sums, const Sums<columns>& weights, const Tile<E, W>& others,
                         int first) {
  const int row = first + lane() % 16, d = lane() / 16 * 8;
  for (int k = 0; k < columns / 16; ++k) {
    const float(&left)[4] = weights[k * 2], (&right)[4] = weights[k * 2 + 1];
    const uint32_t a[] = {pack<E>(left[0], left[1]), pack<E>(left[2], left[3]),
                          pack<E>(right[0], right[1]), pack<E>(right[2], right[3])};
    for (int j = 0; j < W / 16; ++j) {
      uint32_t b[4];
      load_transposed(b, &others.rows[row + k * 16][j * 16 + d]);
      multiply<E>(sums[j * 2], a, b[0], b[1]);
      multiply<E>(sums[j * 2 + 1], a, b[2], b[3]);
    }
  }
}

/// f(sum, half, column) of a thread's sums: half 0 lies in row lane / 4 of the warp, 1 eight below.
template <int columns, class F>
__device__ void for_sums(Sums<columns>& sums, const F& f) {
  for (int j = 0; j < columns / 8; ++j) {
    for (int i = 0; i < 4; ++i) f(sums[j][i], i / 2, j * 8 + lane() % 4 * 2 + i % 2);
  }
}

/// Logits of keys from `end` on become -infinity.
template <int columns>
__device__ void mask(Sums<columns>& logits, int end) {
  if (end >= columns) return;
  for_sums<columns>(logits, [&](float& logit, int, int column) {
    if (column >= end) logit = -INFINITY;
  });
}

/// The product of two registers of two numbers.
template <class E>
__device__ float dot(uint32_t a, uint32_t b) {
  const float2 x = unpack<E>(a), y = unpack<E>(b);
  return x.x * y.x + x.y * y.y;
}

/// Over the four lanes that share a row.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}
__device__ inline float row_max(float x) {
  x = max(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return max(x, __shfl_xor_sync(kWholeWarp, x, 2));
}

/// The warp's rows, times a factor, to rows first, ... of an array. They go through its part of a tile: so a
/// lane writes 16 bytes, and 8 lanes whole lines.
template <class E, int W>
__device__ void store_own(const Sums<W>& sums, float factor, Tile<E, W>& tile, const Rows<E>& rows,
                          int first) {
  constexpr int kPieces = W / 8;
  const int warp_row = first_row_of_warp();
  __syncwarp();  // the warp has done with what was there
  for (int j = 0; j < W / 8; ++j) {
    for (int half = 0; half < 2; ++half) {
      E* to = &tile.rows[warp_row + half * 8 + lane() / 4][j * 8 + lane() % 4 * 2];
      *reinterpret_cast<uint32_t*>(to) =
          pack<E>(sums[j][half * 2] * factor, sums[j][half * 2 + 1] * factor);
    }
  }
  __syncwarp();
  for (int i = lane(); i < kWarpRows * kPieces; i += 32) {
    const int row = warp_row + i / kPieces, d = i % kPieces * 8;
    if (first + row < rows.count && d < rows.D) {
      const E* from = &tile.rows[row][d];
      E* to = rows.data + int64_t{first + row} * rows.pitch + d;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
  }
}

// As in attention.cu; exponentials are powers of 2, whose factor the scale takes in.
template <class E, int W>
__global__ void __launch_bounds__(kThreads, blocks_of(W, 4))
    forward(Heads s, const E* qkv, E* out, float* log_sum_exp) {
  Shared<E, W>& shared = *dynamic_shared<Shared<E, W>>();
  const int first_own = s.first_own();
  const auto k = s.rows(qkv, 1), v = s.rows(qkv, 2);
  const auto load = [&](int first, int stage) {
    load_tile(k, first, shared.others[stage][0]);
    load_tile(v, first, shared.others[stage][1]);
  };
  load_tile(s.rows(qkv, 0), first_own, shared.own);
  wait_for_own(load);
  Factor<W> q;
  load_own(shared.own, q);

  const float scale = s.scale * kLog2E;
  float highest[2] = {-INFINITY, -INFINITY}, total[2] = {};  // of logits as powers of 2
  Sums<W> sums = {};
  for_tiles(s.positions, load, [&](int first, int stage) {
    Sums<kTileRows> weights;
    dots<kTileRows>(q, shared.others[stage][0], 0, weights);
    mask<kTileRows>(weights, s.positions - first);
    float raised[2] = {-INFINITY, -INFINITY}, fade[2];
    for_sums<kTileRows>(weights,
                        [&](float& x, int half, int) { raised[half] = max(raised[half], x); });
    for (int half = 0; half < 2; ++half) {
      raised[half] = max(highest[half], row_max(raised[half]) * scale);
      fade[half] = fast_exp2(highest[half] - raised[half]);
      highest[half] = raised[half];
      total[half] *= fade[half];
    }
    for_sums<kTileRows>(weights, [&](float& x, int half, int) {
      x = fast_exp2(x * scale - highest[half]);
      total[half] += x;
    });
    for_sums<W>(sums, [&](float& x, int half, int) { x *= fade[half]; });
    add_rows<kTileRows>(sums, weights, shared.others[stage][1], 0);
  });

  float factor[2];
  for (int half = 0; half < 2; ++half) {
    total[half] = row_sum(total[half]);
    factor[half] = 1 / total[half];
    const int query = first_own + first_row_of_warp() + half * 8 + lane() / 4;
    if (query < s.positions && lane() % 4 == 0) {
      s.statistics(log_sum_exp)[query] = highest[half] * kLn2 + std::log(total[half]);
    }
  }
  for_sums<W>(sums, [&](float& x, int half, int) { x *= factor[half]; });
  store_own(sums, 1, shared.own, s.out_rows(out), first_own);
}

/// Also leaves delta: [N, heads, T], which the other gradients need.
template <class E, int W>
__global__ void __launch_bounds__(kThreads, blocks_of(W, 4))
    query_gradients(Heads s, const E* qkv, const E* out, const float* log_sum_exp, const E* dout,
                    E* dqkv, float* delta) {
  Shared<E, W>& shared = *dynamic_shared<Shared<E, W>>();
  const int first_own = s.first_own();
  const auto k = s.rows(qkv, 1), v = s.rows(qkv, 2);
  const auto load = [&](int first, int stage) {
    load_tile(k, first, shared.others[stage][0]);
    load_tile(v, first, shared.others[stage][1]);
  };
  load_tile(s.rows(qkv, 0), first_own, shared.own);
  load_tile(s.out_rows(dout), first_own, shared.others[1][0]);
  load_tile(s.out_rows(out), first_own, shared.others[1][1]);
  wait_for_own(load);
  Factor<W> q, own_dout;
  load_own(shared.own, q);
  load_own(shared.others[1][0], own_dout);
  float own_delta[2] = {}, own_log_sum_exp[2] = {};
  for (int i = 0; i < W / 16; ++i) {
    uint32_t own_out[4];
    load_own(shared.others[1][1], i * 16, own_out);
    for (int j = 0; j < 4; ++j) own_delta[j % 2] += dot<E>(own_dout[i][j], own_out[j]);
  }
  for (int half = 0; half < 2; ++half) {
    own_delta[half] = row_sum(own_delta[half]);
    const int query = first_own + first_row_of_warp() + half * 8 + lane() / 4;
    if (query >= s.positions) continue;
    own_log_sum_exp[half] = s.statistics(log_sum_exp)[query] * kLog2E;
    if (lane() % 4 == 0) s.statistics(delta)[query] = own_delta[half];
  }
  __syncthreads();  // all have their own rows: the second stage is free

  constexpr int kColumns = kLogits<W>;
  using Logits = Sums<kLogits<W>>;
  const float scale = s.scale * kLog2E;
  Sums<W> dq = {};
  for_tiles(s.positions, load, [&](int first, int stage) {
    for (int part = 0; part < kTileRows; part += kColumns) {
      Logits logits, dweights;
      dots<kColumns>(q, shared.others[stage][0], part, logits);
      dots<kColumns>(own_dout, shared.others[stage][1], part, dweights);
      mask<kColumns>(logits, s.positions - first - part);
      for (int j = 0; j < kColumns / 8; ++j) {
        for (int i = 0; i < 4; ++i) {
          const float weight = fast_exp2(logits[j][i] * scale - own_log_sum_exp[i / 2]);
          dweights[j][i] = weight * (dweights[j][i] - own_delta[i / 2]);
        }
      }
      add_rows<kColumns>(dq, dweights, shared.others[stage][0], part);
    }
  });
  store_own(dq, s.scale, shared.own, s.rows(dqkv, 0), first_own);
}

template <class E, int W>
__global__ void __launch_bounds__(kThreads, blocks_of(W, 3))
    key_gradients(Heads s, const E* qkv, const float* log_sum_exp, const E* dout,
                  const float* delta, E* dqkv) {
  Shared<E, W>& shared = *dynamic_shared<Shared<E, W>>();
  const int first_own = s.first_own();
  const auto q = s.rows(qkv, 0), douts = s.out_rows(dout);
  const auto load = [&](int first, int stage) {
    load_tile(q, first, shared.others[stage][0]);
    load_tile(douts, first, shared.others[stage][1]);
    load_statistics(s.statistics(log_sum_exp), first, s.positions, shared.log_sum_exp[stage]);
    load_statistics(s.statistics(delta), first, s.positions, shared.delta[stage]);
  };
  load_tile(s.rows(qkv, 1), first_own, shared.own);
  load_tile(s.rows(qkv, 2), first_own, shared.others[1][0]);
  wait_for_own(load);
  Factor<W> k, v;
  load_own(shared.own, k);
  load_own(shared.others[1][0], v);
  __syncthreads();  // all have their own rows: the second stage is free

  constexpr int kColumns = kLogits<W>;
  using Logits = Sums<kLogits<W>>;
  const float scale = s.scale * kLog2E;
  Sums<W> dk = {}, dv = {};
  for_tiles(s.positions, load, [&](int, int stage) {
    // A query that does not exist has zeros for q, dout, log_sum_exp and delta, and so adds nothing.
    for (int part = 0; part < kTileRows; part += kColumns) {
      Logits weights, dlogits;
      dots<kColumns>(k, shared.others[stage][0], part, weights);
      dots<kColumns>(v, shared.others[stage][1], part, dlogits);
      for (int j = 0; j < kColumns / 8; ++j) {
        for (int i = 0; i < 4; ++i) {
          const int query = part + j * 8 + lane() % 4 * 2 + i % 2;
          const float shift = shared.log_sum_exp[stage][query] * kLog2E;
          weights[j][i] = fast_exp2(weights[j][i] * scale - shift);
          dlogits[j][i] = weights[j][i] * (dlogits[j][i] - shared.delta[stage][query]);
        }
      }
      add_rows<kColumns>(dv, weights, shared.others[stage][1], part);
      add_rows<kColumns>(dk, dlogits, shared.others[stage][0], part);
    }
  });
  store_own(dk, s.scale, shared.own, s.rows(dqkv, 1), first_own);
  store_own(dv, 1, shared.own, s.rows(dqkv, 2), first_own);
}

/// Calls kernel.template operator()<W>() with the narrowest tile for heads of D numbers.
template <class Kernel>
void for_width(int D, const Kernel& kernel) {
  if (D <= 16) return kernel.template operator()<16>();
  if (D <= 32) return kernel.template operator()<32>();
  if (D <= 64) return kernel.template operator()<64>();
  kernel.template operator()<128>();
}

Heads heads_of(const ConstView& qkv, int64_t heads) {
  const int64_t pitch = qkv.shape[2], D = pitch / heads / 3;
  return {.positions = static_cast<int>(qkv.shape[1]),
          .heads = static_cast<int>(heads),
          .D = static_cast<int>(D),
          .qkv_pitch = static_cast<int>(pitch),
          .out_pitch = static_cast<int>(pitch / 3),
          .scale = 1 / std::sqrt(static_cast<float>(D))};
}

template <class E, int W>
LaunchConfig launch_config(const ConstView& qkv, int64_t heads) {
  const int64_t tiles = ceil_div<int64_t>(qkv.shape[1], kTileRows);
  return {.grid = static_cast<unsigned>(qkv.shape[0] * heads * tiles),
          .block = kThreads,
          .shared_bytes = sizeof(Shared<E, W>)};
}

}  // namespace

template <class E>
void attention_mma(const ConstView& qkv, int64_t heads, E* out, float* log_sum_exp) {
  const Heads s = heads_of(qkv, heads);
  for_width(s.D, [&]<int W>() {
    launch<forward<E, W>>(launch_config<E, W>(qkv, heads), s, qkv.as<E>(), out, log_sum_exp);
  });
}

template <class E>
void attention_backward_mma(const ConstView& qkv, int64_t heads, const E* out,
                            const float* log_sum_exp, const E* dout, float* delta, E* dqkv) {
  const Heads s = heads_of(qkv, heads);
  for_width(s.D, [&]<int W>() {
    const LaunchConfig config = launch_config<E, W>(qkv, heads);
    launch<query_gradients<E, W>>(config, s, qkv.as<E>(), out, log_sum_exp, dout, dqkv, delta);
    launch<key_gradients<E, W>>(config, s, qkv.as<E>(), log_sum_exp, dout,
                                static_cast<const float*>(delta), dqkv);
  });
}

#define MUTILDE_INSTANTIATE(E)                                                            \
  template void attention_mma(const ConstView&, int64_t, E*, float*);                     \
  template void attention_backward_mma(const ConstView&, int64_t, const E*, const float*, \
                                       const E*, float*, E*);
MUTILDE_INSTANTIATE(__nv_bfloat16)
MUTILDE_INSTANTIATE(__half)
#undef MUTILDE_INSTANTIATE

}  // namespace mutilde::cuda
