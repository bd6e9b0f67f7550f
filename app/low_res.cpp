#include "app/low_res.h"

#include <algorithm>
#include <vector>

#include "data/dataset.h"
#include "data/image_io.h"
#include "data/npz.h"

namespace mutilde::app {

namespace {

LowRes load_npz(const std::string& path, const Settings& settings) {
  const Tensor x = read_npz(path, "arr_0");
  if (!x.defined()) fail<FileError>("{}: has no array arr_0", path);
  const int64_t size = settings.small_size, C = settings.image_channels;
  const bool fits = x.dtype() == DType::kUInt8 && x.rank() == 4 && x.size(0) >= 1 &&
                    x.shape().with(0, 1) == Shape{1, size, size, C};
  if (!fits) {
    fail<FileError>("{}: arr_0 is {} {}, uint8 [N,{},{},{}] expected", path, name_of(x.dtype()),
                    x.shape(), size, size, C);
  }
  const Tensor y = read_npz(path, "arr_1");
  if (y.defined() && !(y.dtype() == DType::kInt64 && y.shape() == Shape{x.size(0)})) {
    fail<FileError>("{}: arr_1 is {} {}, int64 [{}] expected", path, name_of(y.dtype()), y.shape(),
                    x.size(0));
  }
  return {from_uint8(x), y};
}

}  // namespace

LowRes load_low_res(const std::string& spec, const Settings& settings, int64_t count) {
  if (spec.ends_with(".npz")) return load_npz(spec, settings);
  DatasetOptions options;
  options.channels = settings.image_channels == 3 ? 3 : 0;
  options.memory_limit = 0;  // few of them are needed
  const auto dataset = open_dataset(spec, static_cast<int>(settings.small_size), options);
  if (dataset->channels() != settings.image_channels) {
    fail<Error>("{}: has {} channels, the model {}", spec, dataset->channels(),
                settings.image_channels);
  }
  const int64_t N = std::min(count, dataset->size()), size = settings.small_size;
  const Tensor pixels = Tensor::empty({N, size, size, settings.image_channels}, DType::kUInt8);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < N; ++i) {
    dataset->get(i, pixels.slice(i, i + 1).values<uint8_t>());
    labels.push_back(dataset->label(i));
  }
  LowRes result{from_uint8(pixels), {}};
  if (!dataset->class_names().empty()) result.y = Tensor::from<int64_t>({N}, labels);
  return result;
}

}  // namespace mutilde::app
