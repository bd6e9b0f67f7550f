// An 8-bit image, and the resizing that turns any image into a training example.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/error.h"

namespace mutilde {

/// height x width pixels of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) interleaved bytes.
struct Image {
  int height = 0;
  int width = 0;
  int channels = 0;
  std::vector<uint8_t> pixels;

  Image() = default;
  Image(int height_in, int width_in, int channels_in)
      : height(height_in),
        width(width_in),
        channels(channels_in),
        pixels(static_cast<size_t>(height_in) * static_cast<size_t>(width_in) *
               static_cast<size_t>(channels_in)) {}

  uint8_t* row(int y) { return pixels.data() + stride() * static_cast<size_t>(y); }
  const uint8_t* row(int y) const { return pixels.data() + stride() * static_cast<size_t>(y); }
  size_t stride() const { return static_cast<size_t>(width) * static_cast<size_t>(channels); }
};

/// The filters of Pillow's resize().
enum class ResizeFilter { kBox, kBicubic };

/// A window of the image resized to `height` x `width`: rows [top, top + out_height), columns
/// [left, left + out_width).
struct ResizeWindow {
  int height, width;
  int top, left, out_height, out_width;
};

/// Antialiased, in 8-bit fixed point, along the rows first, with Pillow's arithmetic. Alpha is
/// premultiplied while the filter runs, so that hidden colours do not bleed. Throws Error for an
/// empty image or window, or a window that does not fit.
Image resize(const Image& image, ResizeFilter filter, const ResizeWindow& window);
Image resize(const Image& image, ResizeFilter filter, int height, int width);

/// size x size RGB, as improved-diffusion loads an image: halved with a box filter while
/// the shorter side is at least 2 * size, resized with a bicubic one to make it `size`,
/// cropped at the centre. Grey is replicated; alpha is dropped at the end.
/// Throws Error for an empty image or a size below 1.
Image resize_and_crop(const Image& image, int size);

}  // namespace mutilde
