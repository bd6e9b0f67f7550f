#include "data/image_io.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/atomic_file.h"
#include "data/codec.h"

namespace mutilde {
namespace {

/// Of (x / 127.5 - 1 + 1) * 127.5 in float32 the four roundings together are at most 3e-5.
constexpr float kRoundOff = 1.0F / 4096;

template <class T>
void quantise(const T* x, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T level = (x[i] + T{1}) * T{127.5} + kRoundOff;
    out[i] = level > T{0} ? static_cast<uint8_t>(std::min(level, T{255})) : uint8_t{0};  // NaN: 0
  }
}

/// The batch as bytes on the CPU.
Tensor batch_bytes(const char* op, const Tensor& x) {
  const bool is_batch = x.rank() == 4 && (x.size(3) == 1 || x.size(3) == 3);
  if (!is_batch || x.numel() == 0) {
    fail<ShapeError>("{}: [N, H, W, C] with C of 1 or 3 expected, the shape is {}", op, x.shape());
  }
  return x.dtype() == DType::kUInt8 ? x.detach().to(Device::cpu()) : to_uint8(x);
}

}  // namespace

void from_uint8(std::span<const uint8_t> pixels, float* x) {
  for (const uint8_t pixel : pixels) *x++ = static_cast<float>(pixel) / 127.5F - 1.0F;
}

Tensor from_uint8(const Tensor& x) {
  if (x.dtype() != DType::kUInt8) {
    fail<DTypeError>("from_uint8: uint8 expected, the tensor holds {}", name_of(x.dtype()));
  }
  const Tensor on_cpu = x.detach().to(Device::cpu());
  const Tensor out = Tensor::empty(x.shape());
  from_uint8(on_cpu.values<uint8_t>(), out.data<float>());
  return out;
}

Tensor to_uint8(const Tensor& x) {
  if (!is_floating(x.dtype())) {
    fail<DTypeError>("to_uint8: a floating dtype expected, the tensor holds {}",
                     name_of(x.dtype()));
  }
  Tensor on_cpu = x.detach().to(Device::cpu());
  Tensor out = Tensor::empty(x.shape(), DType::kUInt8);
  if (x.dtype() == DType::kFloat64) {
    quantise(on_cpu.data<double>(), out.data<uint8_t>(), x.numel());
  } else {
    if (is_short(x.dtype())) on_cpu = on_cpu.to(DType::kFloat32);
    quantise(on_cpu.data<float>(), out.data<uint8_t>(), x.numel());
  }
  return out;
}

Image to_image(const Tensor& x, int64_t index) {
  if (x.rank() != 4 || index < 0 || index >= x.size(0)) {
    fail<ShapeError>("to_image: there is no image {} in {}", index, x.shape());
  }
  return image_grid(x.detach().slice(index, index + 1), 1, 0);
}

Image image_grid(const Tensor& x, int64_t columns, int padding) {
  const Tensor bytes = batch_bytes("image_grid", x);
  const int64_t N = x.size(0), H = x.size(1), W = x.size(2), C = x.size(3);
  if (columns < 0 || padding < 0) {
    fail<ShapeError>("image_grid: {} columns with a padding of {}", columns, padding);
  }
  if (columns == 0) columns = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(N))));
  columns = std::min(columns, N);
  const int64_t rows = (N + columns - 1) / columns;
  const int64_t height = rows * (H + padding) + padding, width = columns * (W + padding) + padding;
  constexpr int64_t kMost = int64_t{1} << 31;  // PNG and Image count in int
  if (height >= kMost || width >= kMost || height * width * C >= kMost) {
    fail<ShapeError>("image_grid: {} x {} pixels are too many for one picture", width, height);
  }
  Image grid(static_cast<int>(height), static_cast<int>(width), static_cast<int>(C));
  for (int64_t n = 0; n < N; ++n) {
    const int64_t top = (n / columns) * (H + padding) + padding;
    const int64_t left = (n % columns) * (W + padding) + padding;
    const uint8_t* image = bytes.data<uint8_t>() + n * H * W * C;
    for (int64_t y = 0; y < H; ++y) {
      std::copy_n(image + y * W * C, W * C, grid.row(static_cast<int>(top + y)) + left * C);
    }
  }
  return grid;
}

void write_png(const std::filesystem::path& path, const Image& image) {
  const std::vector<uint8_t> bytes = encode_png(image);
  atomic_write(path, [&](FileWriter& file) { file.write(bytes.data(), bytes.size()); });
}

}  // namespace mutilde
