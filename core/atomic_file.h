// Files that are there whole or not at all: a reader, or a run that resumes after a crash, never
// meets half a checkpoint.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string_view>

#include "core/error.h"

namespace mutilde {

/// What atomic_write hands to its writer: bytes in order, buffered.
class FileWriter {
 public:
  FileWriter(std::FILE* file, const std::filesystem::path& path) : file_(file), path_(path) {}
  /// Throws FileError with the system's reason (a full disk, say).
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }

 private:
  std::FILE* file_;
  const std::filesystem::path& path_;
};

/// Calls `writer` on a temporary file in the folder of `path`, syncs it, renames it to `path` and
/// syncs the folder. If anything throws, the temporary file is removed and what was at `path` is
/// untouched. A symbolic link is written through, to a file that is not there yet as well. Throws
/// FileError if the folder is missing, the disk is full, or something that is not a regular file is
/// in the way.
void atomic_write(const std::filesystem::path& path,
                  const std::function<void(FileWriter&)>& writer);

}  // namespace mutilde
