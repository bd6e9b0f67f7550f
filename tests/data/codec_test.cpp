#include "data/codec.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "files.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

std::string little_endian(uint32_t value) {
  const std::string big = big_endian(value);
  return {big.rbegin(), big.rend()};
}

std::string little_endian16(int value) {
  return little_endian(static_cast<uint32_t>(value)).substr(0, 2);
}

using namespace std::string_literals;

/// The beginning of a PNG that says so large an image; there is no data.
std::string png_header(uint32_t width, uint32_t height) {
  return "\x89PNG\r\n\x1A\n"s + big_endian(13) + "IHDR" + big_endian(width) + big_endian(height) +
         "\x08\x02\0\0\0"s + "crc!" + big_endian(0) + "IDAT" + "crc!";
}

/// 24 bits a pixel, rows padded to 4 bytes; a negative height means from the top down.
std::string bmp(int32_t width, int32_t height, const std::string& rows) {
  return "BM" + little_endian(static_cast<uint32_t>(54 + rows.size())) + little_endian(0) +
         little_endian(54) + little_endian(40) + little_endian(static_cast<uint32_t>(width)) +
         little_endian(static_cast<uint32_t>(height)) + little_endian16(1) + little_endian16(24) +
         std::string(24, '\0') + rows;
}

// 2 x 1 pixels, red and blue.
const std::string kGif = "GIF89a\x02\0\x01\0\x80\0\0"s + "\xFF\0\0\0\0\xFF"s + ","s +
                         "\0\0\0\0\x02\0\x01\0\0"s + "\x02\x02\x44\x0A\0;"s;

const Image kRedBlue = [] {
  Image image(1, 2, 3);
  image.pixels = {255, 0, 0, 0, 0, 255};
  return image;
}();

class Codec : public testing::Test {
 protected:
  Image load(const std::string& name, std::string_view bytes) const {
    write_bytes(folder_ / name, bytes);
    return load_image(folder_ / name);
  }
  std::string error(const std::string& name, std::string_view bytes) const {
    return file_error([&] { load(name, bytes); });
  }
  /// Every beginning of the file must be refused.
  void expect_no_part_loads(const std::string& name, const std::string& whole) const {
    ASSERT_NO_THROW(load(name, whole)) << name;
    for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
      const std::string message = error(name, whole.substr(0, bytes));
      EXPECT_THAT(message, HasSubstr(name)) << bytes << " of " << whole.size();
    }
  }

  TemporaryFolder folder_;
};

