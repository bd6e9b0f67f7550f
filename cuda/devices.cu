#include <memory>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "cuda/launch.h"

namespace mutilde {
namespace {

std::string why_none(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
    case cudaErrorNoDevice:
      return "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it";
    case cudaErrorInsufficientDriver:
      return "there is no NVIDIA driver, or one that is too old for this CUDA (see nvidia-smi)";
    default:
      return fmt::format("CUDA finds no GPU: {}", cudaGetErrorString(error));
  }
}

constexpr int kLeastCapability = 80;  // 8.0: the kernels are compiled for it and for later ones

/// 90 for 9.0.
int capability_of(int index) {
  int major = 0, minor = 0;
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index),
              "cudaDeviceGetAttribute");
  cuda::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index),
              "cudaDeviceGetAttribute");
  return 10 * major + minor;
}

/// The GPUs before the first one that is too old: CUDA counts from the fastest.
CudaDevices find() {
  CudaDevices found;
  int all = 0;
  const cudaError_t error = cudaGetDeviceCount(&all);
  if (error != cudaSuccess) {
    cudaGetLastError();
    all = 0;
  }
  while (found.count < all && capability_of(found.count) >= kLeastCapability) ++found.count;
  if (found.count > 0) return found;
  if (all == 0) {
    found.why_none = why_none(error);
  } else {
    found.why_none = fmt::format(
        "the GPU has compute capability {:.1f}, and the kernels want {:.1f} at least "
        "(CUDA_VISIBLE_DEVICES chooses another one)",
        capability_of(0) / 10.0, kLeastCapability / 10.0);
  }
  return found;
}

Backend& cuda_backend(int index) {
  // One a GPU, never destroyed: static tensors may outlive main.
  static const auto& backends = *[] {
    auto* made = new std::vector<std::unique_ptr<cuda::CudaBackend>>;
    for (int i = 0; i < find().count; ++i) made->push_back(std::make_unique<cuda::CudaBackend>(i));
    return made;
  }();
  const auto count = static_cast<int>(backends.size());
  if (count == 0) fail<Error>("device cuda:{}: {}", index, find().why_none);
  if (index < 0 || index >= count) {
    fail<Error>("device cuda:{}: there {}", index,
                count == 1 ? std::string("is one GPU, cuda:0")
                           : fmt::format("are {} GPUs, cuda:0 to cuda:{}", count, count - 1));
  }
  // Every kernel is asked for through here, so this is the place that chooses its GPU.
  thread_local int current = 0;
  if (current != index) {
    cuda::check(cudaSetDevice(index), "cudaSetDevice");
    current = index;
  }
  return *backends[static_cast<size_t>(index)];
}

}  // namespace

CudaDevices use_cuda() {
  register_backend(DeviceType::kCuda, cuda_backend);
  return find();
}

}  // namespace mutilde
