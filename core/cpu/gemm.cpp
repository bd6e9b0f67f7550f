#include "core/cpu/gemm.h"

#include "core/cpu/scratch.h"

namespace mutilde {
namespace {

// Blocking: rows in blocks of 16 tiles (96 rows with AVX2), k in slices of 512. A slice of a
// panel is 32 KB and serves the 16 tiles of a block from L1 or L2; the block's slice of A (196 KB)
// stays in L2 while the panels go by.
constexpr int64_t kBlockRows = 16 * kTileRows;
constexpr int64_t kSlice = 512;

/// One run: the rows of A for this tile and slice.
template <class T>
struct ProductRun {
  const T* a;
  int64_t a_row;
  const T* b;
  int64_t length;
  static constexpr int64_t count = 1;

  template <size_t kRows>
  int64_t enter(int64_t, const T* (&rows)[kRows], const T*& b_start) const {
    for (size_t r = 0; r < kRows; ++r) rows[r] = a + static_cast<int64_t>(r) * a_row;
    b_start = b;
    return length;
  }
};

/// A as [tile][k][kTileRows]: a transposed A would be read with a stride of its whole width, which
/// hits the same few cache sets over and over when that is a power of two.
template <class T>
void pack_tiles(const T* a, int64_t k_stride, int64_t rows, int64_t K, T* packed) {
  for (int64_t m = 0; m < rows; m += kTileRows) {
    const T* from = a + m;
    if (rows - m >= kTileRows) {
      for (int64_t k = 0; k < K; ++k, from += k_stride, packed += kTileRows) {
        __builtin_memcpy(packed, from, kTileRows * sizeof(T));  // not a call, as copy_n is
      }
    } else {
      for (int64_t k = 0; k < K; ++k, from += k_stride, packed += kTileRows) {
        std::copy_n(from, rows - m, packed);
      }
    }
  }
}

}  // namespace

template <class T>
void pack_b(const Product<T>& p, T* packed) {
  for (int64_t n = 0; n < p.N; n += kTileColumns<T>) {
    pack_panel(p.b, p.b_row, p.b_step, p.K, p.N, n, packed + n * p.K);
  }
}

template <class T>
void multiply_block(const Product<T>& p, const T* packed, int64_t begin, int64_t end,
                    int64_t panel_begin, int64_t panel_end, bool accumulate) {
  // Without terms there may be no A at all: no address is formed then.
  const int64_t a_row = p.K > 0 ? p.a_row : 0;
  // A few panels do not repay the copy (6 floats for 6 cycles of arithmetic a panel).
  const bool pack_a = p.a_step != 1 && p.K > 0 && panel_end - panel_begin > 3;
  for (int64_t k = 0; k == 0 || k < p.K; k += kSlice) {
    const int64_t slice = std::min(kSlice, p.K - k);
    const T* a = p.a + begin * a_row + k * p.a_step;
    if (pack_a) {
      T* tiles =
          scratch<T>(Scratch::kPackedA, ceil_div(end - begin, kTileRows) * kTileRows * kSlice);
      pack_tiles(a, p.a_step, end - begin, slice, tiles);
      a = tiles;
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t column = panel * kTileColumns<T>;
      const int64_t width = panel_width<T>(p.N - column), columns = std::min(width, p.N - column);
      T start[kTileColumns<T>] = {};
      if (p.bias != nullptr) std::copy_n(p.bias + column, columns, start);
      const T* b = packed + column * p.K + k * width;
      for (int64_t m = begin; m < end; m += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, end - m);
        T* c[kTileRows] = {};
        for (int64_t r = 0; r < rows; ++r) c[r] = p.c + (m + r) * p.c_row + column;
        const ProductRun<T> run = pack_a ? ProductRun<T>{a + (m - begin) * slice, 1, b, slice}
                                         : ProductRun<T>{a + (m - begin) * a_row, a_row, b, slice};
        multiply_tile<T>(rows, width, run, pack_a ? kTileRows : p.a_step, width,
                         k == 0 && !accumulate ? start : nullptr, c, columns);
      }
    }
  }
}

template <class T>
void multiply(const Product<T>& p) {
  if (p.M == 0 || p.N == 0) return;
  const int64_t panels = ceil_div(p.N, kTileColumns<T>);
  T* packed = scratch<T>(Scratch::kPackedB, packed_size<T>(p.K, p.N));
  const int64_t slices = ceil_div(p.K, kSlice);
  parallel_tasks_over(panels * slices, p.K * p.N, [&](int64_t task) {
    const int64_t column = task / slices * kTileColumns<T>, k = task % slices * kSlice;
    pack_panel(p.b + k * p.b_row, p.b_row, p.b_step, std::min(kSlice, p.K - k), p.N, column,
               packed + column * p.K + k * panel_width<T>(p.N - column));
  });
  const int64_t blocks = ceil_div(p.M, kBlockRows);
  const int64_t cuts = std::min(panels, ceil_div(kTasks, blocks));
  parallel_tasks_over(blocks * cuts, p.M * p.N * p.K, [&](int64_t task) {
    const int64_t begin = task / cuts * kBlockRows, cut = task % cuts;
    multiply_block(p, packed, begin, std::min(begin + kBlockRows, p.M), panels * cut / cuts,
                   panels * (cut + 1) / cuts);
  });
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
