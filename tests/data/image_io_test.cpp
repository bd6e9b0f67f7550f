#include "data/image_io.h"

#include <limits>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

/// 0 to 255.
Tensor all_levels() {
  std::vector<uint8_t> levels(256);
  std::iota(levels.begin(), levels.end(), uint8_t{0});
  return Tensor::from<uint8_t>({256}, levels);
}

TEST(FromUint8, IsTheOriginalsArithmeticForEachLevel) {
  const std::vector<float> x = from_uint8(all_levels()).to_vector<float>();
  for (int level = 0; level < 256; ++level) {
    // numpy's: astype(np.float32) / 127.5 - 1, each operation rounded.
    const volatile float scaled = static_cast<float>(level) / 127.5F;
    EXPECT_EQ(x[static_cast<size_t>(level)], scaled - 1.0F) << level;
  }
  EXPECT_EQ(x.front(), -1.0F);
  EXPECT_EQ(x.back(), 1.0F);
  EXPECT_EQ(from_uint8(Tensor::from<uint8_t>({1, 2, 0, 3}, {})).shape(), (Shape{1, 2, 0, 3}));
  EXPECT_THROW(from_uint8(Tensor::zeros({1})), DTypeError);
}

TEST(ToUint8, UndoesFromUint8ForEachLevel) {
  const Tensor levels = all_levels(), x = from_uint8(levels);
  EXPECT_EQ(to_uint8(x).to_vector<uint8_t>(), levels.to_vector<uint8_t>());
  EXPECT_EQ(to_uint8(x.to(DType::kFloat64)).to_vector<uint8_t>(), levels.to_vector<uint8_t>());
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

}  // namespace
}  // namespace mutilde
