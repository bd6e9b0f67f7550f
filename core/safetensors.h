// The safetensors format (https://github.com/huggingface/safetensors):
//   8 bytes   the length of the header, little-endian
//   header    a JSON object, {name: {dtype, shape, data_offsets: [begin, end]}}, with text under
//             "__metadata__"
//   data      row-major, in one block without holes
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

/// A file that was opened and whose header was checked from end to end: no tensor reaches outside
/// the file or into another one. The data is read by read(), a tensor at a time.
class SafetensorsFile {
 public:
  /// Throws FileError, one line, if the file is missing, cut short, or breaks the format anywhere.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const { return entries_.contains(name); }

  // Each throws FileError if there is no such tensor.
  const Shape& shape(const std::string& name) const { return entry(name).shape; }
  DType dtype(const std::string& name) const { return entry(name).dtype; }
  /// A new CPU tensor. Not safe from two threads at once: they would share the file's position.
  Tensor read(const std::string& name) const;

 private:
  struct Entry {
    DType dtype = DType::kFloat32;
    Shape shape;
    uint64_t begin = 0, end = 0;  // bytes, from the start of the data
  };
  friend class SafetensorsHeader;

  const Entry& entry(const std::string& name) const;

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  uint64_t data_begin_ = 0;  // bytes, from the start of the file
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> entries_;
};

/// Writes the tensors (any device) atomically: the file is there whole or not at all. Throws
/// FileError if it cannot be written; Error for an undefined tensor, a name given twice, or text
/// that is not UTF-8.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace mutilde
