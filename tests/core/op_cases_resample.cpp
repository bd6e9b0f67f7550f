#include <algorithm>
#include <cmath>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

OpCase upsample_case(const std::string& name, const Shape& shape, int64_t factor) {
  return {.name = "UpsampleNearest" + name,
          .inputs = {uniform(shape)},
          .op = [factor](const Tensors& in) { return upsample_nearest(in[0], factor); },
          .reference =
              [factor](const Arrays& in) {
                const Array& x = in[0];
                Array out({x.size(0), x.size(1) * factor, x.size(2) * factor, x.size(3)});
                for (int64_t n = 0; n < out.size(0); ++n) {
                  for (int64_t h = 0; h < out.size(1); ++h) {
                    for (int64_t w = 0; w < out.size(2); ++w) {
                      for (int64_t c = 0; c < out.size(3); ++c) {
                        out(n, h, w, c) = x(n, h / factor, w / factor, c);
                      }
                    }
                  }
                }
                return out;
              },
          .terms = static_cast<double>(factor * factor),
          .batched = {0}};
}

OpCase pool_case(const std::string& name, const Shape& shape, int64_t factor) {
  return {.name = "AvgPool2d" + name,
          .inputs = {uniform(shape)},
          .op = [factor](const Tensors& in) { return avg_pool2d(in[0], factor); },
          .reference =
              [factor](const Arrays& in) {
                const Array& x = in[0];
                Array out({x.size(0), x.size(1) / factor, x.size(2) / factor, x.size(3)});
                for (int64_t n = 0; n < x.size(0); ++n) {
                  for (int64_t h = 0; h < x.size(1); ++h) {
                    for (int64_t w = 0; w < x.size(2); ++w) {
                      for (int64_t c = 0; c < x.size(3); ++c) {
                        out(n, h / factor, w / factor, c) +=
                            x(n, h, w, c) / static_cast<double>(factor * factor);
                      }
                    }
                  }
                }
                return out;
              },
          .composition =
              [factor](const Tensors& in) {
                const Tensor& x = in[0];
                // Rank 6: the rows and columns of a block as axes of their own.
                const Tensor blocks = x.reshape(
                    {x.size(0), x.size(1) / factor, factor, x.size(2) / factor, factor, x.size(3)});
                return mean(blocks, {2, 4});
              },
          .terms = static_cast<double>(factor * factor)};
}

// The value at a real position of an axis is the straight line between the pixels beside it; pixel
// i lies at i + 1/2, and beyond the outer pixels the image goes on unchanged.
double line(int64_t size, double position, const std::function<double(int64_t)>& pixel) {
  const double from_first = std::clamp(position - 0.5, 0.0, static_cast<double>(size - 1));
  const double weight = from_first - std::floor(from_first);
  const int64_t below = static_cast<int64_t>(from_first), above = std::min(below + 1, size - 1);
  return (1 - weight) * pixel(below) + weight * pixel(above);
}

OpCase resize_case(const std::string& name, const Shape& shape, int64_t height, int64_t width) {
  return {.name = "ResizeBilinear" + name,
          .inputs = {uniform(shape)},
          .op = [=](const Tensors& in) { return resize_bilinear(in[0], height, width); },
          .reference =
              [=](const Arrays& in) {
                const Array& x = in[0];
                const auto ratio = [](int64_t from, int64_t to) {
                  return static_cast<double>(from) / static_cast<double>(to);
                };
                Array out({x.size(0), height, width, x.size(3)});
                for (int64_t i = 0; i < out.numel(); ++i) {
                  const int64_t c = i % x.size(3), w = i / x.size(3) % width;
                  const int64_t h = i / (x.size(3) * width) % height;
                  const int64_t n = i / (x.size(3) * width * height);
                  const double y = (static_cast<double>(h) + 0.5) * ratio(x.size(1), height);
                  const double z = (static_cast<double>(w) + 0.5) * ratio(x.size(2), width);
                  out[i] = line(x.size(1), y, [&](int64_t row) {
                    return line(x.size(2), z, [&](int64_t column) { return x(n, row, column, c); });
                  });
                }
                return out;
              },
          // dx sums over the output pixels that a pixel reaches.
          .terms = 4 * std::max(1.0, std::ceil(static_cast<double>(height * width) /
                                               static_cast<double>(shape[1] * shape[2]))),
          .batched = {0}};
}

}  // namespace

std::vector<OpCase> resample_cases() {
  return {upsample_case("", {2, 3, 4, 5}, 2),
          upsample_case("ByThree", {1, 2, 3, 2}, 3),
          upsample_case("ByOne", {2, 2, 3, 2}, 1),
          upsample_case("Wide", {2, 7, 5, 67}, 2),
          pool_case("", {2, 6, 4, 5}, 2),
          pool_case("ByThree", {1, 6, 3, 2}, 3),
          pool_case("ToOnePixel", {3, 2, 2, 1}, 2),
          pool_case("Wide", {2, 14, 10, 67}, 2),
          resize_case("Up", {2, 3, 4, 3}, 6, 8),
          resize_case("Down", {2, 6, 8, 3}, 3, 4),
          resize_case("OddRatios", {1, 5, 7, 2}, 7, 4),
          resize_case("SameSize", {2, 3, 4, 3}, 3, 4),
          resize_case("FromOnePixel", {2, 1, 1, 3}, 2, 3),
          resize_case("ToOnePixel", {2, 4, 3, 3}, 1, 1)};
}

}  // namespace mutilde
