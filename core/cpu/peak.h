// What this processor can do at most, measured; every other speed is a share of it, from the same
// run.
#pragma once

namespace mutilde {

/// How many threads the CPU kernels run on.
int kernel_threads();

/// GFLOP/s of a loop of nothing but float32 multiply-adds in registers (each counts as two), on so
/// many threads at once. The best of a few runs.
double peak_gflops(int threads);

/// GB/s of a[i] = b[i] + s * c[i] over arrays that no cache holds, on so many threads: the bytes of
/// a, b and c, once each. The best of a few runs.
double peak_bandwidth(int threads);

}  // namespace mutilde
