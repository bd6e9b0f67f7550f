#include "data/npz.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <iterator>
#include <memory>
#include <optional>

#include <zip.h>

#include "core/atomic_file.h"

namespace mutilde {
namespace {

static_assert(std::endian::native == std::endian::little, "the arrays are marked little-endian");

struct NumpyType {
  const char* name;
  DType dtype;
};
constexpr NumpyType kNumpyTypes[] = {{"<f4", DType::kFloat32},
                                     {"<f8", DType::kFloat64},
                                     {"<i4", DType::kInt32},
                                     {"<i8", DType::kInt64},
                                     {"|u1", DType::kUInt8}};

const char* numpy_type(const std::string& name, DType dtype) {
  for (const NumpyType& type : kNumpyTypes) {
    if (type.dtype == dtype) return type.name;
  }
  fail<DTypeError>("write_npz: array {} holds {}, which numpy does not have", name, name_of(dtype));
}

/// Version 1.0 of the format: a magic number, the header's length, and a Python dictionary padded
/// so that the data begins at a multiple of 64 bytes.
std::string npy_header(const std::string& name, const Tensor& array) {
  std::string shape;
  for (const int64_t size : array.shape()) shape += fmt::format("{}, ", size);
  if (array.rank() > 1) shape.resize(shape.size() - 2);  // (5, ) but (5, 6)
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
                                   numpy_type(name, array.dtype()), shape);
  constexpr size_t kPreamble = 10, kAlignment = 64;
  header.resize((kPreamble + header.size() + kAlignment) / kAlignment * kAlignment - kPreamble - 1,
                ' ');
  header += '\n';
  std::string preamble = "\x93NUMPY\x01";
  preamble += '\0';
  preamble += static_cast<char>(header.size() & 0xFF);
  preamble += static_cast<char>(header.size() >> 8);
  return preamble + header;
}

/// A zip archive that is made in memory, so that writing it to disk is one atomic step.
class MemoryZip {
 public:
  MemoryZip() : buffer_(zip_source_buffer_create(nullptr, 0, 0, nullptr), &zip_source_free) {
    if (buffer_ == nullptr) fail<Error>("write_npz: out of memory");
    zip_source_keep(buffer_.get());  // one reference is the archive's
    archive_ = zip_open_from_source(buffer_.get(), ZIP_TRUNCATE, nullptr);
    if (archive_ == nullptr) {
      zip_source_free(buffer_.get());
      fail<Error>("write_npz: cannot make a zip archive");
    }
  }
  MemoryZip(const MemoryZip&) = delete;
  MemoryZip& operator=(const MemoryZip&) = delete;
  ~MemoryZip() {
    if (archive_ != nullptr) zip_discard(archive_);
  }

  /// Header and array must live until write().
  void add(const std::string& name, const std::string& header, const Tensor& array) {
    const auto bytes_of = [](const void* data) {  // libzip only reads them
      return static_cast<zip_uint8_t*>(const_cast<void*>(data));
    };
    const zip_buffer_fragment_t parts[] = {{bytes_of(header.data()), header.size()},
                                           {bytes_of(array.raw()), array.bytes()}};
    zip_source_t* source = zip_source_buffer_fragment(archive_, parts, std::size(parts), 0);
    const zip_int64_t index =
        source == nullptr ? -1 : zip_file_add(archive_, name.c_str(), source, 0);
    if (index < 0) {
      if (source != nullptr) zip_source_free(source);
      fail<Error>("write_npz: cannot add {}: {}", name, zip_strerror(archive_));
    }
    const auto entry = static_cast<zip_uint64_t>(index);
    zip_set_file_compression(archive_, entry, ZIP_CM_STORE, 0);
    zip_file_set_dostime(archive_, entry, 0, (1 << 5) | 1, 0);  // 1980-01-01: no clock in the bytes
  }

  void write(FileWriter& file) {
    if (zip_close(archive_) != 0) fail<Error>("write_npz: {}", zip_strerror(archive_));
    archive_ = nullptr;
    zip_int64_t count = zip_source_open(buffer_.get());
    std::vector<char> chunk(1 << 20);
    while (count >= 0) {
      count = zip_source_read(buffer_.get(), chunk.data(), chunk.size());
      if (count <= 0) break;
      file.write(chunk.data(), static_cast<size_t>(count));
    }
    if (count < 0) fail<Error>("write_npz: cannot read the archive back");
    zip_source_close(buffer_.get());
  }

