#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>
#include <tuple>

#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include "core/atomic_file.h"

namespace mutilde {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the same limit as the format's own library
constexpr const char* kMetadataKey = "__metadata__";

struct StoredType {
  const char* name;
  DType dtype;
};
constexpr StoredType kStoredTypes[] = {{"F32", DType::kFloat32}, {"F64", DType::kFloat64},
                                       {"F16", DType::kFloat16}, {"BF16", DType::kBFloat16},
                                       {"I32", DType::kInt32},   {"I64", DType::kInt64},
                                       {"U8", DType::kUInt8}};

/// Text from the file as it may appear in an error: quoted, one line, not too long.
std::string quoted(const std::string& text) {
  constexpr size_t kLongest = 80;
  if (text.size() <= kLongest)
    return json(text).dump(-1, ' ', true, json::error_handler_t::replace);
  return quoted(text.substr(0, kLongest - 3) + "...");
}

/// Parses the header's JSON, which alone would keep the last of two equal
/// keys and nest without limit.
json parse_strictly(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;  // of each object that is open
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 3) fail<FileError>("safetensors: {}: the header is nested too deeply", path);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      fail<FileError>("safetensors: {}: {} appears twice", path, quoted(value.get<std::string>()));
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    const auto* parse_error = dynamic_cast<const json::parse_error*>(&error);
    fail<FileError>("safetensors: {}: the header is not valid JSON (byte {})", path,
                    parse_error != nullptr ? parse_error->byte : 0);
  }
}

}  // namespace

/// Turns the JSON header into entries, refusing whatever does not hold.
class SafetensorsHeader {
 public:
  using Entry = SafetensorsFile::Entry;

  SafetensorsHeader(std::string path, uint64_t data_bytes)
      : path_(std::move(path)), data_bytes_(data_bytes) {}

  std::map<std::string, std::string> metadata(const json& header) const {
    std::map<std::string, std::string> metadata;
    const auto found = header.find(kMetadataKey);
    if (found == header.end()) return metadata;
    if (!found->is_object()) refuse("{} is not an object", kMetadataKey);
    for (const auto& [key, value] : found->items()) {
      if (!value.is_string()) refuse("{} {} is not text", kMetadataKey, quoted(key));
      metadata[key] = value.get<std::string>();
    }
    return metadata;
  }

  std::map<std::string, Entry> entries(const json& header) const {
    std::map<std::string, Entry> entries;
    for (const auto& [name, description] : header.items()) {
      if (name != kMetadataKey) entries[name] = entry(quoted(name), description);
    }
    check_layout(entries);
    return entries;
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail<FileError>("safetensors: {}: {}", path_, fmt::format(format, std::forward<Args>(args)...));
  }

  const json& field(const std::string& name, const json& description, const char* key) const {
    if (!description.is_object()) refuse("tensor {} is not an object", name);
    const auto found = description.find(key);
    if (found == description.end()) refuse("tensor {} has no {}", name, key);
    return *found;
  }

