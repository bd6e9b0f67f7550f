// Samples to files: [-1, 1] to bytes, grids, PNG, and numpy's .npz. Files are written atomically.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "data/image.h"

namespace mutilde {

/// x: any floating tensor; returns uint8 of its shape, (x + 1) * 127.5 clamped and truncated, as
/// improved-diffusion's sampler does. NaN gives 0.
Tensor to_uint8(const Tensor& x);

/// One example of a batch: x [N, H, W, C], uint8 or floating in [-1, 1], C of 1 or 3.
Image to_image(const Tensor& x, int64_t index);

/// A picture of a batch: x [N, H, W, C], uint8 or floating in [-1, 1], C of 1 or 3.
/// Row by row, `columns` across (0: as square as it gets), `padding` black pixels
/// around each. Throws ShapeError.
Image image_grid(const Tensor& x, int64_t columns = 0, int padding = 2);

/// Throws FileError if the file cannot be written.
void write_png(const std::filesystem::path& path, const Image& image);

/// numpy's .npz: an uncompressed zip archive of .npy arrays, as numpy.savez writes. Arrays keep
/// their dtype; there is no bfloat16. improved-diffusion's samples are arr_0, uint8 NHWC, and
/// arr_1, int64 labels. The same arrays give the same bytes. Throws FileError, DTypeError, or Error
/// for a bad name.
void write_npz(const std::filesystem::path& path,
               const std::vector<std::pair<std::string, Tensor>>& arrays);

}  // namespace mutilde
