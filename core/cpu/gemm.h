// Matrix products on the micro-kernel: B packed into panels, then C = A B + bias from them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cpu/microkernel.h"
#include "core/cpu/parallel.h"

namespace mutilde {

/// Kernels that can cut their work anywhere aim at this many tasks: enough to feed 16 threads, few
/// enough to cost nothing. A constant, because results must not depend on the number of threads.
inline constexpr int64_t kTasks = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// parallel_tasks, but on one thread where all tasks together are fewer than about 10 us of work.
template <class Body>
void parallel_tasks_over(int64_t n, int64_t multiply_adds, const Body& body) {
  if (multiply_adds < 200'000) {
    for (int64_t i = 0; i < n; ++i) body(i);
  } else {
    parallel_tasks(n, body);
  }
}

/// Elements that K x N takes when packed: panels of kTileColumns columns, each [K][kTileColumns].
/// The panel of column j begins at element j * K; the last one is narrower where one vector covers
/// it. Columns that do not exist are zero.
template <class T>
int64_t packed_size(int64_t K, int64_t N) {
  return K * ceil_div(N, kTileColumns<T>) * kTileColumns<T>;
}

/// Packs rows 0 to K and up to one panel's width of columns, from `column` on, of the matrix whose
/// element (k, n) is b[k * k_stride + n * n_stride], as [K][panel_width(N - column)].
template <class T>
void pack_panel(const T* b, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N,
                int64_t column, T* panel) {
  const int64_t width = panel_width<T>(N - column), columns = std::min(width, N - column);
  b += column * n_stride;
  if (n_stride == 1 && columns == width) {
    for (int64_t k = 0; k < K; ++k, panel += width) {
      for (int64_t v = 0; v < width; v += simd::kLanes<T>) {
        simd::store(panel + v, simd::load(b + k * k_stride + v));
      }
    }
    return;
  }
  for (int64_t k = 0; k < K; ++k, panel += width) {
    for (int64_t n = 0; n < columns; ++n) panel[n] = b[k * k_stride + n * n_stride];
    for (int64_t n = columns; n < width; ++n) panel[n] = T(0);
  }
}

/// C = A B + bias, C: M x N. The element (m, k) of A is a[m * a_row + k * a_step], one of the two
/// being 1; the element (k, n) of B is b[k * b_row + n * b_step].
template <class T>
struct Product {
  int64_t M, N, K;
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_row, b_step;
  const T* bias;  // N elements, or null
  T* c;
  int64_t c_row;
};

/// All of it, on all threads (on this one within a parallel loop).
template <class T>
void multiply(const Product<T>& product);

/// Packs all of B on this thread.
template <class T>
void pack_b(const Product<T>& product, T* packed);

/// Rows [begin, end) and panels [panel_begin, panel_end) on this thread, B packed. If `accumulate`,
/// adds to what C holds.
template <class T>
void multiply_block(const Product<T>& product, const T* packed, int64_t begin, int64_t end,
                    int64_t panel_begin, int64_t panel_end, bool accumulate = false);

}  // namespace mutilde