std::string text(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

TEST_F(Codec, PngKeepsEveryPixelOfEveryChannelCount) {
  for (int channels = 1; channels <= 4; ++channels) {
    const Image image = wave_image(7, 13, channels);
    const Image loaded = load("x.png", text(encode_png(image)));
    EXPECT_EQ(loaded.height, 7);
    EXPECT_EQ(loaded.width, 13);
    EXPECT_EQ(loaded.channels, channels);
    EXPECT_EQ(loaded.pixels, image.pixels);
  }
}

TEST_F(Codec, JpegKeepsSmoothPixelsRoughly) {
  const Image image = wave_image(40, 24, 3);
  const Image loaded = load("x.jpg", text(encode_jpeg(image)));
  ASSERT_EQ(loaded.pixels.size(), image.pixels.size());
  double sum = 0;
  for (size_t i = 0; i < image.pixels.size(); ++i)
    sum += std::abs(image.pixels[i] - loaded.pixels[i]);
  EXPECT_LT(sum / static_cast<double>(image.pixels.size()), 3.0);
}

TEST_F(Codec, ReadsBmpUpwardsAndDownwards) {
  const std::string red = "\0\0\xFF\0"s, blue = "\xFF\0\0\0"s;  // blue, green, red, padding
  for (const int32_t height : {2, -2}) {
    const Image image = load("x.bmp", bmp(1, height, red + blue));
    ASSERT_EQ(image.height, 2);
    EXPECT_EQ(image.row(height > 0 ? 1 : 0)[0], 255);
    EXPECT_EQ(image.row(height > 0 ? 0 : 1)[2], 255);
  }
}

TEST_F(Codec, ReadsGifAndPnm) {
  const Image gif = load("x.gif", kGif);
  ASSERT_EQ(gif.width, 2);
  EXPECT_EQ(std::vector<uint8_t>(gif.row(0), gif.row(0) + 3), (std::vector<uint8_t>{255, 0, 0}));
  EXPECT_EQ(load("x.ppm", "P6 2 1 255\n\xFF\0\0\0\0\xFF"s).pixels, kRedBlue.pixels);
}

TEST_F(Codec, GoesByTheContentAndNotByTheName) {
  EXPECT_EQ(load("jpeg.png", text(encode_jpeg(wave_image(8, 9, 3)))).width, 9);
}

TEST_F(Codec, RefusesACutFileWhereverItIsCut) {
  expect_no_part_loads("cut.png", text(encode_png(wave_image(9, 8, 3))));
  expect_no_part_loads("cut.jpg", text(encode_jpeg(wave_image(24, 33, 3))));
  expect_no_part_loads("cut.bmp", bmp(4, 2, std::string(24, 'x')));
  expect_no_part_loads("cut.ppm", "P6 3 2 255\n" + std::string(18, 'x'));
  expect_no_part_loads("cut.gif", kGif.substr(0, kGif.size() - 1));  // the end mark is not needed
}

TEST_F(Codec, SaysThatALargerFileIsCutShort) {
  const std::string jpeg = text(encode_jpeg(wave_image(200, 200, 3)));
  EXPECT_THAT(error("half.jpg", jpeg.substr(0, jpeg.size() / 2)),
              HasSubstr("half.jpg is cut short"));
  const std::string png = text(encode_png(wave_image(200, 200, 3)));
  EXPECT_THAT(error("half.png", png.substr(0, png.size() / 2)), HasSubstr("half.png is cut short"));
}

TEST_F(Codec, RefusesWhatIsNoImage) {
  EXPECT_THAT(error("x.png", "This is a text, whatever its name says.\n"),
              HasSubstr("x.png is not an image of a known kind"));
  EXPECT_THAT(error("empty.png", ""), HasSubstr("empty.png is not an image of a known kind"));
  EXPECT_THAT(file_error([&] { load_image(folder_ / "missing.png"); }),
              HasSubstr("missing.png: No such file or directory"));
  EXPECT_THAT(file_error([&] { load_image(folder_.path()); }), HasSubstr("is not a regular file"));
}

TEST_F(Codec, RefusesSidesOfZeroAndOfTwentyThousand) {
  EXPECT_THAT(error("a.png", png_header(0, 5)),
              HasSubstr("a.png is damaged or not supported (0-pixel image)"));
  EXPECT_THAT(error("b.png", png_header(5, 0)), HasSubstr("0-pixel image"));
  EXPECT_THAT(error("c.png", png_header(20000, 5)),
              HasSubstr("c.png is 20000 x 5 pixels, a side of 1 to 16384 is possible"));
  EXPECT_THAT(error("d.png", png_header(5, 20000)), HasSubstr("d.png is 5 x 20000 pixels"));
  EXPECT_THAT(error("e.png", png_header(0x7FFFFFFF, 0x7FFFFFFF)), HasSubstr("e.png"));
  EXPECT_THAT(error("f.bmp", bmp(1, -20000, "")), HasSubstr("f.bmp is 1 x"));
  EXPECT_THAT(error("g.bmp", bmp(1, INT32_MIN, "")), HasSubstr("g.bmp"));
  EXPECT_THAT(error("h.bmp", bmp(0, 1, "")), HasSubstr("h.bmp"));
  EXPECT_THAT(error("i.bmp", bmp(-5, 1, "")), HasSubstr("i.bmp"));
  EXPECT_THAT(error("j.ppm", "P6 20000 1 255\n"), HasSubstr("j.ppm is 20000 x 1 pixels"));
  EXPECT_THAT(error("k.ppm", "P6 0 1 255\n"), HasSubstr("k.ppm"));
}

TEST_F(Codec, RefusesDamagedData) {
  std::string png = text(encode_png(wave_image(20, 20, 3)));
  png[41] = 0;  // the first byte of the compressed data
  EXPECT_THAT(error("x.png", png), HasSubstr("x.png is damaged or not supported"));
}

TEST_F(Codec, RefusesAHuffmanTableThatWouldOverrunStb) {
  // The first table, made to hold 16 * 255 symbols, and again in a segment that is long enough.
  const std::string jpeg = text(encode_jpeg(wave_image(24, 24, 3)));
  const size_t table = jpeg.find("\xFF\xC4");
  ASSERT_NE(table, std::string::npos);
  std::string counts = jpeg;
  std::fill_n(counts.begin() + static_cast<ptrdiff_t>(table) + 5, 16, '\xFF');
  EXPECT_THAT(error("a.jpg", counts), HasSubstr("a.jpg is damaged (a Huffman table"));
  EXPECT_THAT(error("fill.jpg", "\xFF" + counts),
              HasSubstr("fill.jpg is damaged (a Huffman table"));
  const std::string large = "\xFF\xC4\x10\x03\x13"s + std::string(16 + 4080, '\xFF');
  EXPECT_THAT(error("b.jpg", jpeg.substr(0, table) + large + jpeg.substr(table)),
              HasSubstr("b.jpg is damaged (a Huffman table"));
  EXPECT_THAT(error("c.jpg", jpeg.substr(0, jpeg.size() - 2) + large + "\xFF\xD9"),
              HasSubstr("c.jpg is damaged (a Huffman table"));
}

TEST_F(Codec, KnowsImagesByTheirNames) {
  EXPECT_TRUE(has_image_extension("a/b.c.JPeG"));
  EXPECT_TRUE(has_image_extension("x.gif"));
  EXPECT_FALSE(has_image_extension("png"));
  EXPECT_FALSE(has_image_extension("x.png.txt"));
}

TEST_F(Codec, RefusesToEncodeNothing) {
  EXPECT_THROW(encode_png(Image()), Error);
  EXPECT_THROW(encode_png(Image(1, 1, 5)), Error);
}

}  // namespace
}  // namespace mutilde
