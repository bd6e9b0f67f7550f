// A line plot as a picture: axes, round ticks, labels, a legend.
// The y axis is logarithmic, as suits a loss.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

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

}  // namespace mutilde::app
