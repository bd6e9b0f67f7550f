#include "core/safetensors.h"

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "core/atomic_file.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

/// A folder of its own for each test, gone afterwards.
class Safetensors : public testing::Test {
 protected:
  Safetensors() {
    std::string name = (fs::temp_directory_path() / "mutilde-safetensors-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~Safetensors() override { fs::remove_all(folder_); }

  fs::path path(const std::string& name = "x.safetensors") const { return folder_ / name; }

  fs::path write_bytes(const std::string& bytes) const {
    std::ofstream(path(), std::ios::binary) << bytes;
    return path();
  }
  /// A file as another program would write it, byte for byte.
  fs::path write_file(const std::string& header, const std::string& data) const {
    const uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return write_bytes(bytes + header + data);
  }
  int64_t files_in_folder() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }

  fs::path folder_;
};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const FileError& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("not a FileError: ") + error.what();
  }
  return "nothing was thrown";
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

TEST_F(Safetensors, ReadsAFileWrittenByHand) {
  const std::string header =
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"I64","shape":[2],"data_offsets":[8,24]},)"
      R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}   )";
  const SafetensorsFile file(
      write_file(header, bytes_of<float>({1.5f, -2.0f}) + bytes_of<int64_t>({7, -9})));
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_TRUE(file.has("a"));
  EXPECT_FALSE(file.has("k"));
  EXPECT_EQ(file.shape("a"), (Shape{1, 2}));
  EXPECT_EQ(file.dtype("b"), DType::kInt64);
  EXPECT_EQ(file.read("a").to_vector<float>(), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(file.read("b").to_vector<int64_t>(), (std::vector<int64_t>{7, -9}));
  EXPECT_THAT(message_of([&] { file.read("c"); }), HasSubstr("has no tensor \"c\""));
}

TEST_F(Safetensors, ReadsFloat16AsFloat32) {
  // 1, -2, the largest, the smallest subnormal and normal, -0, infinity, 1/3 rounded, NaN.
  const std::vector<uint16_t> halves = {0x3C00, 0xC000, 0x7BFF, 0x0001, 0x0400,
                                        0x8000, 0x7C00, 0x3555, 0x7E00};
  const SafetensorsFile file(
      write_file(R"({"h":{"dtype":"F16","shape":[9],"data_offsets":[0,18]}})", bytes_of(halves)));
  EXPECT_EQ(file.dtype("h"), DType::kFloat16);
  const std::vector<float> values = file.read("h").to_vector<float>();
  const std::vector<float> expected = {1.0f,
                                       -2.0f,
                                       65504.0f,
                                       0x1p-24f,
                                       0x1p-14f,
                                       -0.0f,
                                       std::numeric_limits<float>::infinity(),
                                       0.333251953125f};
  EXPECT_EQ(std::vector<float>(values.begin(), values.end() - 1), expected);
  EXPECT_TRUE(std::signbit(values[5]));
  EXPECT_TRUE(std::isnan(values[8]));
}

TEST_F(Safetensors, RoundTripsEveryDType) {
  const Tensor bf16 = Tensor::empty({2}, DType::kBFloat16),
               f16 = Tensor::empty({3}, DType::kFloat16);
  const std::vector<uint16_t> bits = {0x3F80, 0xC000, 0x7C01};
  std::memcpy(bf16.raw(), bits.data(), bf16.bytes());
  std::memcpy(f16.raw(), bits.data(), f16.bytes());
  const std::vector<std::pair<std::string, Tensor>> tensors = {
      {"u8", Tensor::from<uint8_t>({3}, {0, 127, 255})},
      {"f32", Tensor::from<float>({2, 2}, {1e-30f, -0.0f, 3.25f, 4.0f})},
      {"bf16", bf16},
      {"f16", f16},
      {"i32", Tensor::from<int32_t>({1, 1, 2}, {-5, 1 << 30})},
      {"f64", Tensor::from<double>({2}, {0.1, -1e300})},
      {"i64", Tensor::from<int64_t>({}, {int64_t{-1} << 60})},
      {"none", Tensor::empty({0, 3})}};
  const std::map<std::string, std::string> metadata = {{"model", R"({"a": "ä\n\"quoted\""})"},
                                                       {"", ""}};
  write_safetensors(path(), tensors, metadata);
  EXPECT_EQ(files_in_folder(), 1);
  const SafetensorsFile file(path());
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor read = file.read(name);
    EXPECT_EQ(read.shape(), tensor.shape()) << name;
    ASSERT_EQ(read.dtype(), tensor.dtype()) << name;
    if (tensor.bytes() > 0) {
      EXPECT_EQ(std::memcmp(read.raw(), tensor.raw(), tensor.bytes()), 0) << name;
    }
  }
}

