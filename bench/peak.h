// The machine's peak: how many floating-point operations a second a loop of nothing but
// fused multiply-adds in registers reaches. Every other speed is reported as a share of
// it, measured in the same run.
#pragma once

#include <algorithm>
#include <chrono>

#include "core/cpu/parallel.h"
#include "core/cpu/simd.h"

namespace mutilde {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// FLOP/s of one run on one thread (a multiply-add counts as two). 12 independent chains hide a
/// latency of up to 6 cycles at two instructions a cycle.
template <class T>
double fma_run() {
  constexpr int kChains = 12;
  constexpr int64_t kSteps = 2'000'000;
  simd::Vec<T> sums[kChains];
  for (auto& sum : sums) sum = simd::broadcast(T(1));
  simd::Vec<T> factor = simd::broadcast(T(0.999)), term = simd::broadcast(T(0.001));
  const double start = seconds_now();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) {
      simd::Vec<T> sum = simd::fma(sums[chain], factor, term);
      // The compiler must not see that all chains hold the same numbers.
#if defined(__x86_64__)
      asm volatile("" : "+x"(sum));
#else
      asm volatile("" : "+w"(sum));
#endif
      sums[chain] = sum;
    }
  }
  return 2.0 * kChains * simd::kLanes<T> * kSteps / (seconds_now() - start);
}

/// The best of a few runs on so many threads at once, in GFLOP/s.
template <class T = float>
double peak_gflops(int threads = thread_count()) {
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    double total = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : total)
#endif
    for (int i = 0; i < threads; ++i) total += fma_run<T>();
    best = std::max(best, total);
  }
  return best * 1e-9;
}

}  // namespace mutilde
