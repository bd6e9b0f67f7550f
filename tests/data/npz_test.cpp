#include "data/npz.h"

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zip.h>

#include "files.h"

namespace mutilde {
namespace {

using testing::HasSubstr;

/// The bytes of one entry, through libzip.
std::string zip_entry(const std::filesystem::path& path, const std::string& name) {
  zip_t* archive = zip_open(path.c_str(), ZIP_CHECKCONS | ZIP_RDONLY, nullptr);
  if (archive == nullptr) return "no archive";
  std::string bytes = "no entry";
  zip_stat_t status;
  if (zip_stat(archive, name.c_str(), 0, &status) == 0) {
    bytes.resize(status.size);
    zip_file_t* file = zip_fopen(archive, name.c_str(), 0);
    EXPECT_EQ(zip_fread(file, bytes.data(), bytes.size()), static_cast<zip_int64_t>(bytes.size()));
    zip_fclose(file);
    EXPECT_EQ(status.comp_method, ZIP_CM_STORE);
  }
  zip_discard(archive);
  return bytes;
}

class Npz : public testing::Test {
 protected:
  Npz() : path_(folder_ / "samples.npz") {
    std::vector<uint8_t> pixels(2 * 3 * 4 * 3);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(3 * i);
    arrays_ = {{"arr_0", Tensor::from<uint8_t>({2, 3, 4, 3}, pixels)},
               {"arr_1", Tensor::from<int64_t>({2}, {7, -1})},
               {"scalar", Tensor::scalar(0.5)},
               {"f4", Tensor::from<float>({1, 2}, {1.5F, -2.0F})},
               {"i4", Tensor::from<int32_t>({1}, {-3})},
               {"none", Tensor::empty({0, 5})}};
  }
  TemporaryFolder folder_;
  std::filesystem::path path_;
  std::vector<std::pair<std::string, Tensor>> arrays_;
};

TEST_F(Npz, HoldsOneNpyFileAnArray) {
  write_npz(path_, arrays_);
  const std::string shapes[] = {"(2, 3, 4, 3)", "(2, )", "()", "(1, 2)", "(1, )", "(0, 5)"};
  const std::string types[] = {"|u1", "<i8", "<f8", "<f4", "<i4", "<f4"};
  for (size_t i = 0; i < arrays_.size(); ++i) {
    const auto& [name, array] = arrays_[i];
    const std::string npy = zip_entry(path_, name + ".npy");
    ASSERT_EQ(npy.substr(0, 8), std::string("\x93NUMPY\x01\0", 8)) << name;
    const size_t length = static_cast<uint8_t>(npy[8]) + 256U * static_cast<uint8_t>(npy[9]);
    const std::string header = npy.substr(10, length);
    EXPECT_EQ((10 + length) % 64, 0u);
    EXPECT_EQ(header.back(), '\n');
    const std::string expected = fmt::format(
        "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}", types[i], shapes[i]);
    EXPECT_EQ(header.substr(0, expected.size()), expected);
    const std::string data = npy.substr(10 + length);
    ASSERT_EQ(data.size(), array.bytes());
    if (!data.empty()) {
      EXPECT_EQ(std::memcmp(data.data(), array.raw(), data.size()), 0) << name;
    }
  }
}

TEST_F(Npz, TheSameArraysGiveTheSameBytes) {
  write_npz(path_, arrays_);
  const std::string bytes = read_bytes(path_);
  write_npz(path_, arrays_);
  EXPECT_EQ(read_bytes(path_), bytes);
}

TEST_F(Npz, NumpyReadsIt) {
  // Debian's own python3, which has Debian's numpy whatever else is on the PATH.
  if (std::system("/usr/bin/python3 -c 'import numpy' 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3-numpy is not installed";
  }
  write_npz(path_, arrays_);
  const std::string script =
      "import numpy as np, sys\n"
      "z = np.load(sys.argv[1])\n"
      "x = z['arr_0']; assert x.dtype == np.uint8 and x.shape == (2, 3, 4, 3), x\n"
      "assert (x.ravel() == np.arange(72) * 3 % 256).all()\n"
      "y = z['arr_1']; assert y.dtype == np.int64 and y.tolist() == [7, -1], y\n"
      "assert z['scalar'].shape == () and z['scalar'] == 0.5 and z['none'].shape == (0, 5)\n"
      "assert z['f4'].tolist() == [[1.5, -2.0]] and z['i4'].tolist() == [-3]\n";
  write_bytes(folder_ / "check.py", script);
  const std::string command =
      fmt::format("/usr/bin/python3 {} {}", (folder_ / "check.py").string(), path_.string());
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST_F(Npz, RefusesWhatNumpyDoesNotHave) {
  EXPECT_THROW(write_npz(path_, {{"x", Tensor::empty({1}, DType::kBFloat16)}}), DTypeError);
  EXPECT_THROW(write_npz(path_, {{"x", Tensor()}}), Error);
  EXPECT_THROW(write_npz(path_, {}), Error);
  EXPECT_THROW(write_npz(path_, {arrays_[0], arrays_[0]}), Error);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(Npz, ReadsWhatItWrote) {
  write_npz(path_, arrays_);
  for (const auto& [name, array] : arrays_) {
    const Tensor read = read_npz(path_, name);
    ASSERT_TRUE(read.defined()) << name;
    EXPECT_EQ(read.dtype(), array.dtype()) << name;
    ASSERT_EQ(read.shape(), array.shape()) << name;
    EXPECT_EQ(read.to_vector<double>(), array.to_vector<double>()) << name;
  }
  EXPECT_FALSE(read_npz(path_, "arr_2").defined());
}

TEST_F(Npz, ReadsWhatNumpyCompressed) {
  // Debian's own python3, which has Debian's numpy whatever else is on the PATH.
  if (std::system("/usr/bin/python3 -c 'import numpy' 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3-numpy is not installed";
  }
  write_bytes(folder_ / "make.py",
              "import numpy as np, sys\n"
              "np.savez_compressed(sys.argv[1], np.arange(4000).reshape(40, 100))\n");
  ASSERT_EQ(std::system(fmt::format("/usr/bin/python3 {} {}", (folder_ / "make.py").string(),
                                    path_.string())
                            .c_str()),
            0);
  const Tensor read = read_npz(path_, "arr_0");
  ASSERT_EQ(read.shape(), (Shape{40, 100}));
  EXPECT_EQ(read.slice(39, 40).to_vector<int64_t>().back(), 3999);
}

TEST_F(Npz, RefusesAFileThatIsMissingCutOrNoArchive) {
  EXPECT_THAT(file_error([&] { read_npz(path_, "arr_0"); }), HasSubstr("samples.npz: is missing"));
  write_npz(path_, arrays_);
  const std::string bytes = read_bytes(path_);
  for (const size_t part : {size_t{0}, size_t{10}, bytes.size() / 2, bytes.size() - 1}) {
    write_bytes(path_, bytes.substr(0, part));
    EXPECT_THAT(file_error([&] { read_npz(path_, "arr_0"); }), HasSubstr("samples.npz: ")) << part;
  }
  std::string damaged = bytes;
  damaged[damaged.find("NUMPY") + 150] ^= 1;  // a pixel: the archive's checksum is another then
  write_bytes(path_, damaged);
  EXPECT_THAT(file_error([&] { read_npz(path_, "arr_0"); }), HasSubstr("arr_0.npy is damaged"));
}

/// An archive with one entry, x.npy: a header of version 1 around `dictionary`, then `data`.
void write_npy(const std::filesystem::path& path, const std::string& dictionary,
               const std::string& data) {
  std::string npy = std::string("\x93NUMPY\x01\0", 8) + static_cast<char>(dictionary.size()) + '\0';
  npy += dictionary + data;
  zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  zip_source_t* source = zip_source_buffer(archive, npy.data(), npy.size(), 0);
  ASSERT_GE(zip_file_add(archive, "x.npy", source, 0), 0);
  ASSERT_EQ(zip_close(archive), 0);
}

TEST_F(Npz, RefusesAnArrayThatIsNotWhatItsHeaderSays) {
  const auto error = [&](const std::string& dictionary, const std::string& data) {
    write_npy(path_, dictionary, data);
    return file_error([&] { read_npz(path_, "x"); });
  };
  const std::string opening = "{'descr': '|u1', 'fortran_order': False, 'shape': ";
  write_npy(path_, opening + "(2, 1), }", "ab");
  EXPECT_EQ(read_npz(path_, "x").to_vector<uint8_t>(), (std::vector<uint8_t>{'a', 'b'}));
  EXPECT_THAT(error(opening + "(3,), }", "ab"), HasSubstr("samples.npz: x is cut short"));
  EXPECT_THAT(error(opening + "(1,), }", "ab"), HasSubstr("cut short"));
  for (const char* shape : {"(-1,)", "(2147483648,)", "(x)", "(1,1,1,1,1,1,2)",
                            "(2147483647,2147483647,2147483647,2147483647,2147483647)"}) {
    EXPECT_THAT(error(opening + shape + ", }", "ab"), HasSubstr("has a shape that cannot be"))
        << shape;
  }
  EXPECT_THAT(error("{'descr': '|u1', 'fortran_order': False}", "ab"), HasSubstr("has no shape"));
  EXPECT_THAT(error("{'descr': '|u1', 'fortran_order': True, 'shape': (2,), }", "ab"),
              HasSubstr("Fortran order"));
  for (const char* type : {"'>i2'", "'|O'", "[('a', '<i2')]"}) {
    EXPECT_THAT(
        error(fmt::format("{{'descr': {}, 'fortran_order': False, 'shape': (1,), }}", type), "ab"),
        HasSubstr("of a kind that is not supported"));
  }
}

}  // namespace
}  // namespace mutilde
