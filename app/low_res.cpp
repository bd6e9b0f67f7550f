#include "app/low_res.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include <zip.h>

#include "data/dataset.h"

namespace mutilde::app {

namespace {

using Zip = std::unique_ptr<zip_t, decltype(&zip_discard)>;

/// The bytes of one file in the archive; empty if there is no such file.
std::string read_entry(const std::string& path, zip_t* zip, const char* name) {
  zip_stat_t stat;
  zip_stat_init(&stat);
  if (zip_stat(zip, name, 0, &stat) != 0 || (stat.valid & ZIP_STAT_SIZE) == 0) return "";
  const std::unique_ptr<zip_file_t, decltype(&zip_fclose)> file(zip_fopen(zip, name, 0),
                                                                &zip_fclose);
  constexpr uint64_t kMostBytes = uint64_t{1} << 34;
  std::string bytes;
  if (file == nullptr || stat.size > kMostBytes)
    fail<FileError>("{}: {} cannot be read", path, name);
  // In pieces, so that a size that the archive only claims takes no memory.
  std::vector<char> piece(1 << 20);
  while (true) {
    const zip_int64_t got = zip_fread(file.get(), piece.data(), piece.size());
    if (got < 0) fail<FileError>("{}: {} is damaged", path, name);
    if (got == 0) break;
    bytes.append(piece.data(), static_cast<size_t>(got));
  }
  if (bytes.size() != stat.size) fail<FileError>("{}: {} is cut short", path, name);
  return bytes;
}

/// A .npy array in C order of the given numpy type. Its header is a Python dictionary behind a
/// magic number, a version and a length of two bytes, or of four from version 2 on.
Tensor parse_npy(const std::string& path, const std::string& bytes, const std::string& type,
                 DType dtype) {
  const auto refuse = [&](const std::string& what) { fail<FileError>("{}: {}", path, what); };
  if (bytes.size() < 12 || !bytes.starts_with("\x93NUMPY")) refuse("holds no numpy array");
  const auto byte = [&](size_t at) {
    return static_cast<size_t>(static_cast<unsigned char>(bytes[at]));
  };
  const size_t preamble = byte(6) == 1 ? 10 : 12;
  size_t length = byte(8) + (byte(9) << 8);
  if (byte(6) != 1) length += (byte(10) << 16) + (byte(11) << 24);
  if (preamble + length > bytes.size()) refuse("a numpy array is cut short");
  const std::string header = bytes.substr(preamble, length);
  if (header.find("'" + type + "'") == std::string::npos ||
      header.find("'fortran_order': False") == std::string::npos) {
    refuse(fmt::format("an array of {} in C order expected, its header is {}", type,
                       header.substr(0, header.find('\n'))));
  }
  const size_t open = header.find("'shape': (");
  if (open == std::string::npos) refuse("a numpy array without a shape");
  std::vector<int64_t> sizes;
  for (const char *at = header.data() + open + 10, *end = header.data() + header.size();
       at != end && *at != ')';) {
    int64_t size = 0;
    const auto [next, error] = std::from_chars(at, end, size);
    const bool sane =
        error == std::errc{} && size > 0 && size < (int64_t{1} << 31) && sizes.size() < 4;
    if (!sane) refuse("a numpy array of a shape that cannot be");
    sizes.push_back(size);
    at = std::find_if_not(next, end, [](char c) { return c == ',' || c == ' '; });
  }
  uint64_t wanted = size_of(dtype);
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(wanted, static_cast<uint64_t>(size), &wanted))
      refuse("a numpy array of a shape that cannot be");
  }
  if (wanted != bytes.size() - preamble - length) refuse("a numpy array is cut short");
  const Tensor array = Tensor::empty(Shape(sizes), dtype);
  std::copy_n(bytes.data() + preamble + length, wanted, static_cast<char*>(array.raw()));
  return array;
}

LowRes load_npz(const std::string& path, const Settings& settings) {
  int error = 0;
  const Zip zip(zip_open(path.c_str(), ZIP_RDONLY, &error), &zip_discard);
  if (zip == nullptr) fail<FileError>("{}: is missing, or no .npz archive", path);
  const std::string images = read_entry(path, zip.get(), "arr_0.npy");
  if (images.empty()) fail<FileError>("{}: has no array arr_0", path);
  LowRes result;
  const Tensor x = parse_npy(path, images, "|u1", DType::kUInt8);
  const int64_t size = settings.small_size, C = settings.image_channels;
  if (x.rank() != 4 || x.size(0) < 1 || !(x.shape().with(0, 1) == Shape{1, size, size, C})) {
    fail<FileError>("{}: arr_0 has shape {}, [N,{},{},{}] expected", path, x.shape(), size, size,
                    C);
  }
  result.x = x.to(DType::kFloat32) / 127.5 - 1.0;
  if (const std::string labels = read_entry(path, zip.get(), "arr_1.npy"); !labels.empty()) {
    result.y = parse_npy(path, labels, "<i8", DType::kInt64);
    if (!(result.y.shape() == Shape{x.size(0)}))
      fail<FileError>("{}: arr_1 has shape {}, [{}] expected", path, result.y.shape(), x.size(0));
  }
  return result;
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
  LowRes result{pixels.to(DType::kFloat32) / 127.5 - 1.0, {}};
  if (!dataset->class_names().empty()) result.y = Tensor::from<int64_t>({N}, labels);
  return result;
}

}  // namespace mutilde::app
