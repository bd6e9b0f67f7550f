#include "tutorials/tutorial.h"

#include <cmath>
#include <exception>
#include <span>
#include <string_view>

#include <fmt/format.h>

#include "data/dataset.h"
#include "data/image_io.h"

namespace mutilde::tutorial {

namespace {

constexpr const char* kUsage =
    "usage: {} [--out DIR] [--full]\n"
    "  --out DIR  where the pictures go (out/tutorials)\n"
    "  --full     the long version, where there is one\n";

/// A bright ring on black, wider for each image.
void draw_ring(std::span<double> pixels, int size, int64_t index) {
  const double pixel = 28.0 / size, middle = 0.5 * (size - 1);
  for (size_t i = 0; i < pixels.size(); ++i) {
    const auto side = static_cast<size_t>(size);
    const double x = static_cast<double>(i % side) - middle;
    const double y = static_cast<double>(i / side) - middle;
    const double off = pixel * std::hypot(x, y) - 5.0 - static_cast<double>(index % 8);
    pixels[i] = std::abs(off) < 2 ? 0.8 : -1.0;
  }
}

}  // namespace

Tensor images(int64_t n, int size, bool test) {
  const size_t pixels = static_cast<size_t>(size) * static_cast<size_t>(size);
  std::vector<double> values(static_cast<size_t>(n) * pixels);
  try {
    DatasetOptions options;
    options.test = test;
    const auto dataset = open_dataset("fashion-mnist", size, options);
    std::vector<uint8_t> bytes(pixels);
    for (int64_t i = 0; i < n; ++i) {
      dataset->get(i, bytes);
      for (size_t p = 0; p < pixels; ++p) {
        values[static_cast<size_t>(i) * pixels + p] = bytes[p] / 127.5 - 1.0;
      }
    }
  } catch (const FileError& error) {
    fmt::print(
        "note: Fashion-MNIST is not there ({}). Rings stand in for its images, so some numbers "
        "below differ from the prose's.\n",
        error.what());
    for (int64_t i = 0; i < n; ++i) {
      draw_ring(std::span(values).subspan(static_cast<size_t>(i) * pixels, pixels), size, i);
    }
  }
  return Tensor::from<double>({n, size, size, 1}, values);
}

app::Curve curve(const std::string& name, const std::array<uint8_t, 3>& colour, int64_t T,
                 const std::function<double(int64_t t)>& f) {
  app::Curve result{name, colour, 2.5, {}, {}};
  for (int64_t t = 0; t < T; ++t) {
    result.x.push_back(static_cast<double>(t));
    result.y.push_back(f(t));
  }
  return result;
}

void save(const Options& options, const std::string& name, const Image& image) {
  write_png(options.out / name, image);
  fmt::print("wrote {}\n", name);
}

}  // namespace mutilde::tutorial

int main(int argc, char** argv) {
  mutilde::tutorial::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--full") {
      options.full = true;
    } else if (flag == "--out" && i + 1 < argc) {
      options.out = argv[++i];
    } else {
      const bool asked = flag == "--help" || flag == "-h";
      fmt::print(asked ? stdout : stderr, mutilde::tutorial::kUsage, argv[0]);
      return asked ? 0 : 2;
    }
  }
  try {
    std::filesystem::create_directories(options.out);
    mutilde::tutorial::tutorial_main(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
  return 0;
}
