#include <cstring>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {

namespace {}

void CpuBackend::embedding(ConstView weight, ConstView index, View out) {
  const int64_t n = index.numel(), E = weight.shape[1];
  const size_t row_bytes = static_cast<size_t>(E) * size_of(weight.dtype);
  if (row_bytes == 0) return;
  parallel_for(n, kGrain / E + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.as<char>() + static_cast<size_t>(i) * row_bytes,
                  weight.as<char>() + static_cast<size_t>(index.as<int64_t>()[i]) * row_bytes,
                  row_bytes);
    }
  });
}

// An index may occur many times. Threads share the columns and not the indices, so that each sum
// runs in the order of the indices.
void CpuBackend::embedding_backward(ConstView dout, ConstView index, View dweight) {
  const int64_t n = index.numel(), V = dweight.shape[0], E = dweight.shape[1];
  for_float(dout.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(E, kGrain / (n + V + 1) + 16, [&](int64_t begin, int64_t end) {
      for (int64_t v = 0; v < V; ++v) {
        std::fill(dweight.as<T>() + v * E + begin, dweight.as<T>() + v * E + end, T{0});
      }
      for (int64_t i = 0; i < n; ++i) {
        const T* from = dout.as<T>() + i * E;
        T* to = dweight.as<T>() + index.as<int64_t>()[i] * E;
        for (int64_t e = begin; e < end; ++e) to[e] += from[e];
      }
    });
  });
}

}  // namespace mutilde