TEST_F(Safetensors, AlignsTheDataToItsElements) {
  write_safetensors(path(), {{"byte", Tensor::zeros({1}, DType::kUInt8)},
                             {"d", Tensor::zeros({1}, DType::kFloat64)}});
  std::ifstream stream(path(), std::ios::binary);
  uint64_t length = 0;
  stream.read(reinterpret_cast<char*>(&length), 8);
  std::string header(length, ' ');
  stream.read(header.data(), static_cast<std::streamsize>(length));
  EXPECT_EQ(length % 8, 0u);
  EXPECT_THAT(header, HasSubstr(R"("d":{"data_offsets":[0,8])"));
}

TEST_F(Safetensors, RefusesToWriteWhatCannotBeRead) {
  const Tensor x = Tensor::zeros({1});
  EXPECT_THROW(write_safetensors(path(), {{"x", x}, {"x", x}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{"__metadata__", x}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{"x", Tensor()}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{"\xFF", x}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{"x", x}}, {{"k", "\xC3"}}), Error);
  EXPECT_EQ(files_in_folder(), 0);
}

struct Hostile {
  const char* title;
  std::string header, data, message;
};

TEST_F(Safetensors, RefusesEachHostileHeaderWithOneLine) {
  const std::string four(4, 'x');
  const std::string deep = R"({"a":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a +
           R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + b + "}}";
  };
  const std::vector<Hostile> cases = {
      {"not JSON", "{nonsense", "", "not valid JSON"},
      {"JSON cut short", R"({"a":)", "", "not valid JSON"},
      {"text after the JSON", "{} x", "", "not valid JSON"},
      {"text that is not UTF-8", "{\"\xFF\":1}", "", "not valid JSON"},
      {"empty header", "", "", "does not begin with '{'"},
      {"a list", "[]", "", "does not begin with '{'"},
      {"deep nesting", deep, "", "nested too deeply"},
      {"tensor is a number", R"({"a":1})", "", "tensor \"a\" is not an object"},
      {"no dtype", R"({"a":{}})", "", "tensor \"a\" has no dtype"},
      {"dtype is a number", tensor("1", "[1]", "[0,4]"), four, "dtype is not text"},
      {"unknown dtype", tensor("\"F31\"", "[1]", "[0,4]"), four, "has dtype \"F31\", expected F32"},
      {"shape is text", tensor("\"F32\"", "\"1\"", "[0,4]"), four, "shape is not a list"},
      {"negative size", tensor("\"F32\"", "[-1]", "[0,4]"), four, "shape holds \"-1\""},
      {"two negative sizes", tensor("\"F32\"", "[-1,-1]", "[0,4]"), four, "shape holds \"-1\""},
      {"fractional size", tensor("\"F32\"", "[1.0]", "[0,4]"), four, "shape holds \"1.0\""},
      {"size over 2^63", tensor("\"F32\"", "[9223372036854775808]", "[0,4]"), four, "shape holds"},
      {"size over 2^64", tensor("\"F32\"", "[99999999999999999999]", "[0,4]"), four, "shape holds"},
      {"product overflows to 0", tensor("\"U8\"", "[4294967296,4294967296]", "[0,0]"), "",
       "overflows"},
      {"bytes overflow", tensor("\"F64\"", "[2305843009213693952]", "[0,0]"), "", "overflows"},
      {"too many axes", tensor("\"U8\"", "[1,1,1,1,1,1,1,1]", "[0,1]"), "x",
       "has 8 axes, at most 6"},
      {"one offset", tensor("\"F32\"", "[1]", "[0]"), four,
       "data_offsets holds 1 numbers, expected 2"},
      {"negative offset", tensor("\"F32\"", "[1]", "[-4,0]"), four, "data_offsets holds \"-4\""},
      {"offsets backwards", tensor("\"F32\"", "[1]", "[4,0]"), four, "run backwards"},
      {"offsets do not fit the shape", tensor("\"F32\"", "[2]", "[0,4]"), four,
       "hold 4 bytes, but shape [2] of F32 takes 8"},
      {"data cut short", tensor("\"F32\"", "[2]", "[0,8]"), four,
       "ends at byte 8 of the data, of which there are 4"},
      {"offsets far outside", tensor("\"U8\"", "[9223372036854775807]", "[0,9223372036854775807]"),
       four, "cut short"},
      {"the same bytes twice", two("[0,2]", "[0,2]"), "xx", "overlaps"},
      {"one byte in common", two("[0,2]", "[1,3]"), "xxx", "overlaps"},
      {"a hole", two("[0,2]", "[3,5]"), "xxxxx", "leaves a hole after byte 2"},
      {"data left over", two("[0,2]", "[2,4]"), "xxxxx", "1 bytes follow the last tensor"},
      {"a name twice", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})", "",
       "\"a\" appears twice"},
      {"a key twice", R"({"a":{"dtype":"U8","dtype":"F32"}})", "", "\"dtype\" appears twice"},
      {"metadata is text", R"({"__metadata__":"x"})", "", "__metadata__ is not an object"},
      {"metadata holds a number", R"({"__metadata__":{"k":1}})", "",
       "__metadata__ \"k\" is not text"},
      {"a name of two lines", R"({"a\nb":1})", "", R"(tensor "a\nb" is not an object)"},
  };
  for (const Hostile& hostile : cases) {
    write_file(hostile.header, hostile.data);
    const std::string message = message_of([&] { SafetensorsFile file(path()); });
    EXPECT_THAT(message, HasSubstr(hostile.message)) << hostile.title;
    EXPECT_THAT(message, HasSubstr(path().string())) << hostile.title;
    EXPECT_THAT(message, testing::Not(HasSubstr("\n"))) << hostile.title;
    EXPECT_LT(message.size(), 400u) << hostile.title;
  }
}

