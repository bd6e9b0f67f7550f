// Batches for training: shuffled, without end, prepared on a thread while the last one is used.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/tensor.h"
#include "data/dataset.h"

namespace mutilde {

struct Batch {
  Tensor x;  // [N, H, W, C], float32 in [-1, 1]
  Tensor y;  // [N], int64 classes
};

struct LoaderOptions {
  int64_t batch_size = 1;
  uint64_t seed = 0;
  bool random_flip = false;  // left to right, every other image or so
  int64_t start_step = 0;    // the step whose batch comes first
  int prefetch = 3;          // batches that are ready at most
};

/// Batch k holds positions k * N to (k + 1) * N - 1 of an endless sequence of epochs,
/// each in an order of its own. The order of an epoch and the flip at a position depend
/// on the seed and on nothing else, so a loader that starts at step k gives, bit for bit,
/// what another gives after k batches.
class BatchLoader {
 public:
  /// The dataset must outlive the loader. Throws Error for an empty
  /// dataset or options out of range.
  BatchLoader(const Dataset& dataset, const LoaderOptions& options);
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;
  ~BatchLoader();

  /// The next batch; waits for it if need be. Throws what went wrong on
  /// the thread, again each time.
  Batch next();

 private:
  void work(int64_t step);
  Batch make(int64_t step);
  int64_t index_at(int64_t position);

  const Dataset& dataset_;
  LoaderOptions options_;

  // Only the worker touches these while it runs.
  int64_t epoch_ = -1;
  std::vector<int64_t> order_;  // of epoch_

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr error_;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace mutilde
