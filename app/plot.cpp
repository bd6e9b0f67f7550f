#include "app/plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <stb/stb_easy_font.h>

#include "data/image_io.h"

namespace mutilde::app {

namespace {

using Colour = std::array<uint8_t, 3>;
constexpr Colour kInk = {40, 40, 48}, kGrid = {228, 228, 234};
constexpr int kWidth = 960, kHeight = 540;
constexpr int kLeft = 84, kRight = kWidth - 24, kTop = 52, kBottom = kHeight - 64;

void blend(Image& image, int x, int y, const Colour& colour, double opacity) {
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return;
  uint8_t* pixel = image.row(y) + 3 * x;
  for (size_t c = 0; c < 3; ++c)
    pixel[c] = static_cast<uint8_t>(std::lround(pixel[c] + (colour[c] - pixel[c]) * opacity));
}

void fill(Image& image, double x0, double y0, double x1, double y1, const Colour& colour) {
  for (int y = static_cast<int>(std::lround(y0)); y < std::lround(y1); ++y) {
    for (int x = static_cast<int>(std::lround(x0)); x < std::lround(x1); ++x)
      blend(image, x, y, colour, 1);
  }
}

struct Point {
  double x, y;
};

/// A polyline: the opacity of a pixel falls from 1 to 0 over one pixel at the line's border.
/// Coverage is collected first, so that the joints of a pale line are not darker than the line.
void draw_polyline(Image& image, const std::vector<Point>& points, const Colour& colour,
                   double width) {
  std::vector<float> coverage(static_cast<size_t>(image.width * image.height), 0.F);
  const double reach = width / 2 + 0.5;
  for (size_t i = 0; i + 1 < points.size(); ++i) {
    const Point a = points[i], b = points[i + 1];
    const double dx = b.x - a.x, dy = b.y - a.y, length2 = dx * dx + dy * dy;
    const int x_end = std::min(image.width - 1, static_cast<int>(std::max(a.x, b.x) + reach) + 1);
    const int y_end = std::min(image.height - 1, static_cast<int>(std::max(a.y, b.y) + reach) + 1);
    for (int y = std::max(0, static_cast<int>(std::min(a.y, b.y) - reach)); y <= y_end; ++y) {
      for (int x = std::max(0, static_cast<int>(std::min(a.x, b.x) - reach)); x <= x_end; ++x) {
        const double along =
            length2 == 0 ? 0 : std::clamp(((x - a.x) * dx + (y - a.y) * dy) / length2, 0.0, 1.0);
        const double distance = std::hypot(x - a.x - along * dx, y - a.y - along * dy);
        float& most = coverage[static_cast<size_t>(y * image.width + x)];
        most = std::max(most, static_cast<float>(std::clamp(reach - distance, 0.0, 1.0)));
      }
    }
  }
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x)
      blend(image, x, y, colour, coverage[static_cast<size_t>(y * image.width + x)]);
  }
}

int text_width(const std::string& text, int scale) {
  return scale * stb_easy_font_width(const_cast<char*>(text.c_str()));  // it only reads
}

/// The font is a list of filled rectangles.
void draw_text(Image& image, int x, int y, const std::string& text, int scale,
               const Colour& colour = kInk) {
  struct Corner {
    float x, y, z;
    uint8_t rgba[4];
  };
  std::vector<Corner> corners(text.size() * 4 * 60 + 4);
  const int quads =
      stb_easy_font_print(0, 0, const_cast<char*>(text.c_str()), nullptr, corners.data(),
                          static_cast<int>(corners.size() * sizeof(Corner)));
  for (size_t q = 0; q < static_cast<size_t>(quads); ++q) {
    const Corner &a = corners[4 * q], &b = corners[4 * q + 2];
    fill(image, x + scale * a.x, y + scale * a.y, x + scale * b.x, y + scale * b.y, colour);
  }
}

