#include "core/tensor.h"

#include <cmath>
#include <cstdint>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/caching_allocator.h"
#include "core/ops/ops.h"

namespace mutilde {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class ErrorType, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

TEST(Shape, CountsElementsAndIndexesFromBothEnds) {
  const Shape shape{2, 3, 5};
  EXPECT_EQ(shape.numel(), 30);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 5);
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{4, 0, 2}).numel(), 0);
  EXPECT_EQ(shape.to_string(), "[2,3,5]");
}

TEST(Shape, RefusesNegativeSizesTooManyAxesAndMissingAxes) {
  EXPECT_THAT(message_of<ShapeError>([] { Shape{2, -3}; }), HasSubstr("negative size -3"));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1}), ShapeError);
  EXPECT_THAT(message_of<ShapeError>([] { (Shape{2, 3})[2]; }), HasSubstr("axis 2"));
}

TEST(Shape, RefusesMoreElementsThanCanBeCounted) {
  constexpr int64_t kHuge = int64_t{1} << 32;
  EXPECT_THAT(message_of<ShapeError>([] {
                Shape{kHuge, kHuge};
              }),
              HasSubstr("[4294967296,4294967296] has more elements"));
  EXPECT_THROW((Shape{0, kHuge, kHuge}), ShapeError);  // product(1, 3) would overflow
  EXPECT_THROW((Shape{3, kHuge}.with(0, kHuge)), ShapeError);
  EXPECT_THROW((Shape{3}.with(0, -1)), ShapeError);
  EXPECT_EQ((Shape{kHuge, kHuge / 2 - 1}).numel(), kHuge * (kHuge / 2 - 1));
}

TEST(Shape, BroadcastsAtTheLastAxis) {
  EXPECT_EQ(broadcast_shapes("add", {4, 1, 3}, {5, 1}), (Shape{4, 5, 3}));
  EXPECT_EQ(broadcast_shapes("add", {}, {2, 2}), (Shape{2, 2}));
  EXPECT_EQ(broadcast_shapes("add", {1, 3}, {0, 1}), (Shape{0, 3}));
  EXPECT_THAT(message_of<ShapeError>([] {
                broadcast_shapes("add", {2, 3}, {2, 4});
              }),
              HasSubstr("add: shapes [2,3] and [2,4]"));
}

TEST(Tensor, SharesStorageThroughHandlesReshapeAndSlice) {
  const Tensor x = Tensor::from<float>({3, 2}, {0, 1, 2, 3, 4, 5});
  const Tensor rows = x.slice(1, 3);
  const Tensor flat = x.reshape({6});
  flat.data<float>()[2] = 20;
  EXPECT_THAT(rows.to_vector<float>(), ElementsAre(20, 3, 4, 5));
  EXPECT_EQ(rows.shape(), (Shape{2, 2}));
}

TEST(Tensor, CloneAndDetachDiffer) {
  const Tensor x = Tensor::from<double>({2}, {1, 2});
  const Tensor copy = x.clone();
  const Tensor alias = x.detach();
  x.data<double>()[0] = 7;
  EXPECT_THAT(copy.to_vector<double>(), ElementsAre(1, 2));
  EXPECT_THAT(alias.to_vector<double>(), ElementsAre(7, 2));
}

TEST(Tensor, NamesWhatWasGivenAndExpected) {
  EXPECT_THAT(message_of<ShapeError>([] {
                Tensor::from<float>({2, 2}, {1, 2, 3});
              }),
              HasSubstr("3 values given, shape [2,2] has 4"));
  EXPECT_THAT(message_of<DTypeError>([] { Tensor::zeros({1}).data<double>(); }),
              HasSubstr("float64 asked, the tensor holds float32"));
  EXPECT_THAT(message_of<ShapeError>([] { Tensor::zeros({2}).item(); }), HasSubstr("[2]"));
  EXPECT_THAT(message_of<Error>([] { Tensor::zeros({1}, DType::kFloat32, Device::cuda(3)); }),
              HasSubstr("cuda:3"));
  EXPECT_THROW(Tensor::arange(3).set_requires_grad(true), DTypeError);
}

