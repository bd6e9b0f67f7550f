#include "core/cpu/gemm.h"

#include <type_traits>

#include "core/cpu/scratch.h"
#include "core/precision.h"

namespace mutilde {
namespace {

// Blocking: rows in blocks of 16 tiles (96 rows with AVX2), k in slices of 512. A slice of a
// panel is 32 KB and serves the 16 tiles of a block from L1 or L2; the block's slice of A (196 KB)
// stays in L2 while the panels go by.
constexpr int64_t kBlockRows = 16 * kTileRows;
constexpr int64_t kSlice = 512;
// A transposed A is read with a stride of its whole width. Where that is a power of two a slice falls
// into few sets of a cache: 256 lines 1 KB apart take 4 ways of an L2 of 512 KB.
constexpr int64_t kTransposedSlice = 256;

/// One run: the rows of A for this tile and slice.
template <class F>
struct ProductRun {
  const F* a;
  int64_t a_row;
  const F* b;
  int64_t length;
  static constexpr int64_t count = 1;

  template <size_t kRows>
  int64_t enter(int64_t, const F* (&rows)[kRows], const F*& b_start) const {
    for (size_t r = 0; r < kRows; ++r) rows[r] = a + static_cast<int64_t>(r) * a_row;
    b_start = b;
    return length;
  }
};

}  // namespace

template <class F>
void pack_b(const Product<Sum<F>>& p, F* packed) {
  for (int64_t n = 0; n < p.N; n += kTileColumns<F>) {
    pack_panel<F>(p.b, p.b_row, p.b_step, p.K, p.N, n, packed + n * steps<F>(p.K));
  }
}

template <class F>
void multiply_block(const Product<F>& p, const F* packed, int64_t begin, int64_t end,
                    int64_t panel_begin, int64_t panel_end, bool accumulate) {
  using T = Sum<F>;
  // Without terms there may be no A at all: no address is formed then.
  const int64_t a_row = p.K > 0 ? p.a_row : 0;
  const int64_t longest = p.a_step == 1 ? kSlice : kTransposedSlice;
  // Once without terms, too: C gets its bias.
  for (int64_t k = 0; k == 0 || k < p.K; k += longest) {
    const int64_t slice = std::min(longest, p.K - k);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t column = panel * kTileColumns<F>;
      const int64_t width = panel_width<F>(p.N - column), columns = std::min(width, p.N - column);
      T start[kTileColumns<F>] = {};
      if (p.bias != nullptr) std::copy_n(p.bias + column, columns, start);
      const int64_t b_row = packed != nullptr ? width : p.b_row;
      const F* b = packed != nullptr ? packed + column * p.K + k * width
                   : p.K > 0         ? p.b + column + k * p.b_row
                                     : nullptr;
      for (int64_t m = begin; m < end; m += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, end - m);
        T* c[kTileRows] = {};
        for (int64_t r = 0; r < rows; ++r) c[r] = p.c + (m + r) * p.c_row + column;
        const ProductRun<F> run{p.a + m * a_row + k * p.a_step, a_row, b, slice};
        multiply_tile<F>(rows, width, run, p.a_step, b_row, k == 0 && !accumulate ? start : nullptr,
                         c, columns);
      }
    }
  }
}

