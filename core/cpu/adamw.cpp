// AdamW (Loshchilov & Hutter 2019), with the order of operations of PyTorch's.
#include <array>
#include <cmath>
#include <vector>

#include "core/adamw_coefficients.h"
#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

template <class T>
void update(const AdamWCoefficients<T>& k, const T* __restrict grad, T* __restrict param,
            T* __restrict m, T* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = k.grad_scale * grad[i];
    m[i] = k.beta1 * m[i] + k.one_minus_beta1 * g;
    v[i] = k.beta2 * v[i] + k.one_minus_beta2 * g * g;
    const T denominator = std::sqrt(v[i]) / k.root_scale + k.adam_eps;
    param[i] = param[i] * k.decay - k.step_size * (m[i] / denominator);
  }
}

/// In lanes, each a sum of its own, so that it can be computed in vectors.
template <class T>
double squares(const T* x, int64_t n) {
  constexpr int64_t kLanes = 32;
  std::array<double, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const auto value = static_cast<double>(x[i + j]);
      lanes[j] += value * value;
    }
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

/// One parameter.
template <class T>
void update(const AdamWCoefficients<T>& coefficients, const AdamWBuffers& buffers,
            std::span<const double> ema_rates) {
  // A chunk stays in the first-level cache while its averages are taken.
  constexpr int64_t kChunk = 1024;
  const int64_t n = buffers.param.numel();
  parallel_for((n + kChunk - 1) / kChunk, 8, [&](int64_t first, int64_t last) {
    for (int64_t begin = first * kChunk; begin < std::min(last * kChunk, n); begin += kChunk) {
      const int64_t count = std::min(kChunk, n - begin);
      T* param = buffers.param.as<T>() + begin;
      if (buffers.grad) {
        update(coefficients, buffers.grad.as<T>() + begin, param,
               buffers.first_moment.as<T>() + begin, buffers.second_moment.as<T>() + begin, count);
      }
      for (size_t e = 0; e < buffers.ema.size(); ++e) {
        // Not rate * ema + (1 - rate) * param: rounded to float the two factors do not sum to 1,
        // and what is missing shrinks the average by (missing / (1 - rate)), 1.6e-4 at 0.9999.
        const T rest = static_cast<T>(1 - ema_rates[e]);
        T* ema = buffers.ema[e].as<T>() + begin;
        for (int64_t i = 0; i < count; ++i) ema[i] += rest * (param[i] - ema[i]);
      }
    }
  });
}

}  // namespace

// In chunks, whose sums are added in their order: the result does not depend on the threads.
void CpuBackend::sum_of_squares(std::span<const ConstView> tensors, View out) {
  constexpr int64_t kChunk = 8192;
  double total = 0;
  for (const ConstView& x : tensors) {
    for_float(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t n = x.numel();
      std::vector<double> sums(static_cast<size_t>((n + kChunk - 1) / kChunk));
      parallel_for(static_cast<int64_t>(sums.size()), 4, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk) {
          const int64_t begin = chunk * kChunk;
          sums[static_cast<size_t>(chunk)] =
              squares(x.as<T>() + begin, std::min(kChunk, n - begin));
        }
      });
      for (const double sum : sums) total += sum;
    });
  }
  *out.as<double>() = total;
}

void CpuBackend::adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
                       std::span<const double> ema_rates) {
  if (step.only_if_finite && !std::isfinite(*step.only_if_finite.as<double>())) return;
  for (const AdamWBuffers& buffers : parameters) {
    for_float(buffers.param.dtype, [&](auto zero) {
      update(AdamWCoefficients<decltype(zero)>(step), buffers, ema_rates);
    });
    if (buffers.short_copy) cast(buffers.param, buffers.short_copy);
  }
}

}  // namespace mutilde
