// Bytes to the numbers that a network sees, [-1, 1], and back; grids of samples, PNG files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "core/tensor.h"
#include "data/image.h"

namespace mutilde {

/// x: uint8; returns float32 of its shape, x / 127.5 - 1, with the original's rounding. On the CPU.
Tensor from_uint8(const Tensor& x);
/// The same for so many pixels in memory.
void from_uint8(std::span<const uint8_t> pixels, float* x);

/// x: any floating tensor; returns uint8 of its shape, (x + 1) * 127.5 clamped and truncated, as
/// improved-diffusion's sampler does; but what is below a whole number by no more than round-off
/// (1/4096 of a level) is that number, so that to_uint8(from_uint8(x)) is x. NaN gives 0.
Tensor to_uint8(const Tensor& x);

/// One example of a batch: x [N, H, W, C], uint8 or floating in [-1, 1], C of 1 or 3.
Image to_image(const Tensor& x, int64_t index);

/// A picture of a batch: x [N, H, W, C], uint8 or floating in [-1, 1], C of 1 or 3.
/// Row by row, `columns` across (0: as square as it gets), `padding` black pixels
/// around each. Throws ShapeError.
Image image_grid(const Tensor& x, int64_t columns = 0, int padding = 2);

/// Written atomically. Throws FileError if the file cannot be written.
void write_png(const std::filesystem::path& path, const Image& image);

}  // namespace mutilde
