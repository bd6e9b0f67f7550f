#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda/launch.h"
#include "cuda/staging.h"

namespace mutilde::cuda {
namespace {

// A batch of images and the tables of a step are a few MiB: two steps are on their way at most.
constexpr size_t kMostOnTheirWay = size_t{64} << 20;
constexpr size_t kPiece = size_t{16} << 20;  // of a larger copy

void* allocate_pinned(size_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes) == cudaSuccess) return data;
  cudaGetLastError();  // or the next launch would report it
  return nullptr;
}

}  // namespace

bool caches() {
#ifdef __CUDACC__
  const char* text = std::getenv("MUTILDE_CUDA_CACHE");
  return text == nullptr || std::strcmp(text, "0") != 0;
#else
  return false;
#endif
}

Staging::Staging()
    : pinned_(
          allocate_pinned, [](void* data, size_t) { cudaFreeHost(data); }, caches()) {}

Staging::~Staging() {
  for (const Block& block : on_their_way_) {
    cudaEventSynchronize(block.done);
    give_back(block);
  }
}

Staging::Block Staging::take(size_t bytes) {
  cudaEvent_t done = nullptr;
  check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  try {
    return {pinned_.allocate(bytes), bytes, true, done};
  } catch (const OutOfMemoryError&) {
    return {::operator new(bytes), bytes, false, done};
  }
}

void Staging::give_back(const Block& block) {
  cudaEventDestroy(block.done);
  if (block.pinned) {
    pinned_.release(block.data, block.bytes);
  } else {
    ::operator delete(block.data);
  }
}

void Staging::copy_to_device(const void* host, void* device, size_t bytes) {
  for (size_t begin = 0; begin < bytes; begin += kPiece) {
    const size_t piece = std::min(kPiece, bytes - begin);
    while (!on_their_way_.empty()) {
      const Block& oldest = on_their_way_.front();
      if (bytes_on_their_way_ + piece > kMostOnTheirWay) {
        check(cudaEventSynchronize(oldest.done), "cuda: copy to the device");
      } else if (cudaEventQuery(oldest.done) != cudaSuccess) {
        cudaGetLastError();  // "not ready" is none, but the next launch would report it
        break;
      }
      bytes_on_their_way_ -= oldest.bytes;
      give_back(oldest);
      on_their_way_.pop_front();
    }
    const Block block = take(piece);
    if (holds_) {
      held_.push_back(block);
    } else {
      on_their_way_.push_back(block);
    }
    bytes_on_their_way_ += piece;
    std::memcpy(block.data, static_cast<const char*>(host) + begin, piece);
    check(cudaMemcpyAsync(static_cast<char*>(device) + begin, block.data, piece,
                          cudaMemcpyHostToDevice),
          "cuda: copy to the device");
    if (!holds_) check(cudaEventRecord(block.done), "cudaEventRecord");
  }
}

void Staging::hold() { holds_ = true; }

void Staging::let_go() {
  holds_ = false;
  for (const Block& block : held_) {
    cudaEventRecord(block.done);
    on_their_way_.push_back(block);
  }
  held_.clear();
}

std::function<void()> Staging::copy_to_host(const void* device, void* host, size_t bytes) {
  if (holds_) fail<Error>("cuda: a copy to the host cannot be collected");
  // Given back whether or not anybody waited.
  const std::shared_ptr<const Block> block(new Block(take(bytes)), [this](const Block* done) {
    cudaEventSynchronize(done->done);
    give_back(*done);
    delete done;
  });
  check(cudaMemcpyAsync(block->data, device, bytes, cudaMemcpyDeviceToHost),
        "cuda: copy from the device");
  check(cudaEventRecord(block->done), "cudaEventRecord");
  return [block, host] {
    // A fault in a kernel before it shows here.
    check(cudaEventSynchronize(block->done), "cuda: copy from the device");
    std::memcpy(host, block->data, block->bytes);
  };
}

}  // namespace mutilde::cuda