namespace {

/// The product of rows [begin, end) of A and numbers [k, k + length) of each, with A where it lies, or
/// as pairs in memory of this thread: [row][step], or [step][row] of a transposed one.
template <class F, class T>
Product<F> part_of(const Product<T>& p, int64_t begin, int64_t end, int64_t k, int64_t length) {
  const int64_t rows = end - begin;
  const T* a = p.a + (p.K > 0 ? begin * p.a_row + k * p.a_step : 0);
  T* c = p.c + begin * p.c_row;
  if constexpr (std::is_same_v<F, T>) {
    const T* b = p.b != nullptr ? p.b + k * p.b_row : nullptr;
    return {rows, p.N, length, a, p.a_row, p.a_step, b, p.b_row, p.b_step, p.bias, c, p.c_row};
  } else {
    constexpr int64_t kLanes = simd::kLanes<F>;
    const int64_t pairs = steps<F>(length), pitch = ceil_div(rows, kLanes) * kLanes;
    if (p.a_step == 1) {
      F* to = scratch<F>(Scratch::kFactors, rows * pairs);
      for (int64_t r = 0; r < rows; ++r) round_row(a + r * p.a_row, length, to + r * pairs);
      return {rows, p.N, pairs, to, pairs, 1, nullptr, 0, 0, p.bias, c, p.c_row};
    }
    F* to = scratch<F>(Scratch::kFactors, pairs * pitch);
    for (int64_t step = 0; step < pairs; ++step) {
      const T* first = a + 2 * step * p.a_step;
      const T* second = 2 * step + 1 < length ? first + p.a_step : nullptr;
      for (int64_t r = 0; r < rows; r += kLanes) {
        const auto load = [&](const T* from) {
          return from == nullptr      ? simd::Vec<T>{}
                 : rows - r >= kLanes ? simd::load(from + r)
                                      : simd::load_partial(from + r, rows - r);
        };
        simd::store(to + step * pitch + r, simd::pair_up(load(first), load(second)));
      }
    }
    return {rows, p.N, pairs, to, 1, pitch, nullptr, 0, 0, p.bias, c, p.c_row};
  }
}

/// Rows [begin, end) of panels [first, last), B unpacked.
template <class T, class F>
Product<T> cut_out(Product<T> p, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t column = first * kTileColumns<F>;
  p.M = end - begin;
  p.N = std::min(last * kTileColumns<F>, p.N) - column;
  if (p.K > 0) p.a += begin * p.a_row, p.b += column * p.b_step;
  if (p.bias != nullptr) p.bias += column;
  p.c += begin * p.c_row + column;
  return p;
}

template <class F, class T>
void multiply_as(const Product<T>& p) {
  constexpr int64_t kLength = kSlice * Factor<F>::kTerms;  // numbers in a slice
  const int64_t slices = std::max<int64_t>(1, ceil_div(p.K, kLength));
  const int64_t panels = ceil_div(p.N, kTileColumns<F>);
  // Rows of B that are whole vectors next to each other need not be packed.
  const bool as_it_lies = std::is_same_v<F, T> && p.b_step == 1 && p.N % simd::kLanes<T> == 0;

  // Adds slice number `slice` to C, or begins it.
  const auto multiply_slice = [&](const Product<T>& q, int64_t slice, bool accumulate) {
    const int64_t k = slice * kLength, length = std::min(kLength, q.K - k);
    const int64_t q_panels = ceil_div(q.N, kTileColumns<F>);
    F* packed = nullptr;
    if (!as_it_lies) {
      packed = scratch<F>(Scratch::kPackedB, packed_size<F>(steps<F>(length), q.N));
      Product<T> terms = q;
      terms.b += k * q.b_row;
      terms.K = length;
      pack_b(terms, packed);
    }
    for (int64_t begin = 0; begin < q.M; begin += kBlockRows) {
      const Product<F> part = part_of<F>(q, begin, std::min(begin + kBlockRows, q.M), k, length);
      multiply_block(part, packed, 0, part.M, 0, q_panels, accumulate);
    }
  };

  // A transposed A is that of a gradient of weights, a sum over a batch: few sums of many terms. Where
  // they are too few to share, the terms are split too, and each split has sums of its own, that are
  // added in order. How many there are may not depend on the threads: as many as give 16 threads 3 tiles
  // each.
  const int64_t tiles = ceil_div(p.M, kTileRows), size = p.M * p.N;
  int64_t splits = 1;
  if (p.a_step != 1) {
    while (2 * splits <= std::min(slices, kTasks) && splits * tiles * panels < 48) splits *= 2;
  }
  T* partials = splits == 1 ? nullptr : scratch<T>(Scratch::kPartials, splits * size);

  // Each task packs the panels that it needs: shared ones would cross from core to core.
  const Cut cut(tiles, panels, as_it_lies ? 0 : p.b_step == 1 ? 0.25 : 0.75, splits);
  parallel_tasks_over(splits * cut.tasks(), p.M * p.N * p.K, [&](int64_t task) {
    const int64_t split = task / cut.tasks();
    const Cut::Part part = cut[task % cut.tasks()];
    Product<T> q = p;
    if (splits > 1) q.c = partials + split * size, q.c_row = p.N;
    if (split > 0) q.bias = nullptr;
    q = cut_out<T, F>(q, part.first_tile * kTileRows, std::min(part.last_tile * kTileRows, p.M),
                      part.first_panel, part.last_panel);
    const int64_t first = slices * split / splits, last = slices * (split + 1) / splits;
    // A core's prefetching runs ahead of what it adds to. Next to sums that another core adds to, it would
    // take those away again and again, which costs a fifth: many terms are added in memory of this thread.
    // (Other products have many rows, and come back to a sum once in 512 terms.)
    T* const c = q.c;
    const int64_t c_row = q.c_row;
    const bool apart = p.a_step != 1 && p.K > kTransposedSlice;
    if (apart) q.c = scratch<T>(Scratch::kSums, q.M * q.N), q.c_row = q.N;
    for (int64_t slice = first; slice < last; ++slice) multiply_slice(q, slice, slice > first);
    for (int64_t m = 0; apart && m < q.M; ++m) std::copy_n(q.c + m * q.N, q.N, c + m * c_row);
  });
  if (splits > 1) add_partials(partials, splits, p.M, p.N, p.c, p.c_row);
}

}  // namespace

template <class T>
void multiply(const Product<T>& p) {
  if (p.M == 0 || p.N == 0) return;
  if constexpr (std::is_same_v<T, float>) {
    if (product_precision() == Precision::kBfloat16) return multiply_as<simd::Bf16Pair>(p);
  }
  multiply_as<T>(p);
}

template void pack_b(const Product<float>&, float*);
template void pack_b(const Product<double>&, double*);
template void multiply_block(const Product<float>&, const float*, int64_t, int64_t, int64_t,
                             int64_t, bool);
template void multiply_block(const Product<double>&, const double*, int64_t, int64_t, int64_t,
                             int64_t, bool);
template void multiply(const Product<float>&);
template void multiply(const Product<double>&);

}  // namespace mutilde