TEST(Tensor, ConvertsBetweenDtypes) {
  const Tensor x = Tensor::from<float>({3}, {-1.5F, 0.0F, 3.75F});
  EXPECT_THAT(x.to(DType::kFloat64).to_vector<double>(), ElementsAre(-1.5, 0.0, 3.75));
  EXPECT_THAT(x.to(DType::kInt32).to_vector<int32_t>(), ElementsAre(-1, 0, 3));
  EXPECT_THAT(x.to(DType::kBFloat16).to_vector<float>(), ElementsAre(-1.5F, 0.0F, 3.75F));
}

TEST(Tensor, RefusesSizesBeyondAllMemory) {
  EXPECT_THAT(message_of<ShapeError>([] { Tensor::empty({int64_t{1} << 61}, DType::kFloat64); }),
              HasSubstr("Tensor::empty: the bytes of float64 [2305843009213693952]"));
  EXPECT_THAT(message_of<OutOfMemoryError>([] { Tensor::empty({int64_t{1} << 61}); }),
              HasSubstr("out of memory"));
  EXPECT_THROW(Tensor::arange(-1), ShapeError);
  const Tensor x = Tensor::zeros({1, 4, 4, 2}), weight = Tensor::zeros({2, 3, 3, 2});
  constexpr int64_t kHuge = int64_t{1} << 62;
  EXPECT_THROW(upsample_nearest(x, kHuge), ShapeError);
  EXPECT_THROW(conv2d(x, weight, {}, 1, kHuge), ShapeError);
}

TEST(Tensor, ReadsElementsWithTheConversionOfTo) {
  const Tensor x = Tensor::from<float>({5}, {-3, 300, NAN, 254.9F, -INFINITY});
  EXPECT_THAT(x.to_vector<uint8_t>(), ElementsAre(0, 255, 0, 254, 0));
  EXPECT_EQ(x.to_vector<uint8_t>(), x.to(DType::kUInt8).to_vector<uint8_t>());
  EXPECT_THAT(x.to_vector<int32_t>(), ElementsAre(-3, 300, 0, 254, INT32_MIN));
  EXPECT_THROW(Tensor{}.to_vector<float>(), Error);
}

TEST(CachingAllocator, RefusesWhatNoAddressSpaceHolds) {
  CachingAllocator allocator([](size_t) -> void* { return nullptr; }, [](void*, size_t) {});
  for (const size_t bytes : {SIZE_MAX, SIZE_MAX / 2 + 1, SIZE_MAX / 2}) {
    EXPECT_THAT(message_of<OutOfMemoryError>([&] { allocator.allocate(bytes); }),
                HasSubstr(fmt::format("out of memory: {} bytes asked, 0 bytes live", bytes)));
  }
}

/// An allocator on malloc that counts what the system gave.
struct CountedAllocator {
  size_t system_calls = 0, held = 0;
  CachingAllocator allocator{[this](size_t bytes) {
                               ++system_calls;
                               held += bytes;
                               return std::malloc(bytes);
                             },
                             [this](void* data, size_t bytes) {
                               held -= bytes;
                               std::free(data);
                             }};
};

TEST(CachingAllocator, HandsAFreedBlockOutAgainAndCountsBytes) {
  CountedAllocator counted;
  CachingAllocator& allocator = counted.allocator;
  void* first = allocator.allocate(100);
  EXPECT_EQ(allocator.stats().live_bytes, 128);  // whole cache lines
  allocator.release(first, 100);
  EXPECT_EQ(allocator.stats().live_bytes, 0);
  EXPECT_EQ(allocator.stats().cached_bytes, static_cast<int64_t>(counted.held));
  EXPECT_EQ(allocator.allocate(120), first);
  EXPECT_EQ(counted.system_calls, 1U);
  allocator.release(first, 120);
  allocator.release_cached();
  EXPECT_EQ(allocator.stats().cached_bytes, 0);
  EXPECT_EQ(allocator.stats().peak_bytes, 128);
  EXPECT_EQ(counted.held, 0U);
}

