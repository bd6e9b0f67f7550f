// Matrix products on the micro-kernel: B packed into panels, unless it lies well, then C = A B + bias.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/cpu/microkernel.h"
#include "core/cpu/parallel.h"

namespace mutilde {

/// Kernels that can cut their work anywhere aim at this many tasks: enough to feed 16 threads, few
/// enough to cost nothing. A constant, because results must not depend on the number of threads: it
/// decides how the terms of a sum are split. (Cut asks for the threads: it divides outputs only.)
inline constexpr int64_t kTasks = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// parallel_tasks, but on one thread where all tasks together are a few microseconds of work, in which a
/// team of threads begins.
template <class Body>
void parallel_tasks_over(int64_t n, int64_t multiply_adds, const Body& body) {
  if (multiply_adds < 200'000) {
    for (int64_t i = 0; i < n; ++i) body(i);
  } else {
    parallel_tasks(n, body);
  }
}

/// How the tiles x panels of a product are cut into tasks, each of which packs its own panels. By rows
/// the packing is done again by each task; by columns every core reads all of A. In units of the time
/// that a tile takes with one panel, on two cores of a Zen 5: `pack` to pack a panel (0.25 row by row,
/// 0.75 turned), 0.4 to read a tile that another core wrote.
class Cut {
 public:
  struct Part {
    int64_t first_tile, last_tile, first_panel, last_panel;
  };

  /// For one of `shares` such products that the threads share.
  Cut(int64_t tiles, int64_t panels, double pack, int64_t shares = 1)
      : tiles_(tiles), panels_(panels) {
    const int64_t threads = ceil_div(thread_count(), shares);
    double best = std::numeric_limits<double>::infinity();
    for (int64_t across = 1; across <= std::min(panels, threads); ++across) {
      const int64_t down = std::min(tiles, ceil_div(threads, across));
      const auto width = static_cast<double>(ceil_div(panels, across));
      const auto height = static_cast<double>(ceil_div(tiles, down));
      const auto rounds = static_cast<double>(ceil_div(across * down, threads));
      const double time = rounds * (width * (height + pack) + (across > 1 ? 0.4 * height : 0));
      if (time < best) {
        best = time;
        across_ = across;
        // Of many rows more tasks than threads, of 64 tiles and more so that packing a panel again costs 1 %:
        // then one can help another.
        down_ = std::max(down, down * (tiles / (down * 64)));
      }
    }
  }

  int64_t tasks() const { return across_ * down_; }
  /// Tasks of the same panels follow one another.
  Part operator[](int64_t task) const {
    const int64_t column = task / down_, row = task % down_;
    return {tiles_ * row / down_, tiles_ * (row + 1) / down_, panels_ * column / across_,
            panels_ * (column + 1) / across_};
  }

