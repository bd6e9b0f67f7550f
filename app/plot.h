// Plots as pictures: curves over a logarithmic y axis, as suits a loss; bars; labelled images.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "data/image.h"

namespace mutilde::app {

struct Curve {
  std::string name;
  std::array<uint8_t, 3> colour;
  double width;              // pixels
  std::vector<double> x, y;  // points that are not finite, or not positive in y, are left out
};

/// The geometric mean (the axis is logarithmic) of each window of neighbours,
/// `share` of the curve wide, over the values that can be drawn.
/// The window narrows at the beginning, where a loss falls fast.
std::vector<double> smoothed(const std::vector<double>& y, double share);

Image draw_plot(const std::string& title, const std::string& x_label,
                const std::vector<Curve>& curves);

struct Bar {
  std::string name;
  double value, part;  // the part is drawn as a dark line within the bar
};

/// Horizontal bars, one below the other, with their values.
Image draw_bars(const std::string& title, const std::string& legend, const std::vector<Bar>& bars);

struct Row {
  std::string label;
  Tensor images;  // [K, H, W, C], C of 1 or 3, floating in [-1, 1]
};
/// Rows of images, each pixel enlarged `scale` times, with a label over every column, or none.
Image labelled_rows(const std::vector<std::string>& columns, const std::vector<Row>& rows,
                    int scale = 3);

}  // namespace mutilde::app
