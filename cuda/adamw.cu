// AdamW (Loshchilov & Hutter 2019), with the order of operations of PyTorch's, and all moving
// averages. A thread a number of the parameter: each array is read and written once.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

constexpr size_t kAverages = 4;  // of one launch

template <class T>
struct Averages {
  T* ema[kAverages];
  T rest[kAverages];  // 1 - rate
  int count;

  __device__ void update(int64_t i, T param) const {
    for (int e = 0; e < count; ++e) ema[e][i] += rest[e] * (param - ema[e][i]);
  }
};

/// The constants of a step are rounded once from float64.
template <class T>
struct Update {
  T beta1, one_minus_beta1, beta2, one_minus_beta2;
  T decay;       // 1 - lr * weight_decay
  T step_size;   // lr / (1 - beta1^t)
  T root_scale;  // sqrt(1 - beta2^t)
  T adam_eps;
  const T* grad;
  T *param, *m, *v;
  Averages<T> averages;

  __device__ void operator()(int64_t i) const {
    const T g = grad[i];
    m[i] = beta1 * m[i] + one_minus_beta1 * g;
    v[i] = beta2 * v[i] + one_minus_beta2 * g * g;
    const T denominator = std::sqrt(v[i]) / root_scale + adam_eps;
    param[i] = param[i] * decay - step_size * (m[i] / denominator);
    averages.update(i, param[i]);
  }
};

/// A parameter without a gradient, and averages that did not fit into the launch above.
template <class T>
struct UpdateAverages {
  const T* param;
  Averages<T> averages;
  __device__ void operator()(int64_t i) const { averages.update(i, param[i]); }
};

template <class T>
Averages<T> averages_from(size_t first, const AdamWBuffers& buffers,
                          std::span<const double> rates) {
  Averages<T> averages{};
  for (size_t e = first; e < std::min(rates.size(), first + kAverages); ++e) {
    averages.ema[averages.count] = buffers.ema[e].as<T>();
    averages.rest[averages.count++] = static_cast<T>(1 - rates[e]);
  }
  return averages;
}

}  // namespace

void CudaBackend::adamw(const AdamWBuffers& buffers, const AdamWStep& step,
                        std::span<const double> ema_rates) {
  const int64_t n = buffers.param.numel();
  const auto t = static_cast<double>(step.step);
  for_float(buffers.param.dtype, [&](auto zero) {
    using T = decltype(zero);
    size_t first = 0;
    if (buffers.grad) {
      launch_for_each(
          n, Update<T>{static_cast<T>(step.beta1), static_cast<T>(1 - step.beta1),
                       static_cast<T>(step.beta2), static_cast<T>(1 - step.beta2),
                       static_cast<T>(1 - step.lr * step.weight_decay),
                       static_cast<T>(step.lr / (1 - std::pow(step.beta1, t))),
                       static_cast<T>(std::sqrt(1 - std::pow(step.beta2, t))),
                       static_cast<T>(step.adam_eps), buffers.grad.as<T>(), buffers.param.as<T>(),
                       buffers.first_moment.as<T>(), buffers.second_moment.as<T>(),
                       averages_from<T>(0, buffers, ema_rates)});
      first = kAverages;
    }
    for (; first < ema_rates.size(); first += kAverages) {
      launch_for_each(
          n, UpdateAverages<T>{buffers.param.as<T>(), averages_from<T>(first, buffers, ema_rates)});
    }
  });
}

}  // namespace mutilde::cuda
