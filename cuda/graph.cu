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
  explicit Capture(Staging& staging) : staging_(staging) {
    // Relaxed: the allocator may still ask for memory.
    check(cudaStreamBeginCapture(default_stream(), cudaStreamCaptureModeRelaxed),
          "cudaStreamBeginCapture");
    staging_.hold();
  }
  ~Capture() {
    if (graph_ == nullptr) cudaStreamEndCapture(default_stream(), &graph_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    staging_.let_go();
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    check(cudaStreamEndCapture(default_stream(), &graph_), "cudaStreamEndCapture");
    return graph_;
  }

 private:
  Staging& staging_;
  cudaGraph_t graph_ = nullptr;
};

}  // namespace

bool graphs_wanted() {
  const char* text = std::getenv("MUTILDE_CUDA_GRAPH");
  return text != nullptr && std::strcmp(text, "1") == 0;
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
  Capture capture(staging_);
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
