#include "core/atomic_file.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include <fcntl.h>
#include <unistd.h>

namespace mutilde {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_errno(const char* action, const fs::path& path, int error) {
  fail<FileError>("{} {}: {}", action, path.string(), std::strerror(error));
}

/// The temporary file: gone when this goes, unless it was renamed. Its name is unique to the
/// process and the call, so that several writers of one path do not meet.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& target) : target_(target) {
    static std::atomic<unsigned> counter{0};
    int descriptor = -1;
    do {  // a file of this name can only be left over from a dead process that had our id
      path_ = target_;
      path_ += fmt::format(".tmp-{}-{}", ::getpid(), counter++);
      descriptor = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (descriptor < 0 && errno == EEXIST);
    if (descriptor < 0) fail_errno("cannot write", target_, errno);
    file_ = ::fdopen(descriptor, "wb");
    if (file_ == nullptr) {
      const int error = errno;
      ::close(descriptor);
      ::unlink(path_.c_str());
      fail_errno("cannot write", target_, error);
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (file_ != nullptr) std::fclose(file_);
    if (!renamed_) ::unlink(path_.c_str());
  }

  std::FILE* file() const { return file_; }

  void finish() {
    if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0)
      fail_errno("cannot write", target_, errno);
    std::FILE* file = file_;
    file_ = nullptr;
    if (std::fclose(file) != 0) fail_errno("cannot write", target_, errno);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail_errno("cannot replace", target_, errno);
    renamed_ = true;
  }

 private:
  const fs::path& target_;
  fs::path path_;
  std::FILE* file_ = nullptr;
  bool renamed_ = false;
};

/// Where a chain of symbolic links ends, whether there is a file yet or not.
fs::path end_of_links(const fs::path& path) {
  constexpr int kMostLinks = 40;  // as the kernel
  std::error_code error;
  fs::path end = path;
  for (int links = 0; fs::is_symlink(end, error); ++links) {
    const fs::path next = fs::read_symlink(end, error);
    if (error || links == kMostLinks)
      fail<FileError>("cannot write {}: its symbolic links lead nowhere", path.string());
    end = end.parent_path() / next;  // `next` alone if it is absolute
  }
  return end;
}

/// Makes the rename itself survive a power cut. Some file systems cannot sync a folder; the file is
/// whole by now, so that is no reason to fail.
void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

void FileWriter::write(const void* data, size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes)
    fail_errno("cannot write", path_, errno);
}

void atomic_write(const fs::path& path, const std::function<void(FileWriter&)>& writer) {
  std::error_code ignored;
  const fs::path target = end_of_links(path);
  if (target.filename().empty())
    fail<FileError>("cannot write {}: not the name of a file", path.string());
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, ignored)) {
    fail<FileError>("cannot write {}: there is no folder {}", path.string(), folder.string());
  }
  // A rename would quietly replace a device such as /dev/null.
  if (fs::exists(target, ignored) && !fs::is_regular_file(target, ignored)) {
    fail<FileError>("cannot write {}: it exists and is not a regular file", path.string());
  }
  TemporaryFile temporary(target);
  FileWriter file_writer(temporary.file(), target);
  writer(file_writer);
  temporary.finish();
  sync_folder(folder);
}

}  // namespace mutilde
