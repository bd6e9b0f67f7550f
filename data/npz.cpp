// numpy's .npz: a zip archive of .npy files.
#include <bit>
#include <iterator>
#include <memory>

#include <zip.h>

#include "core/atomic_file.h"
#include "data/image_io.h"

namespace mutilde {
namespace {

static_assert(std::endian::native == std::endian::little, "the arrays are marked little-endian");

const char* numpy_type(const std::string& name, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "<f4";
    case DType::kFloat64:
      return "<f8";
    case DType::kInt32:
      return "<i4";
    case DType::kInt64:
      return "<i8";
    case DType::kUInt8:
      return "|u1";
    case DType::kBFloat16:
      break;
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

}  // namespace mutilde