TEST_F(Safetensors, RefusesAWrongHeaderLength) {
  const auto with_length = [&](uint64_t length, const std::string& rest) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    write_bytes(bytes + rest);
    return message_of([&] { SafetensorsFile file(path()); });
  };
  EXPECT_THAT(with_length(3, "{}"), HasSubstr("cut short: a header of 3 bytes in a file of 10"));
  EXPECT_THAT(with_length(UINT64_MAX, "{}"),
              HasSubstr("not a safetensors file: its first 8 bytes are not the length"));
  EXPECT_THAT(with_length(UINT64_MAX - 7, "{}"),
              HasSubstr("not a safetensors file"));  // + 8 would wrap to 0
  EXPECT_THAT(with_length(100'000'001, "{}"), HasSubstr("at most 100000000"));
  EXPECT_THAT(with_length(2, "{}"), HasSubstr("nothing was thrown"));
}

TEST_F(Safetensors, RefusesWhatIsNoFile) {
  EXPECT_THAT(message_of([&] { SafetensorsFile file(path("missing")); }),
              HasSubstr("No such file"));
  EXPECT_THAT(message_of([&] { SafetensorsFile file(folder_); }), HasSubstr("not a regular file"));
  write_bytes("");
  EXPECT_THAT(message_of([&] { SafetensorsFile file(path()); }), HasSubstr("cut short: 0 bytes"));
}

