// A folder of image files, and the folders below it.
#include <algorithm>
#include <map>

#include "data/codec.h"
#include "data/dataset.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;

class ImageFolder final : public Dataset {
 public:
  ImageFolder(std::vector<fs::path> paths, int image_size, int channels,
              std::vector<int64_t> labels, std::vector<std::string> class_names)
      : Dataset(image_size, channels, std::move(labels), std::move(class_names)),
        paths_(std::move(paths)) {}

 private:
  void decode(int64_t index, uint8_t* pixels) const override {
    const Image image = load_image(paths_[static_cast<size_t>(index)]);
    const Image fitted = resize_and_crop(image, image_size());
    const std::vector<uint8_t>& rgb = fitted.pixels;
    if (channels() == 3) {
      std::copy(rgb.begin(), rgb.end(), pixels);
      return;
    }
    for (size_t i = 0; i < rgb.size(); i += 3)  // luma (ITU-R BT.601), in units of 2^-16
      *pixels++ = static_cast<uint8_t>(
          (19595U * rgb[i] + 38470U * rgb[i + 1] + 7471U * rgb[i + 2] + 0x8000U) >> 16);
  }
  bool decodes_fast() const override { return false; }

  std::vector<fs::path> paths_;
};

/// What stands before the first underscore of a file's name; empty if there is none.
std::string class_of(const fs::path& path) {
  const std::string name = path.stem().string();
  const size_t underscore = name.find('_');
  return underscore == std::string::npos ? "" : name.substr(0, underscore);
}

}  // namespace

std::unique_ptr<Dataset> open_image_folder(const fs::path& folder, int image_size,
                                           const DatasetOptions& options) {
  if (options.test)
    fail<Error>("data: {} is a folder of images, it has no test part", folder.string());
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const bool hidden = entry.path().filename().string().starts_with('.');  // macOS leaves ._x.jpg
    if (!hidden && has_image_extension(entry.path()) && !entry.is_directory()) {
      paths.push_back(entry.path());
    }
  }
  if (paths.empty()) fail<FileError>("data: there are no images in {}", folder.string());
  std::sort(paths.begin(), paths.end());

  std::map<std::string, int64_t> classes;
  for (const fs::path& path : paths) classes[class_of(path)] = 0;
  if (classes.contains("")) classes.clear();
  std::vector<std::string> class_names;
  for (auto& [name, index] : classes) {
    index = static_cast<int64_t>(class_names.size());
    class_names.push_back(name);
  }
  std::vector<int64_t> labels;
  for (const fs::path& path : paths)
    labels.push_back(classes.empty() ? 0 : classes[class_of(path)]);
  return std::make_unique<ImageFolder>(std::move(paths), image_size, options.channels == 1 ? 1 : 3,
                                       std::move(labels), std::move(class_names));
}

}  // namespace mutilde