  /// A JSON array of whole numbers from 0 to 2^63 - 1. Larger ones parse as floating point, or fail
  /// the comparison.
  std::vector<int64_t> counts(const std::string& name, const json& description,
                              const char* key) const {
    const json& list = field(name, description, key);
    if (!list.is_array()) refuse("tensor {}: {} is not a list", name, key);
    std::vector<int64_t> counts;
    for (const json& value : list) {
      if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        refuse("tensor {}: {} holds {}, expected whole numbers from 0 to 2^63 - 1", name, key,
               quoted(value.dump(-1, ' ', true, json::error_handler_t::replace)));
      }
      counts.push_back(static_cast<int64_t>(value.get<uint64_t>()));
    }
    return counts;
  }

  const StoredType& stored_type(const std::string& name, const json& description) const {
    const json& value = field(name, description, "dtype");
    if (!value.is_string()) refuse("tensor {}: dtype is not text", name);
    const auto& text = value.get_ref<const std::string&>();
    for (const StoredType& type : kStoredTypes) {
      if (text == type.name) return type;
    }
    refuse("tensor {} has dtype {}, expected F32, F64, F16, BF16, I32, I64 or U8", name,
           quoted(text));
  }

  Entry entry(const std::string& name, const json& description) const {
    const StoredType& type = stored_type(name, description);
    const std::vector<int64_t> sizes = counts(name, description, "shape");
    if (sizes.size() > Shape::kMaxRank) {
      refuse("tensor {} has {} axes, at most {} are possible", name, sizes.size(),
             int{Shape::kMaxRank});
    }
    int64_t bytes = static_cast<int64_t>(size_of(type.dtype));
    bool empty = false;
    for (const int64_t size : sizes) {  // as Shape counts: an axis of 0 excuses no other
      empty |= size == 0;
      if (size > 0 && __builtin_mul_overflow(bytes, size, &bytes)) {
        refuse("tensor {}: shape [{}] overflows", name, fmt::join(sizes, ","));
      }
    }
    if (empty) bytes = 0;
    const std::vector<int64_t> offsets = counts(name, description, "data_offsets");
    if (offsets.size() != 2) {
      refuse("tensor {}: data_offsets holds {} numbers, expected 2", name, offsets.size());
    }
    if (offsets[0] > offsets[1]) {
      refuse("tensor {}: data_offsets {} to {} run backwards", name, offsets[0], offsets[1]);
    }
    if (offsets[1] - offsets[0] != bytes) {
      refuse("tensor {}: data_offsets {} to {} hold {} bytes, but shape [{}] of {} takes {}", name,
             offsets[0], offsets[1], offsets[1] - offsets[0], fmt::join(sizes, ","), type.name,
             bytes);
    }
    return {type.dtype, Shape(sizes), static_cast<uint64_t>(offsets[0]),
            static_cast<uint64_t>(offsets[1])};
  }

  /// The tensors tile the data: in order of their offsets each begins
  /// where the one before it ended.
  void check_layout(const std::map<std::string, Entry>& entries) const {
    std::vector<std::tuple<uint64_t, uint64_t, std::string>> spans;
    for (const auto& [name, entry] : entries) spans.emplace_back(entry.begin, entry.end, name);
    std::sort(spans.begin(), spans.end());
    uint64_t end = 0;
    for (const auto& [span_begin, span_end, name] : spans) {
      if (span_end > data_bytes_) {
        refuse("cut short, or wrong: tensor {} ends at byte {} of the data, of which there are {}",
               quoted(name), span_end, data_bytes_);
      }
      if (span_begin < end) {
        refuse("tensor {} overlaps another (it begins at byte {}, before {})", quoted(name),
               span_begin, end);
      }
      if (span_begin > end) {
        refuse("tensor {} begins at byte {} and leaves a hole after byte {}", quoted(name),
               span_begin, end);
      }
      end = span_end;
    }
    if (end != data_bytes_) refuse("{} bytes follow the last tensor", data_bytes_ - end);
  }

  std::string path_;
  uint64_t data_bytes_;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path), file_(std::fopen(path.c_str(), "rbe"), &std::fclose) {
  const std::string name = path.string();
  if (file_ == nullptr)
    fail<FileError>("safetensors: cannot open {}: {}", name, std::strerror(errno));
  struct stat status {};
  if (::fstat(::fileno(file_.get()), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail<FileError>("safetensors: {} is not a regular file", name);
  }
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  uint64_t header_bytes = 0;
  if (std::fread(&header_bytes, 1, kLengthBytes, file_.get()) != kLengthBytes) {
    fail<FileError>("safetensors: {} is cut short: {} bytes do not hold a header's length", name,
                    file_bytes);
  }
  if (header_bytes > kMaxHeaderBytes) {
    fail<FileError>(
        "safetensors: {} is not a safetensors file: its first 8 bytes are not the length of a "
        "header (at most {})",
        name, uint64_t{kMaxHeaderBytes});
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    fail<FileError>("safetensors: {} is cut short: a header of {} bytes in a file of {}", name,
                    header_bytes, file_bytes);
  }
  std::string text(header_bytes, '\0');
  if (std::fread(text.data(), 1, text.size(), file_.get()) != text.size()) {
    fail<FileError>("safetensors: cannot read the header of {}", name);
  }
  if (!text.starts_with('{'))
    fail<FileError>("safetensors: {}: the header does not begin with '{{'", name);
  data_begin_ = kLengthBytes + header_bytes;
  const json header = parse_strictly(text, name);
  const SafetensorsHeader checked(name, file_bytes - data_begin_);
  metadata_ = checked.metadata(header);
  entries_ = checked.entries(header);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

const SafetensorsFile::Entry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    fail<FileError>("safetensors: {} has no tensor {}", path_.string(), quoted(name));
  }
  return found->second;
}

Tensor SafetensorsFile::read(const std::string& name) const {
  const Entry& found = entry(name);
  const size_t bytes = found.end - found.begin;
  Tensor tensor = Tensor::empty(found.shape, found.dtype);
  if (bytes == 0) return tensor;
  if (::fseeko(file_.get(), static_cast<off_t>(data_begin_ + found.begin), SEEK_SET) != 0 ||
      std::fread(tensor.raw(), 1, bytes, file_.get()) != bytes) {
    fail<FileError>("safetensors: cannot read tensor {} of {}", quoted(name), path_.string());
  }
  return tensor;
}

namespace {

const char* stored_name(DType dtype) {
  for (const StoredType& type : kStoredTypes) {
    if (type.dtype == dtype) return type.name;
  }
  fail<DTypeError>("write_safetensors: dtype {} has no name in the format", name_of(dtype));
}

/// The header, padded with spaces so that the data begins at a multiple of 8 bytes.
std::string header_text(const json& header) {
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    fail<Error>("write_safetensors: a name or metadata is not UTF-8 text");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Wide elements first, so that every tensor lies aligned to its own element size.
  std::vector<const std::pair<std::string, Tensor>*> order;
  for (const auto& named : tensors) order.push_back(&named);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return size_of(a->second.dtype()) > size_of(b->second.dtype());
  });

  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  size_t offset = 0;
  for (const auto* named : order) {
    const auto& [name, tensor] = *named;
    if (!tensor.defined()) fail<Error>("write_safetensors: tensor {} is undefined", quoted(name));
    if (name == kMetadataKey || header.contains(name)) {
      fail<Error>("write_safetensors: the name {} is reserved or given twice", quoted(name));
    }
    const std::vector<int64_t> sizes(tensor.shape().begin(), tensor.shape().end());
    header[name] = {{"dtype", stored_name(tensor.dtype())},
                    {"shape", sizes},
                    {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }

  const std::string text = header_text(header);
  const uint64_t header_bytes = text.size();
  if (header_bytes > kMaxHeaderBytes)
    fail<Error>("write_safetensors: a header of {} bytes", header_bytes);
  atomic_write(path, [&](FileWriter& file) {
    file.write(&header_bytes, kLengthBytes);
    file.write(text);
    for (const auto* named : order) {
      const Tensor on_cpu = named->second.detach().to(Device::cpu());
      file.write(on_cpu.raw(), on_cpu.bytes());
    }
  });
}

}  // namespace mutilde
