// What the tutorials share: their command line, a few images, and pictures with labels.
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "app/plot.h"
#include "core/random.h"
#include "core/tensor.h"
#include "data/image.h"

namespace mutilde::tutorial {

using app::labelled_rows;
using app::Row;

struct Options {
  std::filesystem::path out = "out/tutorials";  // where the pictures go
  bool full = false;                            // the long version, where there is one
};

/// What a tutorial defines. main() is in tutorial.cpp: it reads --out DIR, --full and --help, calls
/// this, and turns an error into one line and exit code 2.
void tutorial_main(const Options& options);

/// The first n images of Fashion-MNIST's test part, or of its training part, [n, size, size, 1],
/// float64 in [-1, 1]. Where the data set is not installed it says so and draws n rings instead.
Tensor images(int64_t n, int size = 28, bool test = true);

/// Entry t of a table of the schedule.
inline double at(const Tensor& table, int64_t t) { return table.data<double>()[t]; }
inline Tensor normal_like(const Tensor& x, Generator& random) {
  return random.normal(x.shape(), x.dtype());
}

/// The curve of f over t = 0 .. T - 1, for app::draw_plot.
app::Curve curve(const std::string& name, const std::array<uint8_t, 3>& colour, int64_t T,
                 const std::function<double(int64_t t)>& f);

/// Writes out/name as PNG and says so.
void save(const Options& options, const std::string& name, const Image& image);

}  // namespace mutilde::tutorial