 private:
  int64_t tiles_, panels_, across_ = 1, down_ = 1;
};

/// Steps of the micro-kernel along K numbers.
template <class F>
int64_t steps(int64_t K) {
  return ceil_div(K, Factor<F>::kTerms);
}

/// Factors that B takes when packed: panels of kTileColumns columns, each [step][kTileColumns]. The
/// panel of column j begins at j * steps; the last one is narrower where one vector covers it. Columns
/// that do not exist are zero, and so is what an odd K lacks to a pair.
template <class F>
int64_t packed_size(int64_t steps, int64_t N) {
  return steps * ceil_div(N, kTileColumns<F>) * kTileColumns<F>;
}

/// Packs rows 0 to K and up to one panel's width of columns, from `column` on, of the matrix whose
/// element (k, n) is b[k * k_stride + n * n_stride], as [step][panel_width(N - column)].
template <class F>
void pack_panel(const Sum<F>* b, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N,
                int64_t column, F* panel) {
  if (K == 0) return;  // there may be no b, of which no address may be formed then
  using V = simd::Vec<Sum<F>>;
  constexpr int64_t kLanes = simd::kLanes<F>, kTerms = Factor<F>::kTerms;
  const int64_t width = panel_width<F>(N - column);
  b += column * n_stride;
  const auto store = [&](int64_t step, int64_t v, const V* rows) {
    F* to = panel + step * width + v;
    if constexpr (kTerms == 1) {
      simd::store(to, rows[0]);
    } else {
      simd::store(to, simd::pair_up(rows[0], rows[1]));
    }
  };
  if (k_stride == 1 && n_stride != 1) {  // squares of numbers, turned in registers
    for (int64_t v = 0; v < width; v += kLanes) {
      const int64_t columns = N - column - v;
      for (int64_t k = 0; k < K; k += kLanes) {
        V square[kLanes];
        for (int64_t n = 0; n < kLanes; ++n) {
          const Sum<F>* from = b + (v + n) * n_stride + k;
          square[n] = n >= columns      ? V{}
                      : K - k >= kLanes ? simd::load(from)
                                        : simd::load_partial(from, K - k);
        }
        simd::transpose<Sum<F>>(square);
        for (int64_t i = 0; i < std::min(kLanes, K - k); i += kTerms) {
          store((k + i) / kTerms, v, square + i);
        }
      }
    }
    return;
  }
  const auto load = [&](int64_t k, int64_t v) {
    const Sum<F>* from = b + k * k_stride + v * n_stride;
    const int64_t columns = N - column - v;
    if (n_stride == 1) {
      return columns >= kLanes ? simd::load(from) : simd::load_partial(from, columns);
    }
    V values{};
    for (int64_t n = 0; n < std::min(kLanes, columns); ++n) values[n] = from[n * n_stride];
    return values;
  };
  for (int64_t k = 0; k < K; k += kTerms) {
    for (int64_t v = 0; v < width; v += kLanes) {
      V rows[kTerms] = {};
      for (int64_t i = 0; i < std::min(kTerms, K - k); ++i) rows[i] = load(k + i, v);
      store(k / kTerms, v, rows);
    }
  }
}

/// `count` numbers as pairs; what an odd one lacks is zero.
inline void round_row(const float* from, int64_t count, simd::Bf16Pair* to) {
  constexpr int64_t kLanes = simd::kLanes<float>;
  const int64_t whole = count / kLanes * kLanes;
  uint16_t* halves = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < whole; i += kLanes) simd::store_bf16(halves + i, simd::load(from + i));
  if (whole == count) return;
  uint16_t rest[kLanes];
  simd::store_bf16(rest, simd::load_partial(from + whole, count - whole));
  std::copy_n(rest, steps<simd::Bf16Pair>(count - whole) * 2, halves + whole);
}

/// C = A B + bias, C: M x N. The element (m, k) of A is a[m * a_row + k * a_step], one of the two
/// being 1; the element (k, n) of B is b[k * b_row + n * b_step].
template <class F>
struct Product {
  int64_t M, N, K;
  const F* a;
  int64_t a_row, a_step;
  const F* b;
  int64_t b_row, b_step;
  const Sum<F>* bias;  // N elements, or null
  Sum<F>* c;
  int64_t c_row;
};

/// to[m * row + n] = the sum over splits, in order, of partials[split][m][n].
template <class T>
void add_partials(const T* partials, int64_t splits, int64_t M, int64_t N, T* to, int64_t row) {
  parallel_for(M, ceil_div(4096, std::max<int64_t>(N, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const T* from = partials + m * N;
      T* sums = to + m * row;
      std::copy_n(from, N, sums);
      for (int64_t split = 1; split < splits; ++split) {
        for (int64_t n = 0; n < N; ++n) sums[n] += from[split * M * N + n];
      }
    }
  });
}

/// All of it, on all threads (on this one within a parallel loop), in product_precision().
template <class T>
void multiply(const Product<T>& product);

/// Packs all of B on this thread, as factors F.
template <class F>
void pack_b(const Product<Sum<F>>& product, F* packed);

/// Rows [begin, end) and panels [panel_begin, panel_end) on this thread, B packed, or `packed` null and B as
/// it lies (b_step 1, N whole vectors); K counts steps. If `accumulate`, adds to what C holds.
template <class F>
void multiply_block(const Product<F>& product, const F* packed, int64_t begin, int64_t end,
                    int64_t panel_begin, int64_t panel_end, bool accumulate = false);

}  // namespace mutilde
