// IDX files, gzip or not (the format of MNIST): 0, 0, the type (8: bytes), the number of axes; a
// big-endian 32-bit size an axis; the data.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include <zlib.h>

#include "data/codec.h"
#include "data/dataset.h"
#include "data/image.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;

struct IdxData {
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;
};

/// A file that zlib reads, which takes what is not gzip as it is.
class GzipFile {
 public:
  explicit GzipFile(const fs::path& path)
      : path_(path), file_(gzopen(path.c_str(), "rbe"), &gzclose_r) {
    if (file_ == nullptr)
      fail<FileError>("idx: cannot open {}: {}", path.string(), std::strerror(errno));
    gzbuffer(file_.get(), 1 << 17);
  }

  /// Up to `bytes` bytes; fewer at the end of the file.
  size_t read(uint8_t* data, size_t bytes) {
    const int count = gzread(file_.get(), data, static_cast<unsigned>(bytes));
    int code = Z_OK;
    gzerror(file_.get(), &code);
    if (count < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      fail<FileError>("idx: {} is {}", path_.string(),
                      code == Z_BUF_ERROR ? "cut short" : "not valid gzip data");
    }
    return static_cast<size_t>(count);
  }

 private:
  const fs::path& path_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
};

IdxData read_idx(const fs::path& path, size_t axes) {
  GzipFile file(path);
  std::vector<uint8_t> header(4 + 4 * axes);
  if (file.read(header.data(), header.size()) != header.size()) {
    fail<FileError>("idx: {} is cut short in its header", path.string());
  }
  if (header[0] != 0 || header[1] != 0 || header[2] != 8 || header[3] != axes) {
    fail<FileError>("idx: {} begins with {:02x}, expected 0000080{} (bytes, {} axes)",
                    path.string(), fmt::join(header.begin(), header.begin() + 4, ""), axes, axes);
  }
  IdxData data;
  size_t total = 1;
  constexpr size_t kMost = size_t{1}
                           << 36;  // 64 GiB: larger is a mistake, and no product overflows
  for (size_t axis = 0; axis < axes; ++axis) {
    const uint8_t* at = header.data() + 4 + 4 * axis;
    const size_t size = size_t{at[0]} << 24 | size_t{at[1]} << 16 | size_t{at[2]} << 8 | at[3];
    const bool is_side = axis > 0;
    if (size == 0 || (is_side && size > kMaxImageSide) || total * size > kMost) {
      fail<FileError>("idx: {}: a size of {} on axis {} is not possible", path.string(), size,
                      axis);
    }
    total *= size;
    data.sizes.push_back(static_cast<int64_t>(size));
  }
  // In pieces, so that a false count costs no more memory than there is data.
  while (data.bytes.size() < total) {
    const size_t begin = data.bytes.size();
    const size_t piece = std::min(total - begin, size_t{1} << 24);
    data.bytes.resize(begin + piece);
    const size_t count = file.read(data.bytes.data() + begin, piece);
    if (count != piece) {
      fail<FileError>("idx: {} is cut short: {} bytes of data, its header says {}", path.string(),
                      begin + count, total);
    }
  }
  uint8_t more = 0;
  if (file.read(&more, 1) != 0) {
    fail<FileError>("idx: {} goes on after the {} bytes that its header says", path.string(),
                    total);
  }
  return data;
}

class Idx final : public Dataset {
 public:
  Idx(IdxData images, int image_size, int channels, std::vector<int64_t> labels,
      std::vector<std::string> class_names)
      : Dataset(image_size, channels, std::move(labels), std::move(class_names)),
        height_(static_cast<int>(images.sizes[1])),
        width_(static_cast<int>(images.sizes[2])),
        bytes_(std::move(images.bytes)) {}

 private:
  /// A little larger than the images are (28 to 32): then black pixels around,
  /// which leave every stored pixel as it is, where scaling by 8/7 would blur them all and
  /// leave the background no cleaner.
  bool is_padded() const {
    const int larger = std::max(height_, width_);
    return image_size() >= larger && 4 * (image_size() - larger) <= larger;
  }
  bool decodes_fast() const override { return is_padded(); }

