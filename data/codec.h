// Image files to pixels and back: the one place that touches stb.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/image.h"

namespace mutilde {

constexpr int kMaxImageSide = 16384;

/// Reads JPEG, PNG, BMP, GIF (the first frame), TGA, PSD, PNM, HDR or PIC,
/// whatever the name says, with the channels that the file has.
/// Throws FileError, one line that names the file, if it is missing, not an image, cut short,
/// damaged, or has a side of 0 or of more than kMaxImageSide pixels.
Image load_image(const std::filesystem::path& path);

/// Whether the name ends as an image's does (.jpg, .PNG, ...).
bool has_image_extension(const std::filesystem::path& path);

/// The bytes of a file. Throws Error for an image that is empty or not of 1 to 4 channels.
std::vector<uint8_t> encode_png(const Image& image);

}  // namespace mutilde
