#include "tutorials/tutorial.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <stb/stb_easy_font.h>

#include "data/dataset.h"
#include "data/image_io.h"

namespace mutilde::tutorial {

namespace {

constexpr const char* kUsage =
    "usage: {} [--out DIR] [--full]\n"
    "  --out DIR  where the pictures go (out/tutorials)\n"
    "  --full     the long version, where there is one\n";

int text_width(const std::string& text) {
  return 2 * stb_easy_font_width(const_cast<char*>(text.c_str()));  // NOLINT: it only reads
}

/// Black, twice the font's size. The font is a list of filled rectangles.
void draw_text(Image& image, int left, int top, const std::string& text) {
  struct Corner {
    float x, y, z;
    uint8_t rgba[4];
  };
  std::vector<Corner> corners(text.size() * 4 * 60 + 4);
  const int quads =
      stb_easy_font_print(0, 0, const_cast<char*>(text.c_str()), nullptr, corners.data(),  // NOLINT
                          static_cast<int>(corners.size() * sizeof(Corner)));
  for (size_t q = 0; q < static_cast<size_t>(quads); ++q) {
    const Corner &a = corners[4 * q], &b = corners[4 * q + 2];
    for (int y = top + static_cast<int>(2 * a.y); y < top + static_cast<int>(2 * b.y); ++y) {
      for (int x = left + static_cast<int>(2 * a.x); x < left + static_cast<int>(2 * b.x); ++x) {
        if (x < 0 || y < 0 || x >= image.width || y >= image.height) continue;
        std::fill_n(image.row(y) + 3 * x, 3, uint8_t{40});
      }
    }
  }
}

void draw_enlarged(Image& image, int left, int top, const uint8_t* grey, int H, int W, int scale) {
  for (int y = 0; y < H * scale; ++y) {
    for (int x = 0; x < W * scale; ++x) {
      std::fill_n(image.row(top + y) + 3 * (left + x), 3, grey[y / scale * W + x / scale]);
    }
  }
}

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

Image labelled_rows(const std::vector<std::string>& columns, const std::vector<Row>& rows,
                    int scale) {
  constexpr int kGap = 6, kText = 24;
  int label_width = 0;
  for (const Row& row : rows) label_width = std::max(label_width, text_width(row.label));
  const Shape& shape = rows.front().images.shape();
  const int H = static_cast<int>(shape[1]), W = static_cast<int>(shape[2]);
  const int left = label_width + 3 * kGap, top = columns.empty() ? kGap : kText + 2 * kGap;
  Image image(top + static_cast<int>(rows.size()) * (H * scale + kGap),
              left + static_cast<int>(shape[0]) * (W * scale + kGap), 3);
  std::fill(image.pixels.begin(), image.pixels.end(), uint8_t{255});
  for (size_t column = 0; column < columns.size(); ++column) {
    const int x = left + static_cast<int>(column) * (W * scale + kGap);
    draw_text(image, x + (W * scale - text_width(columns[column])) / 2, 2 * kGap, columns[column]);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const Tensor bytes = to_uint8(rows[r].images);
    const int y = top + static_cast<int>(r) * (H * scale + kGap);
    draw_text(image, kGap, y + H * scale / 2 - kText / 3, rows[r].label);
    for (int64_t i = 0; i < bytes.size(0); ++i) {
      const int x = left + static_cast<int>(i) * (W * scale + kGap);
      draw_enlarged(image, x, y, bytes.slice(i, i + 1).data<uint8_t>(), H, W, scale);
    }
  }
  return image;
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
