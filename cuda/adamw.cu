// What is done to all parameters at once: AdamW (Loshchilov & Hutter 2019), with the order of
// operations of PyTorch's, with all moving averages; and the sum of the squares of their gradients.
//
// A network has hundreds of parameters, most of them small: a launch for each would take longer than
// the work. So one launch takes all of them, cut into chunks, a block a chunk. Tables in the
// device's memory say where each parameter lies and which chunk is whose.
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "core/adamw_coefficients.h"
#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

constexpr int kChunk = 16 * kBlockThreads;  // elements

/// A block's work: elements [begin, begin + kChunk) of a tensor, or as many as it has.
struct Chunk {
  int64_t begin;
  int64_t tensor;
};

void append_chunks(std::vector<Chunk>& chunks, int64_t tensor, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kChunk) chunks.push_back({begin, tensor});
}

/// Arrays for a kernel, which go to the device in one copy. It does not wait for the GPU.
class Tables {
 public:
  explicit Tables(Backend& backend) : backend_(backend) {}

  /// Returns what at() wants.
  template <class T>
  size_t add(const std::vector<T>& values) {
    static_assert(sizeof(T) % 8 == 0);  // so that the next is aligned
    const size_t place = host_.size(), bytes = values.size() * sizeof(T);
    host_.resize(place + bytes);
    if (bytes > 0) std::memcpy(host_.data() + place, values.data(), bytes);
    return place;
  }
  void upload() {
    device_.emplace(backend_, static_cast<int64_t>(host_.size()));
    backend_.copy_from_host(host_.data(), device_->data(), host_.size());
  }
  template <class T>
  const T* at(size_t place) const {
    return reinterpret_cast<const T*>(device_->data() + place);
  }

 private:
  Backend& backend_;
  std::vector<unsigned char> host_;
  std::optional<Buffer<unsigned char>> device_;
};

template <class T>
struct Parameter {
  T *param, *m, *v;
  const T* grad;     // null: none, only the averages move
  void* short_copy;  // or null
  int64_t numel;
  int64_t is_float16;  // the copy, else bfloat16
};

/// Element i of the copy. Which type it has is the same for a whole block.
template <class T>
__device__ void store_short(const Parameter<T>& p, int64_t i, float value) {
  if (p.is_float16 != 0) {
    static_cast<__half*>(p.short_copy)[i] = stored<__half>(value);
  } else {
    static_cast<__nv_bfloat16*>(p.short_copy)[i] = stored<__nv_bfloat16>(value);
  }
}

/// The tables, and their like for the averages: ema[i * averages + e] is parameter i's average at the
/// rate 1 - rest[e].
template <class T>
struct AllParameters {
  const Parameter<T>* parameters;
  T* const* ema;
  const double* rest;
  const Chunk* chunks;
  int averages;
};

// Elements of a thread at once: it has asked for all of them before it waits for the first.
constexpr int kAtOnce = 4;

/// Calls f(j, i) for a thread's next elements i, j counting them. Neighbouring threads have
/// neighbouring ones, so that a warp's accesses are whole lines.
template <class F>
__device__ void for_elements(int64_t first, int64_t end, const F& f) {
  for (int j = 0; j < kAtOnce; ++j) {
    const int64_t i = first + j * kBlockThreads;
    if (i < end) f(j, i);
  }
}

/// Each array is read and written once.
template <class T>
__global__ void adamw_step(const __grid_constant__ AllParameters<T> all,
                           const __grid_constant__ AdamWCoefficients<T> k,
                           const double* only_if_finite) {
  if (only_if_finite != nullptr && !isfinite(*only_if_finite)) return;
  const Chunk chunk = all.chunks[blockIdx.x];
  const Parameter<T> p = all.parameters[chunk.tensor];
  T* const* ema = all.ema + chunk.tensor * all.averages;
  const int64_t end = min(chunk.begin + kChunk, p.numel);
  for (int64_t first = chunk.begin + threadIdx.x; first < end; first += kAtOnce * kBlockThreads) {
    T param[kAtOnce]{}, m[kAtOnce]{}, v[kAtOnce]{}, grad[kAtOnce]{};
    for_elements(first, end, [&](int j, int64_t i) { param[j] = p.param[i]; });
    if (p.grad != nullptr) {
      for_elements(first, end, [&](int j, int64_t i) {
        m[j] = p.m[i];
        v[j] = p.v[i];
        grad[j] = p.grad[i];
      });
      for_elements(first, end, [&](int j, int64_t i) {
        const T g = k.grad_scale * grad[j];
        m[j] = k.beta1 * m[j] + k.one_minus_beta1 * g;
        v[j] = k.beta2 * v[j] + k.one_minus_beta2 * g * g;
        const T denominator = std::sqrt(v[j]) / k.root_scale + k.adam_eps;
        param[j] = param[j] * k.decay - k.step_size * (m[j] / denominator);
        p.m[i] = m[j];
        p.v[i] = v[j];
        p.param[i] = param[j];
        if (p.short_copy != nullptr) store_short(p, i, static_cast<float>(param[j]));
      });
    }
    for (int e = 0; e < all.averages; ++e) {
      T* average = ema[e];
      const T rest = static_cast<T>(all.rest[e]);
      T before[kAtOnce]{};
      for_elements(first, end, [&](int j, int64_t i) { before[j] = average[i]; });
      for_elements(first, end, [&](int j, int64_t i) {
        average[i] = before[j] + rest * (param[j] - before[j]);
      });
    }
  }
}

