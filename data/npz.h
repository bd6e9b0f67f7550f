// numpy's .npz: a zip archive of .npy arrays.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

/// Uncompressed, as numpy.savez writes, and atomically. Arrays keep their dtype; there is no
/// bfloat16. The same arrays give the same bytes. improved-diffusion's samples are arr_0, uint8
/// NHWC, and arr_1, int64 labels. Throws FileError, DTypeError, or Error for a bad name.
void write_npz(const std::filesystem::path& path,
               const std::vector<std::pair<std::string, Tensor>>& arrays);

/// One array of a file that write_npz, numpy.savez or numpy.savez_compressed wrote; undefined if
/// the file holds none of that name. Throws FileError, one line that names the file, if it is
/// missing, no zip archive, cut short or damaged, or if the array is of another dtype than those
/// above or in Fortran order.
Tensor read_npz(const std::filesystem::path& path, const std::string& name);

}  // namespace mutilde
