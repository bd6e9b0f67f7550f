// Scaled dot-product attention, many heads, that never holds the weights P, positions x positions:
//   out = P v,  P = softmax(S),  S = q k^T D^-1/2
//
// Everything is made of two steps of a warp that owns one row of D numbers:
//   dots:      lane j gets the row's product with row j of 32 others
//   add_rows:  a row of sums grows by 32 others, each times its weight
// The other rows come by as tiles of 32 x 32 numbers in shared memory, which the 8 warps of a block
// share: a number is read from memory once for 8 rows.
//
//   kernel           a warp owns          the others   dots              add_rows
//   forward          a query q            keys         q k^T             out += P v
//   query gradients  a query, its dout    keys         q k^T, dout v^T   dq += dS k
//   key gradients    a key and its value  queries      k q^T, v dout^T   dk += dS^T q, dv += P^T dout
//
// The forward pass does not know a row's maximum before it has seen all keys. It keeps the largest
// logit so far, and where a tile raises it by d, what was summed before is multiplied by exp(-d)
// (Milakov & Gimelshein 2018). The backward pass makes the weights again from the logits and their
// log-sum-exp:
//   P = exp(S - log_sum_exp)    dS = P * (dout v^T - delta), delta = rowsum(dout * out)
//
// Elements are stored as X and computed with as T: a short type as float32. Heads of most sizes of a short
// type go to the tensor cores instead (attention_mma.cu), unless a plainer rung is asked for.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "cuda/attention_mma.h"
#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

constexpr int kLanes = 32, kMostWarps = 8;

/// Rows of D numbers that a block looks at, `pitch` apart.
template <class X>
struct Rows {
  X* data;
  int64_t pitch;
  int count, D;
};

template <class X>
struct Heads {
  using T = Computed<X>;
  int positions, heads, D;
  int64_t qkv_pitch, out_pitch;
  const X* qkv;

  /// q (part 0), k (1) or v (2) of the block's image and head, in qkv or in an array like it.
  template <class U>
  __device__ Rows<U> rows(U* array, int part) const {
    const int n = blockIdx.x / heads, head = blockIdx.x % heads;
    return {array + n * positions * qkv_pitch + (3 * head + part) * D, qkv_pitch, positions, D};
  }
  /// The same of an array like out.
  template <class U>
  __device__ Rows<U> out_rows(U* array) const {
    const int n = blockIdx.x / heads, head = blockIdx.x % heads;
    return {array + n * positions * out_pitch + head * D, out_pitch, positions, D};
  }
  __device__ T scale() const { return T{1} / std::sqrt(static_cast<T>(D)); }
  /// Where the block's image and head begin in an array [N, heads, positions].
  __device__ int64_t row_number() const { return int64_t{blockIdx.x} * positions; }
};

template <class T>
using Tile = T[kLanes][kLanes + 1];  // a column to spare: lanes that go down a column hit 32 banks

/// tile[j][i] = number first_d + i of row first + j; zeros where there is none. By the whole block.
template <class X, class T>
__device__ void load_tile(const Rows<const X>& rows, int first, int first_d, Tile<T>& tile) {
  __syncthreads();  // all have done with what was in it
  const int d = first_d + threadIdx.x;
  for (int j = threadIdx.y; j < kLanes; j += blockDim.y) {
    const bool inside = first + j < rows.count && d < rows.D;
    tile[j][threadIdx.x] = inside ? number(rows.data[(first + j) * rows.pitch + d]) : T{0};
  }
  __syncthreads();
}

/// The warp's own row (shared memory) times row first + lane of the others.
template <class X, class T>
__device__ T dots(const T* own, const Rows<const X>& rows, int first, Tile<T>& tile) {
  T sum = 0;
  for (int first_d = 0; first_d < rows.D; first_d += kLanes) {
    load_tile(rows, first, first_d, tile);
    const int count = min(kLanes, rows.D - first_d);
    for (int i = 0; i < count; ++i) sum += own[first_d + i] * tile[threadIdx.x][i];
  }
  return sum;
}

/// sums[d] = factor * sums[d] + sum over j of weights[j] * others[first + j][d]. `weights` are the
/// warp's 32; written before the call, they are seen by its lanes behind load_tile's barrier.
template <class X, class T>
__device__ void add_rows(T* sums, T factor, const T* weights, const Rows<const X>& rows, int first,
                         Tile<T>& tile) {
  for (int first_d = 0; first_d < rows.D; first_d += kLanes) {
    load_tile(rows, first, first_d, tile);
    const int d = first_d + threadIdx.x;
    if (d >= rows.D) continue;
    T sum = factor * sums[d];
    for (int j = 0; j < kLanes; ++j) sum += weights[j] * tile[j][threadIdx.x];
    sums[d] = sum;
  }
}

