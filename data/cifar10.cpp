// CIFAR-10's binary files: records of one label byte, then 32 x 32 red, green and blue bytes.
#include <algorithm>
#include <fstream>

#include "data/dataset.h"
#include "data/image.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;

constexpr int kSide = 32;
constexpr size_t kPlane = size_t{kSide} * kSide;
constexpr size_t kRecord = 1 + 3 * kPlane;
constexpr int kClasses = 10;
const char* const kClassNames[kClasses] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                           "dog",      "frog",       "horse", "ship", "truck"};

class Cifar10 final : public Dataset {
 public:
  Cifar10(std::vector<uint8_t> records, int image_size, std::vector<int64_t> labels)
      : Dataset(image_size, 3, std::move(labels), {kClassNames, kClassNames + kClasses}),
        records_(std::move(records)) {}

 private:
  void decode(int64_t index, uint8_t* pixels) const override {
    const uint8_t* planes = records_.data() + static_cast<size_t>(index) * kRecord + 1;
    if (image_size() == kSide) return interleave(planes, pixels);
    Image image(kSide, kSide, 3);
    interleave(planes, image.pixels.data());
    const Image fitted = resize_and_crop(image, image_size());
    std::copy(fitted.pixels.begin(), fitted.pixels.end(), pixels);
  }
  bool decodes_fast() const override { return image_size() == kSide; }

  static void interleave(const uint8_t* planes, uint8_t* pixels) {
    for (size_t i = 0; i < kPlane; ++i) {
      for (size_t c = 0; c < 3; ++c) *pixels++ = planes[c * kPlane + i];
    }
  }

  std::vector<uint8_t> records_;
};

bool is_training_file(const fs::path& path) {
  return path.filename().string().starts_with("data_batch") && path.extension() == ".bin";
}

bool is_test_file(const fs::path& path) { return path.filename() == "test_batch.bin"; }

void append_file(const fs::path& path, std::vector<uint8_t>& records) {
  std::ifstream file(path, std::ios::binary);
  if (!file || !fs::is_regular_file(path)) {
    fail<FileError>("cifar10: cannot read {}", path.string());
  }
  const size_t bytes = fs::file_size(path);
  if (bytes == 0 || bytes % kRecord != 0) {
    fail<FileError>("cifar10: {} has {} bytes, which is not a whole number of records of {}",
                    path.string(), bytes, size_t{kRecord});
  }
  const size_t begin = records.size();
  records.resize(begin + bytes);
  file.read(reinterpret_cast<char*>(records.data() + begin), static_cast<std::streamsize>(bytes));
  if (file.gcount() != static_cast<std::streamsize>(bytes)) {
    fail<FileError>("cifar10: cannot read {}", path.string());
  }
  for (size_t at = begin; at < records.size(); at += kRecord) {
    if (records[at] >= kClasses) {
      fail<FileError>("cifar10: {}: record {} has label {}, expected 0 to {}", path.string(),
                      (at - begin) / kRecord, records[at], kClasses - 1);
    }
  }
}

}  // namespace

bool is_cifar10(const fs::path& path) {
  if (!fs::is_directory(path)) return path.extension() == ".bin";
  return std::any_of(fs::directory_iterator(path), fs::directory_iterator(), [](const auto& entry) {
    return is_training_file(entry.path()) || is_test_file(entry.path());
  });
}

std::unique_ptr<Dataset> open_cifar10(const fs::path& path, int image_size,
                                      const DatasetOptions& options) {
  std::vector<fs::path> files;
  if (!fs::is_directory(path)) {
    files.push_back(path);
  } else {
    for (const auto& entry : fs::directory_iterator(path)) {
      const bool wanted =
          options.test ? is_test_file(entry.path()) : is_training_file(entry.path());
      if (wanted) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
  }
  if (files.empty()) {
    fail<FileError>("cifar10: there is no {} in {}",
                    options.test ? "test_batch.bin" : "data_batch_*.bin", path.string());
  }
  std::vector<uint8_t> records;
  for (const fs::path& file : files) append_file(file, records);
  std::vector<int64_t> labels;
  for (size_t at = 0; at < records.size(); at += kRecord) labels.push_back(records[at]);
  return std::make_unique<Cifar10>(std::move(records), image_size, std::move(labels));
}

}  // namespace mutilde
