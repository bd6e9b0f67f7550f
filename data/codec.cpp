#include "data/codec.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "data/jpeg_check.h"

// stb's code does not meet our warnings; it is compiled here and nowhere else.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

namespace mutilde {
namespace {

namespace fs = std::filesystem;

/// A file as stb reads it. stb takes zeros for what lies beyond the end, and would make a grey half
/// of a cut photograph; that it asked is how we know.
struct Stream {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file;
  bool read_past_end = false;

  static int read(void* user, char* data, int size) {
    auto* stream = static_cast<Stream*>(user);
    const size_t count =
        std::fread(data, 1, static_cast<size_t>(std::max(size, 0)), stream->file.get());
    if (size > 0 && count == 0) stream->read_past_end = true;
    return static_cast<int>(count);
  }
  static void skip(void* user, int count) {
    std::fseek(static_cast<Stream*>(user)->file.get(), count, SEEK_CUR);
  }
  static int eof(void* user) {
    std::FILE* file = static_cast<Stream*>(user)->file.get();
    return std::ungetc(std::fgetc(file), file) == EOF ? 1 : 0;
  }
};

constexpr stbi_io_callbacks kCallbacks = {&Stream::read, &Stream::skip, &Stream::eof};

using Pixels = std::unique_ptr<stbi_uc, void (*)(void*)>;

/// The whole file, from its beginning; null if it cannot be done.
Pixels decode(Stream& stream, int& width, int& height, int& channels) {
  std::rewind(stream.file.get());
  stream.read_past_end = false;
  return {stbi_load_from_callbacks(&kCallbacks, &stream, &width, &height, &channels, 0),
          &stbi_image_free};
}

void check_side(const fs::path& path, int height, int width) {
  if (height >= 1 && width >= 1 && height <= kMaxImageSide && width <= kMaxImageSide) return;
  fail<FileError>("image: {} is {} x {} pixels, a side of 1 to {} is possible", path.string(),
                  width, height, kMaxImageSide);
}

[[noreturn]] void fail_decode(const fs::path& path, const Stream& stream) {
  const std::string_view reason = stbi_failure_reason();
  if (reason == "unknown image type") {
    fail<FileError>("image: {} is not an image of a known kind (JPEG, PNG, BMP, GIF, ...)",
                    path.string());
  }
  if (stream.read_past_end || reason == "outofdata") {
    fail<FileError>("image: {} is cut short", path.string());
  }
  fail<FileError>("image: {} is damaged or not supported ({})", path.string(), reason);
}

void check_encodable(const Image& image) {
  if (image.height < 1 || image.width < 1 || image.channels < 1 || image.channels > 4) {
    fail<Error>("image: {} x {} pixels of {} channels cannot be written", image.width, image.height,
                image.channels);
  }
}

void append(void* bytes, void* data, int size) {
  const auto* begin = static_cast<const uint8_t*>(data);
  auto* out = static_cast<std::vector<uint8_t>*>(bytes);
  out->insert(out->end(), begin, begin + size);
}

}  // namespace

Image load_image(const fs::path& path) {
  std::error_code ignored;
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) {
    fail<FileError>("image: {} is not a regular file", path.string());
  }
  Stream stream{{std::fopen(path.c_str(), "rbe"), &std::fclose}};
  if (stream.file == nullptr) {
    fail<FileError>("image: cannot open {}: {}", path.string(), std::strerror(errno));
  }
  if (!huffman_tables_fit(stream.file.get())) {
    fail<FileError>("image: {} is damaged (a Huffman table of more than 256 symbols)",
                    path.string());
  }
  std::rewind(stream.file.get());
  // The header alone first, so that a hostile size is refused before its memory is asked for.
  int width = 0, height = 0, channels = 0;
  if (stbi_info_from_callbacks(&kCallbacks, &stream, &width, &height, &channels) == 0) {
    decode(stream, width, height, channels);  // which alone says what is wrong
    fail_decode(path, stream);
  }
  // A BMP that runs downwards has a negative height here; INT_MIN has no counterpart.
  check_side(path, height < 0 ? -std::max(height, -kMaxImageSide - 1) : height, width);

  const Pixels pixels = decode(stream, width, height, channels);
  if (pixels == nullptr) fail_decode(path, stream);
  if (stream.read_past_end) fail<FileError>("image: {} is cut short", path.string());
  check_side(path, height, width);
  Image image(height, width, channels);
  std::copy_n(pixels.get(), image.pixels.size(), image.pixels.begin());
  return image;
}

bool has_image_extension(const fs::path& path) {
  static constexpr std::array<std::string_view, 13> kExtensions = {
      ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tga", ".psd",
      ".ppm", ".pgm",  ".pnm", ".hdr", ".pic", ".jpe"};
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

std::vector<uint8_t> encode_png(const Image& image) {
  check_encodable(image);
  std::vector<uint8_t> bytes;
  if (stbi_write_png_to_func(&append, &bytes, image.width, image.height, image.channels,
                             image.pixels.data(), static_cast<int>(image.stride())) == 0) {
    fail<Error>("image: {} x {} pixels are too many for a PNG", image.width, image.height);
  }
  return bytes;
}

}  // namespace mutilde