 private:
  std::unique_ptr<zip_source_t, void (*)(zip_source_t*)> buffer_;
  zip_t* archive_ = nullptr;
};

using Zip = std::unique_ptr<zip_t, decltype(&zip_discard)>;

/// The bytes of one file in the archive, if there is such a file.
std::optional<std::string> read_entry(const std::string& path, zip_t* zip,
                                      const std::string& name) {
  zip_stat_t stat;
  zip_stat_init(&stat);
  if (zip_stat(zip, name.c_str(), 0, &stat) != 0) return std::nullopt;
  const std::unique_ptr<zip_file_t, decltype(&zip_fclose)> file(zip_fopen(zip, name.c_str(), 0),
                                                                &zip_fclose);
  constexpr uint64_t kMostBytes = uint64_t{1} << 34;
  if (file == nullptr || (stat.valid & ZIP_STAT_SIZE) == 0 || stat.size > kMostBytes) {
    fail<FileError>("{}: {} cannot be read", path, name);
  }
  // In pieces, so that a size that the archive only claims takes no memory.
  std::string bytes;
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

/// The sizes in "(2, 3, )", without what the header says after them; nothing if they cannot be.
std::optional<Shape> parse_shape(std::string_view text) {
  std::vector<int64_t> sizes;
  const char *at = text.data(), *end = at + text.size();
  int64_t product = 1;
  while (at != end && *at != ')') {
    int64_t size = 0;
    const auto [next, error] = std::from_chars(at, end, size);
    if (error != std::errc{} || size < 0 || size >= (int64_t{1} << 31) ||
        sizes.size() == Shape::kMaxRank ||
        (size > 0 && __builtin_mul_overflow(product, size, &product))) {
      return std::nullopt;
    }
    sizes.push_back(size);
    at = std::find_if_not(next, end, [](char c) { return c == ',' || c == ' '; });
  }
  return Shape(std::span<const int64_t>(sizes));
}

/// What a .npy file holds. Its header is a Python dictionary behind a magic number, a version and a
/// length of two bytes, or of four from version 2 on.
Tensor parse_npy(const std::string& path, const std::string& name, const std::string& bytes) {
  const auto refuse = [&](const char* why) { fail<FileError>("{}: {} {}", path, name, why); };
  if (bytes.size() < 12 || !bytes.starts_with("\x93NUMPY")) refuse("is no numpy array");
  const auto byte = [&](size_t at) {
    return static_cast<size_t>(static_cast<unsigned char>(bytes[at]));
  };
  const size_t preamble = byte(6) == 1 ? 10 : 12;
  size_t length = byte(8) + (byte(9) << 8);
  if (byte(6) != 1) length += (byte(10) << 16) + (byte(11) << 24);
  if (preamble + length > bytes.size()) refuse("is cut short");
  const std::string header = bytes.substr(preamble, length);
  const auto holds = [&](const std::string& text) { return header.find(text) != header.npos; };
  const auto* const type =
      std::find_if(std::begin(kNumpyTypes), std::end(kNumpyTypes),
                   [&](const NumpyType& t) { return holds(fmt::format("'descr': '{}'", t.name)); });
  if (type == std::end(kNumpyTypes)) refuse("holds numbers of a kind that is not supported");
  if (!holds("'fortran_order': False")) refuse("is in Fortran order, C order is expected");
  const std::string opening = "'shape': (";
  const size_t open = header.find(opening);
  if (open == header.npos) refuse("has no shape");
  const auto shape = parse_shape(std::string_view(header).substr(open + opening.size()));
  uint64_t wanted = size_of(type->dtype);
  bool possible = shape.has_value();
  for (int axis = 0; possible && axis < shape->rank(); ++axis) {
    possible = !__builtin_mul_overflow(wanted, static_cast<uint64_t>((*shape)[axis]), &wanted);
  }
  if (!possible) refuse("has a shape that cannot be");
  if (wanted != bytes.size() - preamble - length) refuse("is cut short");
  const Tensor array = Tensor::empty(*shape, type->dtype);
  std::copy_n(bytes.data() + preamble + length, wanted, static_cast<char*>(array.raw()));
  return array;
}

}  // namespace

void write_npz(const std::filesystem::path& path,
               const std::vector<std::pair<std::string, Tensor>>& arrays) {
  if (arrays.empty()) fail<Error>("write_npz: no arrays");
  std::vector<std::string> headers;
  std::vector<Tensor> on_cpu;
  headers.reserve(arrays.size());
  MemoryZip zip;
  for (const auto& [name, array] : arrays) {
    if (!array.defined()) fail<Error>("write_npz: array {} is undefined", name);
    headers.push_back(npy_header(name, array));
    on_cpu.push_back(array.detach().to(Device::cpu()));
    zip.add(name + ".npy", headers.back(), on_cpu.back());
  }
  atomic_write(path, [&](FileWriter& file) { zip.write(file); });
}

Tensor read_npz(const std::filesystem::path& path, const std::string& name) {
  int error = 0;
  const Zip zip(zip_open(path.c_str(), ZIP_RDONLY, &error), &zip_discard);
  if (zip == nullptr) fail<FileError>("{}: is missing, or no .npz archive", path.string());
  const auto bytes = read_entry(path.string(), zip.get(), name + ".npy");
  return bytes ? parse_npy(path.string(), name, *bytes) : Tensor();
}

}  // namespace mutilde
