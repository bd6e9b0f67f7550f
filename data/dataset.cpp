#include "data/dataset.h"

#include <algorithm>
#include <mutex>

#include "data/codec.h"
#include "data/threads.h"

namespace mutilde {

namespace fs = std::filesystem;

Dataset::Dataset(int image_size, int channels, std::vector<int64_t> labels,
                 std::vector<std::string> class_names)
    : image_size_(image_size),
      channels_(channels),
      labels_(std::move(labels)),
      class_names_(std::move(class_names)) {}

size_t Dataset::image_bytes() const {
  return static_cast<size_t>(image_size_) * static_cast<size_t>(image_size_) *
         static_cast<size_t>(channels_);
}

int64_t Dataset::checked(int64_t index) const {
  if (index < 0 || index >= size()) fail<Error>("dataset: image {} of {}", index, size());
  return index;
}

void Dataset::get(int64_t index, std::span<uint8_t> pixels) const {
  checked(index);
  if (pixels.size() != image_bytes()) {
    fail<Error>("dataset: a buffer of {} bytes for an image of {}", pixels.size(), image_bytes());
  }
  if (memory_.empty()) return decode(index, pixels.data());
  const size_t begin = static_cast<size_t>(index) * image_bytes();
  std::copy_n(memory_.data() + begin, image_bytes(), pixels.data());
}

void Dataset::keep_in_memory(const DatasetOptions& options) {
  const size_t bytes = image_bytes();
  if (is_fast() || bytes > options.memory_limit / std::max<size_t>(labels_.size(), 1)) return;
  std::vector<uint8_t> memory(bytes * labels_.size());
  std::mutex mutex;
  int64_t done = 0;
  run_on_threads(size(), [&](int64_t index) {
    decode(index, memory.data() + static_cast<size_t>(index) * bytes);
    if (!options.progress) return;
    const std::lock_guard lock(mutex);
    constexpr int64_t kEvery = 256;
    if (++done % kEvery == 0 || done == size()) options.progress(done, size());
  });
  memory_ = std::move(memory);
}

namespace {

struct KnownSet {
  const char* name;
  const char* folder;   // below DatasetOptions::datasets_folder
  const char* package;  // Debian's
};
constexpr KnownSet kKnownSets[] = {{"fashion-mnist", "fashion-mnist", "dataset-fashion-mnist"}};

std::unique_ptr<Dataset> open_path(const fs::path& path, int image_size,
                                   const DatasetOptions& options) {
  if (is_cifar10(path)) return open_cifar10(path, image_size, options);
  if (is_idx(path)) return open_idx(path, image_size, options);
  if (fs::is_directory(path)) return open_image_folder(path, image_size, options);
  fail<FileError>("data: {} is neither a folder nor a CIFAR-10 (.bin) or IDX file", path.string());
}

}  // namespace

std::unique_ptr<Dataset> open_dataset(const std::string& spec, int image_size,
                                      const DatasetOptions& options) {
  if (image_size < 1 || image_size > kMaxImageSide) {
    fail<Error>("data: an image size of {}, 1 to {} is possible", image_size, kMaxImageSide);
  }
  if (options.channels != 0 && options.channels != 1 && options.channels != 3) {
    fail<Error>("data: {} channels, 1 or 3 (or 0, as stored) are possible", options.channels);
  }
  fs::path path = spec;
  for (const KnownSet& known : kKnownSets) {
    if (spec != known.name) continue;
    path = options.datasets_folder / known.folder;
    if (!fs::exists(path)) {
      fail<FileError>("data: {} is not installed in {}: apt-get install {}", spec, path.string(),
                      known.package);
    }
  }
  std::unique_ptr<Dataset> dataset;
  try {
    if (!fs::exists(path)) {
      fail<FileError>("data: {} is neither a folder, nor a file, nor a known name ({})", spec,
                      kKnownSets[0].name);
    }
    dataset = open_path(path, image_size, options);
  } catch (const fs::filesystem_error& error) {
    const fs::path& unread = error.path1().empty() ? path : error.path1();  // below it, then
    fail<FileError>("data: cannot read {}: {}", unread.string(), error.code().message());
  }
  dataset->keep_in_memory(options);
  return dataset;
}

}  // namespace mutilde
