// Threads and dtype dispatch for the CPU kernels.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/dtype.h"

namespace mutilde {

/// Of a parallel loop that begins here; within one it is 1.
inline int thread_count() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Carries the first exception out of a parallel region: one that left the region by itself would
/// end the program. Costs nothing until something is thrown.
class FirstException {
 public:
  template <class F>
  void guard(const F& f) {
    try {
      f();
    } catch (...) {
      if (!caught_.test_and_set()) exception_ = std::current_exception();
    }
  }
  /// After the region.
  void rethrow() const {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::atomic_flag caught_ = ATOMIC_FLAG_INIT;
  std::exception_ptr exception_;
};

/// Elements that repay waking a thread, where each takes a few instructions.
inline constexpr int64_t kGrain = 16384;

/// Calls body(begin, end) for ranges that cover [0, n), on all threads. The ranges depend on the
/// number of threads: body may compute each index on its own only, never combine across indices.
/// Work of fewer than `grain` indices stays on one thread (starting a team costs about 5 us).
/// Throws the first exception of body, after all ranges are done.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
#ifdef _OPENMP
  const int threads = static_cast<int>(
      std::min<int64_t>(thread_count(), (n + grain - 1) / std::max<int64_t>(grain, 1)));
  if (threads > 1) {
    FirstException exception;
#pragma omp parallel num_threads(threads)
    exception.guard([&] {
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      const int64_t begin = n * id / team, end = n * (id + 1) / team;
      if (begin < end) body(begin, end);
    });
    exception.rethrow();
    return;
  }
#endif
  static_cast<void>(grain);
  body(0, n);
}

/// The same for tasks of unequal or large cost: body(index). A thread goes through a range of its own,
/// the one that parallel_for would give it, so that it mostly finds in its cache what it left there in
/// the kernel before (to read what another core wrote is two to four times slower); then it helps
/// the others. Throws the first exception of body, after all tasks are done.
template <class Body>
void parallel_tasks(int64_t n, const Body& body) {
#ifdef _OPENMP
  const int64_t threads = std::min<int64_t>(thread_count(), n);
  if (threads > 1) {
    struct alignas(64) Range {
      std::atomic<int64_t> next;
      int64_t end;
    };
    std::vector<Range> ranges(static_cast<size_t>(threads));
    for (int64_t id = 0; id < threads; ++id) {
      ranges[static_cast<size_t>(id)].next = n * id / threads;
      ranges[static_cast<size_t>(id)].end = n * (id + 1) / threads;
    }
    FirstException exception;
#pragma omp parallel num_threads(static_cast <int>(threads))
    for (int64_t i = 0; i < threads; ++i) {
      Range& range = ranges[static_cast<size_t>((omp_get_thread_num() + i) % threads)];
      for (int64_t task; (task = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) {
        exception.guard([&] { body(task); });
      }
    }
    exception.rethrow();
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
