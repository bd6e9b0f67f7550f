#include "data/image_io.h"

#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zip.h>

#include "files.h"

namespace mutilde {
namespace {

using testing::HasSubstr;

TEST(ToUint8, ClampsAndTruncates) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Tensor x = Tensor::from<float>({9}, {-1, 1, 0, 0.999F, -1.5F, 7, -kInfinity, kInfinity,
                                             std::numeric_limits<float>::quiet_NaN()});
  // (0 + 1) * 127.5 = 127.5 and 1.999 * 127.5 = 254.87 lose their fractions.
  EXPECT_EQ(to_uint8(x).to_vector<uint8_t>(),
            (std::vector<uint8_t>{0, 255, 127, 254, 0, 255, 0, 255, 0}));
  const Tensor y = Tensor::from<double>({2}, {-1.0 + 3.0 / 127.5 + 1e-9, 1.0});
  EXPECT_EQ(to_uint8(y).to_vector<uint8_t>(), (std::vector<uint8_t>{3, 255}));
  EXPECT_THROW(to_uint8(Tensor::from<int64_t>({1}, {0})), DTypeError);
}

TEST(ToUint8, UndoesTheLoadersScalingUpToTruncation) {
  std::vector<float> values;
  for (int level = 0; level < 256; ++level)
    values.push_back(static_cast<float>(level) / 127.5F - 1.0F);
  const std::vector<uint8_t> levels =
      to_uint8(Tensor::from<float>({256}, values)).to_vector<uint8_t>();
  for (int level = 0; level < 256; ++level) {
    const int lost = level - levels[static_cast<size_t>(level)];
    EXPECT_TRUE(lost == 0 || lost == 1) << level;  // a hair below a whole number is truncated
  }
}

TEST(ImageGrid, PlacesImagesRowByRowWithBlackAround) {
  // Three images of 1 x 2 pixels in two columns, one black pixel around each.
  const Tensor x = Tensor::from<uint8_t>({3, 1, 2, 1}, {1, 2, 3, 4, 5, 6});
  const Image grid = image_grid(x, 2, 1);
  EXPECT_EQ(grid.height, 5);
  EXPECT_EQ(grid.width, 7);
  EXPECT_EQ(grid.pixels, (std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0,  //
                                               0, 1, 2, 0, 3, 4, 0,  //
                                               0, 0, 0, 0, 0, 0, 0,  //
                                               0, 5, 6, 0, 0, 0, 0,  //
                                               0, 0, 0, 0, 0, 0, 0}));
}

TEST(ImageGrid, IsAsSquareAsItGets) {
  const Image grid = image_grid(Tensor::full({5, 4, 4, 3}, 1.0), 0, 0);
  EXPECT_EQ(grid.width, 3 * 4);
  EXPECT_EQ(grid.height, 2 * 4);
  EXPECT_EQ(grid.row(0)[0], 255);
  const Image row = image_grid(Tensor::zeros({2, 4, 4, 3}), 8, 0);
  EXPECT_EQ(row.width, 2 * 4);  // no more columns than images
}

TEST(ImageGrid, RefusesOtherShapes) {
  EXPECT_THROW(image_grid(Tensor::zeros({2, 4, 4})), ShapeError);
  EXPECT_THROW(image_grid(Tensor::zeros({2, 3, 4, 4})), ShapeError);
  EXPECT_THROW(image_grid(Tensor::zeros({0, 4, 4, 3})), ShapeError);
  EXPECT_THROW(image_grid(Tensor::zeros({1, 4, 4, 3}), -1), ShapeError);
  EXPECT_THROW(to_image(Tensor::zeros({1, 4, 4, 3}), 1), ShapeError);
}

TEST(ImageGrid, OneImageOfABatch) {
  const Tensor x = Tensor::from<uint8_t>({2, 1, 2, 1}, {1, 2, 3, 4});
  EXPECT_EQ(to_image(x, 1).pixels, (std::vector<uint8_t>{3, 4}));
}

TEST(WritePng, ReadsBackTheSame) {
  const TemporaryFolder folder;
  const Image image = wave_image(11, 6, 3);
  write_png(folder / "x.png", image);
  EXPECT_EQ(load_image(folder / "x.png").pixels, image.pixels);
  EXPECT_THAT(file_error([&] { write_png(folder / "no/x.png", image); }),
              HasSubstr("there is no folder"));
}

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

}  // namespace
}  // namespace mutilde
