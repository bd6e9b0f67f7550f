// Scaled dot-product attention, many heads, that never holds the T x T weights.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"
#include "core/cpu/simd.h"

namespace mutilde {
namespace {

// ------------------------------------------------------------------------------------------------
// One image and head is a task (in the forward pass also a range of queries, where those tasks are
// few). It packs its keys and values once and streams over blocks of 96 queries (16 tiles of the
// micro-kernel, with AVX2): the logits of a block are 96 x T, 98 KB for T = 256, and stay in L2
// while the softmax and the next product use them.
//
// The backward pass makes the weights again from the logits and their saved log-sum-exp, one
// exponential each and no maximum:
//   P = exp(S - log_sum_exp), S = q k^T D^-1/2     dv = P^T dout         dP = dout v^T
//   dS = P * (dP - rowsum(dout * out))             dq = dS k D^-1/2      dk = dS^T q D^-1/2
// where rowsum(dout * out) equals rowsum(P * dP). dk and dv add up over the blocks of queries in
// order.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kBlockQueries = 16 * kTileRows;

template <class T>
struct Head {
  int64_t positions, D, pitch, out_pitch;
  const T *q, *k, *v;

  /// Rows of logits are padded to whole vectors, and lie an odd number of panels apart: down a
  /// column they fall into different cache sets.
  int64_t padded() const { return ceil_div(positions, kTileColumns<T>) * kTileColumns<T>; }
  int64_t row() const { return (ceil_div(positions, kTileColumns<T>) | 1) * kTileColumns<T>; }
  T scale() const { return 1 / std::sqrt(static_cast<T>(D)); }
  /// a is rows of D numbers: a k^T, or a v^T.
  Product<T> with_transposed(const T* a, int64_t a_row, int64_t rows, const T* b, T* c) const {
    return {rows, positions, D, a, a_row, 1, b, 1, pitch, nullptr, c, row()};
  }
  /// weights b for b = k or v: rows of logits times rows of D numbers.
  Product<T> with_rows(const T* weights, int64_t rows, const T* b, T* c, int64_t c_row) const {
    return {rows, D, positions, weights, row(), 1, b, pitch, 1, nullptr, c, c_row};
  }
  /// The sum over queries of weights[query, position] * b[query]: positions x D.
  Product<T> over_queries(const T* weights, int64_t rows, const T* b, int64_t b_row, T* c) const {
    return {positions, D, rows, weights, 1, row(), b, b_row, 1, nullptr, c, pitch};
  }
};

/// The whole product on this thread, its B packed before.
template <class T>
void multiply_here(const Product<T>& product, const T* packed, bool accumulate = false) {
  multiply_block(product, packed, 0, product.M, 0, ceil_div(product.N, kTileColumns<T>),
                 accumulate);
}

template <class T>
Head<T> head_of(const T* qkv, const Shape& shape, int64_t heads, int64_t n, int64_t head) {
  const int64_t positions = shape[1], pitch = shape[2], D = pitch / heads / 3;
  const T* q = qkv + n * positions * pitch + head * 3 * D;
  return {positions, D, pitch, heads * D, q, q + D, q + 2 * D};
}

/// Asks for `bytes` of each row ahead of use. The rows of a head lie a whole pixel's channels apart, a
/// distance at which the processor does not look ahead by itself: without this the wait for 768 rows
/// from L3 takes a third of the forward pass.
template <class T>
void prefetch_rows(const T* rows, int64_t pitch, int64_t count, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < width + kLine - 1; i += kLine) {
      __builtin_prefetch(rows + r * pitch + std::min(i, width - 1));
    }
  }
}

/// A row of logits becomes exp(logit * scale - maximum), and `sum` its sum; returns the
/// log-sum-exp.
template <class T>
T exponentiate(T* row, int64_t columns, int64_t padded, T scale, T& sum) {
  using V = simd::Vec<T>;
  std::fill(row + columns, row + padded, -std::numeric_limits<T>::infinity());
  V highest = simd::load(row);
  for (int64_t j = 0; j < padded; j += simd::kLanes<T>)
    highest = simd::max(highest, simd::load(row + j));
  const T top = simd::horizontal_max<T>(highest);
  V sums{};
  for (int64_t j = 0; j < padded; j += simd::kLanes<T>) {
    const V y = simd::exp_of_weight((simd::load(row + j) - top) * scale);
    sums += y;
    simd::store(row + j, y);
  }
  sum = simd::horizontal_sum<T>(sums);
  return top * scale + std::log(sum);
}

template <class T>
void forward_queries(const Head<T>& h, int64_t begin, int64_t end, T* out, T* log_sum_exp) {
  const int64_t row = h.row();
  T* packed_k = scratch<T>(Scratch::kPackedB,
                           packed_size<T>(h.D, h.positions) + packed_size<T>(h.positions, h.D));
  T* packed_v = packed_k + packed_size<T>(h.D, h.positions);
  T* logits = scratch<T>(Scratch::kLogits, kBlockQueries * row);
  prefetch_rows(h.q, h.pitch, h.positions, 3 * h.D);
  pack_b(h.with_transposed(h.q, h.pitch, 0, h.k, logits), packed_k);
  pack_b(h.with_rows(logits, 0, h.v, out, h.out_pitch), packed_v);
  for (int64_t t = begin; t < end; t += kBlockQueries) {
    const int64_t rows = std::min(kBlockQueries, end - t);
    T* to = out + t * h.out_pitch;
    T sums[kBlockQueries];
    multiply_here(h.with_transposed(h.q + t * h.pitch, h.pitch, rows, h.k, logits), packed_k);
    for (int64_t r = 0; r < rows; ++r) {
      log_sum_exp[t + r] =
          exponentiate(logits + r * row, h.positions, h.padded(), h.scale(), sums[r]);
    }
    multiply_here(h.with_rows(logits, rows, h.v, to, h.out_pitch), packed_v);
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = 1 / sums[r];
      for (int64_t d = 0; d < h.D; ++d) to[r * h.out_pitch + d] *= factor;
    }
  }
}