/// `small`: of 1 channel or 3.
void draw_enlarged(Image& image, int left, int top, const Image& small, int scale) {
  for (int y = 0; y < small.height * scale; ++y) {
    for (int x = 0; x < small.width * scale; ++x) {
      const uint8_t* from = small.row(y / scale) + x / scale * small.channels;
      uint8_t* to = image.row(top + y) + 3 * (left + x);
      for (int c = 0; c < 3; ++c) to[c] = from[small.channels == 3 ? c : 0];
    }
  }
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double place(double value, double from, double to) const {
    return high > low ? from + (value - low) / (high - low) * (to - from) : (from + to) / 2;
  }
};

bool drawable(double x, double y) { return std::isfinite(x) && std::isfinite(y) && y > 0; }

/// 1, 2 or 5 times a power of ten, so that about `count` steps cover the range.
double round_step(double range, double count) {
  const double raw = std::max(range / count, 1e-300);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10 * power;
}

void draw_axes(Image& image, const Range& xs, const Range& log_ys, const std::string& x_label) {
  const double step = std::max(1.0, round_step(xs.high - xs.low, 8));
  for (double x = std::ceil(xs.low / step) * step; x <= xs.high; x += step) {
    const int at = static_cast<int>(std::lround(xs.place(x, kLeft, kRight)));
    fill(image, at, kTop, at + 1, kBottom, kGrid);
    const std::string text = fmt::format("{:.0f}", x);
    draw_text(image, at - text_width(text, 2) / 2, kBottom + 10, text, 2);
  }
  // All of 1, 2, 5 in each decade where few decades are shown, the decades
  // alone where there are many.
  const bool few = log_ys.high - log_ys.low < 4;
  for (int decade = static_cast<int>(std::floor(log_ys.low)); decade <= log_ys.high; ++decade) {
    for (double factor : {1.0, 2.0, 5.0}) {
      const double log_y = decade + std::log10(factor);
      if ((factor > 1 && !few) || log_y < log_ys.low || log_y > log_ys.high) continue;
      const int at = static_cast<int>(std::lround(log_ys.place(log_y, kBottom, kTop)));
      fill(image, kLeft, at, kRight, at + 1, kGrid);
      const std::string text = fmt::format("{:.4g}", factor * std::pow(10.0, decade));
      draw_text(image, kLeft - 10 - text_width(text, 2), at - 7, text, 2);
    }
  }
  fill(image, kLeft, kBottom, kRight, kBottom + 2, kInk);
  fill(image, kLeft - 2, kTop, kLeft, kBottom + 2, kInk);
  draw_text(image, (kLeft + kRight - text_width(x_label, 2)) / 2, kBottom + 36, x_label, 2);
}

}  // namespace

std::vector<double> smoothed(const std::vector<double>& y, double share) {
  const auto half = static_cast<size_t>(share * static_cast<double>(y.size()) / 2);
  std::vector<double> result;
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t begin = i - std::min(half, i), end = std::min(y.size(), i + std::min(half, i) + 1);
    double sum = 0, count = 0;
    for (size_t j = begin; j < end; ++j) {
      if (!drawable(0, y[j])) continue;
      sum += std::log(y[j]);
      ++count;
    }
    result.push_back(std::exp(sum / count));
  }
  return result;
}