  void decode(int64_t index, uint8_t* pixels) const override {
    const auto bytes = static_cast<size_t>(height_) * static_cast<size_t>(width_);
    const uint8_t* grey = bytes_.data() + static_cast<size_t>(index) * bytes;
    if (is_padded()) return pad(grey, pixels);
    Image image(height_, width_, 1);
    std::copy_n(grey, bytes, image.pixels.begin());
    const Image fitted = resize_and_crop(image, image_size());
    for (size_t i = 0; i < fitted.pixels.size(); i += static_cast<size_t>(4 - channels())) {
      *pixels++ = fitted.pixels[i];
    }
  }

  void pad(const uint8_t* grey, uint8_t* pixels) const {
    std::fill_n(pixels, image_bytes(), uint8_t{0});
    const int top = (image_size() - height_) / 2, left = (image_size() - width_) / 2;
    for (int y = 0; y < height_; ++y) {
      uint8_t* to = pixels + (static_cast<ptrdiff_t>(top + y) * image_size() + left) * channels();
      for (int x = 0; x < width_; ++x) to = std::fill_n(to, channels(), *grey++);
    }
  }

  int height_, width_;
  std::vector<uint8_t> bytes_;
};

bool is_images_name(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.find("images") != std::string::npos && name.find("idx3") != std::string::npos;
}

bool is_test_name(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.find("t10k") != std::string::npos || name.find("test") != std::string::npos;
}

fs::path find_images(const fs::path& folder, bool test) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path& path = entry.path();
    if (!is_images_name(path) || is_test_name(path) != test) continue;
    const bool is_gzip = path.extension() == ".gz";  // of x and x.gz, take x
    if (!is_gzip || !fs::exists(fs::path(path).replace_extension())) found.push_back(path);
  }
  if (found.size() != 1) {
    fail<FileError>("idx: {} holds {} files of {} images (*images*idx3*), expected one",
                    folder.string(), found.size(), test ? "test" : "training");
  }
  return found[0];
}

/// The labels' file is named as the images' is. Empty if it is not there.
fs::path labels_path(const fs::path& images) {
  std::string name = images.filename().string();
  const size_t word = name.find("images");
  if (word == std::string::npos) return {};
  name.replace(word, std::strlen("images"), "labels");
  const size_t axes = name.find("idx3");
  if (axes != std::string::npos) name.replace(axes, std::strlen("idx3"), "idx1");
  if (name.ends_with(".gz")) name.resize(name.size() - 3);
  for (const char* ending : {"", ".gz"}) {
    if (fs::path path = images.parent_path() / (name + ending); fs::exists(path)) return path;
  }
  return {};
}

std::vector<std::string> class_names(const fs::path& path, int64_t count) {
  if (path.string().find("fashion") != std::string::npos && count == 10) {
    return {"T-shirt/top", "trouser", "pullover", "dress", "coat",
            "sandal",      "shirt",   "sneaker",  "bag",   "ankle boot"};
  }
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i) names.push_back(std::to_string(i));
  return names;
}

}  // namespace

bool is_idx(const fs::path& path) {
  if (!fs::is_directory(path)) return is_images_name(path);
  return std::any_of(fs::directory_iterator(path), fs::directory_iterator(),
                     [](const auto& entry) { return is_images_name(entry.path()); });
}

std::unique_ptr<Dataset> open_idx(const fs::path& path, int image_size,
                                  const DatasetOptions& options) {
  const fs::path images_file = fs::is_directory(path) ? find_images(path, options.test) : path;
  IdxData images = read_idx(images_file, 3);
  const auto count = static_cast<size_t>(images.sizes[0]);
  std::vector<int64_t> labels(count, 0);
  std::vector<std::string> names;
  if (const fs::path labels_file = labels_path(images_file); !labels_file.empty()) {
    const IdxData stored = read_idx(labels_file, 1);
    if (stored.bytes.size() != count) {
      fail<FileError>("idx: {} holds {} labels, {} holds {} images", labels_file.string(),
                      stored.bytes.size(), images_file.string(), count);
    }
    labels.assign(stored.bytes.begin(), stored.bytes.end());
    names = class_names(images_file, *std::max_element(labels.begin(), labels.end()) + 1);
  }
  const int channels = options.channels == 0 ? 1 : options.channels;
  return std::make_unique<Idx>(std::move(images), image_size, channels, std::move(labels),
                               std::move(names));
}

}  // namespace mutilde
