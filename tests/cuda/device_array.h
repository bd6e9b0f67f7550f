// An array on the device, for tests.
#pragma once

#include <vector>

#include "cuda/launch.h"

namespace mutilde::cuda {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    check(cudaMalloc(&data_, size * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    check(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  /// Waits for the kernels before.
  std::vector<T> to_host() const {
    std::vector<T> host(size_);
    check(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

/// n numbers in [-1, 1) without a pattern, the same every time.
template <class T>
std::vector<T> numbers(size_t n, uint32_t seed = 1) {
  std::vector<T> values(n);
  uint32_t state = seed * 2654435761U + 12345;
  for (T& value : values) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<float>(static_cast<double>(state >> 8) / (1 << 23) - 1);
  }
  return values;
}

}  // namespace mutilde::cuda