TEST(CachingAllocator, FreedNeighboursGrowTogetherAndServeAnotherSize) {
  for (const size_t unit : {size_t{64}, size_t{1} << 20}) {  // small blocks, large blocks
    CountedAllocator counted;
    CachingAllocator& allocator = counted.allocator;
    char* a = static_cast<char*>(allocator.allocate(3 * unit));
    char* b = static_cast<char*>(allocator.allocate(2 * unit));
    char* c = static_cast<char*>(allocator.allocate(4 * unit));
    EXPECT_EQ(b, a + 3 * unit);
    EXPECT_EQ(c, b + 2 * unit);
    allocator.release(a, 3 * unit);
    allocator.release(c, 4 * unit);
    EXPECT_EQ(allocator.allocate(3 * unit), a);  // the smallest that holds it, not the rest
    allocator.release(a, 3 * unit);
    allocator.release(b, 2 * unit);
    EXPECT_EQ(allocator.allocate(9 * unit), a);
    EXPECT_EQ(counted.system_calls, 1U);
    allocator.release(a, 9 * unit);
  }
}

TEST(CachingAllocator, BlocksNeverOverlapAndAllMemoryGoesBack) {
  CountedAllocator counted;
  std::map<char*, size_t> live;  // as the allocator gave them
  uint32_t state = 7;
  const auto random = [&] { return (state = state * 1664525 + 1013904223) >> 8; };
  size_t live_bytes = 0;
  for (int i = 0; i < 20000; ++i) {
    if (live.empty() || random() % 5 < 3) {
      // From a few bytes to more than a segment.
      const size_t bytes = 1 + random() % (size_t{1} << (4 + random() % 23));
      char* data = static_cast<char*>(counted.allocator.allocate(bytes));
      const auto next = live.lower_bound(data);
      if (next != live.end()) {
        ASSERT_LE(data + bytes, next->first);
      }
      if (next != live.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second, data);
      }
      live[data] = bytes;
      live_bytes += (bytes + 63) / 64 * 64;
    } else {
      auto gone = live.begin();
      std::advance(gone, random() % live.size());
      live_bytes -= (gone->second + 63) / 64 * 64;
      counted.allocator.release(gone->first, gone->second);
      live.erase(gone);
    }
    if (live.size() > 60) {
      for (const auto& [data, bytes] : live) counted.allocator.release(data, bytes);
      live.clear();
      live_bytes = 0;
    }
    ASSERT_EQ(counted.allocator.stats().live_bytes, static_cast<int64_t>(live_bytes));
    ASSERT_EQ(counted.allocator.stats().live_bytes + counted.allocator.stats().cached_bytes,
              static_cast<int64_t>(counted.held));
  }
  for (const auto& [data, bytes] : live) counted.allocator.release(data, bytes);
  counted.allocator.release_cached();
  EXPECT_EQ(counted.held, 0U);
}

TEST(CachingAllocator, FreesItsCacheBeforeItGivesUp) {
  size_t left = 1024;
  CachingAllocator allocator(
      [&](size_t bytes) -> void* {
        if (bytes > left) return nullptr;
        left -= bytes;
        return std::malloc(bytes);
      },
      [&](void* data, size_t bytes) {
        left += bytes;
        std::free(data);
      });
  allocator.release(allocator.allocate(640), 640);
  void* block = allocator.allocate(1024);  // fits only once the cached 640 bytes are gone
  ASSERT_NE(block, nullptr);
  EXPECT_THAT(message_of<Error>([&] { allocator.allocate(64); }),
              HasSubstr("64 bytes asked, 1024 bytes live"));
  allocator.release(block, 1024);
}

TEST(Memory, BuffersOfAFinishedGraphServeTheNextOne) {
  Backend& cpu = backend(Device::cpu());
  const auto step = [] {
    Tensor x = Tensor::full({64, 64}, 0.5);
    x.set_requires_grad(true);
    sum(silu(matmul(x, x)) * x).backward();
  };
  step();
  const int64_t live = cpu.memory_stats().live_bytes;
  const int64_t held = live + cpu.memory_stats().cached_bytes;
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(cpu.memory_stats().live_bytes, live);
  EXPECT_EQ(cpu.memory_stats().live_bytes + cpu.memory_stats().cached_bytes, held);
}

}  // namespace
}  // namespace mutilde
