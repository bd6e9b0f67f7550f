// AdamW (Loshchilov & Hutter 2019), with the order of operations of PyTorch's.
#include <cmath>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

/// The constants of a step, rounded once from float64.
template <class T>
struct Coefficients {
  T beta1, one_minus_beta1, beta2, one_minus_beta2;
  T decay;       // 1 - lr * weight_decay
  T step_size;   // lr / (1 - beta1^t)
  T root_scale;  // sqrt(1 - beta2^t)
  T adam_eps;

  explicit Coefficients(const AdamWStep& s)
      : beta1(static_cast<T>(s.beta1)),
        one_minus_beta1(static_cast<T>(1 - s.beta1)),
        beta2(static_cast<T>(s.beta2)),
        one_minus_beta2(static_cast<T>(1 - s.beta2)),
        decay(static_cast<T>(1 - s.lr * s.weight_decay)),
        step_size(static_cast<T>(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))),
        root_scale(static_cast<T>(std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        adam_eps(static_cast<T>(s.adam_eps)) {}
};

template <class T>
void update(const Coefficients<T>& k, const T* __restrict grad, T* __restrict param,
            T* __restrict m, T* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = grad[i];
    m[i] = k.beta1 * m[i] + k.one_minus_beta1 * g;
    v[i] = k.beta2 * v[i] + k.one_minus_beta2 * g * g;
    const T denominator = std::sqrt(v[i]) / k.root_scale + k.adam_eps;
    param[i] = param[i] * k.decay - k.step_size * (m[i] / denominator);
  }
}

}  // namespace

void CpuBackend::adamw(const AdamWBuffers& buffers, const AdamWStep& step,
                       std::span<const double> ema_rates) {
  // A chunk stays in the first-level cache while its averages are taken.
  constexpr int64_t kChunk = 1024;
  const int64_t n = buffers.param.numel();
  for_float(buffers.param.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Coefficients<T> coefficients(step);
    parallel_for((n + kChunk - 1) / kChunk, 8, [&](int64_t first, int64_t last) {
      for (int64_t begin = first * kChunk; begin < std::min(last * kChunk, n); begin += kChunk) {
        const int64_t count = std::min(kChunk, n - begin);
        T* param = buffers.param.as<T>() + begin;
        if (buffers.grad) {
          update(coefficients, buffers.grad.as<T>() + begin, param,
                 buffers.first_moment.as<T>() + begin, buffers.second_moment.as<T>() + begin,
                 count);
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
  });
}

}  // namespace mutilde
