// Data sets: images of one size, with labels if there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"

namespace mutilde {

struct DatasetOptions {
  /// 0: as stored (IDX 1, the others 3); 3: grey is replicated; 1: picture files become grey.
  int channels = 0;
  bool test = false;  // the test part of CIFAR-10 and IDX sets instead of the training part
  /// Bytes of decoded pixels to keep; a larger set is decoded on demand.
  size_t memory_limit = size_t{1} << 30;
  /// Where the known names are looked for.
  std::filesystem::path datasets_folder = "/usr/share/datasets";
  /// Told now and then how many images were decoded into memory, never from two threads at once.
  std::function<void(int64_t done, int64_t total)> progress;
};

/// Reading is safe from several threads at once.
class Dataset {
 public:
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;
  virtual ~Dataset() = default;

  int64_t size() const { return static_cast<int64_t>(labels_.size()); }
  int image_size() const { return image_size_; }
  int channels() const { return channels_; }
  size_t image_bytes() const;
  /// Fills pixels: image_size x image_size x channels bytes. Throws Error for an index out of range
  /// or a wrong length, FileError where an image that was not decoded yet turns out to be bad.
  void get(int64_t index, std::span<uint8_t> pixels) const;
  /// The class, from 0; 0 where there are no classes.
  int64_t label(int64_t index) const { return labels_[static_cast<size_t>(checked(index))]; }
  /// Empty where there are no labels.
  const std::vector<std::string>& class_names() const { return class_names_; }
  /// True if get() only copies; false if it decodes a file.
  bool is_fast() const { return decodes_fast() || !memory_.empty(); }

  /// Decodes everything, on all cores, unless it is fast already or over the limit.
  void keep_in_memory(const DatasetOptions& options);

 protected:
  Dataset(int image_size, int channels, std::vector<int64_t> labels,
          std::vector<std::string> class_names);

  /// Writes the image_bytes() bytes of one image.
  virtual void decode(int64_t index, uint8_t* pixels) const = 0;
  virtual bool decodes_fast() const = 0;

 private:
  int64_t checked(int64_t index) const;

  int image_size_, channels_;
  std::vector<int64_t> labels_;
  std::vector<std::string> class_names_;
  std::vector<uint8_t> memory_;
};

/// Opens what `spec` names:
///  - a known name: fashion-mnist (Debian's package dataset-fashion-mnist);
///  - a folder with CIFAR-10's binary files, data_batch_*.bin and test_batch.bin, or one such file;
///  - a folder with IDX files, *images*idx3* and *labels*idx1*, gzip or not, or one such file of
///    images;
///  - any other folder: the images in it and below, in the order of their paths; if every name
///    holds an underscore, what is before the first one is the class.
/// Images become image_size x image_size as resize_and_crop does it. Throws FileError, one line,
/// for whatever is missing or damaged; Error for options that do not fit.
std::unique_ptr<Dataset> open_dataset(const std::string& spec, int image_size,
                                      const DatasetOptions& options = {});

// The three kinds, which open_dataset tells apart. Each throws as it does.
std::unique_ptr<Dataset> open_image_folder(const std::filesystem::path& folder, int image_size,
                                           const DatasetOptions& options);
std::unique_ptr<Dataset> open_cifar10(const std::filesystem::path& path, int image_size,
                                      const DatasetOptions& options);
std::unique_ptr<Dataset> open_idx(const std::filesystem::path& path, int image_size,
                                  const DatasetOptions& options);
bool is_cifar10(const std::filesystem::path& path);
bool is_idx(const std::filesystem::path& path);

}  // namespace mutilde
