// Matrix products: dense layers, and batches of products with either side transposed.
#include <cstdint>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"

namespace mutilde {

void CpuBackend::matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) {
  const int64_t batch = out.shape[0], M = out.shape[1], N = out.shape[2];
  const int64_t K = a.shape[transpose_a ? 1 : 2];
  const int64_t a_batch = a.shape[0] == 1 ? 0 : M * K, b_batch = b.shape[0] == 1 ? 0 : K * N;
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Product<T> one{M,
                         N,
                         K,
                         a.as<T>(),
                         transpose_a ? 1 : K,
                         transpose_a ? M : 1,
                         b.as<T>(),
                         transpose_b ? 1 : N,
                         transpose_b ? K : 1,
                         nullptr,
                         out.as<T>(),
                         N};
    if (b_batch == 0 && !transpose_a && a_batch != 0) {  // one tall product
      Product<T> tall = one;
      tall.M = batch * M;
      return multiply(tall);
    }
    const auto product = [&](int64_t i) {
      Product<T> p = one;
      p.a += i * a_batch;
      p.b += i * b_batch;
      p.c += i * M * N;
      multiply(p);
    };
    // Enough products: one a task. Few large ones: each on all threads.
    if (batch >= kTasks || M * N * K < 1'000'000) {
      parallel_tasks_over(batch, batch * M * N * K, product);
    } else {
      for (int64_t i = 0; i < batch; ++i) product(i);
    }
  });
}

void CpuBackend::linear(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                        View out) {
  const int64_t M = x.shape[0], K = x.shape[1], N = weight.shape[0];
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    multiply<T>({M, N, K, x.as<T>(), K, 1, weight.as<T>(), 1, K, bias.as<T>(), out.as<T>(), N});
  });
  if (residual) accumulate(residual, out);
}

}  // namespace mutilde
