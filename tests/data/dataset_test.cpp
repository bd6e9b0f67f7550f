#include "data/dataset.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "files.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<uint8_t> pixels_of(const Dataset& dataset, int64_t index) {
  std::vector<uint8_t> pixels(dataset.image_bytes());
  dataset.get(index, pixels);
  return pixels;
}

std::string open_error(const fs::path& path, int image_size = 8,
                       const DatasetOptions& options = {}) {
  return file_error([&] { open_dataset(path.string(), image_size, options); });
}

class ImageFolder : public testing::Test {
 protected:
  void put(const std::string& name, const Image& image) const {
    const bool jpeg = name.ends_with(".jpg");
    write_bytes(folder_ / name, jpeg ? encode_jpeg(image) : encode_png(image));
  }
  std::unique_ptr<Dataset> open(int size, const DatasetOptions& options = {}) const {
    return open_dataset(folder_.path().string(), size, options);
  }
  TemporaryFolder folder_;
};

TEST_F(ImageFolder, TakesClassesFromNamesAndOrderFromPaths) {
  put("ship_1.png", wave_image(8, 8, 3, 1));
  put("b/dog_2_x.png", wave_image(8, 8, 1, 2));
  put("a/ship_0.PNG", wave_image(20, 9, 4, 3));
  put(".hidden_1.png", wave_image(8, 8, 3));
  write_bytes(folder_ / "notes_x.txt", "no image");
  const auto dataset = open(8);
  ASSERT_EQ(dataset->size(), 3);  // a/ship_0, b/dog_2_x, ship_1
  EXPECT_EQ(dataset->channels(), 3);
  EXPECT_EQ(dataset->image_size(), 8);
  EXPECT_THAT(dataset->class_names(), ElementsAre("dog", "ship"));
  EXPECT_EQ(dataset->label(0), 1);
  EXPECT_EQ(dataset->label(1), 0);
  EXPECT_EQ(dataset->label(2), 1);
  EXPECT_EQ(pixels_of(*dataset, 0), resize_and_crop(wave_image(20, 9, 4, 3), 8).pixels);
  EXPECT_EQ(pixels_of(*dataset, 1), resize_and_crop(wave_image(8, 8, 1, 2), 8).pixels);
  EXPECT_EQ(pixels_of(*dataset, 2), wave_image(8, 8, 3, 1).pixels);
}

TEST_F(ImageFolder, MayBeGrey) {
  const Image grey = wave_image(8, 8, 1, 2), colours = wave_image(8, 8, 3, 1);
  put("a.png", grey);
  put("b.png", colours);
  DatasetOptions options;
  options.channels = 1;
  const auto dataset = open(8, options);
  EXPECT_EQ(dataset->channels(), 1);
  EXPECT_EQ(pixels_of(*dataset, 0), grey.pixels);  // 19595 + 38470 + 7471 = 2^16
  const std::vector<uint8_t> luma = pixels_of(*dataset, 1);
  ASSERT_EQ(luma.size(), 64U);
  for (size_t i = 0; i < luma.size(); ++i) {
    const double expected = 0.299 * colours.pixels[3 * i] + 0.587 * colours.pixels[3 * i + 1] +
                            0.114 * colours.pixels[3 * i + 2];
    EXPECT_NEAR(luma[i], expected, 0.5 + 255 * 3 * 0x1p-17) << i;  // factors are rounded to 2^-16
  }
}

TEST_F(ImageFolder, HasNoClassesUnlessEveryNameHasAnUnderscore) {
  put("cat_1.png", wave_image(8, 8, 3));
  put("dog.png", wave_image(8, 8, 3));
  const auto dataset = open(8);
  EXPECT_TRUE(dataset->class_names().empty());
  EXPECT_EQ(dataset->label(1), 0);
}

TEST_F(ImageFolder, GivesTheSamePixelsFromMemoryAndOnDemand) {
  for (int i = 0; i < 20; ++i) {
    put(fmt::format("c_{:02}.{}", i, i % 2 == 0 ? "jpg" : "png"), wave_image(10 + i, 30 - i, 3, i));
  }
  int64_t reported = 0;
  DatasetOptions in_memory;
  in_memory.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 20);
    reported = done;
  };
  DatasetOptions on_demand;
  on_demand.memory_limit = 20 * 8 * 8 * 3 - 1;  // a byte too few
  const auto memory = open(8, in_memory), demand = open(8, on_demand);
  EXPECT_EQ(reported, 20);
  EXPECT_TRUE(memory->is_fast());
  EXPECT_FALSE(demand->is_fast());
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(pixels_of(*memory, i), pixels_of(*demand, i)) << i;
}