/// The warp's row `index` into shared memory, or zeros where there is none: such a warp goes along,
/// since the barriers are everybody's.
template <class X, class T>
__device__ void load_own(const Rows<const X>& rows, int index, T* own) {
  for (int d = threadIdx.x; d < rows.D; d += kLanes) {
    own[d] = index < rows.count ? number(rows.data[index * rows.pitch + d]) : T{0};
  }
}

template <class X, class T>
__device__ void store_own(const T* own, T factor, const Rows<X>& rows, int index) {
  if (index >= rows.count) return;
  for (int d = threadIdx.x; d < rows.D; d += kLanes) {
    rows.data[index * rows.pitch + d] = stored<X>(own[d] * factor);
  }
}

__device__ inline int own_index() { return blockIdx.y * blockDim.y + threadIdx.y; }

/// Row `row` of the warp in the block's dynamic shared memory, which has `of_warp` rows a warp.
template <class T>
__device__ T* own_row(int row, int of_warp, int D) {
  return dynamic_shared<T>() + (static_cast<int>(threadIdx.y) * of_warp + row) * D;
}

template <class X, class T>
__global__ void attention_forward(Heads<X> s, X* out, T* log_sum_exp) {
  __shared__ T tile[kLanes][kLanes + 1], weights[kMostWarps][kLanes];
  const int query = own_index();
  T* q = own_row<T>(0, 2, s.D);
  T* sums = own_row<T>(1, 2, s.D);
  load_own(s.rows(s.qkv, 0), query, q);
  for (int d = threadIdx.x; d < s.D; d += kLanes) sums[d] = 0;
  const auto k = s.rows(s.qkv, 1), v = s.rows(s.qkv, 2);

  T highest = -INFINITY, total = 0;
  for (int first = 0; first < s.positions; first += kLanes) {
    T logit = dots(q, k, first, tile) * s.scale();
    if (first + static_cast<int>(threadIdx.x) >= s.positions) logit = -INFINITY;
    const T raised = max(highest, warp_max(logit));
    const T weight = std::exp(logit - raised), fade = std::exp(highest - raised);
    total = total * fade + warp_sum(weight);
    highest = raised;
    weights[threadIdx.y][threadIdx.x] = weight;
    add_rows(sums, fade, weights[threadIdx.y], v, first, tile);
  }
  store_own(sums, T{1} / total, s.out_rows(out), query);
  if (query < s.positions && threadIdx.x == 0) {
    log_sum_exp[s.row_number() + query] = highest + std::log(total);
  }
}

/// Also leaves delta: [N, heads, T], which the other gradients need.
template <class X, class T>
__global__ void query_gradients(Heads<X> s, const X* out, const T* log_sum_exp, const X* dout,
                                X* dqkv, T* delta) {
  __shared__ T tile[kLanes][kLanes + 1], weights[kMostWarps][kLanes];
  const int query = own_index();
  const bool exists = query < s.positions;
  T* q = own_row<T>(0, 3, s.D);
  T* own_dout = own_row<T>(1, 3, s.D);
  T* dq = own_row<T>(2, 3, s.D);
  load_own(s.rows(s.qkv, 0), query, q);
  load_own(s.out_rows(dout), query, own_dout);
  load_own(s.out_rows(out), query, dq);
  T own_delta = 0;
  for (int d = threadIdx.x; d < s.D; d += kLanes) {
    own_delta += own_dout[d] * dq[d];
    dq[d] = 0;
  }
  own_delta = warp_sum(own_delta);
  const T own_log_sum_exp = exists ? log_sum_exp[s.row_number() + query] : T{0};
  const auto k = s.rows(s.qkv, 1), v = s.rows(s.qkv, 2);

  for (int first = 0; first < s.positions; first += kLanes) {
    const T logit = dots(q, k, first, tile) * s.scale();
    const T dweight = dots(own_dout, v, first, tile);
    const bool inside = first + static_cast<int>(threadIdx.x) < s.positions;
    const T weight = inside ? std::exp(logit - own_log_sum_exp) : T{0};
    weights[threadIdx.y][threadIdx.x] = weight * (dweight - own_delta);
    add_rows(dq, T{1}, weights[threadIdx.y], k, first, tile);
  }
  store_own(dq, s.scale(), s.rows(dqkv, 0), query);
  if (exists && threadIdx.x == 0) delta[s.row_number() + query] = own_delta;
}

