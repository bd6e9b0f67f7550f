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

CudaDevices find() {
  CudaDevices found;
  const cudaError_t error = cudaGetDeviceCount(&found.count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    found.count = 0;
  }
  if (found.count == 0) found.why_none = why_none(error);
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