TEST_F(ImageFolder, NamesTheFileThatIsBad) {
  for (int i = 0; i < 9; ++i) put(fmt::format("c_{}.png", i), wave_image(8, 8, 3));
  write_bytes(folder_ / "c_5.png", "a text");
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("c_5.png is not an image of a known kind"));
  const std::string whole = read_bytes(folder_ / "c_4.png");
  write_bytes(folder_ / "c_5.png", whole.substr(0, whole.size() / 2));
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("c_5.png is cut short"));
  DatasetOptions on_demand;
  on_demand.memory_limit = 0;
  const auto dataset = open(8, on_demand);
  EXPECT_THAT(file_error([&] { pixels_of(*dataset, 5); }), HasSubstr("c_5.png"));
}

TEST_F(ImageFolder, RefusesAFolderWithoutImages) {
  write_bytes(folder_ / "notes.txt", "no image");
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("there are no images in"));
  EXPECT_THAT(open_error(folder_ / "missing"),
              HasSubstr("neither a folder, nor a file, nor a known name"));
  EXPECT_THAT(open_error(folder_ / "notes.txt"), HasSubstr("notes.txt is neither a folder nor"));
}

TEST_F(ImageFolder, RefusesMisuse) {
  put("c_0.png", wave_image(8, 8, 3));
  const auto dataset = open(8);
  std::vector<uint8_t> small(3);
  EXPECT_THROW(dataset->get(0, small), Error);
  EXPECT_THROW(pixels_of(*dataset, 1), Error);
  EXPECT_THROW(dataset->label(-1), Error);
  EXPECT_THROW(open(0), Error);
  DatasetOptions options;
  options.channels = 2;
  EXPECT_THROW(open(8, options), Error);
  options = {};
  options.test = true;
  EXPECT_THROW(open(8, options), Error);
}

class Cifar : public testing::Test {
 protected:
  static std::string record(int label, const Image& image) {
    std::string record(1, static_cast<char>(label));
    for (size_t c = 0; c < 3; ++c) {
      for (size_t i = 0; i < 1024; ++i) record += static_cast<char>(image.pixels[3 * i + c]);
    }
    return record;
  }
  static std::string records(int first, int count) {
    std::string bytes;
    for (int i = first; i < first + count; ++i) bytes += record(i % 10, wave_image(32, 32, 3, i));
    return bytes;
  }
  TemporaryFolder folder_;
};

TEST_F(Cifar, ReadsTheTrainingBatchesInOrderAndTheTestBatchApart) {
  write_bytes(folder_ / "data_batch_2.bin", records(12, 5));
  write_bytes(folder_ / "data_batch_1.bin", records(0, 12));
  write_bytes(folder_ / "test_batch.bin", records(40, 3));
  const auto dataset = open_dataset(folder_.path().string(), 32);
  ASSERT_EQ(dataset->size(), 17);
  EXPECT_EQ(dataset->channels(), 3);
  EXPECT_EQ(dataset->class_names().size(), 10u);
  EXPECT_EQ(dataset->class_names()[8], "ship");
  for (const int i : {0, 11, 12, 16}) {
    EXPECT_EQ(dataset->label(i), i % 10);
    EXPECT_EQ(pixels_of(*dataset, i), wave_image(32, 32, 3, i).pixels);
  }
  DatasetOptions options;
  options.test = true;
  const auto test = open_dataset(folder_.path().string(), 32, options);
  ASSERT_EQ(test->size(), 3);
  EXPECT_EQ(pixels_of(*test, 0), wave_image(32, 32, 3, 40).pixels);
}

TEST_F(Cifar, ReadsOneFileAtAnotherSize) {
  write_bytes(folder_ / "some.bin", records(3, 2));
  const auto dataset = open_dataset((folder_ / "some.bin").string(), 16);
  ASSERT_EQ(dataset->size(), 2);
  EXPECT_EQ(pixels_of(*dataset, 1), resize_and_crop(wave_image(32, 32, 3, 4), 16).pixels);
}

TEST_F(Cifar, RefusesWhatDoesNotFit) {
  const fs::path file = folder_ / "data_batch_1.bin";
  write_bytes(file, records(0, 3).substr(1));
  EXPECT_THAT(open_error(folder_.path()),
              HasSubstr("data_batch_1.bin has 9218 bytes, which is not a whole number"));
  write_bytes(file, "");
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("has 0 bytes"));
  write_bytes(file, records(0, 2) + record(10, wave_image(32, 32, 3)));
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("record 2 has label 10, expected 0 to 9"));
  write_bytes(file, records(0, 1));
  DatasetOptions options;
  options.test = true;
  EXPECT_THAT(open_error(folder_.path(), 32, options), HasSubstr("there is no test_batch.bin"));
  fs::remove(file);
  fs::create_directory(file);
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("data_batch_1.bin"));
}