template <class X, class T>
__global__ void key_gradients(Heads<X> s, const T* log_sum_exp, const X* dout, const T* delta,
                              X* dqkv) {
  __shared__ T tile[kLanes][kLanes + 1], weights[2][kMostWarps][kLanes];
  const int key = own_index();
  T* k = own_row<T>(0, 4, s.D);
  T* v = own_row<T>(1, 4, s.D);
  T* dk = own_row<T>(2, 4, s.D);
  T* dv = own_row<T>(3, 4, s.D);
  load_own(s.rows(s.qkv, 1), key, k);
  load_own(s.rows(s.qkv, 2), key, v);
  for (int d = threadIdx.x; d < s.D; d += kLanes) dk[d] = dv[d] = 0;
  const auto q = s.rows(s.qkv, 0), douts = s.out_rows(dout);

  for (int first = 0; first < s.positions; first += kLanes) {
    const int query = first + threadIdx.x;
    const T logit = dots(k, q, first, tile) * s.scale();
    const T dweight = dots(v, douts, first, tile);
    T weight = 0, dlogit = 0;
    if (query < s.positions) {
      weight = std::exp(logit - log_sum_exp[s.row_number() + query]);
      dlogit = weight * (dweight - delta[s.row_number() + query]);
    }
    weights[0][threadIdx.y][threadIdx.x] = weight;
    weights[1][threadIdx.y][threadIdx.x] = dlogit;
    add_rows(dv, T{1}, weights[0][threadIdx.y], douts, first, tile);
    add_rows(dk, T{1}, weights[1][threadIdx.y], q, first, tile);
  }
  store_own(dk, s.scale(), s.rows(dqkv, 1), key);
  store_own(dv, T{1}, s.rows(dqkv, 2), key);
}

template <class X>
Heads<X> heads_of(const ConstView& qkv, int64_t heads) {
  const int64_t pitch = qkv.shape[2];
  return {static_cast<int>(qkv.shape[1]),
          static_cast<int>(heads),
          static_cast<int>(pitch / heads / 3),
          pitch,
          pitch / 3,
          qkv.as<X>()};
}

/// As many warps as have room for `rows` rows of D numbers each, in the 48 KiB that a block always
/// has, besides the tile.
template <class X>
LaunchConfig launch_config(const Heads<X>& s, int64_t N, int rows) {
  constexpr int kBytes = 32 * 1024;
  const int of_warp = rows * s.D * static_cast<int>(sizeof(Computed<X>));
  const int warps = std::clamp(kBytes / of_warp, 1, kMostWarps);
  return {.grid = {static_cast<unsigned>(N * s.heads),
                   static_cast<unsigned>(ceil_div(s.positions, warps))},
          .block = {kLanes, static_cast<unsigned>(warps)},
          .shared_bytes = static_cast<size_t>(warps) * static_cast<size_t>(of_warp)};
}

/// Its tiles are copied 16 bytes at a time.
bool by_tensor_cores(Rung rung, const ConstView& qkv, int64_t heads,
                     std::initializer_list<const void*> arrays) {
  return rung != Rung::kPlain && rung != Rung::kTiled &&
         attention_mma_takes(qkv, qkv.shape[2] / heads / 3) && are_aligned(arrays);
}

}  // namespace

void CudaBackend::attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) {
  if (out.numel() == 0) return;
  if (by_tensor_cores(rung_, qkv, heads, {qkv.data, out.data})) {
    return for_short(qkv.dtype, [&](auto zero) {
      attention_mma(qkv, heads, out.as<decltype(zero)>(), log_sum_exp.as<float>());
    });
  }
  for_stored(qkv.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Computed<X>;
    const Heads<X> s = heads_of<X>(qkv, heads);
    launch<attention_forward<X, T>>(launch_config(s, qkv.shape[0], 2), s, out.as<X>(),
                                    log_sum_exp.as<T>());
  });
}

void CudaBackend::attention_backward(ConstView qkv, int64_t heads, ConstView out,
                                     ConstView log_sum_exp, ConstView dout, View dqkv) {
  if (out.numel() == 0) return;
  if (by_tensor_cores(rung_, qkv, heads, {qkv.data, out.data, dout.data, dqkv.data})) {
    const Buffer<float> delta(*this, log_sum_exp.numel());
    return for_short(qkv.dtype, [&](auto zero) {
      using E = decltype(zero);
      attention_backward_mma(qkv, heads, out.as<E>(), log_sum_exp.as<float>(), dout.as<E>(),
                             delta.data(), dqkv.as<E>());
    });
  }
  for_stored(qkv.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Computed<X>;
    const Heads<X> s = heads_of<X>(qkv, heads);
    const Buffer<T> delta(*this, log_sum_exp.numel());
    launch<query_gradients<X, T>>(launch_config(s, qkv.shape[0], 3), s, out.as<X>(),
                                  log_sum_exp.as<T>(), dout.as<X>(), dqkv.as<X>(), delta.data());
    launch<key_gradients<X, T>>(launch_config(s, qkv.shape[0], 4), s, log_sum_exp.as<T>(),
                                dout.as<X>(), static_cast<const T*>(delta.data()), dqkv.as<X>());
  });
}

}  // namespace mutilde::cuda