TEST_F(Safetensors, RefusesAFileCutAnywhere) {
  write_safetensors(path(), {{"x", Tensor::zeros({5})}, {"y", Tensor::zeros({2}, DType::kUInt8)}},
                    {{"k", "v"}});
  const auto whole = static_cast<int64_t>(fs::file_size(path()));
  for (int64_t bytes = whole - 1; bytes >= 0; --bytes) {
    fs::resize_file(path(), static_cast<uintmax_t>(bytes));
    EXPECT_THROW(SafetensorsFile file(path()), FileError) << bytes << " of " << whole;
  }
}

TEST_F(Safetensors, AFullDiskLeavesTheOldFileAndNoOther) {
  write_safetensors(path(), {{"old", Tensor::zeros({1})}});
  // A limit on the size of files stands in for a full disk: the write fails half-way.
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  rlimit limit = old_limit;
  limit.rlim_cur = 10'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string message = message_of([&] {
    write_safetensors(path(), {{"new", Tensor::zeros({100'000})}});
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("cannot write " + path().string()));
  EXPECT_EQ(files_in_folder(), 1);
  EXPECT_TRUE(SafetensorsFile(path()).has("old"));
}

TEST_F(Safetensors, AWriterThatThrowsLeavesNothing) {
  EXPECT_THROW(atomic_write(path(),
                            [](FileWriter& file) {
                              file.write("half");
                              throw Error("stop");
                            }),
               Error);
  EXPECT_EQ(files_in_folder(), 0);
}

TEST_F(Safetensors, RefusesToReplaceWhatIsNoFile) {
  const auto write = [](FileWriter& file) { file.write("x"); };
  EXPECT_THAT(message_of([&] { atomic_write(folder_, write); }), HasSubstr("not a regular file"));
  EXPECT_THAT(message_of([&] { atomic_write(folder_ / "", write); }),
              HasSubstr("not the name of a file"));
  EXPECT_THAT(message_of([&] { atomic_write("/dev/null", write); }),
              HasSubstr("not a regular file"));
  EXPECT_THAT(message_of([&] { atomic_write(folder_ / "no" / "x", write); }),
              HasSubstr("there is no folder"));
}

TEST_F(Safetensors, WritesThroughASymbolicLink) {
  atomic_write(path("real"), [](FileWriter& file) { file.write("1"); });
  fs::create_symlink(path("real"), path("link"));
  atomic_write(path("link"), [](FileWriter& file) { file.write("22"); });
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(fs::file_size(path("real")), 2u);
}

TEST_F(Safetensors, WritesThroughLinksToAFileThatIsNotThereYet) {
  fs::create_directory(folder_ / "disk");
  fs::create_symlink("disk/new", path("first"));  // relative to the link, not to us
  fs::create_symlink(path("first"), path("second"));
  atomic_write(path("second"), [](FileWriter& file) { file.write("333"); });
  EXPECT_TRUE(fs::is_symlink(path("first")));
  EXPECT_TRUE(fs::is_symlink(path("second")));
  EXPECT_EQ(fs::file_size(folder_ / "disk" / "new"), 3u);

  const auto write = [](FileWriter& file) { file.write("x"); };
  fs::create_symlink("away/new", path("lost"));
  EXPECT_THAT(message_of([&] { atomic_write(path("lost"), write); }), HasSubstr("no folder"));
  fs::create_symlink("round", path("round"));
  EXPECT_THAT(message_of([&] { atomic_write(path("round"), write); }), HasSubstr("lead nowhere"));
  EXPECT_TRUE(fs::is_symlink(path("round")));
}

}  // namespace
}  // namespace mutilde
