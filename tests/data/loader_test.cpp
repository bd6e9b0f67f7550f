#include "data/loader.h"

#include <atomic>
#include <chrono>
#include <numeric>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/image_io.h"
#include "data/threads.h"
#include "files.h"

namespace mutilde {
namespace {

/// Images of 2 x 2 whose pixels tell the image and the place: index * 4 + 0, 1, 2, 3. Class: index.
class Counting final : public Dataset {
 public:
  explicit Counting(int64_t size, int64_t bad_index = -1)
      : Dataset(2, 1, iota(size), {}), bad_index_(bad_index) {}

  mutable std::atomic<int64_t> decoded = 0;

 private:
  static std::vector<int64_t> iota(int64_t size) {
    std::vector<int64_t> labels;
    for (int64_t i = 0; i < size; ++i) labels.push_back(i);
    return labels;
  }
  void decode(int64_t index, uint8_t* pixels) const override {
    if (index == bad_index_) fail<FileError>("image {} is bad", index);
    for (int i = 0; i < 4; ++i) pixels[i] = static_cast<uint8_t>(4 * index + i);
    ++decoded;
  }
  bool decodes_fast() const override { return bad_index_ < 0; }

  int64_t bad_index_;
};

LoaderOptions options(int64_t batch_size, uint64_t seed = 0, int64_t start_step = 0) {
  LoaderOptions options;
  options.batch_size = batch_size;
  options.seed = seed;
  options.start_step = start_step;
  return options;
}

std::vector<int64_t> labels(BatchLoader& loader, int64_t batches) {
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < batches; ++i) {
    for (const int64_t y : loader.next().y.to_vector<int64_t>()) labels.push_back(y);
  }
  return labels;
}

TEST(BatchLoader, GivesPixelsFromMinusOneToOneBesideTheirClasses) {
  const Counting dataset(64);
  BatchLoader loader(dataset, options(5));
  for (int step = 0; step < 20; ++step) {
    const Batch batch = loader.next();
    ASSERT_EQ(batch.x.shape(), (Shape{5, 2, 2, 1}));
    ASSERT_EQ(batch.y.shape(), (Shape{5}));
    const std::vector<float> x = batch.x.to_vector<float>();
    const std::vector<int64_t> y = batch.y.to_vector<int64_t>();
    for (size_t i = 0; i < 5; ++i) {
      for (size_t p = 0; p < 4; ++p) {
        const auto level = static_cast<float>(4 * y[i] + static_cast<int64_t>(p));
        EXPECT_FLOAT_EQ(x[4 * i + p], level / 127.5F - 1.0F);
      }
    }
  }
}

TEST(BatchLoader, GivesEachImageOnceAnEpochInAnOrderOfItsOwn) {
  const Counting dataset(60);
  BatchLoader loader(dataset, options(12));
  std::set<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 4; ++epoch) {
    const std::vector<int64_t> order = labels(loader, 5);
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 60u);
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 4u);
}

TEST(BatchLoader, WrapsOverEpochsWhereABatchIsLargerThanTheDataset) {
  const Counting dataset(3);
  BatchLoader loader(dataset, options(7));
  const std::vector<int64_t> all = labels(loader, 3);  // 7 epochs
  for (size_t epoch = 0; epoch < 7; ++epoch) {
    const auto begin = all.begin() + static_cast<int64_t>(3 * epoch);
    EXPECT_EQ(std::set<int64_t>(begin, begin + 3).size(), 3u);
  }
  const Counting single(1);
  BatchLoader one(single, options(4));
  EXPECT_EQ(labels(one, 1), std::vector<int64_t>(4, 0));
}

TEST(BatchLoader, DependsOnTheSeedAlone) {
  const Counting dataset(60);
  LoaderOptions slow = options(8, 1);
  slow.prefetch = 1;
  LoaderOptions fast = options(8, 1);
  fast.prefetch = 9;
  BatchLoader a(dataset, slow), b(dataset, fast), c(dataset, options(8, 2));
  const std::vector<int64_t> from_a = labels(a, 20);
  EXPECT_EQ(from_a, labels(b, 20));
  EXPECT_NE(from_a, labels(c, 20));
}

TEST(BatchLoader, ResumesBitForBitAtAnyStep) {
  const Counting dataset(50);
  LoaderOptions from_start = options(8, 5);
  from_start.random_flip = true;
  BatchLoader whole(dataset, from_start);
  std::vector<std::vector<float>> expected;
  for (int step = 0; step < 40; ++step) expected.push_back(whole.next().x.to_vector<float>());
  for (const int64_t step : {39, 0, 6, 7, 20, 13}) {
    LoaderOptions later = from_start;
    later.start_step = step;
    BatchLoader resumed(dataset, later);
    EXPECT_EQ(resumed.next().x.to_vector<float>(), expected[static_cast<size_t>(step)]) << step;
  }
}