std::string idx(const std::vector<uint32_t>& sizes, const std::string& data) {
  std::string bytes = {0, 0, 8, static_cast<char>(sizes.size())};
  for (const uint32_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(size >> shift);
  }
  return bytes + data;
}

void write_gzip(const fs::path& path, const std::string& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
}

class IdxFiles : public testing::Test {
 protected:
  IdxFiles()
      : images_(folder_ / "train-images-idx3-ubyte"), labels_(folder_ / "train-labels-idx1-ubyte") {
    for (int i = 0; i < 3; ++i) {
      const Image image = wave_image(28, 28, 1, i);
      data_.append(image.pixels.begin(), image.pixels.end());
    }
  }
  std::string images() const { return idx({3, 28, 28}, data_); }
  static std::string labels() { return idx({3}, {2, 0, 1}); }
  void expect_good(const Dataset& dataset) const {
    ASSERT_EQ(dataset.size(), 3);
    EXPECT_EQ(dataset.channels(), 1);
    EXPECT_EQ(dataset.label(0), 2);
    EXPECT_THAT(dataset.class_names(), ElementsAre("0", "1", "2"));
    EXPECT_EQ(pixels_of(dataset, 1), wave_image(28, 28, 1, 1).pixels);
  }

  TemporaryFolder folder_;
  fs::path images_, labels_;
  std::string data_;
};

TEST_F(IdxFiles, AreReadPlainOrCompressed) {
  write_bytes(images_, images());
  write_bytes(labels_, labels());
  expect_good(*open_dataset(folder_.path().string(), 28));
  expect_good(*open_dataset(images_.string(), 28));
  fs::remove(images_);
  fs::remove(labels_);
  write_gzip(images_.string() + ".gz", images());
  write_gzip(labels_.string() + ".gz", labels());
  expect_good(*open_dataset(folder_.path().string(), 28));
}

TEST_F(IdxFiles, TestImagesAreApart) {
  write_bytes(images_, images());
  write_bytes(labels_, labels());
  write_bytes(folder_ / "t10k-images-idx3-ubyte", idx({1, 2, 2}, "abcd"));
  DatasetOptions options;
  options.test = true;
  const auto test = open_dataset(folder_.path().string(), 2, options);
  ASSERT_EQ(test->size(), 1);
  EXPECT_TRUE(test->class_names().empty());  // no labels beside it
  EXPECT_THAT(pixels_of(*test, 0), ElementsAre('a', 'b', 'c', 'd'));
  expect_good(*open_dataset(folder_.path().string(), 28));
}

TEST_F(IdxFiles, ALittleLargerMeansBlackAround) {
  write_bytes(images_, images());
  for (const int channels : {1, 3}) {
    DatasetOptions options;
    options.channels = channels == 1 ? 0 : 3;
    const auto dataset = open_dataset(images_.string(), 32, options);
    EXPECT_EQ(dataset->channels(), channels);
    const std::vector<uint8_t> pixels = pixels_of(*dataset, 2);
    const Image image = wave_image(28, 28, 1, 2);
    for (int y = 0; y < 32; ++y) {
      for (int x = 0; x < 32; ++x) {
        const bool inside = y >= 2 && y < 30 && x >= 2 && x < 30;
        const int expected = inside ? image.row(y - 2)[x - 2] : 0;
        for (int c = 0; c < channels; ++c) {
          ASSERT_EQ(pixels[static_cast<size_t>((y * 32 + x) * channels + c)], expected)
              << y << " " << x;
        }
      }
    }
  }
}

TEST_F(IdxFiles, OtherSizesAreResized) {
  write_bytes(images_, images());
  for (const int size : {14, 64}) {
    const Image rgb = resize_and_crop(wave_image(28, 28, 1, 1), size);
    DatasetOptions colour;
    colour.channels = 3;
    EXPECT_EQ(pixels_of(*open_dataset(images_.string(), size, colour), 1), rgb.pixels);
    const std::vector<uint8_t> grey = pixels_of(*open_dataset(images_.string(), size), 1);
    ASSERT_EQ(grey.size() * 3, rgb.pixels.size());
    for (size_t i = 0; i < grey.size(); ++i) ASSERT_EQ(grey[i], rgb.pixels[3 * i]);
  }
}

