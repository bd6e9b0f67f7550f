#include "data/image.h"

#include <algorithm>
#include <cmath>

namespace mutilde {
namespace {

// Weights are whole numbers of 2^-22: a byte (8 bits) times a weight, and 2 bits to spare for the
// overshoot of the bicubic filter, fill 32.
constexpr int kPrecisionBits = 32 - 8 - 2;

double filter_support(ResizeFilter filter) { return filter == ResizeFilter::kBox ? 0.5 : 2.0; }

double filter_value(ResizeFilter filter, double x) {
  if (filter == ResizeFilter::kBox) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  constexpr double a = -0.5;  // Keys' cubic convolution
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

/// What one output pixel takes: weights of the inputs first, first + 1, ...
struct Taps {
  int first = 0;
  std::vector<int32_t> weights;
};

/// The taps of outputs [begin, begin + count) when `in` pixels become `out`.
/// Where the image shrinks, the filter is stretched over all the pixels that an output
/// covers: that is the antialiasing.
std::vector<Taps> make_taps(ResizeFilter filter, int in, int out, int begin, int count) {
  const double scale = static_cast<double>(in) / out;
  const double stretch = std::max(scale, 1.0);
  const double support = filter_support(filter) * stretch;
  std::vector<Taps> taps(static_cast<size_t>(count));
  std::vector<double> values;
  for (int i = 0; i < count; ++i) {
    const double centre = (begin + i + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int last = std::min(static_cast<int>(centre + support + 0.5), in);
    values.clear();
    double sum = 0.0;
    for (int x = first; x < last; ++x) {
      values.push_back(filter_value(filter, (x - centre + 0.5) * (1.0 / stretch)));
      sum += values.back();
    }
    Taps& tap = taps[static_cast<size_t>(i)];
    tap.first = first;
    for (const double value : values) {
      const double weight = (sum != 0.0 ? value / sum : value) * (1 << kPrecisionBits);
      tap.weights.push_back(static_cast<int32_t>(std::round(weight)));
    }
  }
  return taps;
}

uint8_t from_fixed(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

/// Rows [top, top + count) of the image, each resized to taps.size() pixels.
Image resize_rows(const Image& image, const std::vector<Taps>& taps, int top, int count) {
  const int channels = image.channels;
  Image out(count, static_cast<int>(taps.size()), channels);
  for (int y = 0; y < count; ++y) {
    const uint8_t* row = image.row(top + y);
    uint8_t* to = out.row(y);
    for (const Taps& tap : taps) {
      for (int c = 0; c < channels; ++c) {
        const uint8_t* from = row + static_cast<ptrdiff_t>(tap.first) * channels + c;
        int32_t sum = kHalf;
        for (const int32_t weight : tap.weights) {
          sum += weight * *from;
          from += channels;
        }
        *to++ = from_fixed(sum);
      }
    }
  }
  return out;
}

/// The image resized to taps.size() rows; its first row is row `top` of what the taps count in.
Image resize_columns(const Image& image, const std::vector<Taps>& taps, int top) {
  Image out(static_cast<int>(taps.size()), image.width, image.channels);
  std::vector<int32_t> sums(image.stride());
  for (int y = 0; y < out.height; ++y) {
    const Taps& tap = taps[static_cast<size_t>(y)];
    std::fill(sums.begin(), sums.end(), kHalf);
    int from = tap.first - top;
    for (const int32_t weight : tap.weights) {
      const uint8_t* row = image.row(from++);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += weight * row[i];
    }
    std::transform(sums.begin(), sums.end(), out.row(y), from_fixed);
  }
  return out;
}

bool has_alpha(const Image& image) { return image.channels == 2 || image.channels == 4; }

/// a * b / 255, rounded, for bytes.
uint8_t multiply(int a, int b) {
  const int product = a * b + 128;
  return static_cast<uint8_t>((product + (product >> 8)) >> 8);
}

void premultiply(Image& image) {
  const auto channels = static_cast<size_t>(image.channels);
  for (size_t i = 0; i < image.pixels.size(); i += channels) {
    const uint8_t alpha = image.pixels[i + channels - 1];
    for (size_t c = 0; c + 1 < channels; ++c) {
      image.pixels[i + c] = multiply(image.pixels[i + c], alpha);
    }
  }
}

void unpremultiply(Image& image) {
  const auto channels = static_cast<size_t>(image.channels);
  for (size_t i = 0; i < image.pixels.size(); i += channels) {
    const int alpha = image.pixels[i + channels - 1];
    if (alpha == 0 || alpha == 255) continue;
    for (size_t c = 0; c + 1 < channels; ++c) {
      image.pixels[i + c] = static_cast<uint8_t>(std::min(255 * image.pixels[i + c] / alpha, 255));
    }
  }
}

Image to_rgb(const Image& image) {
  Image rgb(image.height, image.width, 3);
  const auto channels = static_cast<size_t>(image.channels);
  const bool grey = channels < 3;
  const size_t count = image.pixels.size() / channels;
  for (size_t i = 0; i < count; ++i) {
    for (size_t c = 0; c < 3; ++c)
      rgb.pixels[3 * i + c] = image.pixels[channels * i + (grey ? 0 : c)];
  }
  return rgb;
}

Image resize_plain(const Image& image, ResizeFilter filter, const ResizeWindow& window) {
  const std::vector<Taps> rows =
      make_taps(filter, image.height, window.height, window.top, window.out_height);
  const std::vector<Taps> columns =
      make_taps(filter, image.width, window.width, window.left, window.out_width);
  // Only the input rows that some output row takes. Where an axis keeps its size, every filter
  // gives one tap of weight 1 (the cubic is 0 at whole distances): a copy.
  const int top = rows.front().first;
  const int bottom = rows.back().first + static_cast<int>(rows.back().weights.size());
  return resize_columns(resize_rows(image, columns, top, bottom - top), rows, top);
}

}  // namespace

Image resize(const Image& image, ResizeFilter filter, const ResizeWindow& window) {
  const ResizeWindow& w = window;
  if (image.height < 1 || image.width < 1 || w.out_height < 1 || w.out_width < 1 || w.top < 0 ||
      w.left < 0 || w.top + w.out_height > w.height || w.left + w.out_width > w.width) {
    fail<Error>("resize: {} x {} pixels to {} x {}, of them {} x {} from ({}, {})", image.height,
                image.width, w.height, w.width, w.out_height, w.out_width, w.top, w.left);
  }
  const bool same_size = w.height == image.height && w.width == image.width;
  if (!has_alpha(image) || same_size) return resize_plain(image, filter, window);
  Image premultiplied = image;
  premultiply(premultiplied);
  Image out = resize_plain(premultiplied, filter, window);
  unpremultiply(out);
  return out;
}

Image resize(const Image& image, ResizeFilter filter, int height, int width) {
  return resize(image, filter, {height, width, 0, 0, height, width});
}

Image resize_and_crop(const Image& image, int size) {
  if (size < 1) fail<Error>("resize_and_crop: a size of {}, at least 1 expected", size);
  if (image.height < 1 || image.width < 1) fail<Error>("resize_and_crop: an empty image");
  Image halved;
  const Image* current = &image;
  while (std::min(current->height, current->width) >= 2 * static_cast<int64_t>(size)) {
    halved = resize(*current, ResizeFilter::kBox, current->height / 2, current->width / 2);
    current = &halved;
  }
  const double scale = static_cast<double>(size) / std::min(current->height, current->width);
  // nearbyint rounds halves to even, as Python does.
  const auto height = static_cast<int>(std::nearbyint(current->height * scale));
  const auto width = static_cast<int>(std::nearbyint(current->width * scale));
  const ResizeWindow centre{height, width, (height - size) / 2, (width - size) / 2, size, size};
  return to_rgb(resize(*current, ResizeFilter::kBicubic, centre));
}

}  // namespace mutilde
