// Threads and dtype dispatch for the CPU kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/dtype.h"

namespace mutilde {

inline int thread_count() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

/// Calls body(begin, end) for ranges that cover [0, n), on all threads. The ranges depend on the
/// number of threads: body may compute each index on its own only, never combine across indices.
/// Work of fewer than `grain` indices stays on one thread (starting a team costs about 5 us).
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
#ifdef _OPENMP
  const int64_t threads =
      std::min<int64_t>(thread_count(), (n + grain - 1) / std::max<int64_t>(grain, 1));
  if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      const int64_t begin = n * id / team, end = n * (id + 1) / team;
      if (begin < end) body(begin, end);
    }
    return;
  }
#endif
  static_cast<void>(grain);
  body(0, n);
}

/// The same for tasks of unequal or large cost: body(index), handed out one at a time.
template <class Body>
void parallel_tasks(int64_t n, const Body& body) {
#ifdef _OPENMP
  if (n > 1 && thread_count() > 1 && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

/// Calls f(T{}) with the element type of a floating dtype: `for_float(x.dtype, [&](auto zero)
/// {...})`.
template <class F>
void for_float(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kFloat64) return f(double{});
  fail<DTypeError>("cpu kernel: float32 or float64 expected, {} given", name_of(dtype));
}

}  // namespace mutilde