/// Logits become P and dP becomes dS * scale, for one query.
template <class T>
void backward_row(T* logits, T* dp, int64_t columns, int64_t padded, T scale, T log_sum_exp,
                  T dout_dot_out) {
  using V = simd::Vec<T>;
  std::fill(logits + columns, logits + padded, -std::numeric_limits<T>::infinity());
  std::fill(dp + columns, dp + padded, T(0));
  for (int64_t j = 0; j < padded; j += simd::kLanes<T>) {
    const V p = simd::exp_of_weight(simd::load(logits + j) * scale - log_sum_exp);
    simd::store(logits + j, p);
    simd::store(dp + j, p * (simd::load(dp + j) - dout_dot_out) * scale);
  }
}

template <class T>
void backward_head(const Head<T>& h, const T* out, const T* dout, const T* log_sum_exp, T* dq) {
  T *dk = dq + h.D, *dv = dk + h.D;
  const int64_t row = h.row();
  const int64_t by_position = packed_size<T>(h.D, h.positions),
                by_query = packed_size<T>(kBlockQueries, h.D);
  T* packed_kt = scratch<T>(Scratch::kPackedB,
                            2 * by_position + packed_size<T>(h.positions, h.D) + 2 * by_query);
  T *packed_vt = packed_kt + by_position, *packed_q = packed_vt + by_position;
  T *packed_dout = packed_q + by_query, *packed_k = packed_dout + by_query;
  T *logits = scratch<T>(Scratch::kLogits, 2 * kBlockQueries * row),
    *dp = logits + kBlockQueries * row;
  prefetch_rows(h.q, h.pitch, h.positions, 3 * h.D);
  prefetch_rows(out, h.out_pitch, h.positions, h.D);
  prefetch_rows(dout, h.out_pitch, h.positions, h.D);
  pack_b(h.with_transposed(h.q, h.pitch, 0, h.k, logits), packed_kt);
  pack_b(h.with_transposed(dout, h.out_pitch, 0, h.v, dp), packed_vt);
  pack_b(h.with_rows(dp, 0, h.k, dq, h.pitch), packed_k);
  for (int64_t t = 0; t < h.positions; t += kBlockQueries) {
    const int64_t rows = std::min(kBlockQueries, h.positions - t);
    const T *q_t = h.q + t * h.pitch, *dout_t = dout + t * h.out_pitch,
            *out_t = out + t * h.out_pitch;
    multiply_here(h.with_transposed(q_t, h.pitch, rows, h.k, logits), packed_kt);
    multiply_here(h.with_transposed(dout_t, h.out_pitch, rows, h.v, dp), packed_vt);
    for (int64_t r = 0; r < rows; ++r) {
      T dot = 0;
      for (int64_t d = 0; d < h.D; ++d)
        dot += dout_t[r * h.out_pitch + d] * out_t[r * h.out_pitch + d];
      backward_row(logits + r * row, dp + r * row, h.positions, h.padded(), h.scale(),
                   log_sum_exp[t + r], dot);
    }
    multiply_here(h.with_rows(dp, rows, h.k, dq + t * h.pitch, h.pitch), packed_k);
    const Product<T> to_k = h.over_queries(dp, rows, q_t, h.pitch, dk);
    pack_b(to_k, packed_q);
    multiply_here(to_k, packed_q, t > 0);
    const Product<T> to_v = h.over_queries(logits, rows, dout_t, h.out_pitch, dv);
    pack_b(to_v, packed_dout);
    multiply_here(to_v, packed_dout, t > 0);
  }
}

}  // namespace

void CpuBackend::attention(ConstView qkv, int64_t heads, View out, View log_sum_exp) {
  const int64_t N = qkv.shape[0], positions = qkv.shape[1], D = qkv.shape[2] / heads / 3;
  if (positions == 0 || D == 0) return;
  const int64_t blocks = ceil_div(positions, kBlockQueries);
  const int64_t parts = std::min(blocks, ceil_div(kTasks, std::max<int64_t>(N * heads, 1)));
  for_float(qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_tasks_over(
        N * heads * parts, N * heads * positions * positions * D * 2, [&](int64_t task) {
          const int64_t n = task / parts / heads, head = task / parts % heads, part = task % parts;
          forward_queries(head_of(qkv.as<T>(), qkv.shape, heads, n, head),
                          blocks * part / parts * kBlockQueries,
                          std::min(positions, blocks * (part + 1) / parts * kBlockQueries),
                          out.as<T>() + (n * positions * heads + head) * D,
                          log_sum_exp.as<T>() + (n * heads + head) * positions);
        });
  });
}

void CpuBackend::attention_backward(ConstView qkv, int64_t heads, ConstView out,
                                    ConstView log_sum_exp, ConstView dout, View dqkv) {
  const int64_t N = qkv.shape[0], positions = qkv.shape[1], D = qkv.shape[2] / heads / 3;
  if (positions == 0 || D == 0) return;
  for_float(qkv.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_tasks_over(N * heads, N * heads * positions * positions * D * 5, [&](int64_t task) {
      const int64_t n = task / heads, head = task % heads, at = (n * positions * heads + head) * D;
      const Head<T> h = head_of(qkv.as<T>(), qkv.shape, heads, n, head);
      backward_head(h, out.as<T>() + at, dout.as<T>() + at,
                    log_sum_exp.as<T>() + (n * heads + head) * positions,
                    dqkv.as<T>() + (h.q - qkv.as<T>()));
    });
  });
}

}  // namespace mutilde