Image draw_plot(const std::string& title, const std::string& x_label,
                const std::vector<Curve>& curves) {
  Image image(kHeight, kWidth, 3);
  std::fill(image.pixels.begin(), image.pixels.end(), uint8_t{255});
  Range xs, log_ys;
  for (const Curve& curve : curves) {
    for (size_t i = 0; i < curve.x.size(); ++i) {
      if (!drawable(curve.x[i], curve.y[i])) continue;
      xs.include(curve.x[i]);
      log_ys.include(std::log10(curve.y[i]));
    }
  }
  if (xs.low > xs.high) xs = log_ys = {0, 1};
  log_ys.low -= 0.05;
  log_ys.high += 0.05;
  draw_text(image, kLeft, 18, title, 2);
  draw_axes(image, xs, log_ys, x_label);
  int legend = kRight;
  for (const Curve& curve : curves) {
    std::vector<Point> points;
    for (size_t i = 0; i < curve.x.size(); ++i) {
      if (!drawable(curve.x[i], curve.y[i])) continue;
      points.push_back({xs.place(curve.x[i], kLeft, kRight),
                        log_ys.place(std::log10(curve.y[i]), kBottom, kTop)});
    }
    draw_polyline(image, points, curve.colour, curve.width);
    if (curve.name.empty()) continue;
    legend -= text_width(curve.name, 2) + 20;
    draw_text(image, legend, 18, curve.name, 2, curve.colour);
  }
  return image;
}

Image draw_bars(const std::string& title, const std::string& legend, const std::vector<Bar>& bars) {
  constexpr int kBar = 16, kPitch = 24, kFirst = 76;
  constexpr Colour kValue = {150, 184, 224}, kPart = {30, 70, 130};
  int names = 0, values = 0;
  double longest = 0;
  const auto value_text = [](const Bar& bar) { return fmt::format("{:.4g}", bar.value); };
  for (const Bar& bar : bars) {
    names = std::max(names, text_width(bar.name, 2));
    values = std::max(values, text_width(value_text(bar), 2));
    longest = std::max({longest, bar.value, bar.part});
  }
  const int left = names + 36, width = std::max(kWidth, left + 480);
  Image image(kFirst + kPitch * static_cast<int>(bars.size()) + 16, width, 3);
  std::fill(image.pixels.begin(), image.pixels.end(), uint8_t{255});
  draw_text(image, 20, 18, title, 2);
  draw_text(image, 20, 42, legend, 2, kPart);
  const double scale = (width - 32 - values - left) / std::max(longest, 1e-300);
  int y = kFirst;
  for (const Bar& bar : bars) {
    draw_text(image, left - 12 - text_width(bar.name, 2), y + 1, bar.name, 2);
    fill(image, left, y, left + bar.value * scale, y + kBar, kValue);
    fill(image, left, y + 5, left + bar.part * scale, y + kBar - 5, kPart);
    draw_text(image, left + static_cast<int>(std::max(bar.value, bar.part) * scale) + 8, y + 1,
              value_text(bar), 2);
    y += kPitch;
  }
  return image;
}

Image labelled_rows(const std::vector<std::string>& columns, const std::vector<Row>& rows,
                    int scale) {
  constexpr int kGap = 6, kText = 24;
  int label_width = 0;
  for (const Row& row : rows) label_width = std::max(label_width, text_width(row.label, 2));
  const Shape& shape = rows.front().images.shape();
  const int H = static_cast<int>(shape[1]), W = static_cast<int>(shape[2]);
  const int left = label_width + 3 * kGap, top = columns.empty() ? kGap : kText + 2 * kGap;
  Image image(top + static_cast<int>(rows.size()) * (H * scale + kGap),
              left + static_cast<int>(shape[0]) * (W * scale + kGap), 3);
  std::fill(image.pixels.begin(), image.pixels.end(), uint8_t{255});
  const auto left_of = [&](size_t column) {
    return left + static_cast<int>(column) * (W * scale + kGap);
  };
  for (size_t column = 0; column < columns.size(); ++column) {
    const int x = left_of(column) + (W * scale - text_width(columns[column], 2)) / 2;
    draw_text(image, x, 2 * kGap, columns[column], 2);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const int y = top + static_cast<int>(r) * (H * scale + kGap);
    draw_text(image, kGap, y + H * scale / 2 - kText / 3, rows[r].label, 2);
    for (int64_t i = 0; i < rows[r].images.size(0); ++i)
      draw_enlarged(image, left_of(static_cast<size_t>(i)), y, to_image(rows[r].images, i), scale);
  }
  return image;
}

}  // namespace mutilde::app
