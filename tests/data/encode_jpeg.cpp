#include <stdexcept>

#include "files.h"

// stb's code does not meet our warnings.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

namespace mutilde {

std::vector<uint8_t> encode_jpeg(const Image& image) {
  const auto append = [](void* bytes, void* data, int size) {
    const auto* from = static_cast<const uint8_t*>(data);
    static_cast<std::vector<uint8_t>*>(bytes)->insert(
        static_cast<std::vector<uint8_t>*>(bytes)->end(), from, from + size);
  };
  std::vector<uint8_t> bytes;
  constexpr int kQuality = 95;
  if (stbi_write_jpg_to_func(append, &bytes, image.width, image.height, image.channels,
                             image.pixels.data(), kQuality) == 0) {
    throw std::runtime_error("encode_jpeg: stb refuses the image");
  }
  return bytes;
}

}  // namespace mutilde