TEST(BatchLoader, FlipsHalfOfTheImagesLeftToRight) {
  const Counting dataset(60);
  LoaderOptions flipping = options(100, 3);
  flipping.random_flip = true;
  BatchLoader loader(dataset, flipping), plain(dataset, options(100, 3));
  int flipped = 0;
  for (int step = 0; step < 10; ++step) {
    const std::vector<float> x = loader.next().x.to_vector<float>();
    const std::vector<float> y = plain.next().x.to_vector<float>();
    for (size_t i = 0; i < 400; i += 4) {
      const bool is_flipped = x[i] != y[i];
      flipped += is_flipped ? 1 : 0;
      for (size_t p = 0; p < 4; ++p) EXPECT_EQ(x[i + p], y[i + (is_flipped ? p ^ 1 : p)]);
    }
  }
  EXPECT_NEAR(flipped, 500, 80);  // five standard deviations of a fair coin: 5 sqrt(1000) / 2
}

/// One image, 3 x 3 RGB: bytes 0 to 26.
class Single final : public Dataset {
 public:
  Single() : Dataset(3, 3, {0}, {}) {}

 private:
  void decode(int64_t, uint8_t* pixels) const override {
    for (int i = 0; i < 27; ++i) pixels[i] = static_cast<uint8_t>(i);
  }
  bool decodes_fast() const override { return true; }
};

TEST(BatchLoader, KeepsTheChannelsOfAFlippedPixelInOrder) {
  const Single dataset;
  LoaderOptions flipping = options(32);
  flipping.random_flip = true;
  BatchLoader loader(dataset, flipping);
  const std::vector<uint8_t> bytes = to_uint8(loader.next().x).to_vector<uint8_t>();
  std::set<std::vector<uint8_t>> images;
  for (size_t i = 0; i < 32; ++i) {
    images.emplace(bytes.begin() + static_cast<ptrdiff_t>(27 * i),
                   bytes.begin() + static_cast<ptrdiff_t>(27 * (i + 1)));
  }
  std::vector<uint8_t> flipped;
  for (int row = 0; row < 3; ++row) {
    for (const int column : {2, 1, 0}) {
      for (int c = 0; c < 3; ++c) flipped.push_back(static_cast<uint8_t>(9 * row + 3 * column + c));
    }
  }
  std::vector<uint8_t> stored(27);
  std::iota(stored.begin(), stored.end(), uint8_t{0});
  EXPECT_EQ(images, (std::set<std::vector<uint8_t>>{stored, flipped}));
}

TEST(BatchLoader, MakesNoMoreBatchesThanItMayKeep) {
  const Counting dataset(60);
  LoaderOptions two_ahead = options(10);
  two_ahead.prefetch = 2;
  BatchLoader loader(dataset, two_ahead);
  loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LE(dataset.decoded, 10 * (1 + 2 + 1));  // given, ready, and one that waits for its place
}

TEST(BatchLoader, HandsOnWhatGoesWrongOnItsThread) {
  const Counting dataset(50, 17);
  BatchLoader loader(dataset, options(5));
  const std::string message = file_error([&] { labels(loader, 10); });
  EXPECT_EQ(message, "image 17 is bad");
  EXPECT_THROW(loader.next(), FileError);  // again each time
}

TEST(BatchLoader, RefusesWhatCannotBeBatched) {
  const Counting empty(0), dataset(3);
  EXPECT_THROW(BatchLoader(empty, options(1)), Error);
  EXPECT_THROW(BatchLoader(dataset, options(0)), Error);
  EXPECT_THROW(BatchLoader(dataset, options(1, 0, -1)), Error);
  LoaderOptions no_prefetch = options(1);
  no_prefetch.prefetch = 0;
  EXPECT_THROW(BatchLoader(dataset, no_prefetch), Error);
}

TEST(BatchLoader, StopsAtOnceWhateverItsThreadIsDoing) {
  const Counting dataset(60);
  for (int i = 0; i < 50; ++i) {
    BatchLoader loader(dataset, options(1 + i));
    if (i % 2 == 0) loader.next();
  }
}

TEST(BatchLoader, LoadsFilesOnDemand) {
  const TemporaryFolder folder;
  for (int i = 0; i < 12; ++i) {
    write_bytes(folder / fmt::format("c{}_x.png", i), encode_png(wave_image(9, 12, 3, i)));
  }
  DatasetOptions on_demand;
  on_demand.memory_limit = 0;
  const auto lazy = open_dataset(folder.path().string(), 6, on_demand);
  const auto eager = open_dataset(folder.path().string(), 6);
  ASSERT_FALSE(lazy->is_fast());
  BatchLoader a(*lazy, options(5)), b(*eager, options(5));
  for (int step = 0; step < 6; ++step) {
    EXPECT_EQ(a.next().x.to_vector<float>(), b.next().x.to_vector<float>());
  }
}

TEST(RunOnThreads, RunsEachTaskOnce) {
  std::vector<std::atomic<int>> runs(1000);
  run_on_threads(
      1000, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; }, 8);
  for (const auto& count : runs) EXPECT_EQ(count, 1);
  run_on_threads(0, [](int64_t) { FAIL(); });
}

TEST(RunOnThreads, ThrowsWhatATaskThrows) {
  EXPECT_THROW(run_on_threads(
                   100,
                   [](int64_t i) {
                     if (i >= 30) throw Error("stop");
                   },
                   4),
               Error);
  std::atomic<int> ran = 0;
  EXPECT_THROW(run_on_threads(
                   100'000,
                   [&](int64_t) {
                     ++ran;
                     throw Error("stop");
                   },
                   4),
               Error);
  EXPECT_LE(ran, 4);
}

}  // namespace
}  // namespace mutilde
