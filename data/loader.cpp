#include "data/loader.h"

#include <algorithm>
#include <utility>

#include "core/random.h"
#include "data/image_io.h"
#include "data/threads.h"

namespace mutilde {
namespace {

// Streams of random numbers, away from those that training draws from under the same seed.
constexpr uint64_t kOrderStream = uint64_t{0xD0} << 56;  // + the epoch
constexpr uint64_t kFlipStream = uint64_t{0xD1} << 56;

bool is_flipped(uint64_t seed, int64_t position) {
  return (random_block(seed, kFlipStream, static_cast<uint64_t>(position))[0] & 1) != 0;
}

/// One image, each row from right to left.
void flip(std::vector<uint8_t>& pixels, int64_t side, int64_t channels) {
  for (int64_t row = 0; row < side; ++row) {
    uint8_t* const left = pixels.data() + row * side * channels;
    for (int64_t i = 0; i < side / 2; ++i) {
      std::swap_ranges(left + i * channels, left + (i + 1) * channels,
                       left + (side - 1 - i) * channels);
    }
  }
}

}  // namespace

BatchLoader::BatchLoader(const Dataset& dataset, const LoaderOptions& options)
    : dataset_(dataset), options_(options) {
  if (dataset.size() == 0) fail<Error>("loader: the dataset is empty");
  if (options.batch_size < 1 || options.prefetch < 1 || options.start_step < 0) {
    fail<Error>(
        "loader: batches of {}, {} of them ahead, from step {}: at least 1, 1 and 0 expected",
        options.batch_size, options.prefetch, options.start_step);
  }
  worker_ = std::thread([this] { work(options_.start_step); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

Batch BatchLoader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty() || error_ != nullptr; });
  if (ready_.empty()) std::rethrow_exception(error_);
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return batch;
}

void BatchLoader::work(int64_t step) {
  try {
    while (true) {
      Batch batch = make(step++);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] {
        return stopping_ || static_cast<int>(ready_.size()) < options_.prefetch;
      });
      if (stopping_) return;
      ready_.push_back(std::move(batch));
      lock.unlock();
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  changed_.notify_all();
}

int64_t BatchLoader::index_at(int64_t position) {
  const int64_t epoch = position / dataset_.size();
  if (epoch != epoch_) {
    Generator generator(options_.seed, kOrderStream + static_cast<uint64_t>(epoch));
    order_ = generator.permutation(dataset_.size()).to_vector<int64_t>();
    epoch_ = epoch;
  }
  return order_[static_cast<size_t>(position % dataset_.size())];
}

Batch BatchLoader::make(int64_t step) {
  const int64_t N = options_.batch_size;
  const int64_t side = dataset_.image_size();
  const int64_t C = dataset_.channels();
  Batch batch{Tensor::empty({N, side, side, C}), Tensor::empty({N}, DType::kInt64)};
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < N; ++i) indices.push_back(index_at(step * N + i));
  float* x = batch.x.data<float>();
  int64_t* y = batch.y.data<int64_t>();
  const auto load = [&](int64_t i) {
    const int64_t index = indices[static_cast<size_t>(i)];
    std::vector<uint8_t> pixels(dataset_.image_bytes());
    dataset_.get(index, pixels);
    if (options_.random_flip && is_flipped(options_.seed, step * N + i)) flip(pixels, side, C);
    from_uint8(pixels, x + i * side * side * C);
    y[i] = dataset_.label(index);
  };
  // Copying is not worth more than this thread; decoding files is.
  run_on_threads(N, load, dataset_.is_fast() ? 1 : 0);
  return batch;
}

}  // namespace mutilde
