// Files for the tests of data/: a folder that is gone afterwards, and pictures made up on the spot.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "data/codec.h"

namespace mutilde {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "mutilde-data-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline void write_bytes(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  write_bytes(path, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Slow waves, a different one a channel; `seed` shifts them.
inline Image wave_image(int height, int width, int channels, int seed = 0) {
  Image image(height, width, channels);
  size_t i = 0;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) {
        const double phase = 0.11 * x * (c + 1) + 0.07 * y + seed;
        image.pixels[i++] = static_cast<uint8_t>(127.5 + 120.0 * std::sin(phase));
      }
    }
  }
  return image;
}

/// The bytes of a JPEG file, which the library only reads. Defined in encode_jpeg.cpp.
std::vector<uint8_t> encode_jpeg(const Image& image);

/// The one line that a FileError says; anything else gives a text that no test expects.
inline std::string file_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const FileError& error) {
    const std::string message = error.what();
    return message.find('\n') == std::string::npos ? message : "more than one line: " + message;
  } catch (const std::exception& error) {
    return std::string("not a FileError: ") + error.what();
  }
  return "nothing was thrown";
}

}  // namespace mutilde