template <class T>
struct Elements {
  const T* x;
  int64_t numel;
};

/// sums[b]: of block b's chunk.
template <class T>
__global__ void sum_squares(const Elements<T>* tensors, const Chunk* chunks, double* sums) {
  const Chunk chunk = chunks[blockIdx.x];
  const Elements<T> tensor = tensors[chunk.tensor];
  const int64_t end = min(chunk.begin + kChunk, tensor.numel);
  double sum = 0;
  for (int64_t first = chunk.begin + threadIdx.x; first < end; first += kAtOnce * kBlockThreads) {
    T x[kAtOnce]{};
    for_elements(first, end, [&](int j, int64_t i) { x[j] = tensor.x[i]; });
    for (const T value : x) sum += static_cast<double>(value) * static_cast<double>(value);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// One block: n may be 0.
__global__ void add_up(const double* sums, int64_t n, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kBlockThreads) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

template <class T>
void launch_adamw(Backend& backend, std::span<const AdamWBuffers> all, const AdamWStep& step,
                  std::span<const double> ema_rates) {
  std::vector<Parameter<T>> parameters;
  std::vector<T*> ema;
  std::vector<double> rest;
  std::vector<Chunk> chunks;
  for (const AdamWBuffers& buffers : all) {
    append_chunks(chunks, static_cast<int64_t>(parameters.size()), buffers.param.numel());
    parameters.push_back({buffers.param.as<T>(), buffers.first_moment.as<T>(),
                          buffers.second_moment.as<T>(), buffers.grad.as<T>(),
                          buffers.short_copy.data, buffers.param.numel(),
                          buffers.short_copy.dtype == DType::kFloat16});
    for (const View& average : buffers.ema) ema.push_back(average.as<T>());
  }
  for (const double rate : ema_rates) rest.push_back(1 - rate);
  if (chunks.empty()) return;
  Tables tables(backend);
  const size_t parameters_at = tables.add(parameters), ema_at = tables.add(ema),
               rest_at = tables.add(rest), chunks_at = tables.add(chunks);
  tables.upload();
  launch<adamw_step<T>>(
      {.grid = static_cast<unsigned>(chunks.size()), .block = kBlockThreads},
      AllParameters<T>{tables.at<Parameter<T>>(parameters_at), tables.at<T*>(ema_at),
                       tables.at<double>(rest_at), tables.at<Chunk>(chunks_at),
                       static_cast<int>(rest.size())},
      AdamWCoefficients<T>(step), step.only_if_finite.as<double>());
}

template <class T>
void launch_sum_of_squares(Backend& backend, std::span<const ConstView> all, double* out) {
  std::vector<Elements<T>> tensors;
  std::vector<Chunk> chunks;
  for (const ConstView& x : all) {
    append_chunks(chunks, static_cast<int64_t>(tensors.size()), x.numel());
    tensors.push_back({x.as<T>(), x.numel()});
  }
  const auto blocks = static_cast<int64_t>(chunks.size());
  const Buffer<double> sums(backend, blocks);
  if (blocks > 0) {
    Tables tables(backend);
    const size_t tensors_at = tables.add(tensors), chunks_at = tables.add(chunks);
    tables.upload();
    launch<sum_squares<T>>({.grid = static_cast<unsigned>(blocks), .block = kBlockThreads},
                           tables.at<Elements<T>>(tensors_at), tables.at<Chunk>(chunks_at),
                           sums.data());
  }
  launch<add_up>({.grid = 1, .block = kBlockThreads}, static_cast<const double*>(sums.data()),
                 blocks, out);
}

}  // namespace

void CudaBackend::sum_of_squares(std::span<const ConstView> tensors, View out) {
  for_float(tensors.empty() ? DType::kFloat32 : tensors.front().dtype, [&](auto zero) {
    launch_sum_of_squares<decltype(zero)>(*this, tensors, out.as<double>());
  });
}

void CudaBackend::adamw(std::span<const AdamWBuffers> parameters, const AdamWStep& step,
                        std::span<const double> ema_rates) {
  if (parameters.empty()) return;
  for_float(parameters.front().param.dtype,
            [&](auto zero) { launch_adamw<decltype(zero)>(*this, parameters, step, ema_rates); });
}

}  // namespace mutilde::cuda
