#include "core/cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "core/cpu/parallel.h"
#include "core/cpu/simd.h"

namespace mutilde {

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// FLOP/s of one run on one thread. 12 independent chains hide a latency of up to 6 cycles at two
/// instructions a cycle.
double fma_run() {
  constexpr int kChains = 12;
  constexpr int64_t kSteps = 2'000'000;
  // Every chain starts elsewhere: the compiler may not compute one for all.
  simd::Vec<float> sums[kChains];
  for (int chain = 0; chain < kChains; ++chain) {
    sums[chain] = simd::broadcast(1.0F + static_cast<float>(chain));
  }
  const simd::Vec<float> factor = simd::broadcast(0.999F), term = simd::broadcast(0.001F);
  const double start = seconds_now();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& sum : sums) sum = simd::fma(sum, factor, term);
  }
  const double seconds = seconds_now() - start;
  simd::Vec<float> total = sums[0];
  for (int chain = 1; chain < kChains; ++chain) total += sums[chain];
  [[maybe_unused]] volatile float read =
      simd::horizontal_sum<float>(total);  // or the loop would be dropped
  return 2.0 * kChains * simd::kLanes<float> * kSteps / seconds;
}

}  // namespace

int kernel_threads() { return thread_count(); }

double peak_gflops([[maybe_unused]] int threads) {
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    double total = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : total)
#endif
    for (int i = 0; i < threads; ++i) total += fma_run();
    best = std::max(best, total);
  }
  return best * 1e-9;
}

double peak_bandwidth([[maybe_unused]] int threads) {
  constexpr int64_t kCount = 32 * 1024 * 1024;  // 128 MB an array
  std::vector<float> a(kCount), b(kCount, 1.0F), c(kCount, 2.0F);
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    const double start = seconds_now();
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads)
#endif
    for (int64_t i = 0; i < kCount; ++i) {
      a[static_cast<size_t>(i)] = b[static_cast<size_t>(i)] + 0.5F * c[static_cast<size_t>(i)];
    }
    best = std::max(best, 3.0 * kCount * sizeof(float) / (seconds_now() - start));
  }
  return best * 1e-9;
}

}  // namespace mutilde