TEST_F(IdxFiles, RefuseWhatDoesNotFit) {
  const auto error = [&](const std::string& bytes) {
    write_bytes(images_, bytes);
    return open_error(folder_.path());
  };
  EXPECT_THAT(error("a text of some length, but no IDX file"),
              HasSubstr("begins with 61207465, expected 00000803"));
  EXPECT_THAT(error(idx({3}, "abc")), HasSubstr("cut short in its header"));
  EXPECT_THAT(error(idx({3}, "abcdefghij")), HasSubstr("begins with 00000801, expected 00000803"));
  EXPECT_THAT(error(""), HasSubstr("cut short in its header"));
  EXPECT_THAT(error(images().substr(0, 1000)),
              HasSubstr("cut short: 984 bytes of data, its header says 2352"));
  EXPECT_THAT(error(images() + "x"), HasSubstr("goes on after the 2352 bytes"));
  EXPECT_THAT(error(idx({0, 28, 28}, "")), HasSubstr("a size of 0 on axis 0"));
  EXPECT_THAT(error(idx({3, 0, 28}, "")), HasSubstr("a size of 0 on axis 1"));
  EXPECT_THAT(error(idx({1, 20000, 1}, "")), HasSubstr("a size of 20000 on axis 1"));
  EXPECT_THAT(error(idx({0xFFFFFFFF, 16384, 16384}, "")), HasSubstr("is not possible"));
  EXPECT_THAT(error(idx({0xFFFFFFFF, 4, 4}, "")), HasSubstr("cut short: 0 bytes"));  // at no cost
  EXPECT_THAT(error("\x1F\x8B no gzip data after all"), HasSubstr("train-images-idx3-ubyte"));
  write_bytes(labels_, idx({2}, std::string(2, '\1')));
  EXPECT_THAT(error(images()), HasSubstr("train-labels-idx1-ubyte holds 2 labels"));
}

TEST_F(IdxFiles, RefuseCutGzipDataWhereverItIsCut) {
  const fs::path path = images_.string() + ".gz";
  write_gzip(path, images());
  const std::string whole = read_bytes(path);
  for (size_t bytes = 0; bytes < whole.size(); bytes += bytes + 40 < whole.size() ? 29 : 1) {
    write_bytes(path, whole.substr(0, bytes));
    EXPECT_THAT(open_error(path), HasSubstr("train-images-idx3-ubyte.gz")) << bytes;
  }
  std::string damaged = whole;
  damaged[damaged.size() - 6] = static_cast<char>(damaged[damaged.size() - 6] ^ 1);  // the checksum
  write_bytes(path, damaged);
  EXPECT_THAT(open_error(path), HasSubstr("is not valid gzip data"));
}

TEST_F(IdxFiles, RefuseAFolderWithTwoTrainingSets) {
  write_bytes(images_, images());
  write_bytes(folder_ / "more-images-idx3-ubyte", images());
  EXPECT_THAT(open_error(folder_.path()), HasSubstr("holds 2 files of training images"));
}

TEST(FashionMnist, IsFoundByItsName) {
  if (!fs::exists("/usr/share/datasets/fashion-mnist")) {
    GTEST_SKIP() << "Debian's dataset-fashion-mnist is not installed";
  }
  const auto dataset = open_dataset("fashion-mnist", 32);
  EXPECT_EQ(dataset->size(), 60000);
  EXPECT_EQ(dataset->channels(), 1);
  EXPECT_EQ(dataset->class_names().size(), 10u);
  EXPECT_EQ(dataset->class_names()[static_cast<size_t>(dataset->label(0))], "ankle boot");
  // 6,000 of each class, and a border that is black: the padding, two pixels wide.
  std::vector<int> counts(10);
  int border = 0;
  for (int64_t i = 0; i < dataset->size(); ++i) ++counts[static_cast<size_t>(dataset->label(i))];
  for (int64_t i = 0; i < 100; ++i) {
    const std::vector<uint8_t> pixels = pixels_of(*dataset, i);
    border = std::max<int>(border, *std::max_element(pixels.begin(), pixels.begin() + 64));
  }
  EXPECT_EQ(counts, std::vector<int>(10, 6000));
  EXPECT_EQ(border, 0);
}

TEST(FashionMnist, NamesThePackageThatIsMissing) {
  const TemporaryFolder folder;
  DatasetOptions options;
  options.datasets_folder = folder.path();
  EXPECT_THAT(open_error("fashion-mnist", 32, options),
              HasSubstr("apt-get install dataset-fashion-mnist"));
}

}  // namespace
}  // namespace mutilde
