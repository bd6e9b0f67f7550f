#include <cstdlib>
#include <cstring>

#include "cuda/graph.h"
#include "cuda/launch.h"

namespace mutilde::cuda {
namespace {

// nvcc's option --default-stream per-thread makes this one the default: the other, that of all
// threads, cannot be collected from.
cudaStream_t default_stream() { return cudaStreamPerThread; }

/// Collects until it is told to end, or until something is thrown.
class Capture {
 public:
  Capture(CachingAllocator& memory, Staging& staging) : memory_(memory), staging_(staging) {
    // Relaxed: the allocator may still ask for memory.
    check(cudaStreamBeginCapture(default_stream(), cudaStreamCaptureModeRelaxed),
          "cudaStreamBeginCapture");
    memory_.hold();
    staging_.hold();
  }
  ~Capture() {
    if (graph_ == nullptr) cudaStreamEndCapture(default_stream(), &graph_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    staging_.let_go();
    memory_.let_go();
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    check(cudaStreamEndCapture(default_stream(), &graph_), "cudaStreamEndCapture");
    return graph_;
  }

 private:
  CachingAllocator& memory_;
  Staging& staging_;
  cudaGraph_t graph_ = nullptr;
};

}  // namespace

bool graphs_wanted() {
  const char* text = std::getenv("MUTILDE_CUDA_GRAPH");
  if (text == nullptr || std::strcmp(text, "1") != 0) return false;
#ifdef __CUDACC__
  return caches();  // or what is freed is gone before the work that uses it has been started
#else
  return true;  // what is collected has run
#endif
}

Graph::~Graph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
}

void Graph::run(const std::function<void()>& work) {
  if (!warm_) {
    work();
    warm_ = true;
    return;
  }
  Capture capture(memory_, staging_);
  work();
  start(capture.end());
}

void Graph::start(cudaGraph_t graph) {
  // A graph of the same shape needs its arguments alone.
  cudaGraphExecUpdateResultInfo info{};
  if (executable_ != nullptr && cudaGraphExecUpdate(executable_, graph, &info) != cudaSuccess) {
    cudaGetLastError();
    check(cudaGraphExecDestroy(executable_), "cudaGraphExecDestroy");
    executable_ = nullptr;
  }
  if (executable_ == nullptr)
    check(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
  check(cudaGraphLaunch(executable_, default_stream()), "cudaGraphLaunch");
}

}  // namespace mutilde::cuda
