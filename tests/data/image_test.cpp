#include "data/image.h"

#include <algorithm>
#include <array>

#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "files.h"

namespace mutilde {
namespace {

const std::string kTestData = MUTILDE_TEST_DATA;

TEST(Resize, GivesWhatTheOriginalsLoaderGives) {
  // Tensors are named <image>.<size>, [3, size, size] in [-1, 1].
  const SafetensorsFile reference(kTestData + "/resize.safetensors");
  ASSERT_EQ(reference.names().size(), 14u);
  for (const std::string& name : reference.names()) {
    const size_t dot = name.rfind('.');
    const int size = std::stoi(name.substr(dot + 1));
    const Image image = load_image(kTestData + "/resize/" + name.substr(0, dot) + ".png");
    const Image ours = resize_and_crop(image, size);
    ASSERT_EQ(ours.height, size);
    ASSERT_EQ(ours.width, size);
    ASSERT_EQ(ours.channels, 3);
    const std::vector<float> expected = reference.read(name).to_vector<float>();
    const auto plane = static_cast<size_t>(size) * static_cast<size_t>(size);
    double worst = 0;
    for (size_t i = 0; i < plane; ++i) {
      for (size_t c = 0; c < 3; ++c) {
        const double level = (expected[c * plane + i] + 1.0) * 127.5;
        worst = std::max(worst, std::abs(level - ours.pixels[3 * i + c]));
      }
    }
    // The same fixed-point arithmetic: what is left is the reference's rounding to float32.
    EXPECT_LT(worst, 1e-4) << name;
  }
}

TEST(Resize, KeepsAnImageThatFits) {
  const Image image = wave_image(32, 32, 3);
  EXPECT_EQ(resize_and_crop(image, 32).pixels, image.pixels);
}

TEST(Resize, KeepsAConstantWhateverTheSizes) {
  for (const auto [height, width, size] :
       {std::array{1, 1, 9}, {37, 5, 8}, {100, 301, 7}, {64, 48, 48}}) {
    Image image(height, width, 1);
    std::fill(image.pixels.begin(), image.pixels.end(), uint8_t{201});
    const Image out = resize_and_crop(image, size);
    EXPECT_TRUE(
        std::all_of(out.pixels.begin(), out.pixels.end(), [](uint8_t x) { return x == 201; }))
        << height << " x " << width << " to " << size;
  }
}

TEST(Resize, AWindowIsTheCropOfTheWhole) {
  const Image image = wave_image(50, 31, 3);
  const Image whole = resize(image, ResizeFilter::kBicubic, 23, 40);
  const Image window = resize(image, ResizeFilter::kBicubic, {23, 40, 5, 11, 9, 13});
  for (int y = 0; y < 9; ++y) {
    const uint8_t* expected = whole.row(5 + y) + 11 * 3;
    EXPECT_TRUE(std::equal(window.row(y), window.row(y) + window.stride(), expected)) << y;
  }
}

TEST(Resize, TheBoxFilterTakesTheMeanOfEachBlock) {
  Image image(2, 4, 1);
  image.pixels = {10, 20, 0, 255,  //
                  30, 40, 0, 255};
  EXPECT_EQ(resize(image, ResizeFilter::kBox, 1, 2).pixels, (std::vector<uint8_t>{25, 128}));
}

TEST(Resize, HiddenColoursDoNotBleed) {
  // Opaque black beside transparent white: without premultiplying, half of the white would show.
  Image image(2, 2, 4);
  image.pixels = {0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255, 0};
  EXPECT_EQ(resize_and_crop(image, 1).pixels, (std::vector<uint8_t>{0, 0, 0}));
}

TEST(Resize, AThinImageCostsNoMoreThanItsCrop) {
  const Image image = wave_image(1, 16384, 3);  // whole, at 256 a side, it would be 3 GB
  EXPECT_EQ(resize_and_crop(image, 256).pixels.size(), 256u * 256 * 3);
}

TEST(Resize, RefusesWhatIsEmpty) {
  EXPECT_THROW(resize_and_crop(Image(), 4), Error);
  EXPECT_THROW(resize_and_crop(wave_image(2, 2, 3), 0), Error);
  EXPECT_THROW(resize(wave_image(2, 2, 3), ResizeFilter::kBox, {4, 4, 2, 0, 3, 4}), Error);
}

}  // namespace
}  // namespace mutilde
