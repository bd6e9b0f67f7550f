// Memory of a GPU, copies to and from it, and its stream.
#include "cuda/cuda_backend.h"
#include "cuda/launch.h"

namespace mutilde::cuda {
namespace {

void* allocate_on_gpu(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or the next launch would report it
    return nullptr;
  }
  check(error, "cudaMalloc");
  return data;
}

double in_mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

CudaBackend::CudaBackend(int index, Rung rung)
    : index_(index),
      rung_(rung),
      allocator_(
          allocate_on_gpu, [](void* data, size_t) { cudaFree(data); }, caches()) {
  if (graphs_wanted()) graph_.emplace(allocator_, staging_);
}

void* CudaBackend::allocate(size_t bytes) {
  try {
    return allocator_.allocate(bytes);
  } catch (const OutOfMemoryError&) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail<OutOfMemoryError>(
        "cuda:{} is out of memory: {:.1f} MiB asked, {:.1f} MiB free of {:.1f} MiB, {:.1f} MiB in "
        "tensors",
        index_, in_mib(bytes), in_mib(free), in_mib(total),
        in_mib(static_cast<size_t>(memory_stats().live_bytes)));
  }
}

void CudaBackend::release(void* data, size_t bytes) { allocator_.release(data, bytes); }
MemoryStats CudaBackend::memory_stats() const { return allocator_.stats(); }
void CudaBackend::reset_peak_memory() { allocator_.reset_peak(); }

void CudaBackend::copy(const void* from, void* to, size_t bytes) {
  if (bytes == 0 || from == to) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice), "cuda: copy on the device");
}
void CudaBackend::copy_from_host(const void* host, void* device, size_t bytes) {
  staging_.copy_to_device(host, device, bytes);
}
void CudaBackend::copy_to_host(const void* device, void* host, size_t bytes) {
  // It waits for all kernels before, so that a fault in one of them shows here.
  check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "cuda: copy from the device");
}
void CudaBackend::synchronize() { check(cudaDeviceSynchronize(), "cuda: waiting for the device"); }

std::function<void()> CudaBackend::start_copy_to_host(const void* device, void* host,
                                                      size_t bytes) {
  return staging_.copy_to_host(device, host, bytes);
}

void CudaBackend::launch_together(const std::function<void()>& work) {
  if (!graph_) return work();
  graph_->run(work);
}

}  // namespace mutilde::cuda
