#include "cuda/emulation/runtime_api.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "cuda/emulation/memory.h"
#include "cuda/emulation/options.h"

// NOLINTBEGIN(readability-identifier-naming): CUDA's names.

struct CUstream_st {};
struct CUgraph_st {};
struct CUgraphExec_st {};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace {

using mutilde::emulation::options;

thread_local cudaError_t last_error = cudaSuccess;
thread_local bool capturing = false;

cudaError_t result(cudaError_t error) {
  if (options().launches_until_lost == 0) error = cudaErrorIllegalAddress;
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t allocated(void** data, size_t bytes, size_t limit) {
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;  // as CUDA: a null pointer, and no error
  if (bytes > limit) return result(cudaErrorMemoryAllocation);
  const cudaError_t error = result(cudaSuccess);
  if (error != cudaSuccess) return error;
  *data = mutilde::emulation::allocate(bytes);
  return result(*data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t released(void* data) {
  mutilde::emulation::release(data);
  return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNotPermitted:
      return "operation not permitted";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return result(last_error); }

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return allocated(data, bytes, options().memory_bytes);
}
cudaError_t cudaFree(void* data) { return released(data); }
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return allocated(data, bytes, options().pinned_bytes);
}
cudaError_t cudaFreeHost(void* data) { return released(data); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = options().memory_bytes;
  return result(cudaSuccess);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes == 0) return cudaSuccess;
  const bool given = to != nullptr && from != nullptr;
  const cudaError_t error = result(given ? cudaSuccess : cudaErrorInvalidValue);
  if (error == cudaSuccess) std::memcpy(to, from, bytes);
  return error;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  const cudaError_t error = result(data != nullptr ? cudaSuccess : cudaErrorInvalidValue);
  if (error == cudaSuccess) std::memset(data, value, bytes);
  return error;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(data, value, bytes);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return result(cudaSuccess); }

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return result(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return result(cudaSuccess); }
cudaError_t cudaEventQuery(cudaEvent_t) { return result(cudaSuccess); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  const cudaError_t error = result(capturing ? cudaErrorInvalidValue : cudaSuccess);
  if (error == cudaSuccess) capturing = true;
  return error;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!std::exchange(capturing, false)) return result(cudaErrorInvalidValue);
  *graph = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t, unsigned) {
  *executable = new CUgraphExec_st;
  return cudaSuccess;
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t, cudaGraph_t, cudaGraphExecUpdateResultInfo*) {
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return result(cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = options().device_error == cudaSuccess ? 1 : 0;
  return result(options().device_error);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const int capability = options().hopper ? 90 : options().capability;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability % 10;
      break;
  }
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize() { return result(cudaSuccess); }

// NOLINTEND(readability-identifier-naming)
